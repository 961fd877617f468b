"""Cluster job: find hard negatives.

ray job submit --working-dir . -- python jobs/mine.py --config jobs/configs/mine.yaml
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from rayembed.cli.mine import main

if __name__ == "__main__":
    main()
