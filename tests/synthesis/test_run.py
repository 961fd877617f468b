import json
import re
import threading
from collections import Counter

import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError
from transformers import MistralConfig, MistralForCausalLM

from rayembed.common import endpoint_client
from rayembed.common.errors import DataError, RequestError, ResourceError
from rayembed.common.paths import resolve
from rayembed.config.data import UserSourceConfig
from rayembed.data.build import build_user_source
from rayembed.data.store import read_split
from rayembed.synthesis import run
from rayembed.synthesis.config import SynthesisRecipe
from rayembed.synthesis.run import synthesize
from tests.fake_endpoint import chat, fake_endpoint
from tests.tiny import make_tokenizer

PASSAGE = "each of these words stands in a passage that is long enough to be one " * 2


class Model:
    """Invents tasks and triplets; every fifth answer is no JSON."""

    def __init__(self):
        self.prompts = Counter()
        self.fail_after = None
        self.same = False
        self._lock = threading.Lock()

    def __call__(self, path, body):
        assert path == "/v1/chat/completions"
        prompt = body["messages"][0]["content"]
        with self._lock:
            self.prompts[prompt] += 1
            number = self.prompts.total()
        if self.fail_after is not None and number > self.fail_after:
            return 402, {"error": {"message": "out of credit", "type": "billing"}}
        if "Invent" in prompt:
            count = int(re.search(r"Invent (\d+)", prompt).group(1))
            topic = "the same" if self.same else f"topic {number}"
            return chat(
                json.dumps([f"Find thing {index} {index} {index} of {topic}" for index in range(count)])
            )
        if number % 5 == 0:
            return chat("I would rather not")
        subject = "same" if self.same else str(number)
        return chat(
            json.dumps(
                {
                    "query": f"query {subject}",
                    "positive": f"{subject} {subject} {PASSAGE}",
                    "negative": f"not {number} {PASSAGE}",
                }
            )
        )


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def url(home, model, monkeypatch):
    monkeypatch.setattr(endpoint_client, "RETRIES", 0)
    monkeypatch.setattr(run, "_TASKS_PER_REQUEST", 3)
    with fake_endpoint(model) as address:
        yield address


def recipe(url, *kinds, **changes):
    generator = {"kind": "endpoint", "url": url, "model": "fake"}
    kinds = kinds or ({"kind": "short-long", "tasks": 6, "examples_per_task": 2},)
    generator |= {"concurrency": 2} | changes.pop("generator", {})
    return SynthesisRecipe.model_validate({"generator": generator, "kinds": kinds} | changes)


def test_rows_are_an_ordinary_source_with_yield_and_tokens(url, home):
    kinds = (
        {"kind": "short-long", "tasks": 6},
        {"kind": "sts", "tasks": 4},
        {"kind": "sts-graded", "tasks": 3},
    )
    results = synthesize(recipe(url, *kinds))
    graded = pq.read_table(results[2].path)["teacher_scores"].to_pylist()
    assert all(0.8 <= round(fits, 3) <= 1 and 0.2 <= round(other, 3) <= 0.6 for fits, other in graded)
    build_user_source("mixed", UserSourceConfig(path=str(results[0].path)), home)
    table = read_split(home, "mixed", "train")
    assert table.num_rows == results[0].report.rows == 12
    stored = pq.read_table(results[0].path).to_pylist()
    assert all(row["instruction"].startswith("Find thing") for row in stored)
    assert max(Counter(row["instruction"] for row in stored).values()) <= 2
    report = results[0].report
    assert report.tasks == 6
    assert report.answers == 2 + 12 + sum(report.misfits.values())
    assert set(report.misfits) == {"no JSON"}
    assert (report.prompt_tokens, report.answer_tokens) == (10 * report.answers, 5 * report.answers)
    assert [result.report.kind for result in results] == ["short-long", "sts", "sts-graded"]
    assert "| sts |" in (home / "synthetic" / "report.md").read_text()


def test_an_interrupted_run_keeps_its_answers_and_asks_only_for_the_others(url, model, home):
    model.fail_after = 9
    with pytest.raises(RequestError, match="model fake: status 402; out of credit"):
        synthesize(recipe(url))
    ledger = next(home.rglob("examples.jsonl"))
    kept = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert kept
    with ledger.open("a") as stream:
        stream.write('{"name": "half a li')
    asked = set(model.prompts)
    model.fail_after = None
    before = model.prompts.total()
    (result,) = synthesize(recipe(url))
    assert result.report.rows == 12
    again = [prompt for prompt, count in model.prompts.items() if prompt in asked and count > 1]
    assert len(again) <= 3  # those that failed or were in flight
    assert model.prompts.total() - before < 2 + 12 + 4
    total = model.prompts.total()
    assert synthesize(recipe(url))[0].report == result.report
    assert model.prompts.total() == total  # nothing is left to ask


def test_answers_in_a_store_are_there_on_another_node(url, model, node, s3, monkeypatch):
    monkeypatch.setenv("RAYEMBED_HOME", s3.uri("bucket/synthesis"))
    priced = {"price_prompt": 1e6, "price_answer": 0, "max_cost": 120}  # ten tokens each
    model.fail_after = 9
    with pytest.raises(RequestError):
        synthesize(recipe(url))
    model.fail_after = None
    node("b")
    synthesize(recipe(url, generator=priced))
    node("c")
    (result,) = synthesize(recipe(url, generator=priced | {"max_cost": 1000}))
    total = model.prompts.total()
    assert result.report.rows == 12
    assert total - result.report.answers <= 3, "only what failed or was in flight is asked again"
    node("d")
    assert synthesize(recipe(url))[0].report == result.report
    assert model.prompts.total() == total
    build_user_source("stored", UserSourceConfig(path=str(result.path)), resolve("data"))
    assert read_split(resolve("data"), "stored", "train").num_rows == 12


def test_repeated_tasks_and_rows_are_dropped_and_counted(url, model):
    model.same = True
    (result,) = synthesize(recipe(url))
    assert result.report.rows == 1
    assert result.report.tasks == 3  # every answer brings the same three
    assert result.report.exact_duplicates == 5


def test_a_model_that_never_answers_in_json_is_refused_with_the_reason(home):
    with (
        fake_endpoint(lambda path, body: chat("Sorry")) as url,
        pytest.raises(DataError, match=r"sts: none of 6 answers can be used \(6 x no JSON\)"),
    ):
        synthesize(recipe(url, {"kind": "sts", "tasks": 2, "examples_per_task": 1}))


def test_seeds_differ_and_a_refused_prompt_is_a_misfit_that_is_not_asked_again(home, monkeypatch):
    monkeypatch.setattr(endpoint_client, "RETRIES", 0)
    seeds = []

    def filtered(path, body):
        seeds.append(body["seed"])
        if len(seeds) <= 3:
            return 400, {"error": {"message": "content filter"}}
        number = len(seeds)
        triplet = {"query": f"q {number}", "positive": f"p {number}", "negative": f"n {number}"}
        return chat(f"<think>a draft: {{}}</think>\n{json.dumps(triplet)}")

    settings = {"kind": "sts", "tasks": 1, "examples_per_task": 8}
    with fake_endpoint(filtered) as url:
        (result,) = synthesize(recipe(url, settings))
        assert synthesize(recipe(url, settings))[0].report == result.report
    assert len(seeds) == len(set(seeds)) == 11
    assert result.report.rows == 8
    assert [(reason[:7], count) for reason, count in result.report.misfits.items()] == [("refused", 3)]


def test_nothing_is_asked_beyond_the_largest_cost_and_a_larger_one_continues(url, model, home):
    prices = {"concurrency": 1, "price_prompt": 1e5, "price_answer": 2e5}  # each answer costs 2.0
    kinds = [{"kind": kind, "tasks": 4, "examples_per_task": 1} for kind in ("sts", "sts-graded")]
    with pytest.raises(ValidationError, match="max_cost needs price_prompt"):
        recipe(url, *kinds, generator={"max_cost": 1})
    made = synthesize(recipe(url, *kinds, generator=prices | {"max_cost": 5}))
    assert [(one.report.kind, one.report.rows, one.report.answers) for one in made] == [("sts", 3, 3)]
    assert model.prompts.total() == 3
    made = synthesize(recipe(url, *kinds, generator=prices | {"max_cost": 100}))
    assert [one.report.rows for one in made] == [4, 4]
    asked = model.prompts.total()
    assert synthesize(recipe(url, *kinds, generator=prices | {"max_cost": 5}))[0].report == made[0].report
    assert model.prompts.total() == asked == 8 + 1  # the fifth was a misfit

    def silent(path, body):
        status, answer = Model()(path, body)
        return status, answer | {"usage": None}

    with fake_endpoint(silent) as other, pytest.raises(ResourceError, match="remove max_cost"):
        synthesize(recipe(other, *kinds, generator=prices | {"max_cost": 5}, output="other"))


def test_an_address_where_nobody_listens_is_one_sentence(home, monkeypatch):
    monkeypatch.setattr(endpoint_client, "RETRIES", 0)
    settings = recipe("http://127.0.0.1:9/v1", {"kind": "sts", "tasks": 1})
    with pytest.raises(ResourceError, match="stayed away for 0 repetitions"):
        synthesize(settings)


def test_a_local_model_generates_and_its_misfits_are_counted(home):
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=258, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048,
        eos_token_id=0, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(home / "generator")
    make_tokenizer().save_pretrained(home / "generator")
    local = {"kind": "local", "path": "generator", "max_tokens": 4, "batch_size": 2, "actors": 0}
    settings = SynthesisRecipe.model_validate(
        {"generator": local, "kinds": [{"kind": "sts", "tasks": 3, "examples_per_task": 1}]}
    )
    with pytest.raises(DataError, match="sts: none of 9 answers can be used"):
        synthesize(settings)
    records = [json.loads(line) for line in next(home.rglob("examples.jsonl")).read_text().splitlines()]
    assert all(0 < record["answer_tokens"] <= 4 for record in records)
    assert all(record["prompt_tokens"] > 100 for record in records)
