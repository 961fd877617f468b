"""Package lists and packages of the distribution, through its own apt; nothing of the system is changed."""

import io
import logging
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from rayembed.common.errors import ResourceError
from rayembed.common.paths import atomic_directory

logger = logging.getLogger(__name__)

HELPER = Path("/usr/lib/apt/apt-helper")


def missing_apt() -> str | None:
    """Why nothing can be fetched with apt on this machine; None where it can."""
    missing = [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]
    missing += [] if HELPER.is_file() else [str(HELPER)]
    return f"this machine has no {', '.join(missing)}; a Debian system is needed" if missing else None


def fetch_lists(downloads: Path, languages: str = "en,de,fr") -> Path:
    """Folder with the package lists and translations of the machine's own sources, fetched once.

    Raises:
        ResourceError: there is no apt, or its sources cannot be reached.
    """
    folder = downloads / "apt-lists"
    if not folder.is_dir():
        with atomic_directory(folder) as temporary:
            logger.info("fetching the package lists with apt into %s", folder)
            _apt(temporary, ["update", "--error-on=any"], f"Acquire::Languages={languages}")
    return folder


def fetch_files(package: str, downloads: Path, suffix: str) -> list[tuple[str, str]]:
    """Names and texts of the files of a package whose names end in `suffix`, sorted; read from the archive.

    Raises:
        ResourceError: there is no apt, or the package cannot be fetched.
    """
    lists, folder = fetch_lists(downloads), downloads / f"apt-{package}"
    if not folder.is_dir():
        with atomic_directory(folder) as temporary:
            _apt(lists, ["download", package], working=temporary)
    archive = next(iter(sorted(folder.glob("*.deb"))))
    unpacked = _run(["dpkg-deb", "--fsys-tarfile", str(archive)])
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as files:
        members = [member for member in files if member.isfile() and member.name.endswith(suffix)]
        found = [(member.name, files.extractfile(member)) for member in members]
        return sorted((name, stream.read().decode("utf-8", "replace")) for name, stream in found if stream)


def stanzas(file: Path) -> Iterator[dict[str, str]]:
    """Stanzas of a package list: field -> value, where lines that go on keep their line ends."""
    yield from parse_stanzas(_run([str(HELPER), "cat-file", str(file)]).decode("utf-8", "replace"))


def parse_stanzas(text: str) -> Iterator[dict[str, str]]:
    """The same of a text."""
    for block in text.split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in block.splitlines():
            if line.startswith((" ", "\t")):
                fields[name] += "\n" + line[1:]
            elif line:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if fields:
            yield fields


def _apt(lists: Path, arguments: list[str], *options: str, working: Path | None = None) -> None:
    if reason := missing_apt():
        raise ResourceError(reason)
    (lists / "partial").mkdir(exist_ok=True)
    places = [f"Dir::State::lists={lists}", f"Dir::Cache={lists / 'cache'}", "APT::Sandbox::User=root"]
    settings = [f"--option={setting}" for setting in (*places, *options)]
    command = ["apt-get", "--quiet", *settings, *arguments]
    _run(command, working)


def _run(command: list[str], working: Path | None = None) -> bytes:
    result = subprocess.run(command, capture_output=True, cwd=working)
    if result.returncode != 0:
        lines = result.stderr.decode(errors="replace").strip().splitlines() or ["it gave no reason"]
        raise ResourceError(
            f"`{' '.join(command[:1] + command[-2:])}` failed: {lines[-1]}; check the network and apt's "
            "sources, then run the same command again"
        )
    return result.stdout
