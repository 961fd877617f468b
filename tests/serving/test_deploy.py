"""What `rayembed serve` refuses before it starts anything."""

import socket

import pytest
from typer.testing import CliRunner

from rayembed.cli.main import app
from rayembed.common.errors import CheckpointError, ConfigError, ResourceError
from rayembed.serving.deploy import check_port


@pytest.fixture
def failure(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return lambda *arguments: CliRunner().invoke(app, ["serve", *arguments]).exception


def test_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=f"port {port} on 127.0.0.1 is in use; .* --port"):
            check_port("127.0.0.1", port)


def test_folder_without_checkpoint(failure, tmp_path):
    error = failure(str(tmp_path))
    assert isinstance(error, CheckpointError)
    assert str(tmp_path) in str(error)


def test_settings_are_checked(failure, tmp_path):
    assert isinstance(failure(str(tmp_path), "--set", "token_budget"), ConfigError)
    assert "unknown key 'tokens'" in str(failure(str(tmp_path), "--set", "tokens=1"))
    assert isinstance(failure(str(tmp_path), "--config", str(tmp_path / "none.yaml")), ConfigError)


def test_leaving_the_endpoint_up_needs_a_cluster(failure, tmp_path):
    error = failure(str(tmp_path), "--no-blocking")
    assert isinstance(error, ResourceError)
    assert "RAY_ADDRESS" in str(error)
