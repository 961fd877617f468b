"""The command `rayembed evaluate`: score, compare, and leave a page for each model."""

from typing import Annotated, Any

import typer

from rayembed.cli.mirror import task_names
from rayembed.common.errors import UserError

_QUICKSTART = "rayembed-quickstart"


def evaluate(
    output: Annotated[
        str, typer.Option(help="Folder of the results; finished ones in it are reused.")
    ] = "results",
    checkpoint: Annotated[str | None, typer.Option(help="Checkpoint folder to score.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="MODEL@URL of an OpenAI-compatible service to score instead.")
    ] = None,
    name: Annotated[str, typer.Option(help="Label of the model: its folder of results.")] = "trained",
    baseline: Annotated[
        str | None, typer.Option(help="LABEL=FOLDER of a checkpoint to compare with.")
    ] = None,
    bm25: Annotated[bool, typer.Option(help="Also score BM25 on the retrieval tasks.")] = False,
    benchmark: Annotated[
        str, typer.Option(help="Name with version, such as 'MTEB(eng, v1)'; `own` runs all of --task-file.")
    ] = _QUICKSTART,
    tasks: Annotated[str | None, typer.Option(help="Task names to run instead, separated by commas.")] = None,
    task_file: Annotated[list[str] | None, typer.Option(help="YAML file that declares own tasks.")] = None,
    instructions: Annotated[
        str, typer.Option(help="auto, contract, mteb, paper, mteb-entry, or a YAML file.")
    ] = "auto",
    mirror: Annotated[str | None, typer.Option(help="Folder of `rayembed mirror make`.")] = None,
    actors: Annotated[
        int | None,
        typer.Option(min=0, help="Ray actors; default one per GPU or CPU, 0 runs in this process."),
    ] = None,
    shard_tokens: Annotated[
        float, typer.Option(min=1, help="Text sets above this many tokens are encoded in shards.")
    ] = 2e6,
    keep_embeddings: Annotated[bool, typer.Option(help="Keep the vectors of finished tasks.")] = False,
    data_dir: Annotated[str, typer.Option(help="Folder of the built sources.")] = "data",
    precision: Annotated[
        str, typer.Option(help="auto, fp32 or bf16; with fp32 scores do not depend on how work is divided.")
    ] = "auto",
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(help="Two folders of results, such as results/a results/b, to compare."),
    ] = None,
    list_names: Annotated[bool, typer.Option("--list", help="Print the known benchmarks and stop.")] = False,
) -> None:
    """Score a checkpoint on mteb tasks beside its baselines and print one table."""
    # mteb takes seconds to import; other commands do without.
    if list_names:
        from rayembed.evaluation.catalogue import benchmark_names

        typer.echo("\n".join(benchmark_names()))
        return
    if compare is not None:
        from rayembed.common.paths import resolve
        from rayembed.evaluation.comparison import compare as compare_records
        from rayembed.evaluation.comparison import format_comparison
        from rayembed.evaluation.record import read_record

        typer.echo(format_comparison(compare_records(*(read_record(resolve(folder)) for folder in compare))))
        return
    from rayembed.evaluation.runner import run

    run(
        checkpoint,
        output=output,
        data_dir=data_dir,
        baseline=_labelled(baseline) if baseline else None,
        with_bm25=bm25,
        benchmark=benchmark,
        tasks=task_names(tasks) if tasks is not None else None,
        task_files=task_file or (),
        mirror=mirror,
        instructions=instructions,
        endpoint=_endpoint(endpoint) if endpoint else None,
        name=name,
        actors=actors,
        shard_tokens=shard_tokens,
        keep_embeddings=keep_embeddings,
        precision=_precision(precision),
    )
    _report(output, [name, *([_labelled(baseline)[0]] if baseline else [])])


def _report(output: str, labels: list[str]) -> None:
    from rayembed.common.paths import resolve
    from rayembed.evaluation.record import read_record
    from rayembed.reports.evaluation import write_evaluation_report

    records = [read_record(resolve(output) / label) for label in labels]
    for record in records:
        others = [other for other in records if other is not record]
        page = write_evaluation_report(record, resolve(output) / record.label, others)
        typer.echo(f"report: {page}")


def _labelled(baseline: str) -> tuple[str, str]:
    label, separator, folder = baseline.partition("=")
    if not (label and separator and folder):
        raise UserError(f"--baseline {baseline!r} is not LABEL=FOLDER; write for example untrained=runs/base")
    return label, folder


def _endpoint(value: str) -> Any:
    from rayembed.evaluation.store import Endpoint

    model, separator, url = value.rpartition("@")
    if not (model and separator and url.startswith("http")):
        raise UserError(
            f"--endpoint {value!r} is not MODEL@URL; write for example nv-embed@http://127.0.0.1:8000/v1"
        )
    return Endpoint(url, model)


def _precision(value: str) -> Any:
    if value not in ("auto", "fp32", "bf16"):
        raise UserError(f"--precision {value!r} is none of auto, fp32 and bf16")
    return value
