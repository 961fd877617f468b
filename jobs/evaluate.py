"""Cluster job: score a checkpoint beside its baselines.

ray job submit --working-dir . -- python jobs/evaluate.py --checkpoint FOLDER --output FOLDER --bm25
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from rayembed.cli.entry import run_command
from rayembed.cli.evaluate import evaluate

if __name__ == "__main__":
    run_command(evaluate)
