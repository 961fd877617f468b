"""What the output of a job was made from: the ground on which a stopped job may continue."""

import json
from pathlib import Path
from typing import Any, Literal

from rayembed.common.errors import DataError
from rayembed.common.paths import atomic_write
from rayembed.common.settings import differences

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1
_MOST_NAMED = 5

Status = Literal["running", "incomplete", "complete"]


def read_manifest(output: Path) -> dict[str, Any] | None:
    """Manifest of an earlier run; None where there is no output yet.

    Raises:
        DataError: the folder holds something else, or was written by another release.
    """
    path = output / MANIFEST_FILE
    if not path.is_file():
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise DataError(f"{output} holds other files; choose a new folder for the vectors")
        return None
    try:
        manifest = json.loads(path.read_text())
        version = manifest["format_version"], *map(manifest.__getitem__, ("settings", "input", "status"))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is not the manifest of vectors ({error!r}); choose a new folder") from error
    if version[0] != FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {version[0]}, this release reads {FORMAT_VERSION}; "
            "choose a new folder"
        )
    return manifest


def write_manifest(output: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest of a job."""
    atomic_write(
        output / MANIFEST_FILE, json.dumps({"format_version": FORMAT_VERSION} | manifest, indent=2) + "\n"
    )


def check_same(output: Path, earlier: dict[str, Any], now: dict[str, Any]) -> None:
    """Make sure that the shards of `earlier` and those of `now` belong together.

    Raises:
        DataError: they do not; names every setting and file that differs.
    """
    changes = [*differences(earlier["settings"], now["settings"])]
    before, after = ({file["path"]: file["sha256"] for file in side["input"]} for side in (earlier, now))
    changes += differences(before, after)
    if changes:
        more = f" and {len(changes) - _MOST_NAMED} more" if len(changes) > _MOST_NAMED else ""
        raise DataError(
            f"{output} holds vectors of another request: {'; '.join(changes[:_MOST_NAMED])}{more}. "
            "Repeat the earlier request to continue it, choose another output, or overwrite this one"
        )
