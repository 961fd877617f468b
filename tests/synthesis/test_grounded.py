import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import copy_files

from rayembed.common import endpoint_client
from rayembed.common.errors import DataError, RequestError
from rayembed.config.data import UserSourceConfig
from rayembed.data.build import build_user_source
from rayembed.data.store import read_split
from rayembed.records.schema import document_id
from rayembed.synthesis.config import SynthesisRecipe
from rayembed.synthesis.grounded import sample_passages
from rayembed.synthesis.run import synthesize
from tests.fake_endpoint import chat, fake_endpoint

THINGS = ("lock", "door", "key", "window", "roof", "cellar")
LONG = "and so on with plain words that say nothing about any of it " * 2


def page(thing):
    return f"The {thing} of the house is opened by a {thing} handle {LONG}"


class Service:
    """Writes a good query and a lost one for each passage; finds that roofs answer what is asked of doors."""

    def __init__(self):
        self.written, self.judged, self.forms = [], [], []
        self.fail_after = None

    def __call__(self, path, body):
        prompt = body["messages"][0]["content"]
        self.forms.append(body.get("response_format"))
        if "Decide whether" in prompt:
            self.judged.append(prompt)
            return chat(
                json.dumps({"answer": "yes" if "open the door" in prompt and "The roof" in prompt else "no"})
            )
        if self.fail_after is not None and len(self.written) >= self.fail_after:
            return 402, {"error": {"message": "out of credit"}}
        self.written.append(prompt)
        thing = next(thing for thing in THINGS if f"The {thing} of" in prompt)
        return chat(
            json.dumps({"texts": [f"open the {thing} of a house", f"unrelated {thing}s nowhere", "too many"]})
        )


@pytest.fixture
def service(home, monkeypatch):
    monkeypatch.setattr(endpoint_client, "RETRIES", 0)
    folder = home / "pages"
    folder.mkdir()
    rows = [{"body": page(thing)} for thing in THINGS] + [{"body": "A short note."}, {"body": None}]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    pq.write_table(pa.Table.from_pylist(rows[4:]), folder / "b.parquet")
    return Service()


def recipe(url, *, judge=True, **changes):
    there = {"url": url, "model": "fake", "concurrency": 1}
    grounded = {"corpus": "pages", "column": "body", "passages": 6, "round_trip": 3, "actors": 0}
    if judge:
        grounded["rescoring"] = there | {"kind": "judge"}
    return SynthesisRecipe.model_validate(
        {"generator": there | {"kind": "endpoint"}, "grounded": grounded | changes}
    )


def test_queries_are_found_again_or_dropped_and_neighbours_get_the_judge_s_label(service, home):
    with fake_endpoint(service) as url:
        (result,) = synthesize(recipe(url))
        asked = len(service.forms)
        assert synthesize(recipe(url))[0].report == result.report
    assert len(service.forms) == asked  # nothing is asked twice
    assert len(service.written) == 6
    assert all(form["json_schema"]["strict"] for form in service.forms)
    assert (result.report.rows, result.report.not_found, result.report.answers) == (6, 6, 6)
    build_user_source("mine", UserSourceConfig(path=str(result.path)), home)
    rows = {row["query"]: row for row in read_split(home, "mine", "train").to_pylist()}
    assert set(rows) == {f"open the {thing} of a house" for thing in THINGS}
    for thing in THINGS:
        row = rows[f"open the {thing} of a house"]
        right = [page(thing)] + [page("roof")] * (thing == "door")
        assert row["positives"] == right
        assert len(row["negatives"]) == 4
        assert not set(row["negatives"]) & set(right)
        assert row["instruction"] == "Given a query, find the passage that answers it"
    assert "| grounded | 6 | 6 |" in (home / "synthetic" / "report.md").read_text()
    assert json.loads((result.path.parent / "report.json").read_text())["round_trip"] == {"dropped": 6}


def test_passages_and_rows_may_be_in_a_store(service, home, node, s3, monkeypatch):
    store, bucket = s3.open("bucket/grounded")
    copy_files(str(home), bucket, destination_filesystem=store)
    monkeypatch.setenv("RAYEMBED_HOME", s3.uri("bucket/grounded"))
    with fake_endpoint(service) as url:
        synthesize(recipe(url))
        asked = len(service.forms)
        node("b")
        (result,) = synthesize(recipe(url))
    assert len(service.forms) == asked
    assert (result.report.rows, result.report.not_found, result.report.answers) == (6, 6, 6)


def test_an_interrupted_run_continues_and_needs_no_judge(service):
    service.fail_after = 2
    with fake_endpoint(service) as url:
        with pytest.raises(RequestError, match="out of credit"):
            synthesize(recipe(url, judge=False))
        service.fail_after = None
        (result,) = synthesize(recipe(url, judge=False))
    assert len(service.written) == 6
    assert result.report.rows == 6
    assert not service.judged


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"column": "text"}, "no text in a column `text`; its columns are body"),
        ({"corpus": "nowhere"}, "nowhere does not exist"),
        (
            {"corpus": "pages/b.parquet", "teacher": {"kind": "checkpoint", "path": "none"}},
            "there is no folder",
        ),
    ],
)
def test_what_is_wrong_with_the_corpus_or_the_search_is_named(service, changes, message):
    with fake_endpoint(service) as url, pytest.raises(DataError, match=message):
        synthesize(recipe(url, **changes))


def test_a_larger_sample_holds_the_smaller_one():
    texts = [f"{number} {LONG}" for number in range(30)]
    small = sample_passages(pa.array(texts), 5, seed=1)
    large = sample_passages(pa.array([*texts[::-1], "short"]), 9, seed=1)
    assert len(small) == 5
    assert small.items() <= large.items()
    assert set(sample_passages(pa.array(texts), 5, seed=2)) != set(small)
    assert all(name == document_id(text) for name, text in large.items())
    with pytest.raises(DataError, match="none of 1 documents has 20 words"):
        sample_passages(pa.array(["short"]), 5, seed=1)
