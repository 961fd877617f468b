"""Cluster job: list, check, build and describe data sources, as `rayembed data` does.

ray job submit --working-dir . -- python jobs/data.py build my-questions --config recipe.yaml
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from rayembed.cli.main import main

if __name__ == "__main__":
    main("data")
