"""Names of the files of a run folder, and the note of when the run began and how it ended.

Reading them needs no heavy library.
"""

import contextlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rayembed.paths import atomic_write

RECIPE_FILE = "recipe.yaml"
METRICS_FILE = "metrics.jsonl"
NOTE_FILE = "run.json"
VALIDATION_FILE = "validation.jsonl"


@contextlib.contextmanager
def noted(folder: Path) -> Iterator[None]:
    """Keep the note of a run up to date while it is trained.

    The note has `started` (of the first attempt), `ended` and `error`. `ended` is null while the run is
    trained, and stays so when its process is killed or interrupted by hand.

    Args:
        folder: the run folder.

    Raises:
        Exception: what the body raises, after its first line is in the note.
    """
    path = folder / NOTE_FILE
    started = read_note(folder).get("started") or _now()
    _write(path, started)
    try:
        yield
    except Exception as error:
        _write(path, started, ended=_now(), error=f"{type(error).__name__}: {error}".splitlines()[0])
        raise
    _write(path, started, ended=_now())


def read_note(folder: Path) -> dict[str, Any]:
    """The note of a run; empty where there is none."""
    path = folder / NOTE_FILE
    return json.loads(path.read_text()) if path.is_file() else {}


def _write(path: Path, started: str, *, ended: str | None = None, error: str | None = None) -> None:
    atomic_write(path, json.dumps({"started": started, "ended": ended, "error": error}, indent=2) + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
