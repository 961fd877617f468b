import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from rayembed.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ("-c", "from rayembed.cli.main import main; main()")


def paths_of_commands(group: typer.core.TyperGroup, parents: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [parents]
    for name, command in group.commands.items():
        nested = isinstance(command, typer.core.TyperGroup)
        found += paths_of_commands(command, (*parents, name)) if nested else [(*parents, name)]
    return found


COMMANDS = paths_of_commands(typer.main.get_command(app))


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")
    }
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=inherited | environment, capture_output=True, text=True
    )


def test_the_commands_are_those_of_the_documentation():
    names = {" ".join(path) for path in COMMANDS if path}
    assert {"train", "evaluate", "serve", "base-model", "version"} <= names
    assert {"data list", "data build", "data plan"} <= names


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(path) or "rayembed")
def test_help_explains_every_option(path):
    result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, [*path, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output
    command = typer.main.get_command(app)
    for name in path:
        command = command.commands[name]
    assert [parameter.name for parameter in command.params if not getattr(parameter, "help", None)] == []
    assert command.help or command.callback.__doc__


def test_help_does_not_wait_for_heavy_libraries():
    check = (
        "import sys, rayembed.cli.main; print({'ray', 'torch', 'transformers', 'mteb'} & sys.modules.keys())"
    )
    assert run("-c", check, PYTHONPATH="platform").stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*COMMAND, "train", "nowhere.yaml"), "no recipe at nowhere.yaml"),
        ((*COMMAND, "train", "jobs/configs/quickstart.yaml", "--set", "sed=1"), "did you mean 'seed'?"),
        ((*COMMAND, "data", "build", "nothing"), "nothing"),
        ((*COMMAND, "serve", "runs/none", "--no-blocking"), "--no-blocking needs a Ray cluster"),
        (("jobs/train.py", "nowhere.yaml"), "no recipe at nowhere.yaml"),
    ],
)
def test_a_mistake_of_the_user_is_one_line_and_exit_code_2(arguments, message):
    result = run(*arguments, PYTHONPATH="platform")
    assert result.returncode == 2
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert result.stdout == ""


def test_a_bug_keeps_its_traceback():
    broken = "import rayembed.cli.main as m\ndef f(*_, **__): 1 / 0\nm.app = f\nm.main()"
    result = run("-c", broken, PYTHONPATH="platform")
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr
