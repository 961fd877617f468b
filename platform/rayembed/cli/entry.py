"""How commands and jobs start: logging set up, a user's mistake shown as one line with exit code 2."""

import sys
from collections.abc import Callable
from typing import Any

import typer

from rayembed.common import logs
from rayembed.common.errors import UserError


def run_command(command: Callable[..., Any] | typer.Typer) -> None:
    """Run a typer application, or one function as a command of its own, on the process's arguments."""
    logs.configure()
    try:
        if isinstance(command, typer.Typer):
            command()
        else:
            typer.run(command)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
