"""cluster.yaml passes Ray's own validation; nothing here calls a cloud."""

from pathlib import Path

import pytest
import yaml

from rayembed.common.ray_cluster import node_types
from rayembed.config.loading import load_config

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "jobs" / "configs"


@pytest.fixture(scope="module")
def prepared():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    validate_config(config)
    return config


def test_head_has_no_gpu_and_workers_scale_from_zero(prepared):
    types = prepared["available_node_types"]
    assert "GPU" not in types[prepared["head_node_type"]].get("resources", {})
    workers = [declared for name, declared in types.items() if name != prepared["head_node_type"]]
    for worker in workers:
        assert worker["resources"]["GPU"] >= 1
        assert worker["min_workers"] == 0
        assert worker["max_workers"] <= prepared["max_workers"]


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("nv-embed-v2-*gb.yaml")), ids=lambda path: path.stem)
def test_workers_of_a_recipe_for_gpus_find_nodes_to_start(recipe):
    training = load_config(recipe).training
    assert training.device == "cuda"
    types = node_types(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    kind = f"accelerator_type:{training.accelerator_type}"
    fitting = [
        int(count * resources["GPU"])
        for count, resources in types
        if kind in resources and training.cpus_per_worker * resources["GPU"] <= resources["CPU"]
    ]
    assert sum(fitting) >= training.workers


def test_every_node_gets_this_checkout_with_pinned_versions(prepared):
    assert prepared["file_mounts"] == {"~/rayembed": "."}
    for commands in (prepared["head_setup_commands"], prepared["worker_setup_commands"]):
        assert any("constraints.txt --editable ~/rayembed" in command for command in commands)


def test_dashboard_stays_on_loopback(prepared):
    [start] = [command for command in prepared["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start
