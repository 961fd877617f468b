"""`rayembed quickstart`: the whole way of a small model on this machine."""

from pathlib import Path
from typing import Annotated

import typer


def quickstart(port: Annotated[int, typer.Option(help="TCP port of the endpoint.")] = 8000) -> Path:
    """Train, evaluate, deploy and query a small model on real data; continues an interrupted run.

    Args:
        port: TCP port of the endpoint on loopback.

    Returns:
        The report, an HTML file.

    Raises:
        UserError: the port is taken, a package cannot be fetched, or a phase failed.
    """
    from rayembed.quickstart.run import run_quickstart  # heavy libraries; --help does without

    return run_quickstart(port=port)
