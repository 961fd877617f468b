import hashlib
import subprocess
import sys

import pytest

from rayembed.common import packages
from rayembed.common.errors import ResourceError
from rayembed.data.sources import SOURCES

CONTENT = b"the release"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def pip(monkeypatch):
    """A pip that leaves one file; its commands are recorded."""
    commands = []

    def run(command, **options):
        commands.append(command)
        folder = command[command.index("--dest") + 1]
        with open(f"{folder}/thing-1.0.whl", "wb") as stream:
            stream.write(CONTENT)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packages.subprocess, "run", run)
    return commands


def test_a_release_is_fetched_once(tmp_path, pip):
    options = {
        "sha256": SHA256,
        "cache": tmp_path,
        "platform": "manylinux_2_28_x86_64",
        "python_version": "3.11",
    }
    first = packages.fetch_package("thing", "1.0", **options)
    assert (
        first == packages.fetch_package("thing", "1.0", **options) == tmp_path / "thing-1.0" / "thing-1.0.whl"
    )
    assert len(pip) == 1
    assert {"--require-hashes", "--no-deps", "--only-binary=:all:", "--platform"} <= set(pip[0])


def test_a_damaged_copy_is_fetched_again(tmp_path, pip):
    path = packages.fetch_package("thing", "1.0", sha256=SHA256, cache=tmp_path)
    path.write_bytes(b"cut")
    assert packages.fetch_package("thing", "1.0", sha256=SHA256, cache=tmp_path).read_bytes() == CONTENT
    assert len(pip) == 2


@pytest.mark.usefixtures("pip")
def test_another_file_is_refused_and_not_kept(tmp_path):
    with pytest.raises(ResourceError, match="with SHA-256 000"):
        packages.fetch_package("thing", "1.0", sha256="0" * 64, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_an_index_one_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        ResourceError, match=r"thing==1\.0 could not be fetched: No matching .*check the network"
    ):
        packages.fetch_package("thing", "1.0", sha256=SHA256, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_pip_the_error_names_ensurepip(tmp_path, monkeypatch):
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    monkeypatch.setattr(packages.sys, "executable", str(folder / "bin" / "python"))
    with pytest.raises(ResourceError, match="-m ensurepip"):
        packages.fetch_package("thing", "1.0", sha256=SHA256, cache=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows"), [("vader-tweets", 2667), ("wordsim353", 353), ("simlex999", 999)])
def test_pinned_releases_are_in_the_index(tmp_path, name, rows):
    assert len(list(SOURCES[name].read(tmp_path))) == rows
