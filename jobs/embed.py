"""Cluster job: embed the texts of files.

ray job submit --working-dir . -- python jobs/embed.py FILES --checkpoint FOLDER --output FOLDER
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from rayembed.cli.embed import embed
from rayembed.cli.entry import run_command

if __name__ == "__main__":
    run_command(embed)
