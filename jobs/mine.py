"""Cluster job: find hard negatives, as `rayembed mine` does.

ray job submit --working-dir . -- python jobs/mine.py jobs/configs/mine.yaml
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from rayembed.cli.main import main

if __name__ == "__main__":
    main("mine")
