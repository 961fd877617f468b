"""`rayembed quickstart`: the whole way of a small model on this machine."""

from pathlib import Path
from typing import Annotated

import typer

PLAN = """\
The quickstart needs two CPU cores and no GPU. It will
  train     a small embedding model on public data (about {minutes} min)
  evaluate  it next to BM25 and the untrained model on 9 tasks (2 min)
  serve     it on http://127.0.0.1:{port} and ask it four questions (1 min)
  report    curves, scores and sample searches in one HTML file (1 min).
Stop it with Ctrl-C; run it again and it continues.
"""
TRAINING_MINUTES = 5  # on two idle cores


def quickstart(port: Annotated[int, typer.Option(help="TCP port of the endpoint.")] = 8000) -> Path:
    """Train, evaluate, deploy and query a small model on real data.

    If it is interrupted, run it again to continue.

    Args:
        port: TCP port of the endpoint on loopback.

    Returns:
        The report, an HTML file.

    Raises:
        UserError: the port is taken, a package cannot be fetched, or a phase failed.
    """
    print(PLAN.format(minutes=TRAINING_MINUTES, port=port), flush=True)
    from rayembed.quickstart.run import run_quickstart  # heavy libraries; --help does without

    return run_quickstart(port=port)
