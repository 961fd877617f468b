"""The command `rayembed evaluate`."""

from typing import Annotated

import typer

from rayembed.errors import UserError

_QUICKSTART = "rayembed-quickstart"


def evaluate(
    checkpoint: Annotated[str, typer.Option(help="Checkpoint folder to score.")],
    output: Annotated[str, typer.Option(help="Folder of the results; finished ones in it are reused.")],
    baseline: Annotated[
        str | None, typer.Option(help="LABEL=FOLDER of a checkpoint to compare with.")
    ] = None,
    bm25: Annotated[bool, typer.Option(help="Also score BM25 on the retrieval tasks.")] = False,
    benchmark: Annotated[str, typer.Option(help="Name of a list of tasks.")] = _QUICKSTART,
    tasks: Annotated[str | None, typer.Option(help="Task names to run instead, separated by commas.")] = None,
    actors: Annotated[
        int | None,
        typer.Option(min=0, help="Ray actors; default one per GPU or CPU, 0 runs in this process."),
    ] = None,
    data_dir: Annotated[str, typer.Option(help="Folder of the built sources.")] = "data",
) -> None:
    """Score a checkpoint on mteb tasks beside its baselines and print one table."""
    from rayembed.evaluation.runner import run  # mteb takes seconds to import; other commands do without

    run(
        checkpoint,
        output=output,
        data_dir=data_dir,
        baseline=_labelled(baseline) if baseline else None,
        with_bm25=bm25,
        benchmark=benchmark,
        tasks=[name.strip() for name in tasks.split(",") if name.strip()] if tasks is not None else None,
        actors=actors,
    )


def _labelled(baseline: str) -> tuple[str, str]:
    label, separator, folder = baseline.partition("=")
    if not (label and separator and folder):
        raise UserError(f"--baseline {baseline!r} is not LABEL=FOLDER; write for example untrained=runs/base")
    return label, folder
