"""The quickstart on this machine: `make quickstart`."""

import sys
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

import typer

from rayembed.cli.entry import run_command


def quickstart(port: Annotated[int, typer.Option(help="TCP port of the endpoint")] = 8000) -> None:
    """Train, evaluate, deploy and query a small model on real data; continues an interrupted run."""
    from rayembed.quickstart.run import run_quickstart  # heavy imports; --help does without

    run_quickstart(port=port)


if __name__ == "__main__":
    run_command(quickstart)
