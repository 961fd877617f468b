"""A verb is the same function with the same options as command, as job and from Python."""

import inspect
import runpy
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import rayembed
from rayembed.cli import main
from rayembed.config.loading import load_config

JOBS = Path(__file__).resolve().parents[2] / "jobs"
FUNCTIONS = ["train", "evaluate", "merge", "mine", "embed", "serve", "synthesize", "compress"]
VERBS = {name: verb for panel in main.VERBS.values() for name, verb in panel.items()}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_command_has_the_arguments_of_the_python_function(name):
    function = getattr(rayembed, name)
    assert function is VERBS[name]
    command = typer.main.get_command(main.app).commands[name]
    options = {option.name: option.default for option in command.params if option.name != "help"}
    parameters = inspect.signature(function).parameters
    assert list(options) == list(parameters)
    for parameter in parameters.values():
        if parameter.default is parameter.empty:
            assert next(option for option in command.params if option.name == parameter.name).required
        else:
            assert options[parameter.name] == parameter.default, parameter.name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_docstring_describes_every_argument_and_the_help_shows_only_its_beginning(name):
    function = getattr(rayembed, name)
    documentation = inspect.getdoc(function)
    for section in ("\n\nArgs:\n", "\n\nRaises:\n", "\n\nExample:\n"):
        assert section in documentation
    for parameter in inspect.signature(function).parameters:
        assert f"\n    {parameter}: " in documentation
    shown = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(main.app, [name, "--help"]).output
    assert "Args:" not in shown
    assert documentation.split(".")[0] in shown


@pytest.mark.parametrize("job", sorted(JOBS.glob("*.py")), ids=lambda path: path.stem)
def test_a_job_is_the_command_of_its_name(job, monkeypatch):
    called = []
    monkeypatch.setattr(main, "app", lambda arguments, **_: called.extend(arguments))
    monkeypatch.setattr(sys, "argv", [str(job), "recipe.yaml", "--set", "a=1"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    runpy.run_path(str(job), run_name="__main__")
    assert called == [job.stem.replace("_", "-"), "recipe.yaml", "--set", "a=1"]
    assert called[0] in VERBS


def test_every_verb_of_the_python_interface_is_a_job():
    assert {f"{name}.py" for name in FUNCTIONS} <= {path.name for path in JOBS.glob("*.py")}


def test_a_verb_runs_from_python(capsys):
    assert rayembed.mine("mine", set=["sources.0.top_k=51"], dry_run=True) == {}
    assert "top_k: 51" in capsys.readouterr().out


def test_a_recipe_is_a_file_a_shipped_name_or_a_mapping():
    by_path = load_config(JOBS / "configs" / "quickstart.yaml", ["seed=3"])
    assert load_config("quickstart", ["seed=3"]) == by_path
    assert load_config(by_path.model_dump(mode="json")) == by_path
    raw = by_path.model_dump(mode="json")
    assert load_config(raw, ["seed=4"]).seed == 4
    assert raw["seed"] == 3
