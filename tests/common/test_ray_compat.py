"""Each private or unstable name of a library is still there and still means what it is used for."""

import inspect
import json
import logging
import os
import types

import pytest
import ray

from rayembed.common import ray_compat


def test_replicas_of_serve_can_be_asked_one_by_one():
    from ray.serve._private.replica_result import ReplicaResult
    from ray.serve.handle import DeploymentBroadcastResponse

    assert inspect.iscoroutinefunction(DeploymentBroadcastResponse._fetch_replica_results_async)
    assert inspect.iscoroutinefunction(ReplicaResult.get_async)


def test_a_job_is_told_by_its_variable(monkeypatch):
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    monkeypatch.delenv(RAY_JOB_CONFIG_JSON_ENV_VAR, raising=False)
    assert not ray_compat.runs_inside_job()
    assert ray_compat.job_variables() == {}
    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")
    assert ray_compat.runs_inside_job()
    assert ray_compat.job_variables() == {}


def test_variables_that_a_job_was_told_are_not_told_again(monkeypatch):
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
    from ray.runtime_env.runtime_env import _merge_runtime_env

    told = {"env_vars": {"RAYEMBED_HOME": "/mnt/shared"}}
    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, json.dumps({"runtime_env": told}))
    assert ray_compat.job_variables() == told["env_vars"]
    assert _merge_runtime_env(told, told) is None, "Ray refuses it"


def test_node_types_that_an_autoscaler_reported(monkeypatch):
    from ray._private.state import GlobalState, state
    from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig

    groups = [
        NodeGroupConfig(name="gpu", max_count=2, resources={"GPU": 8}),
        NodeGroupConfig(name="cpu", max_count=-1, resources={"CPU": 4}),
    ]
    assert "self" in inspect.signature(GlobalState.get_cluster_config).parameters
    monkeypatch.setattr(state, "get_cluster_config", lambda: ClusterConfig(node_group_configs=groups))
    assert ray_compat.reported_node_types() == [(2, {"GPU": 8}), (10**6, {"CPU": 4})]
    monkeypatch.setattr(state, "get_cluster_config", lambda: None)
    assert ray_compat.reported_node_types() is None


def test_node_groups_of_kubernetes_read_like_a_launcher_file(monkeypatch):
    from ray.autoscaler._private.kuberay import autoscaling_config

    limits = {"cpu": "8", "memory": "32Gi", "nvidia.com/gpu": "4"}
    pod = {"spec": {"containers": [{"name": "ray", "resources": {"limits": limits, "requests": limits}}]}}
    group = {
        "groupName": "trainers",
        "minReplicas": 0,
        "maxReplicas": 2,
        "rayStartParams": {},
        "template": pod,
    }
    head = {"rayStartParams": {"num-cpus": "0"}, "template": pod}
    answer = {
        "metadata": {"name": "rayembed", "namespace": "here"},
        "spec": {"headGroupSpec": head, "workerGroupSpecs": [group]},
    }
    client = types.SimpleNamespace(get=lambda path: answer if path == "rayclusters/rayembed" else None)
    monkeypatch.setattr(autoscaling_config.node_provider, "KubernetesHttpApiClient", lambda namespace: client)
    declared = ray_compat.kuberay_configuration("rayembed", "here")
    assert declared["head_node_type"] not in ("trainers", None)
    assert declared["available_node_types"]["trainers"]["max_workers"] == 2
    assert declared["available_node_types"]["trainers"]["resources"]["GPU"] == 4


def test_a_draining_node_is_told(monkeypatch):
    from ray.train.v2._internal.execution import context
    from ray.train.v2._internal.execution.preemption import PreemptionContext

    told = PreemptionContext()
    monkeypatch.setattr(context, "get_train_context", lambda: types.SimpleNamespace(preemption_context=told))
    assert "preemption_context" in {
        field.name for field in context.TrainContext.__dataclass_fields__.values()
    }
    assert not ray_compat.was_told_of_preemption()
    told.preemption_info = object()
    assert ray_compat.was_told_of_preemption()


def test_the_actor_of_a_training_worker_executes_functions():
    from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

    assert list(inspect.signature(RayTrainWorker.execute).parameters)[:2] == ["self", "fn"]


def test_the_list_of_checkpoints_is_a_json_file():
    assert ray_compat.checkpoint_list_file().endswith(".json")


def test_the_cleaner_of_placement_groups_only_tells_errors():
    from ray.train.v2._internal.execution.controller import placement_group_cleaner

    ray_compat.silence_cleaner()
    assert not logging.getLogger(placement_group_cleaner.__name__).isEnabledFor(logging.WARNING)


def test_the_address_of_the_proxies_is_in_the_client(monkeypatch):
    from ray.serve import context
    from ray.serve._private.client import ServeControllerClient

    assert isinstance(inspect.getattr_static(ServeControllerClient, "http_config"), property)
    client = types.SimpleNamespace(http_config=types.SimpleNamespace(host="10.0.0.1"))
    monkeypatch.setattr(context, "_get_global_client", lambda: client)
    assert ray_compat.serve_http_host() == "10.0.0.1"


@pytest.mark.ray
def test_workers_have_the_niceness_that_was_asked_for(monkeypatch):
    monkeypatch.delenv("RAY_worker_niceness", raising=False)
    options = ray_compat.worker_niceness_options(0)
    ray.init(address="local", num_cpus=1, include_dashboard=False, **options)
    assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)
    command = ray_compat.monitor_command(ray.get_runtime_context().gcs_address)
    assert command, "every head has a monitor"
    assert not [part for part in command if part.startswith("--autoscaling-config")]
    assert ray_compat.monitor_command("127.0.0.1:1") is None


def test_the_users_own_niceness_of_workers_wins(monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "7")
    assert ray_compat.worker_niceness_options(0) == {}


def test_deepspeed_does_not_compile_its_transport(monkeypatch):
    ops = pytest.importorskip("deepspeed.ops")
    monkeypatch.setitem(ops.__compatible_ops__, "deepspeed_shm_comm", True)
    ray_compat.disable_shared_memory_transport()
    assert ops.__compatible_ops__["deepspeed_shm_comm"] is False


def test_the_texts_of_a_task_have_their_titles():
    import mteb
    from datasets import Dataset
    from mteb.types import PromptType

    task = mteb.get_task("SciFact").metadata
    rows = Dataset.from_dict({"id": ["1"], "title": ["A title"], "text": ["and a text"]})
    (batch,) = ray_compat.task_texts(rows, task, PromptType.document, 8)
    assert batch["text"] == ["A title and a text"]


def test_no_other_module_uses_private_names_of_these_libraries():
    import re
    from pathlib import Path

    import rayembed

    private = re.compile(r"(?:import|from) (?:ray|mteb|deepspeed)\S*(?:\._|\.v2)|import _get_global_client")
    package = Path(rayembed.__file__).parent
    using = [path.relative_to(package) for path in package.rglob("*.py") if private.search(path.read_text())]
    assert [str(path) for path in using] == ["common/ray_compat.py"]
