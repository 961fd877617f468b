"""The files of a run folder: their names, the recipe that it belongs to, and the note of how the run went.

Reading them needs no heavy library.
"""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from rayembed.common.errors import ConfigError, UserError
from rayembed.common.paths import atomic_write, fetch, push
from rayembed.common.settings import differences

RECIPE_FILE = "recipe.yaml"
METRICS_FILE = "metrics.jsonl"
NOTE_FILE = "run.json"
VALIDATION_FILE = "validation.jsonl"
CHOICE_FILE = "choice.json"  # in a stage's folder: settings that were chosen by measurement

_BEAT_SECONDS = 10.0
_SILENT_SECONDS = 60.0  # without a beat, after which a run counts as stopped
_MAY_CHANGE = ("training", "validation", "evaluation", "output", "models_directory")


@contextlib.contextmanager
def noted(folder: Path) -> Iterator[None]:
    """Keep the note of a run up to date while it is trained.

    The note has `started` (of the first attempt), `ended` and `error`. `ended` is null while the run is
    trained, and stays so when its process is killed or interrupted by hand; the file is touched as long as
    the process lives.

    Args:
        folder: the run folder.

    Raises:
        Exception: what the body raises, after its first line is in the note.
    """
    path = folder / NOTE_FILE
    started = read_note(folder).get("started") or _now()
    _write(path, started)
    try:
        with _touched(path):
            yield
    except Exception as error:
        _write(path, started, ended=_now(), error=f"{type(error).__name__}: {error}".splitlines()[0])
        raise
    _write(path, started, ended=_now())


def read_note(folder: Path) -> dict[str, Any]:
    """The note of a run; empty where there is none."""
    path = fetch(folder / NOTE_FILE)
    return json.loads(path.read_text()) if path.is_file() else {}


def is_trained_now(folder: Path) -> bool:
    """Whether a process on any machine trains the run, or did less than a minute ago."""
    path = fetch(folder / NOTE_FILE)
    if not path.is_file() or read_note(folder)["ended"]:
        return False
    return time.time() - path.stat().st_mtime < _SILENT_SECONDS


@contextlib.contextmanager
def _touched(path: Path) -> Iterator[None]:
    """Set the time of a file again and again."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_BEAT_SECONDS):
            path.touch()
            with contextlib.suppress(UserError):  # the next beat may succeed
                push(path)

    thread = threading.Thread(target=beat, name="run-note", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def check_recipe(before: str, now: str, belongs_to: str) -> None:
    """Refuse a place that another recipe began, but for settings that do not change what is learned.

    Args:
        before: the recipe that is there, as YAML.
        now: this run's, as YAML.
        belongs_to: start of the sentence, up to "another recipe".

    Raises:
        ConfigError: the first setting that differs.
    """
    old, new = (
        {key: value for key, value in yaml.safe_load(text).items() if key not in _MAY_CHANGE}
        for text in (before, now)
    )
    difference = next(differences(old, new), None)
    if difference:
        raise ConfigError(
            f"{belongs_to} another recipe ({difference}); set name to start another run, or remove them"
        )


def _write(path: Path, started: str, *, ended: str | None = None, error: str | None = None) -> None:
    atomic_write(path, json.dumps({"started": started, "ended": ended, "error": error}, indent=2) + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
