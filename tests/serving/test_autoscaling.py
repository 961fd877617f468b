from types import SimpleNamespace

import pytest
from ray.serve.config import AutoscalingConfig

from rayembed.serving.autoscaling import QUEUED_TOKENS, QueuedTokensPolicy, autoscaling_settings
from rayembed.serving.config import ModelSettings


@pytest.mark.parametrize(
    ("queued", "requests", "wanted"),
    [({}, 0, 0), ({}, 1, 1), ({"a": 50.0}, 1, 1), ({"a": 150.0, "b": 100.0}, 2, 2.5)],
)
def test_one_replica_for_each_target_of_queued_tokens(queued, requests, wanted):
    context = SimpleNamespace(aggregated_metrics={QUEUED_TOKENS: queued}, total_num_requests=requests)
    assert QueuedTokensPolicy(100)(context) == (wanted, {})


@pytest.mark.parametrize("target", [{}, {"target_queued_tokens": 1000}])
def test_settings_are_those_of_ray_serve(target):
    model = ModelSettings(checkpoint="unused", min_replicas=0, max_replicas=3, **target)
    settings = AutoscalingConfig(**autoscaling_settings(model))
    assert (settings.min_replicas, settings.max_replicas) == (0, 3)
    assert ("QueuedTokensPolicy" in str(settings.policy.policy_function)) == bool(target)
