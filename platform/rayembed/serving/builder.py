"""Settings in, bound Ray Serve application out."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from ray import serve
from ray.serve import Application

from rayembed.engine.engine import Engine
from rayembed.serving.autoscaling import autoscaling_settings
from rayembed.serving.config import ModelSettings, ServeConfig
from rayembed.serving.ingress import INGRESS_NAME, Ingress
from rayembed.serving.replica import Encoder, load_engine

APPLICATION_NAME = "rayembed"

# Requests wait in the batcher, where their tokens are counted; Serve's own queues are only the outer wall.
_MODEL_REQUESTS_IN_PROGRESS = 4096
_INGRESS_REQUESTS_IN_PROGRESS = 16_384
_REQUESTS_WAITING_FOR_A_REPLICA = 1024
_DRAIN_S = 60
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
    load: Callable[[ModelSettings], Engine] = load_engine,
    runtime_env: Mapping[str, Any] | None = None,
) -> Application:
    """Bind the ingress to the replicas of each model.

    Args:
        config: settings; a relative checkpoint path is taken from this process's workspace.
        load: makes the engine inside a replica.
        runtime_env: Ray runtime environment of all replicas, needed where the package is not installed.
    """
    environment = {"runtime_env": dict(runtime_env)} if runtime_env else {}
    encoders = {
        model.served_name: _bind_encoder(config, model, load, environment) for model in config.all_models
    }
    return serve.deployment(
        name=INGRESS_NAME,
        num_replicas=config.ingress_replicas,
        # It mostly waits; a reserved core would be missing for the model on a small machine.
        ray_actor_options={"num_cpus": 0, **environment},
        max_ongoing_requests=_INGRESS_REQUESTS_IN_PROGRESS,
        max_queued_requests=_REQUESTS_WAITING_FOR_A_REPLICA,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        max_surge_percent=100,
        graceful_shutdown_timeout_s=_DRAIN_S,
        logging_config=_LOGGING,
    )(Ingress).bind(config, encoders)


def _bind_encoder(
    config: ServeConfig, model: ModelSettings, load: Callable[[ModelSettings], Engine], environment: dict
) -> Application:
    single = len(config.all_models) == 1
    return serve.deployment(
        name="Encoder" if single else f"Encoder-{re.sub('[^A-Za-z0-9_-]', '_', model.served_name)}",
        ray_actor_options={"num_cpus": model.num_cpus, "num_gpus": model.num_gpus, **environment},
        autoscaling_config=autoscaling_settings(model),
        max_ongoing_requests=_MODEL_REQUESTS_IN_PROGRESS,
        max_queued_requests=_REQUESTS_WAITING_FOR_A_REPLICA,
        max_constructor_retry_count=2,
        max_surge_percent=config.surge_percent,
        graceful_shutdown_timeout_s=_DRAIN_S,
        logging_config=_LOGGING,
    )(Encoder).bind(model.with_absolute_paths(), load)
