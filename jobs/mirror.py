"""Cluster job: keep the data of mteb's tasks in a folder, as `rayembed mirror` does.

ray job submit --working-dir . -- python jobs/mirror.py make FOLDER --benchmark 'MTEB(eng, v1)'
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from rayembed.cli.main import main

if __name__ == "__main__":
    main("mirror")
