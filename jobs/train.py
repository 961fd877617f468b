"""Cluster job: train a recipe, as `rayembed train` does.

ray job submit --working-dir . -- python jobs/train.py jobs/configs/quickstart.yaml
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from rayembed.cli.main import main

if __name__ == "__main__":
    main("train")
