import pytest
from ray.serve import Application

from rayembed.common.errors import ConfigError
from rayembed.serving.config import ServeConfig


def test_text_values_of_the_command_line_are_converted():
    config = ServeConfig.parse({"checkpoint": "/models/small", "token_budget": "64", "num_gpus": "0.5"})
    assert (config.token_budget, config.num_gpus, config.served_name) == (64, 0.5, "small")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "missing key 'checkpoint'"),
        ({"checkpoint": "c", "tokenbudget": 1}, "unknown key 'tokenbudget'; did you mean 'token_budget'"),
        ({"checkpoint": "c", "token_budget": 0}, r"token_budget: .*value 0"),
        ({"checkpoint": "c", "min_replicas": 3}, "min_replicas 3 is above max_replicas 1"),
        ({"checkpoint": "c", "backend": "openvino"}, "backend: Input should be 'auto' or 'torch'"),
        (
            {"checkpoint": "c", "precision": "fp32", "fp32_layers": 2},
            "fp32_layers 2 belongs to precision bf16",
        ),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ServeConfig.parse(arguments)


def test_import_path_builds_the_application():
    from serve.app import build

    assert isinstance(build({"checkpoint": "models/small", "max_replicas": "2"}), Application)
    with pytest.raises(ConfigError, match="unknown key 'replicas'"):
        build({"checkpoint": "models/small", "replicas": "2"})


def test_an_entry_takes_what_it_leaves_out():
    config = ServeConfig.parse(
        {
            "checkpoint": "a",
            "model_name": "first",
            "token_budget": 64,
            "num_gpus": 0.5,
            "models": [{"checkpoint": "b", "num_gpus": 1}],
        }
    )
    second = config.all_models[1]
    assert (second.served_name, second.token_budget, second.num_gpus) == ("b", 64, 1)


def test_an_entry_needs_a_checkpoint_of_its_own():
    with pytest.raises(ConfigError, match=r"missing key 'models\.0\.checkpoint'"):
        ServeConfig.parse({"checkpoint": "a", "models": [{"model_name": "b"}]})


def test_names_must_differ():
    with pytest.raises(ConfigError, match="two models are called a"):
        ServeConfig.parse({"checkpoint": "a", "adapters": [{"adapter": "elsewhere/a"}]})
    with pytest.raises(ConfigError, match="two models are called b"):
        ServeConfig.parse({"checkpoint": "a", "aliases": "x,b", "models": [{"checkpoint": "b"}]})


def test_the_token_budget_goes_by_the_device_of_a_replica():
    budgets = [{}, {"num_gpus": 0.5}, {"num_gpus": 1, "token_budget": 64}]
    assert [ServeConfig.parse({"checkpoint": "c"} | one).tokens_per_pass for one in budgets] == [
        4096,
        16384,
        64,
    ]
