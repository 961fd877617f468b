"""summary.json: the scores, times and versions of a finished run in one small file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rayembed.common.paths import atomic_write

SUMMARY_FILE = "summary.json"


def write_summary(
    run_dir: Path,
    *,
    tasks: Mapping[str, Mapping[str, Any]],
    seconds: Mapping[str, float],
    versions: Mapping[str, str],
) -> Path:
    """Write summary.json into `run_dir` and return its path.

    Args:
        run_dir: folder of the run.
        tasks: task -> {"metric", "base", "bm25", "trained"}, as `rayembed.evaluation.run` returns it.
        seconds: wall time of each phase in seconds.
        versions: version of each package that decides the numbers.
    """
    path = run_dir / SUMMARY_FILE
    rounded = {phase: round(duration, 1) for phase, duration in seconds.items()}
    content = {"tasks": dict(tasks), "seconds": rounded, "versions": dict(versions)}
    atomic_write(path, json.dumps(content, indent=2) + "\n")
    return path
