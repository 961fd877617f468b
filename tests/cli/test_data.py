import json

import pytest
import yaml
from typer.testing import CliRunner

from rayembed.cli.data import app
from rayembed.common.errors import DataError
from rayembed.config.data import UserSourceConfig
from rayembed.data.build import build_user_source
from rayembed.data.sources import SOURCES


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_list_shows_rows_of_what_is_built(tmp_path):
    assert run("list", "--out", tmp_path).output.count("not built") == len(SOURCES)
    built = run("build", "wordnet-lexnames", "--out", tmp_path)
    assert built.exit_code == 0
    assert "wordnet-lexnames: 9322 / 1212 / 1158 rows" in built.output
    listed = run("list", "--out", tmp_path).output
    assert listed.count("not built") == len(SOURCES) - 1
    assert "9322 / 1212 / 1158" in listed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either names or --all"),
        (["wordnet-lexnames", "--all"], "give either names or --all"),
        (["wordnet-lexnames", "nothing"], "no built-in source 'nothing'"),
    ],
)
def test_wrong_names_are_refused_before_anything_is_built(tmp_path, arguments, message):
    result = run("build", *arguments, "--out", tmp_path)
    assert isinstance(result.exception, DataError)
    assert message in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_validated_built_and_described(home):
    rows = [
        {"wording": f"how is number {number} written?", "positive": f"as {number}"} for number in range(200)
    ]
    rows[7] = {"wording": "", "positive": "p"}
    (home / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    checked = run("validate", "mine.jsonl", "--column", "query=wording")
    assert checked.exit_code == 0
    assert "199 train (pairs, retrieval)" in checked.output
    assert "1 empty" in checked.output
    assert json.loads((home / "rejects.jsonl").read_text())["place"] == "mine.jsonl:8"
    assert not (home / "data").exists()

    settings = {
        "sources": {"mine": {"path": "mine.jsonl", "columns": {"query": "wording"}, "licence": "CC0-1.0"}}
    }
    stage = {"name": "one", "steps": 1, "batch_size": 2, "learning_rate": 1.0e-3}
    blend = [{"source": "mine", "weight": 1, "in_batch_negatives": True}]
    recipe = {"name": "x", "base_model": "none", "data": settings, "stages": [stage | {"blend": blend}]}
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert "mine: 199 / 0 / 0 rows" in run("build", "mine", "--config", home / "recipe.yaml").output
    assert "CC0-1.0" in run("list").output.splitlines()[-1]
    card = json.loads(run("card", "mine", "--json").output)
    assert card["dropped"] == {"empty": 1}
    assert card["words"]["query"] == {"p5": 5, "p50": 5, "p95": 5, "p100": 5}


def test_what_the_commands_refuse(home):
    assert "none is not built" in str(run("card", "none").exception)
    assert "must have the form COLUMN=NAME" in str(run("validate", "x.jsonl", "--column", "query").exception)
    (home / "bad.jsonl").write_text("{x\n{}\n")
    refused = run("validate", "bad.jsonl", "--rejects", "bad.rejects.jsonl")
    assert "lacks the column query" in str(refused.exception)
    (home / "bad.jsonl").write_text('{"query": "q", "positive": ""}\n')
    assert "bad.rejects.jsonl lists them all" in str(
        run("validate", "bad.jsonl", "--rejects", "bad.rejects.jsonl").exception
    )
    assert json.loads((home / "bad.rejects.jsonl").read_text())["reason"] == "no positive"


def test_cards_tell_what_sources_share(home):
    for name in ("one", "two"):
        rows = [{"query": f"{name} {number}", "positive": f"shared {number}"} for number in range(10)]
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        build_user_source(name, UserSourceConfig(path=f"{name}.jsonl"), home / "data")
    assert "shared with          one 50.0%" in run("card", "two").output
