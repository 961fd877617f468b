"""Cluster job: embed the texts of files, as `rayembed embed` does.

ray job submit --working-dir . -- python jobs/embed.py FILES --checkpoint FOLDER --output FOLDER
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from rayembed.cli.main import main

if __name__ == "__main__":
    main("embed")
