import hashlib
from pathlib import Path

import pytest

from rayembed.common.paths import atomic_directory, atomic_write, file_digest, resolve, workspace


@pytest.fixture
def no_home_declared(monkeypatch):
    monkeypatch.delenv("RAYEMBED_HOME", raising=False)


def test_declared_workspace_wins_over_the_current_folder(home, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    assert workspace() == home.resolve()
    assert resolve("data/here") == home.resolve() / "data" / "here"


@pytest.mark.usefixtures("no_home_declared")
def test_the_current_folder_is_the_workspace_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert workspace() == tmp_path


@pytest.mark.usefixtures("no_home_declared")
def test_the_copy_that_ray_makes_of_a_job_is_no_workspace(tmp_path, monkeypatch):
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert workspace() == tmp_path / ".rayembed"


@pytest.mark.usefixtures("home")
def test_absolute_and_home_paths_are_kept(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert resolve("/data") == Path("/data")
    assert resolve("~/data") == Path("/somewhere/data")


def test_a_folder_appears_whole(tmp_path):
    target = tmp_path / "deep" / "target"
    with atomic_directory(target) as temporary:
        (temporary / "file").write_text("new")
        assert not target.exists()
        assert temporary.parent == target.parent  # the same file system, so that renaming is atomic
    assert (target / "file").read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_replaces_the_old_one(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").touch()
    with atomic_directory(target) as temporary:
        (temporary / "new").touch()
    assert [path.name for path in target.iterdir()] == ["new"]


def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "old").touch()

    def write_half() -> None:
        with atomic_directory(target) as temporary:
            (temporary / "new").touch()
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert [path.name for path in target.iterdir()] == ["old"]


@pytest.mark.parametrize("content", ["grün\n", b"\x00\xff"])
def test_a_file_is_replaced_and_readable_by_others(tmp_path, content):
    path = tmp_path / "new" / "file"
    atomic_write(path, "old")
    atomic_write(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_cannot_be_renamed_leaves_nothing(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        atomic_write(tmp_path / "file", "content")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_digest_is_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert file_digest(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()
