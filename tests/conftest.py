import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.stores import Server, s3_server
from tests.tiny import save_base

SIDE_BY_SIDE = "PYTEST_XDIST_WORKER" in os.environ

if SIDE_BY_SIDE:  # processes share the cores
    torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n 2`, files that start Ray run in two lines, as more clusters would fight for the cores.

    One process begins with those that train. The other takes all that start no Ray, then the second line. The
    tests of any file stay together: they share fixtures.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = config.rootpath / nodeid.partition("::")[0]
            return ("training", str(file), "ray")[_line(file)]

    config.option.loadscopereorder = False
    return ByFile(config, log)


@cache
def _line(file: Path) -> int:
    """0: starts Ray and trains, 1: starts no Ray, 2: starts Ray for something else."""
    if "pytest.mark.ray" not in file.read_text():
        return 1
    return 0 if file.parent.name in ("tests", "training", "callbacks", "bulk") else 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the tests that need a GPU where there is none."""
    if SIDE_BY_SIDE:
        items.sort(key=lambda item: _line(item.path))
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="module", autouse=True)
def ray_stops_with_the_module() -> Iterator[None]:
    """A module that connected to Ray does not hand its cluster to the next one."""
    yield
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        sys.modules["ray"].shutdown()


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random base model."""
    return save_base(tmp_path_factory.mktemp("tiny-base"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Workspace of its own."""
    monkeypatch.setenv("RAYEMBED_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def s3() -> Iterator[Server]:
    """An S3 server with an empty bucket."""
    pytest.importorskip("moto")
    with s3_server() as server:
        server.open("bucket")
        yield server


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes this process one of node a, b, ..., which have a cache of their own; it begins as a."""

    def become(name: str) -> Path:
        monkeypatch.setenv("RAYEMBED_CACHE", str(tmp_path / name))
        return tmp_path / name

    become("a")
    return become
