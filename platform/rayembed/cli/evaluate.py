"""`rayembed evaluate`: score, compare, and leave a page for each model."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from rayembed.cli.options import FilePath, Names, names_of
from rayembed.common.errors import UserError
from rayembed.common.settings import Precision

_QUICKSTART = "rayembed-quickstart"


def evaluate(
    checkpoint: Annotated[FilePath | None, typer.Option(help="Checkpoint folder to score.")] = None,
    output: Annotated[
        FilePath, typer.Option(help="Folder of the results; finished ones in it are reused.")
    ] = Path("results"),
    endpoint: Annotated[
        str | None, typer.Option(help="MODEL@URL of an OpenAI-compatible service to score instead.")
    ] = None,
    name: Annotated[str, typer.Option(help="Label of the model and name of its folder.")] = "trained",
    baseline: Annotated[
        str | None, typer.Option(help="LABEL=FOLDER of a checkpoint to compare with.")
    ] = None,
    bm25: Annotated[bool, typer.Option(help="Also score BM25 on the retrieval tasks.")] = False,
    benchmark: Annotated[
        str, typer.Option(help="Name with version, such as 'MTEB(eng, v1)'; `own` runs all of --task-file.")
    ] = _QUICKSTART,
    tasks: Annotated[
        Names | None, typer.Option(help="Tasks to run instead of a benchmark, separated by commas.")
    ] = None,
    task_file: Annotated[
        list[str] | None, typer.Option(help="YAML file that declares your own tasks; may be repeated.")
    ] = None,
    instructions: Annotated[
        str, typer.Option(help="Policy (auto, contract, mteb, paper, mteb-entry) or a YAML file.")
    ] = "auto",
    mirror: Annotated[FilePath | None, typer.Option(help="Folder written by `rayembed mirror make`.")] = None,
    actors: Annotated[
        int | None,
        typer.Option(min=0, help="Ray actors (default: one per GPU or CPU); 0 runs in this process."),
    ] = None,
    shard_tokens: Annotated[
        float, typer.Option(min=1, help="Text sets above this many tokens are encoded in shards.")
    ] = 2e6,
    keep_embeddings: Annotated[bool, typer.Option(help="Keep the vectors of finished tasks.")] = False,
    vectors: Annotated[
        Names | None,
        typer.Option(
            help="Also score smaller vectors, such as 128-float32,int8,128-binary, and say what each costs."
        ),
    ] = None,
    data_dir: Annotated[FilePath, typer.Option(help="Folder of the built sources.")] = Path("data"),
    precision: Annotated[
        Precision, typer.Option(help="Number format; with fp32, scores do not depend on how work is divided.")
    ] = "auto",
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(help="Compare two folders of results and stop."),
    ] = None,
    list_names: Annotated[bool, typer.Option("--list", help="Print the known benchmarks and stop.")] = False,
) -> dict[str, dict[str, Any]]:
    """Score a checkpoint or an endpoint on mteb tasks and print one table.

    If it is interrupted, run it again to continue.

    Args:
        checkpoint: checkpoint folder to score.
        output: folder of the results; finished ones in it are reused.
        endpoint: `MODEL@URL` of an OpenAI-compatible service to score instead.
        name: label of the model, and its folder in `output`.
        baseline: `LABEL=FOLDER` of a checkpoint to compare with.
        bm25: also score BM25 on the retrieval tasks.
        benchmark: benchmark with version; `own` runs all tasks of `task_file`.
        tasks: names of tasks to run instead of a benchmark.
        task_file: YAML files that declare own tasks.
        instructions: auto, contract, mteb, paper, mteb-entry, or a YAML file.
        mirror: folder of `rayembed mirror make`.
        actors: Ray actors; None takes one per GPU or CPU, 0 runs in this process.
        shard_tokens: text sets above this many tokens are encoded in shards.
        keep_embeddings: keep the vectors of finished tasks.
        vectors: forms of smaller vectors that the checkpoint is scored with too, such as 128-int8 or binary.
        data_dir: folder of the built sources.
        precision: number format; with fp32, scores do not depend on how work is divided.
        compare: two folders of results; print how they differ and stop.
        list_names: print the known benchmarks and stop.

    Returns:
        Task -> {"metric", "base", "bm25", "trained"}; with `vectors`, form -> its score, bytes and more;
        nothing where nothing was scored.

    Raises:
        UserError: unknown task or benchmark, unreadable checkpoint or data.
        RuntimeError: a task failed; results of the others are stored.

    Example:
        rayembed.evaluate("runs/quickstart/model", tasks=["DocstringRetrieval"], bm25=True)
    """
    # mteb takes seconds to import; other commands do without.
    if list_names:
        from rayembed.evaluation.catalogue import benchmark_names

        typer.echo("\n".join(benchmark_names()))
        return {}
    if compare is not None:
        from rayembed.common.paths import resolve
        from rayembed.evaluation.comparison import compare as compare_records
        from rayembed.evaluation.comparison import format_comparison
        from rayembed.evaluation.results import read_record

        typer.echo(format_comparison(compare_records(*(read_record(resolve(folder)) for folder in compare))))
        return {}
    from rayembed.evaluation.run import run
    from rayembed.evaluation.scores import format_table

    options: dict[str, Any] = {
        "data_dir": data_dir,
        "benchmark": benchmark,
        "tasks": names_of(tasks) if tasks is not None else None,
        "task_files": task_file or (),
        "mirror": mirror,
        "instructions": instructions,
        "actors": actors,
        "shard_tokens": shard_tokens,
        "keep_embeddings": keep_embeddings,
        "precision": precision,
    }
    if vectors is not None:
        if checkpoint is None or endpoint or baseline or bm25:
            raise UserError("--vectors scores smaller vectors of a --checkpoint alone; leave out the others")
        return _forms(checkpoint, names_of(vectors), output, name, options)
    scores = run(
        checkpoint,
        output=output,
        baseline=_labelled(baseline) if baseline else None,
        with_bm25=bm25,
        endpoint=_endpoint(endpoint) if endpoint else None,
        name=name,
        **options,
    )
    typer.echo(format_table(scores))
    _report(output, [name, *([_labelled(baseline)[0]] if baseline else [])])
    return scores


def _forms(
    checkpoint: FilePath, forms: Sequence[str], output: FilePath, name: str, options: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Score smaller vectors; returns form -> its row."""
    from rayembed.common.paths import location_of, resolve
    from rayembed.compression.vectors import score_vectors
    from rayembed.engine.vector_formats import VectorForm
    from rayembed.evaluation.run import run
    from rayembed.reports.compression import vectors_table, write_vectors_page

    named = [VectorForm.named(form) for form in forms]
    score = partial(run, **options)
    rows = score_vectors(checkpoint, named, output, score, name=name, keep=options["keep_embeddings"])
    page = write_vectors_page(name, rows, resolve(output))
    typer.echo(f"{vectors_table(rows)}\nreport: {location_of(page)}")
    return {row["vectors"]: row for row in rows}


def _report(output: FilePath, labels: list[str]) -> None:
    from rayembed.common.paths import location_of, resolve
    from rayembed.evaluation.results import read_record
    from rayembed.reports.evaluation import write_evaluation_report

    records = [read_record(resolve(output) / label) for label in labels]
    for record in records:
        others = [other for other in records if other is not record]
        page = write_evaluation_report(record, resolve(output) / record.label, others)
        typer.echo(f"report: {location_of(page)}")


def _labelled(baseline: str) -> tuple[str, str]:
    label, separator, folder = baseline.partition("=")
    if not (label and separator and folder):
        raise UserError(f"--baseline {baseline!r} is not LABEL=FOLDER; write for example untrained=runs/base")
    return label, folder


def _endpoint(value: str) -> Any:
    from rayembed.evaluation.endpoint import Endpoint

    model, separator, url = value.rpartition("@")
    if not (model and separator and url.startswith("http")):
        raise UserError(
            f"--endpoint {value!r} is not MODEL@URL; write for example nv-embed@http://127.0.0.1:8000/v1"
        )
    return Endpoint(url, model)
