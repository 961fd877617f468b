from pathlib import Path

import pytest

from tests.tiny import save_base


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random base model."""
    return save_base(tmp_path_factory.mktemp("tiny-base"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Workspace of its own."""
    monkeypatch.setenv("RAYEMBED_HOME", str(tmp_path))
    return tmp_path
