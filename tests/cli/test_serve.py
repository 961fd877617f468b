"""What `rayembed serve` refuses before it starts anything, and its config file."""

import pytest
import yaml
from typer.testing import CliRunner

from rayembed.cli.main import app
from rayembed.cli.serve import read_config_file
from rayembed.common.errors import CheckpointError, ConfigError, ResourceError
from rayembed.serving.config import ServeConfig
from tests.training_jobs import ROOT

CONFIG_FILE = ROOT / "serve" / "config.yaml"


@pytest.fixture
def failure(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return lambda *arguments: CliRunner().invoke(app, ["serve", *arguments]).exception


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


def test_lists_are_read_as_yaml(failure, tmp_path):
    error = failure(str(tmp_path), "--set", "adapters=[{adapter: nothing, model_title: x}]")
    assert "adapters.0.model_title" in str(error)
    assert isinstance(failure(str(tmp_path), "--set", "adapters=[{"), ConfigError)


def test_local_serving_says_what_it_cannot_do(failure, tmp_path):
    error = failure(str(tmp_path), "--on", "local", "--set", "min_replicas=0")
    assert "--on local: min_replicas is below max_replicas" in str(error)


def test_shipped_config_file_is_valid():
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG_FILE.read_text()))
    assert schema.http_options.host == "127.0.0.1"
    arguments, http_options = read_config_file(CONFIG_FILE)
    config = ServeConfig.parse(arguments)
    assert config.min_replicas <= config.max_replicas
    assert http_options["port"] == 8000


def test_config_file_without_application_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("http_options: {}\n")
    with pytest.raises(ConfigError, match="not a Serve config file with one application"):
        read_config_file(path)
