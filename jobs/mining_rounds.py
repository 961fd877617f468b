"""Cluster job: train and mine in turns, as `rayembed mining-rounds` does.

ray job submit --working-dir . -- python jobs/mining_rounds.py --train RECIPE --mine RECIPE --rounds 2
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from rayembed.cli.main import main

if __name__ == "__main__":
    main("mining-rounds")
