"""`rayembed embed`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rayembed.cli.options import FilePath
from rayembed.common.paths import location_of, resolve
from rayembed.common.settings import Precision
from rayembed.contract.instructions import Side
from rayembed.engine.bulk.rows import BadRows
from rayembed.engine.vector_formats import Quantisation


def embed(
    files: Annotated[
        str, typer.Argument(help="Parquet or JSON-lines file, a folder or a quoted glob of them.")
    ],
    checkpoint: Annotated[FilePath, typer.Option(help="Checkpoint folder.")],
    output: Annotated[FilePath, typer.Option(help="Folder of the vectors; a stopped job is continued.")],
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    keep: Annotated[
        list[str] | None, typer.Option(help="Column to copy next to the vectors; may be repeated.")
    ] = None,
    instruction: Annotated[
        str | None,
        typer.Option(help="What the texts are for, as a sentence (default: none)."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Name of an instruction that the model was trained with.")
    ] = None,
    side: Annotated[Side, typer.Option(help="Side of the task that the texts are on.")] = "query",
    dimensions: Annotated[
        int | None, typer.Option(min=1, help="Cut the vectors to this width (default: full width).")
    ] = None,
    vectors: Annotated[Quantisation, typer.Option(help="Number format of the vectors.")] = "float32",
    bad_rows: Annotated[
        BadRows,
        typer.Option(help="What to do with a row without a usable text."),
    ] = "error",
    shard_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Rows per output file (default: 1,024 to 8,192, by the size of the input)."),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Number format of the computation.")] = "auto",
    actors: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Parallel engines (default: one per GPU, else one per CPU); 0 runs in this process.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Remove an earlier output first.")] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Check checkpoint and input, show what would be done, and stop.")
    ] = False,
) -> dict[str, Any]:
    """Embed the texts of files of any size.

    If it is interrupted, run it again to continue.

    Args:
        files: Parquet or JSON-lines file, a folder or a glob of them.
        checkpoint: checkpoint folder.
        output: folder of the vectors; a stopped job in it is continued.
        text_column: column of the texts.
        keep: columns to copy next to the vectors.
        instruction: what the texts are for, as a sentence; None for documents.
        task: name of an instruction that the model was trained with.
        side: whether the texts are queries or documents of the task.
        dimensions: cut the vectors to this width and renormalise; None keeps the full width.
        vectors: number format of the vectors.
        bad_rows: a row without a usable text: stop, leave it out, or give it a null vector.
        shard_rows: rows of a shard; None takes 1,024 to 8,192, by the size of the input.
        precision: number format of the computation.
        actors: parallel engines; None takes one per GPU, else one per CPU; 0 runs in this process.
        overwrite: remove an earlier output first.
        dry_run: show what would be done; check checkpoint and input, write nothing.

    Returns:
        The manifest of the output: settings, input files, shards, statistics.

    Raises:
        UserError: a file, row or setting that cannot be used, or an output of other settings.

    Example:
        rayembed.embed("texts/*.parquet", "runs/quickstart/model", "vectors", keep=["id"])
    """
    from rayembed.engine.bulk.job import VECTORS_FOLDER, embed_files  # heavy libraries; --help does without
    from rayembed.engine.bulk.request import EmbedRequest

    request = EmbedRequest(
        files=files,
        checkpoint=Path(checkpoint),
        output=Path(output),
        text_column=text_column,
        keep=tuple(keep or ()),
        instruction=instruction,
        task=task,
        side=side,
        dimensions=dimensions,
        vectors=vectors,
        bad_rows=bad_rows,
        shard_rows=shard_rows,
        precision=precision,
    )
    manifest = embed_files(request, actors=actors, overwrite=overwrite, dry_run=dry_run)
    if dry_run:
        _show_plan(manifest)
        return manifest
    statistics = manifest["statistics"]
    counts = "{vectors} vectors of {tokens} tokens, {truncated} texts cut to the longest length"
    typer.echo(counts.format(**statistics))
    for reason, count in statistics["bad_rows"].items():
        typer.echo(f"{count} rows: {reason}")
    typer.echo(f"vectors: {location_of(resolve(output) / VECTORS_FOLDER)}")
    return manifest


def _show_plan(manifest: dict[str, Any]) -> None:
    rows = sum(file["rows"] for file in manifest["input"])
    facts = manifest["settings"] | {
        "files": len(manifest["input"]),
        "rows": rows,
        "shards": f"{manifest['shards']}, {manifest['finished_shards']} of them finished",
        "size": f"{rows * manifest['bytes_per_vector'] / 2**20:.1f} MiB of vectors",
    }
    for name, value in facts.items():
        typer.echo(f"{name:12} {value}")
