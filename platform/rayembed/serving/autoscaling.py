"""How many replicas a model gets.

Serve's controller imports this module for its policy, which is why it needs no model code.
"""

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
        settings["policy"] = {
            "policy_function": f"{__name__}:{QueuedTokensPolicy.__name__}",
            "policy_kwargs": {"target": model.target_queued_tokens},
        }
    return settings


class QueuedTokensPolicy:
    """Wants one replica for each `target` tokens accepted and not yet answered.

    Requests differ in tokens a thousandfold, so their number says little about the work. Ray Serve applies
    the bounds and delays, and starts the first replica of a model at zero by itself.
    """

    def __init__(self, target: int):
        self._target = target

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """Number of replicas wanted, and no state."""
        tokens = sum((context.aggregated_metrics or {}).get(QUEUED_TOKENS, {}).values())
        return max(tokens / self._target, 1 if context.total_num_requests else 0), {}
