"""Score a checkpoint on the cluster; the entry point of `ray job submit --working-dir . -- python jobs/evaluate.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

import typer  # noqa: E402

from rayembed import logs  # noqa: E402
from rayembed.errors import UserError  # noqa: E402
from rayembed.evaluation.commands import evaluate  # noqa: E402

if __name__ == "__main__":
    logs.configure()
    try:
        typer.run(evaluate)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
