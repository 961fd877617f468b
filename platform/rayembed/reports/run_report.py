"""The report of a run: one HTML file with everything inside, and summary.json for programs."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from rayembed.common.paths import atomic_write
from rayembed.common.progress import duration
from rayembed.data.sources.base import SPLITS
from rayembed.engine.engine import Engine
from rayembed.evaluation.builtin_tasks import load_task
from rayembed.evaluation.encoder import EngineEncoder
from rayembed.evaluation.scores import COLUMNS, Scores, mean_rows
from rayembed.reports import metrics
from rayembed.reports.charts import Line, line_chart, principal_components, scatter
from rayembed.reports.page import Chart, render
from rayembed.training.run_folder import CHOICE_FILE

REPORT_FILE = "report.html"


@dataclass(frozen=True)
class Hit:
    """A found document: its text, its cosine with the query and whether it answers the query."""

    text: str
    score: float
    right: bool


@dataclass(frozen=True)
class Search:
    """A query and its best hits, best first."""

    query: str
    hits: Sequence[Hit]


@dataclass(frozen=True)
class EmbeddingMap:
    """Test texts embedded before and after training.

    Attributes:
        title: what the texts and the labels are.
        labels: one label a text, N in all.
        untrained, trained: vectors of the same texts, shapes (N, D) and (N, D').
    """

    title: str
    labels: Sequence[str]
    untrained: np.ndarray
    trained: np.ndarray


@dataclass(frozen=True)
class _Figure:
    value: str
    caption: str


def write_report(
    run_dir: Path,
    *,
    title: str,
    records: Sequence[dict[str, Any]],
    scores: Scores,
    seconds: Mapping[str, float],
    versions: Mapping[str, str],
    embeddings: EmbeddingMap | None = None,
    searches: Sequence[Search] = (),
    cards: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write report.html into `run_dir` and return its path.

    Args:
        run_dir: folder of the run.
        title: heading.
        records: training steps, as `read_metrics` gives them.
        scores: task -> {"metric", "base", "bm25", "trained"}.
        seconds: wall time of each phase in seconds, in order.
        versions: version of each package that decides the numbers.
        embeddings: vectors for the two maps.
        searches: sample searches.
        cards: data cards of the sources, as `full_card` gives them.
    """
    page = render(
        "report.html",
        title=title,
        figures=_figures(records, scores, seconds),
        charts=_charts(records),
        columns=COLUMNS,
        scores=scores,
        means=mean_rows(scores),
        map=embeddings,
        panels=_panels(embeddings) if embeddings else [],
        map_labels=sorted(set(embeddings.labels)) if embeddings else [],
        searches=searches,
        sources=[(card["name"], _card_cells(card)) for card in cards],
        seconds=seconds,
        versions=versions,
    )
    path = run_dir / REPORT_FILE
    atomic_write(path, page)
    return path


def _figures(
    records: Sequence[dict[str, Any]], scores: Scores, seconds: Mapping[str, float]
) -> list[_Figure]:
    """Key numbers of the header; those without data are left out."""
    figures = []
    compared = [row for row in scores.values() if None not in (row["base"], row["trained"])]
    if compared:
        before, after = (float(np.mean([row[column] for row in compared])) for column in ("base", "trained"))
        better = sum(row["trained"] > row["base"] for row in compared)
        figures.append(
            _Figure(f"{after:.3f}", f"mean score of {len(compared)} tasks, {before:.3f} untrained")
        )
        figures.append(_Figure(f"{better} of {len(compared)}", "tasks better than the untrained model"))
    for task, row in scores.items():
        if None not in (row["bm25"], row["trained"]):
            figures.append(_Figure(f"{row['trained']:.3f}", f"{task}, BM25 {row['bm25']:.3f}"))
    if records:
        rate = float(np.median([record["tokens_per_second"] for record in records]))
        figures.append(_Figure(f"{rate:,.0f}", f"training tokens a second, {len(records)} steps"))
    if seconds:
        figures.append(_Figure(duration(sum(seconds.values())), "from start to end"))
    return figures


def _charts(records: Sequence[dict[str, Any]]) -> list[Chart]:
    if not records:
        return []
    spans = metrics.stage_spans(records)
    loss = metrics.curve(records, "loss")
    smooth = metrics.by_stage(loss, spans, metrics.smoothed)
    loss_lines = [Line(loss, faint=True), *(Line(points) for points in smooth)]
    rate_lines = [Line(metrics.curve(records, "learning_rate"), color=1)]
    throughput = metrics.curve(records, "tokens_per_second")
    throughput_lines = [Line(throughput, color=2, faint=True)]
    throughput_lines += [
        Line(part, color=2) for part in metrics.by_stage(throughput, spans, metrics.smoothed)
    ]
    charts = [
        Chart("Loss", "InfoNCE, each step and moving average", line_chart("Loss", loss_lines, spans)),
        Chart("Learning rate", "of the optimiser", line_chart("Learning rate", rate_lines, spans)),
        Chart("Throughput", "tokens a second", line_chart("Tokens a second", throughput_lines, spans)),
    ]
    accuracy = metrics.source_curves(records, "accuracy")
    if accuracy:
        lines = [
            Line(part, color=color)
            for color, points in enumerate(accuracy.values())
            for part in metrics.by_stage(points, spans, metrics.smoothed)
        ]
        figure = line_chart("Training accuracy by source", lines, spans)
        note = "share of queries that score their positive highest"
        charts.append(Chart("Training accuracy", note, figure, list(accuracy)))
    return charts


def _card_cells(card: Mapping[str, Any]) -> dict[str, str]:
    """What the report says about a source: heading of a column -> cell."""
    languages = {name for shares in card["languages"].values() for name, share in shares.items() if share}
    return {
        "rows": " / ".join(f"{card['rows'].get(split, 0):,}" for split in SPLITS),
        "layout": f"{card['kind']}, {card['task_type']}",
        "words": "; ".join(
            f"{column} {lengths['p50']:,} to {lengths['p95']:,}" for column, lengths in card["words"].items()
        ),
        "languages": ", ".join(sorted(languages)),
        "left out": f"{sum(card['dropped'].values()):,}",
        "texts shared with": ", ".join(
            f"{name} {share:.1%}" for name, share in card["shared_with"].items() if share >= 0.0005
        ),
        "licence": card["licence"],
    }


def _panels(embeddings: EmbeddingMap) -> list[tuple[str, Markup]]:
    order = sorted(set(embeddings.labels))
    return [
        (
            name,
            scatter(f"{embeddings.title}, {name}", principal_components(vectors), embeddings.labels, order),
        )
        for name, vectors in (("untrained", embeddings.untrained), ("trained", embeddings.trained))
    ]


def embedding_map(
    untrained: Engine, trained: Engine, data_dir: Path, *, labels: int = 8, texts: int = 480
) -> EmbeddingMap:
    """Embed WordNet glosses of the test split with both models.

    Args:
        untrained: model before training.
        trained: model after training.
        data_dir: folder of the built sources.
        labels: how many of the most frequent lexicographer files to show.
        texts: most glosses to embed.
    """
    task = load_task("WordNetLexnameClustering", data_dir)
    rows = list(zip(task.dataset["test"]["sentences"], task.dataset["test"]["labels"], strict=True))
    shown = {label for label, _ in Counter(label for _, label in rows).most_common(labels)}
    chosen = [(text, label) for text, label in rows if label in shown][:texts]
    vectors = [
        engine.encode(
            [text for text, _ in chosen],
            instruction=EngineEncoder(engine, "map").instructions(task.metadata).query,
        ).vectors
        for engine in (untrained, trained)
    ]
    return EmbeddingMap("WordNet definitions by lexicographer file", [label for _, label in chosen], *vectors)


def sample_searches(engine: Engine, data_dir: Path, *, queries: int = 6, hits: int = 3) -> list[Search]:
    """Search the functions of the test split with docstrings of it.

    The queries are those with the smallest hash, good and bad alike.

    Args:
        engine: model to search with.
        data_dir: folder of the built sources.
        queries: number of searches.
        hits: number of documents kept of each.
    """
    task = load_task("DocstringRetrieval", data_dir)
    split = task.dataset["default"]["test"]
    sides = EngineEncoder(engine, "search").instructions(task.metadata)
    asked = split["queries"].select(range(min(queries, len(split["queries"]))))
    query_vectors = engine.encode(list(asked["text"]), instruction=sides.query).vectors
    texts = list(split["corpus"]["text"])
    similarity = query_vectors @ engine.encode(texts, instruction=sides.document).vectors.T
    best = np.argsort(-similarity, axis=1, kind="stable")[:, :hits]
    identifiers = list(split["corpus"]["id"])
    return [
        Search(
            query["text"],
            [
                Hit(
                    texts[found],
                    float(scores[found]),
                    identifiers[found] in split["relevant_docs"][query["id"]],
                )
                for found in ranked.tolist()
            ],
        )
        for query, ranked, scores in zip(asked, best, similarity, strict=True)
    ]


SUMMARY_FILE = "summary.json"


def write_summary(
    run_dir: Path,
    *,
    tasks: Mapping[str, Mapping[str, Any]],
    seconds: Mapping[str, float],
    versions: Mapping[str, str],
) -> Path:
    """Write summary.json into `run_dir` and return its path.

    Where `auto` chose how a stage saves memory, `chosen` has what it took for each such stage.

    Args:
        run_dir: folder of the run.
        tasks: task -> {"metric", "base", "bm25", "trained"}, as `rayembed.evaluation.run` returns it.
        seconds: wall time of each phase in seconds.
        versions: version of each package that decides the numbers.
    """
    path = run_dir / SUMMARY_FILE
    rounded = {phase: round(duration, 1) for phase, duration in seconds.items()}
    content: dict[str, Any] = {"tasks": dict(tasks), "seconds": rounded, "versions": dict(versions)}
    notes = sorted((run_dir / "stages").glob(f"*/{CHOICE_FILE}"))
    if chosen := {note.parent.name: json.loads(note.read_text())["chosen"] for note in notes}:
        content["chosen"] = chosen
    atomic_write(path, json.dumps(content, indent=2) + "\n")
    return path
