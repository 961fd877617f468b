import json

import pyarrow.parquet as pq
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from rayembed.common import endpoint_client
from rayembed.common.errors import DataError, ResourceError
from rayembed.mining import run
from rayembed.mining.config import MiningRecipe
from rayembed.records.schema import document_id
from tests.fake_endpoint import chat, fake_endpoint
from tests.tiny import make_tokenizer

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
    with fake_endpoint(judge) as url:
        (promoted,) = run.mine(recipe(url, "judge", promote=True, concurrency=1))
    for row in pq.read_table(promoted.path).to_pylist():
        own = row["query"].replace("fruit", "fruit page about")
        also = ["fruit page about fig"] if row["query"].split()[1] in ("apple", "pear", "plum") else []
        assert row["positives"] == [own, *also]
        assert row["document_ids"] == [*map(document_id, row["positives"] + row["negatives"])]
    report = json.loads((first.path.parent / "report.json").read_text())
    assert report["rescoring"] == {
        "rescored": 20, "right_after_all": 3, "share": 0.15, "unanswered": 0,
    }  # fmt: skip


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


def test_a_judge_that_reasons_is_understood_and_what_it_cannot_say_is_no_negative(source):
    seen = []

    def judge(path, body):
        seen.append(body)
        if "max_tokens" in body:
            return 400, {"error": {"message": "max_tokens is not supported; use max_completion_tokens"}}
        if "response_format" in body:
            return 422, {"error": {"message": "'response_format.type' must be 'text'"}}
        if "temperature" in body:
            return 400, {"error": {"message": "Unsupported value: 'temperature'"}}
        prompt = body["messages"][0]["content"]
        if "about plum" in prompt:
            return 400, {"error": {"message": "content filter"}}
        if "about pear" in prompt:
            return chat("Yes and no")
        return chat(f"<think>yes or no?</think>\n**{'Yes' if 'about fig' in prompt else 'No'}**, I think")

    with fake_endpoint(judge) as url:
        (result,) = run.mine(recipe(url, "judge", concurrency=1))
        asked = len(seen)
        run.mine(recipe(url, "judge"))
    assert len(seen) == asked == 3 + 20
    assert all(not kept & {"fig", "plum", "pear"} for kept in negatives(result).values())
    report = json.loads((result.path.parent / "report.json").read_text())["rescoring"]
    assert (report["right_after_all"], report["unanswered"], report["share"]) == (4, 8, round(4 / 12, 4))


def test_scores_of_a_reranker_are_kept_for_another_share_and_logits_are_understood(source, caplog):
    asked = []

    def tei(path, body):
        if path == "/v1/rerank":
            return 422, {"error": {"message": "missing field texts"}}
        asked.append(path)
        scores = [2.0 if position == 0 else 1.0 for position in range(len(body["texts"]))]
        return 200, [{"index": index, "score": score} for index, score in enumerate(scores)]

    with fake_endpoint(tei) as url:
        strict = run.mine(recipe(url, "reranker", share=0.8))[0]
        assert all(not kept for kept in negatives(strict).values())  # 0.73 of 0.88 is above the share
        assert "finds 100 % of the candidates right" in caplog.text
        loose = run.mine(recipe(url, "reranker", share=0.9))[0]
    assert all(len(kept) == 2 for kept in negatives(loose).values())
    assert asked == ["/rerank"] * 5


@pytest.mark.parametrize("scale", [None, "probabilities", "logits"])
def test_the_scale_of_a_reranker_is_decided_once_and_mixtures_are_refused(source, scale):
    def reranker(path, body):
        scores = [2.0 if text.endswith("plum") else 0.5 for text in body["documents"][1:]]
        ranked = [{"index": index, "relevance_score": score} for index, score in enumerate([0.9, *scores])]
        return 200, {"results": ranked}

    with fake_endpoint(reranker) as url:
        settings = recipe(url, "reranker", top=1, scale=scale)  # plums come in the second window
        if scale == "logits":
            run.mine(settings)
        else:
            why = "scale says so" if scale else "the scores before it were all between 0 and 1"
            with pytest.raises(DataError, match=f"the score 2, which is no probability, and {why}"):
                run.mine(settings)


def test_a_local_cross_encoder_judges_and_its_logits_are_kept(source):
    torch.manual_seed(0)
    make_tokenizer().save_pretrained(source / "judge")
    config = BertConfig(
        vocab_size=258, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, pad_token_id=0,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(source / "judge")
    settings = recipe("http://127.0.0.1:9/v1", "judge").model_dump(mode="json")
    settings["rescoring"] = {"kind": "cross-encoder", "path": "judge", "share": 1.0}
    (result,) = run.mine(MiningRecipe.model_validate(settings))
    kept = [row for row in pq.read_table(result.path).to_pylist() if row["negatives"]]
    assert kept
    for row in kept:  # the same model scores what it finds wrong below the positive
        positive, *negatives = row["teacher_scores"]
        assert max(negatives) < positive
    settings["rescoring"]["path"] = "nothing"
    with pytest.raises(DataError, match="is no folder of a cross-encoder"):
        run.mine(MiningRecipe.model_validate(settings))


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
    for row in pq.read_table(result.path).to_pylist():
        assert row["teacher_scores"] == pytest.approx([0.9, 0.3, 0.3])


def test_a_query_whose_candidates_are_right_is_asked_about_its_next_ones(source):
    asked = []

    def judge(path, body):
        asked.append(body["messages"][0]["content"])
        return chat("yes" if "fruit apple" in asked[-1] and "about fig" not in asked[-1] else "no")

    with fake_endpoint(judge) as url:
        (result,) = run.mine(recipe(url, "judge", top=2, concurrency=1))
    found = negatives(result)
    assert found.pop("apple") == {"fig"}  # the others of its four candidates are right
    assert all(len(kept) == 2 for kept in found.values())
    assert len(asked) == 4 + 4 * 2


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
