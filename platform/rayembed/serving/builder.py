"""Settings in, bound Ray Serve application out."""

from collections.abc import Callable, Mapping
from typing import Any

from ray import serve
from ray.serve import Application

from rayembed.inference.engine import Engine
from rayembed.serving.config import ServeConfig
from rayembed.serving.ingress import Ingress
from rayembed.serving.replica import Encoder, load_engine

APPLICATION_NAME = "rayembed"

# Requests wait in the batcher, where their tokens are counted; Serve's own queues are only the outer wall.
_MODEL_REQUESTS_IN_PROGRESS = 4096
_INGRESS_REQUESTS_IN_PROGRESS = 16_384
_REQUESTS_WAITING_FOR_A_REPLICA = 1024
_LOGGING = {"enable_access_log": False}  # a line a request, in both deployments, costs more than a short text


def build(arguments: Mapping[str, Any]) -> Application:
    """Application for the `args` of a Serve config file or the key=value arguments of `serve run`.

    Raises:
        ConfigError: a setting is unknown, missing or out of range.
    """
    return build_application(ServeConfig.parse(arguments))


def build_application(
    config: ServeConfig,
    *,
    load: Callable[[ServeConfig], Engine] = load_engine,
    runtime_env: Mapping[str, Any] | None = None,
) -> Application:
    """Bind the ingress to the model replicas.

    Args:
        config: settings; a relative checkpoint path is taken from this process's workspace.
        load: makes the engine inside a replica.
        runtime_env: Ray runtime environment of all replicas, needed where the package is not installed.
    """
    config = config.model_copy(update={"checkpoint": str(config.checkpoint_path)})
    environment = {"runtime_env": dict(runtime_env)} if runtime_env else {}
    encoder = serve.deployment(
        name="Encoder",
        ray_actor_options={"num_cpus": config.num_cpus, "num_gpus": config.num_gpus, **environment},
        autoscaling_config={
            "min_replicas": config.min_replicas,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": config.target_ongoing_requests,
            "upscale_delay_s": config.upscale_delay_s,
            "downscale_delay_s": config.downscale_delay_s,
        },
        max_ongoing_requests=_MODEL_REQUESTS_IN_PROGRESS,
        max_queued_requests=_REQUESTS_WAITING_FOR_A_REPLICA,
        max_constructor_retry_count=2,
        logging_config=_LOGGING,
    )(Encoder).bind(config, load)
    return serve.deployment(
        name="Ingress",
        num_replicas=config.ingress_replicas,
        # It mostly waits; a reserved core would be missing for the model on a small machine.
        ray_actor_options={"num_cpus": 0, **environment},
        max_ongoing_requests=_INGRESS_REQUESTS_IN_PROGRESS,
        max_queued_requests=_REQUESTS_WAITING_FOR_A_REPLICA,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        logging_config=_LOGGING,
    )(Ingress).bind(config, encoder)
