"""Cluster job: train and score the cells of a grid, as `rayembed ablate` does.

ray job submit --working-dir . -- python jobs/ablate.py jobs/configs/ablation-paper.yaml
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from rayembed.cli.main import main

if __name__ == "__main__":
    main("ablate")
