"""Cluster job: score a checkpoint and its baselines, as `rayembed evaluate` does.

ray job submit --working-dir . -- python jobs/evaluate.py --checkpoint FOLDER --output FOLDER --bm25
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from rayembed.cli.main import main

if __name__ == "__main__":
    main("evaluate")
