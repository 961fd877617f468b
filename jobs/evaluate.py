"""Score a checkpoint on the cluster: `ray job submit --working-dir . -- python jobs/evaluate.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

import typer

from rayembed import logs
from rayembed.errors import UserError
from rayembed.evaluation.commands import evaluate

if __name__ == "__main__":
    logs.configure()
    try:
        typer.run(evaluate)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
