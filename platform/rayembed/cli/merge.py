"""`rayembed merge`: one checkpoint out of several."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import typer

from rayembed.cli.options import FilePath, Names, names_of
from rayembed.common.errors import ConfigError
from rayembed.common.paths import resolve


def merge(
    checkpoints: Annotated[list[FilePath], typer.Argument(help="Checkpoint folders of one backbone.")],
    output: Annotated[FilePath, typer.Option(help="Checkpoint folder to write.")],
    method: Annotated[
        Literal["soup", "slerp"],
        typer.Option(help="soup: weighted mean; slerp: along the arc between two checkpoints."),
    ] = "soup",
    weight: Annotated[
        list[float] | None,
        typer.Option(help="Weight of a checkpoint, once for each in their order (default: equal)."),
    ] = None,
    tasks: Annotated[
        Names | None, typer.Option(help="Choose the weights by the mean score of these tasks.")
    ] = None,
    task_file: Annotated[
        list[str] | None, typer.Option(help="YAML file that declares your own tasks; may be repeated.")
    ] = None,
) -> Path:
    """Merge checkpoints of one backbone into one.

    Args:
        checkpoints: folders that differ in weights alone.
        output: checkpoint folder to write.
        method: `soup`, the weighted mean, or `slerp`, along the arc between two checkpoints.
        weight: one number a checkpoint; they are divided by their sum. None: equal.
        tasks: choose the weights by the mean score of these tasks. A soup takes checkpoints in, best first,
            as long as the score does not fall; slerp tries quarters.
        task_file: YAML files that declare own tasks.

    Returns:
        The folder.

    Raises:
        UserError: the checkpoints differ in architecture, contract or tokenizer, or the weights do not fit.

    Example:
        rayembed.merge(["runs/a/model", "runs/b/model"], "models/soup", weight=[1, 3])
    """
    from rayembed.model.averaging import check_same_kind, chosen_weights, merge_checkpoints

    folders, target = [resolve(checkpoint) for checkpoint in checkpoints], resolve(output)
    if len(folders) < 2 or target in folders:
        raise ConfigError("give two checkpoints or more, and an output that is none of them")
    weights: Sequence[float] = weight or [1.0] * len(folders)
    if tasks is not None:
        if weight:
            raise ConfigError("weights are given, or chosen by tasks; leave one of the two out")
        check_same_kind(folders)

        def write(tried: Sequence[float], folder: Path) -> None:
            merge_checkpoints(folders, folder, tried, method)

        score = _scored(write, names_of(tasks), task_file or (), target)
        weights = chosen_weights(len(folders), method, score)
    digest = merge_checkpoints(folders, target, weights, method)
    shares = ", ".join(f"{share / sum(weights):.3g}" for share in weights)
    typer.echo(f"checkpoint {digest[:12]}: {target}, {method} with weights {shares}")
    return target


def _scored(
    write: Callable[[Sequence[float], Path], None],
    tasks: Sequence[str],
    task_files: Sequence[str],
    target: Path,
) -> Callable[[Sequence[float]], float]:
    """Mean score of a merged checkpoint; results are kept next to the output."""
    from rayembed.evaluation.run import run

    results = target.with_name(f"{target.name}-validation")
    target.parent.mkdir(parents=True, exist_ok=True)

    def score(weights: Sequence[float]) -> float:
        with TemporaryDirectory(dir=target.parent) as between:
            write(weights, Path(between) / "model")
            name = "weights-" + "-".join(f"{share:g}" for share in weights)
            scores = run(
                Path(between) / "model", output=results, tasks=tasks, task_files=task_files, name=name
            )
        mean = sum(task["trained"] for task in scores.values()) / len(scores)
        typer.echo(f"weights {list(weights)}: {mean:.4f}")
        return mean

    return score
