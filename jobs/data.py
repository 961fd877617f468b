"""Cluster job: list, check, build and describe data sources, by the same commands as `rayembed data`.

ray job submit --working-dir . -- python jobs/data.py build my-questions --config recipe.yaml
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from rayembed.cli.data import app
from rayembed.cli.entry import run_command

if __name__ == "__main__":
    run_command(app)
