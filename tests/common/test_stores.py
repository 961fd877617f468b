"""Paths that stand for places in a store: two nodes with caches of their own share what is there."""

import os
import time
from pathlib import Path

import pytest
from pyarrow import fs

from rayembed.common import stores
from rayembed.common.errors import ResourceError
from rayembed.common.paths import (
    atomic_directory,
    atomic_write,
    fetch,
    here,
    is_stored,
    location_of,
    push,
    remove,
    resolve,
    workspace,
)

WEEK = 7 * 86_400


class Faulty:
    """A folder in the place of a store; calls take a while, and those that `fails` names go wrong."""

    def __init__(self, wait: float = 0.0):
        self._folder, self.wait = fs.LocalFileSystem(), wait
        self.fails: dict[str, int] = {}
        self.calls: list[str] = []
        self.meanwhile = lambda: None  # what other processes do while a file is written

    def __getattr__(self, name: str):
        def call(*arguments):
            self.calls.append(name)
            time.sleep(self.wait)
            if name == "open_output_stream":
                self.meanwhile()
            if self.fails.get(name, 0):
                self.fails[name] -= 1
                raise OSError("503 Slow Down\nrequest 17")
            return getattr(self._folder, name)(*arguments)

        return call


@pytest.fixture
def store(tmp_path, monkeypatch) -> Faulty:
    faulty = Faulty()

    def opened(location: str):
        return faulty, str(tmp_path / "bucket") + location.removeprefix("s3://bucket")

    monkeypatch.setattr(stores, "open_location", opened)
    monkeypatch.setattr(stores, "WAITS", (0.0, 0.0))
    stores._opened.cache_clear()
    yield faulty
    stores._opened.cache_clear()


def listed(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): file.read_text()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.parametrize(
    ("given", "location"),
    [
        ("s3://bucket/runs/one", "s3://bucket/runs/one"),
        (Path("s3://bucket/runs"), "s3://bucket/runs"),
        ("s3://bucket", "s3://bucket"),
        ("abfss://box@account.dfs.core.windows.net/a", "abfss://box@account.dfs.core.windows.net/a"),
        (
            "s3://bucket/a?scheme=http&endpoint_override=h:1",
            "s3://bucket/a?scheme=http&endpoint_override=h:1",
        ),
        ("file:///tmp/a", "/tmp/a"),
        ("/tmp/a", "/tmp/a"),
    ],
)
def test_a_uri_is_a_path_and_back(node, given, location):
    assert location_of(resolve(given)) == location
    assert is_stored(resolve(given)) == ("://" in location)


def test_the_workspace_may_be_in_a_store(node, monkeypatch):
    monkeypatch.setenv("RAYEMBED_HOME", "s3://bucket/home")
    assert location_of(workspace() / "runs") == location_of("runs") == "s3://bucket/home/runs"


def test_what_one_node_writes_another_reads(node, store):
    folder = resolve("s3://bucket/run")
    atomic_write(folder / "note", "one")
    with atomic_directory(folder / "model") as temporary:
        atomic_write(temporary / "weights.safetensors", "large")
        atomic_write(temporary / "parts" / "config", "small")
    cache = node("b")
    assert fetch(folder / "note").read_text() == "one"
    model = fetch(folder / "model", weights=False)
    assert model.is_relative_to(cache)
    assert listed(model) == {"parts/config": "small"}
    assert listed(fetch(folder / "model")) == {"parts/config": "small", "weights.safetensors": "large"}
    store.calls.clear()
    fetch(folder / "model")
    assert "open_input_stream" not in store.calls, "what is here is not fetched again"
    with atomic_directory(here(folder / "model")) as temporary:
        atomic_write(temporary / "other", "new")
    node("a")
    assert listed(fetch(folder / "model")) == {"other": "new"}
    remove(folder / "model")
    node("b")
    assert not fetch(folder / "model").exists()


def test_lines_that_are_not_pushed_yet_are_kept(node, store):
    path = resolve("s3://bucket/lines")
    atomic_write(path, "one\n")
    with path.open("a") as stream:
        stream.write("two\n")
    os.utime(path, (time.time() + 1, time.time() + 1))  # of the next second
    assert fetch(path).read_text() == "one\ntwo\n"
    push(path)
    node("b")
    assert fetch(path).read_text() == "one\ntwo\n"


def test_a_folder_that_was_not_pushed_to_its_end_is_none(node, store):
    folder = resolve("s3://bucket/model")
    store.fails = {"delete_file": 3}  # the mark stays, as when the process is killed
    failure = pytest.raises(ResourceError, match=r"s3://bucket/model failed \(503 Slow Down\)")
    with failure, atomic_directory(folder) as temporary:
        (temporary / "a").write_text("a")
    atomic_write(folder.parent / "note", "beside it")
    assert not fetch(folder).exists()
    assert not fetch(folder / "a").exists()
    node("b")
    assert listed(fetch(folder.parent)) == {"note": "beside it"}
    with atomic_directory(folder) as temporary:
        (temporary / "b").write_text("b")
    assert listed(fetch(folder)) == {"b": "b"}


def test_what_is_being_written_is_not_taken_away_by_a_process_that_looks_for_it(node, store):
    folder = resolve("s3://bucket/model")
    store.meanwhile = lambda: fetch(folder)
    atomic_write(folder / "note", "one")
    with atomic_directory(folder / "parts") as temporary:
        (temporary / "a").write_text("a")
    store.calls.clear()
    assert listed(fetch(folder)) == {"note": "one", "parts/a": "a"}
    assert "open_input_stream" not in store.calls


@pytest.mark.parametrize("call", ["get_file_info", "open_input_stream"])
@pytest.mark.parametrize("times", [2, 3])
def test_a_store_that_fails_is_asked_three_times(node, store, call, times):
    path = resolve("s3://bucket/file")
    atomic_write(path, "text")
    node("b")
    store.fails = {call: times}
    if times == 2:
        assert fetch(path).read_text() == "text"
        return
    with pytest.raises(ResourceError, match=r"s3://bucket/file failed \(503 Slow Down\); check the address"):
        fetch(path)
    assert not list(here(path).parent.glob("*"))


def test_files_of_a_slow_store_come_side_by_side(node, store):
    folder = resolve("s3://bucket/many")
    with atomic_directory(folder) as temporary:
        for number in range(16):
            (temporary / str(number)).write_text(str(number))
    node("b")
    store.wait = 0.05
    started = time.monotonic()
    assert len(listed(fetch(folder))) == 16
    assert time.monotonic() - started < 16 * 0.05


def test_copies_that_nobody_asked_for_in_a_week_are_dropped(node, store):
    for name in ("old", "new"):
        atomic_write(resolve("s3://bucket") / name, name)
    old = resolve("s3://bucket/old")
    os.utime(old, (time.time() - WEEK - 60, old.stat().st_mtime))
    stores._drop_unused.cache_clear()
    fetch(resolve("s3://bucket/new"))
    assert not old.exists()
    assert fetch(old).read_text() == "old"


def test_the_protocol_of_s3(node, s3):
    folder = resolve(s3.uri("bucket/run"))
    with atomic_directory(folder) as temporary:
        (temporary / "parts").mkdir()
        (temporary / "parts" / "a").write_bytes(b"a" * 2**24)
        (temporary / "empty").write_text("")
    node("b")
    found = listed(fetch(folder))
    assert {name: len(text) for name, text in found.items()} == {"empty": 0, "parts/a": 2**24}
    remove(folder / "parts")
    node("a")
    assert listed(fetch(folder)) == {"empty": ""}
