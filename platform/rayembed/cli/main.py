"""The command `rayembed`: its verbs in the order of the work, and how a mistake of the user is shown."""

import os
import sys
from collections.abc import Callable
from inspect import getdoc
from typing import Any

import typer

from rayembed import __version__
from rayembed.cli.ablate import ablate
from rayembed.cli.compress import compress
from rayembed.cli.data import app as data
from rayembed.cli.embed import embed
from rayembed.cli.evaluate import evaluate
from rayembed.cli.merge import merge
from rayembed.cli.mine import mine
from rayembed.cli.mining_rounds import mining_rounds
from rayembed.cli.mirror import app as mirror
from rayembed.cli.models import base_model, export_checkpoint, import_checkpoint
from rayembed.cli.quickstart import quickstart
from rayembed.cli.runs import compare, runs
from rayembed.cli.serve import serve
from rayembed.cli.synthesize import synthesize
from rayembed.cli.train import train
from rayembed.common import logs
from rayembed.common.errors import UserError


def version() -> None:
    """Print the version."""
    typer.echo(__version__)


VERBS: dict[str, dict[str, Callable[..., Any] | typer.Typer]] = {
    "Start": {"quickstart": quickstart},
    "Data": {"data": data, "mine": mine, "synthesize": synthesize},
    "Training": {
        "base-model": base_model,
        "train": train,
        "merge": merge,
        "mining-rounds": mining_rounds,
        "ablate": ablate,
    },
    "Evaluation": {"mirror": mirror, "evaluate": evaluate, "runs": runs, "compare": compare},
    "Compression": {"compress": compress},
    "Use": {
        "embed": embed,
        "serve": serve,
        "import-checkpoint": import_checkpoint,
        "export-checkpoint": export_checkpoint,
        "version": version,
    },
}


class _InOrder(typer.core.TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return [name for panel in VERBS.values() for name in panel]


app = typer.Typer(
    cls=_InOrder,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train, evaluate and serve text embedding models.",
)
for _panel, _verbs in VERBS.items():
    for _name, _verb in _verbs.items():
        if isinstance(_verb, typer.Typer):
            app.add_typer(_verb, name=_name, rich_help_panel=_panel)
        else:  # the options explain themselves; the rest of a docstring is for callers in Python
            _summary = (getdoc(_verb) or "").partition("\n\nArgs:")[0]
            app.command(_name, help=_summary, rich_help_panel=_panel)(_verb)


def main(*verb: str) -> None:
    """Run `rayembed` on the process's arguments, behind `verb` if one is given.

    A mistake of the user is shown as one line, with exit code 2.
    """
    # Hugging Face libraries read it when they are imported; their bars would fill a job's log.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logs.configure()
    try:
        app([*verb, *sys.argv[1:]], prog_name="rayembed")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
