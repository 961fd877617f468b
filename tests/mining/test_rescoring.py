import json

import pyarrow.parquet as pq
import pytest

from rayembed.common import endpoint_client
from rayembed.common.errors import ResourceError
from rayembed.mining import run
from rayembed.mining.config import MiningRecipe
from tests.fake_endpoint import chat, fake_endpoint

FRUITS = ("apple", "pear", "plum", "fig", "lime")


@pytest.fixture
def source(home, monkeypatch):
    monkeypatch.setattr(endpoint_client, "RETRIES", 0)
    rows = [{"query": f"fruit {name}", "positive": f"fruit page about {name}"} for name in FRUITS]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


def recipe(url, kind, **changes):
    return MiningRecipe.model_validate(
        {
            "data": {"sources": {"mine": {"path": "rows.jsonl"}}},
            "teachers": {"words": {"kind": "bm25"}},
            "sources": [
                {"source": "mine", "negatives_per_query": 2, "filters": [{"name": "naive"}], "fill": "none"}
            ],
            "rescoring": {"kind": kind, "url": url, "model": "fake", "top": 4, "concurrency": 2} | changes,
            "actors": 0,
        }
    )


def negatives(result):
    rows = pq.read_table(result.path).to_pylist()
    return {row["query"].split()[1]: {text.split()[-1] for text in row["negatives"]} for row in rows}


def test_what_the_judge_finds_right_is_no_negative_and_nothing_is_asked_twice(source):
    asked = []

    def judge(path, body):
        prompt = body["messages"][0]["content"]
        asked.append(prompt)
        return chat("Yes." if "fruit lime" not in prompt and "about fig" in prompt else "no")

    with fake_endpoint(judge) as url:
        (first,) = run.mine(recipe(url, "judge"))
        assert len(asked) == 20
        run.mine(recipe(url, "judge"))
        assert len(asked) == 20
    found = negatives(first)
    assert all("fig" not in found[name] for name in ("apple", "pear", "plum"))
    report = json.loads((first.path.parent / "report.json").read_text())
    assert report["rescoring"] == {"rescored": 20, "right_after_all": 3, "share": 0.15}


def test_the_judge_is_told_the_row_s_own_instruction_and_asked_about_each(source):
    rows = [
        {"query": f"fruit {name}", "positive": f"fruit {page} about {name}"} | own
        for name in FRUITS
        for page, own in (("page", {}), ("juice", {"instruction": "Find juice"}))
    ]
    (source / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def judge(path, body):
        prompt = body["messages"][0]["content"]
        return chat("yes" if ("Find juice" in prompt) == ("juice about" in prompt) else "no")

    with fake_endpoint(judge) as url:
        (result,) = run.mine(recipe(url, "judge", top=8))
    for row in pq.read_table(result.path).to_pylist():
        wrong = "page" if row["instruction"] else "juice"
        assert [text.split()[1] for text in row["negatives"]] == [wrong] * 2


def test_a_reranker_rejects_by_its_own_scores(source):
    def reranker(path, body):
        assert path == "/v1/rerank"
        scores = [
            0.9 if position == 0 else 0.88 if text.endswith("plum") else 0.3
            for position, text in enumerate(body["documents"])
        ]
        results = [{"index": index, "relevance_score": score} for index, score in enumerate(scores)]
        return 200, {"results": results[::-1]}

    with fake_endpoint(reranker) as url:
        (result,) = run.mine(recipe(url, "reranker"))
    assert all("plum" not in kept for kept in negatives(result).values())
    assert all(len(kept) == 2 for kept in negatives(result).values())


@pytest.mark.parametrize(
    ("kind", "answer", "message"),
    [
        ("judge", chat("I think so"), "the judge answers neither yes nor no"),
        ("reranker", (200, {"data": []}), "does not answer with a relevance_score"),
    ],
)
def test_an_endpoint_that_answers_something_else_is_named(source, kind, answer, message):
    with fake_endpoint(lambda path, body: answer) as url, pytest.raises(ResourceError, match=message):
        run.mine(recipe(url, kind))
