"""Cluster job: serve a checkpoint until it is stopped, as `rayembed serve` does.

ray job submit --working-dir . -- python jobs/serve.py FOLDER
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from rayembed.cli.main import main

if __name__ == "__main__":
    main("serve")
