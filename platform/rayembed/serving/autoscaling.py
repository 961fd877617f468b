"""How many replicas a model gets."""

from collections.abc import Callable
from typing import Any

from rayembed.serving.config import ModelSettings

QUEUED_TOKENS = "queued_tokens"
"""Name of the figure that a replica reports to Ray Serve."""


def autoscaling_settings(model: ModelSettings) -> dict[str, Any]:
    """Ray Serve's `autoscaling_config` for a model."""
    settings: dict[str, Any] = {
        "min_replicas": model.min_replicas,
        "max_replicas": model.max_replicas,
        "target_ongoing_requests": model.target_ongoing_requests,
        "upscale_delay_s": model.upscale_delay_s,
        "downscale_delay_s": model.downscale_delay_s,
    }
    if model.target_queued_tokens is not None:
        settings["policy"] = {"policy_function": queued_tokens_policy(model.target_queued_tokens)}
    return settings


def queued_tokens_policy(target: int) -> Callable[[Any], tuple[float, dict[str, Any]]]:
    """Policy that wants one replica for each `target` tokens accepted and not yet answered.

    Requests differ in tokens a thousandfold, so their number says little about the work. Ray Serve applies
    the bounds and delays, and starts the first replica of a model at zero by itself.
    """

    # A nested function without globals of the package travels to Ray Serve's controller by value, so the
    # package need not be there.
    figure = QUEUED_TOKENS

    def policy(context: Any) -> tuple[float, dict[str, Any]]:
        tokens = sum(context.aggregated_metrics.get(figure, {}).values())
        return max(tokens / target, 1 if context.total_num_requests else 0), {}

    return policy
