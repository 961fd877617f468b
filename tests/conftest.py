import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny import save_base

if "PYTEST_XDIST_WORKER" in os.environ:  # processes side by side share the cores
    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Divide tests among processes, and leave out those that need a GPU where there is none.

    With `--dist loadgroup`, tests that start Ray run one after another in one process, since two clusters
    would fight for the cores; the tests of any other file stay together, since they share fixtures.
    """
    for item in items:
        group = "ray" if item.get_closest_marker("ray") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
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
