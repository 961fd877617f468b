import pytest
from typer.testing import CliRunner

from rayembed.data.commands import app
from rayembed.data.sources import SOURCES
from rayembed.errors import DataError


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
