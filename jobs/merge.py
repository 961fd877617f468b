"""Cluster job: merge checkpoints of one backbone, as `rayembed merge` does.

ray job submit --working-dir . -- python jobs/merge.py runs/a/model runs/b/model --output models/soup
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from rayembed.cli.main import main

if __name__ == "__main__":
    main("merge")
