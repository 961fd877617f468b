import subprocess
import sys
from types import SimpleNamespace

import cloudpickle
import pytest
from ray.serve.config import AutoscalingConfig

from rayembed.serving.autoscaling import QUEUED_TOKENS, autoscaling_settings, queued_tokens_policy
from rayembed.serving.config import ModelSettings


@pytest.mark.parametrize(
    ("queued", "requests", "wanted"),
    [({}, 0, 0), ({}, 1, 1), ({"a": 50.0}, 1, 1), ({"a": 150.0, "b": 100.0}, 2, 2.5)],
)
def test_one_replica_for_each_target_of_queued_tokens(queued, requests, wanted):
    context = SimpleNamespace(aggregated_metrics={QUEUED_TOKENS: queued}, total_num_requests=requests)
    assert queued_tokens_policy(100)(context) == (wanted, {})


def test_policy_travels_without_the_package():
    """Ray Serve's controller may run where the package is not on the path."""
    code = (
        "import sys; sys.modules['rayembed'] = None; import cloudpickle\n"
        "from types import SimpleNamespace as S\n"
        "policy = cloudpickle.loads(sys.stdin.buffer.read()); "
        "print(policy(S(aggregated_metrics={'queued_tokens': {'a': 250.0}}, total_num_requests=1))[0])"
    )
    pickled = cloudpickle.dumps(queued_tokens_policy(100))
    result = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True, check=True)
    assert result.stdout.decode().strip() == "2.5"


@pytest.mark.parametrize("target", [{}, {"target_queued_tokens": 1000}])
def test_settings_are_those_of_ray_serve(target):
    model = ModelSettings(checkpoint="unused", min_replicas=0, max_replicas=3, **target)
    settings = AutoscalingConfig(**autoscaling_settings(model))
    assert (settings.min_replicas, settings.max_replicas) == (0, 3)
    assert ("queued_tokens_policy" in str(settings.policy.policy_function)) == bool(target)
