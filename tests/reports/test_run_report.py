import json
import re

import numpy as np
import pytest

from rayembed.records.schema import LABEL_SCHEMA, PAIR_SCHEMA
from rayembed.reports.charts import principal_components
from rayembed.reports.metrics import curve, read_metrics, smoothed, stage_spans
from rayembed.reports.run_report import (
    EmbeddingMap,
    Hit,
    Search,
    embedding_map,
    sample_searches,
    write_report,
    write_summary,
)
from tests.evaluation.conftest import WordEngine, labelled, pair, write_split

SCORES = {
    "DocstringRetrieval": {"metric": "ndcg_at_10", "base": 0.1, "bm25": 0.48, "trained": 0.634},
    "WordSim353": {"metric": "cosine_spearman", "base": -0.1, "bm25": None, "trained": 0.3},
}


def step(stage: str, number: int, loss: float = 1.0) -> dict:
    return {
        "stage": stage,
        "step": number,
        "loss": loss,
        "learning_rate": 1e-3,
        "tokens_per_second": 2000.0,
        "gradient_norm": 1.0,
        "seconds": 2.0,
        "sources": {"python-docstrings": {"loss": loss, "accuracy": 0.5}},
    }


RECORDS = [step("pairs <1>", n, 3 - n / 10) for n in range(20)] + [step("blend", n) for n in range(20, 30)]


def report(tmp_path, **changes) -> str:
    content = {
        "title": "Quickstart <b>&</b>",
        "records": RECORDS,
        "scores": SCORES,
        "seconds": {"train": 75.0, "evaluate": 12.0},
        "versions": {"torch": "2.13.0"},
        "embeddings": EmbeddingMap(
            "Glosses", ["noun.<animal>", "noun.plant"] * 5, np.eye(10), np.eye(10)[:, :3]
        ),
        "cards": [
            {
                "name": "pairs <1>",
                "kind": "pairs",
                "task_type": "retrieval",
                "rows": {"train": 3406, "dev": 395, "test": 489},
                "dropped": {"empty": 2, "repeated query": 3},
                "words": {"query": {"p50": 9, "p95": 32}},
                "languages": {"query": {"en": 0.9, "de": 0.1}},
                "shared_with": {"other": 0.25},
                "licence": "PSF-2.0",
            }
        ],
        "searches": [
            Search("parse <html>", [Hit("if a < b: <script>", 0.7, True), Hit("other", 0.2, False)])
        ],
    }
    return write_report(tmp_path, **(content | changes)).read_text()


def test_the_report_has_every_section(tmp_path):
    page = report(tmp_path)
    assert re.findall(r'<section id="(\w+)">', page) == [
        "scores",
        "training",
        "data",
        "map",
        "searches",
        "time",
    ]
    for text in (
        "0.634",
        "+0.534",
        "-0.100",
        "mean of all 2",
        "1 min 15 s",
        "torch 2.13.0",
        "2,000",
        "3,406 / 395 / 489",
        "de, en",
        "other 25.0%",
    ):
        assert text in page
    assert page.count("<svg") == 6
    assert page.count('class="dot') == 20


def test_texts_are_escaped(tmp_path):
    page = report(tmp_path)
    assert "Quickstart &lt;b&gt;&amp;&lt;/b&gt;" in page
    assert "if a &lt; b: &lt;script&gt;" in page
    assert "noun.&lt;animal&gt;" in page
    assert "pairs &lt;1&gt;" in page
    assert "<script" not in page


def test_the_report_needs_nothing_from_outside(tmp_path):
    page = report(tmp_path)
    assert not re.search(r"(src|href)=|url\(|@import|https?://", page)


def test_a_report_without_training_or_samples_says_so(tmp_path):
    page = report(tmp_path, records=[], embeddings=None, searches=(), seconds={}, cards=())
    assert "No training step was recorded." in page
    assert re.findall(r'<section id="(\w+)">', page) == ["scores", "training"]


def test_steps_done_again_after_a_resume_count_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    logged = [step("one", 0, 3.0), step("one", 1, 2.0), step("one", 1, 2.5), step("two", 2, 1.0)]
    path.write_text("\n".join(json.dumps(record) for record in logged) + '\n{"stage": "tw')
    records = read_metrics(path)
    assert curve(records, "loss") == [(0, 3.0), (1, 2.5), (2, 1.0)]
    assert [(span.name, span.first, span.last) for span in stage_spans(records)] == [
        ("one", 0, 1),
        ("two", 2, 2),
    ]


def test_the_moving_average_starts_at_the_first_value():
    assert smoothed([(0, 4.0), (1, 4.0)]) == [(0, pytest.approx(4.0)), (1, pytest.approx(4.0))]


def test_principal_components_find_the_widest_direction():
    line = np.outer(np.arange(-3.0, 4.0), [3.0, 4.0, 0.0])
    coordinates = principal_components(line + 7)
    assert np.allclose(np.abs(coordinates[:, 0]), np.abs(np.arange(-3, 4)) / 3)
    assert np.allclose(coordinates[:, 1], 0)


def test_the_summary_has_the_agreed_form(tmp_path):
    path = write_summary(tmp_path, tasks=SCORES, seconds={"train": 75.04}, versions={"torch": "2.13.0"})
    content = json.loads(path.read_text())
    assert content == {"tasks": SCORES, "seconds": {"train": 75.0}, "versions": {"torch": "2.13.0"}}
    (tmp_path / "stages" / "0-one").mkdir(parents=True)
    (tmp_path / "stages" / "0-one" / "choice.json").write_text('{"chosen": {"tokens_per_chunk": 4096}}')
    content = json.loads(write_summary(tmp_path, tasks=SCORES, seconds={}, versions={}).read_text())
    assert content["chosen"] == {"0-one": {"tokens_per_chunk": 4096}}


def test_searches_find_the_function_that_shares_words(tmp_path):
    rows = [pair(f"sort the list number {n}", f"def sort_{n}(): sort list number {n}") for n in range(20)]
    write_split(tmp_path, "python-docstrings", "test", rows, PAIR_SCHEMA)
    searches = sample_searches(WordEngine(), tmp_path, queries=2)
    assert len(searches) == 2
    for search in searches:
        assert [hit.score for hit in search.hits] == sorted((hit.score for hit in search.hits), reverse=True)
        number = search.query.split()[-1]
        assert all(hit.right == (f"sort_{number}()" in hit.text) for hit in search.hits)


def test_the_map_keeps_the_most_frequent_labels(tmp_path):
    sizes = {"noun.animal": 9, "noun.plant": 7, "noun.rare": 1}
    rows = [
        labelled(f"{label} {n}", label, "wordnet-lexnames")
        for label, size in sizes.items()
        for n in range(size)
    ]
    write_split(tmp_path, "wordnet-lexnames", "test", rows, LABEL_SCHEMA)
    shown = embedding_map(WordEngine("0" * 64), WordEngine("1" * 64), tmp_path, labels=2, texts=12)
    assert set(shown.labels) == {"noun.animal", "noun.plant"}
    assert len(shown.labels) == len(shown.untrained) == len(shown.trained) == 12
