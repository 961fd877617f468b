"""Cluster job: make a checkpoint smaller in many ways, as `rayembed compress` does.

ray job submit --working-dir . -- python jobs/compress.py jobs/configs/compress.yaml
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from rayembed.cli.main import main

if __name__ == "__main__":
    main("compress")
