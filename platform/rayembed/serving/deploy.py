"""The endpoint as a Ray Serve application, and one call that deploys it and waits until it answers."""

import errno
import logging
import os
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray import serve
from ray.serve import Application
from ray.serve.api import RunTarget, run_many
from ray.serve.schema import ApplicationStatus

from rayembed.common.errors import CheckpointError, ResourceError
from rayembed.common.ray_cluster import connect, counted_gpus, joins_cluster, live_nodes
from rayembed.common.ray_compat import haproxy_settings
from rayembed.engine.engine import Engine
from rayembed.model.checkpoint import read_manifest
from rayembed.serving.app import INGRESS_NAME, Ingress
from rayembed.serving.authentication import load_keyring
from rayembed.serving.autoscaling import autoscaling_settings
from rayembed.serving.config import ModelSettings, ServeConfig
from rayembed.serving.replica import REPLICA_NAME, EmbeddingReplica, load_engine
from rayembed.serving.token_routing import FewestTokensRouter

logger = logging.getLogger(__name__)

APPLICATION_NAME = "rayembed"

_POLL_S = 0.5
_PROGRESS_EVERY_S = 10
_PROXY_TIMEOUT_S = 30
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
    replicas = {
        model.served_name: _bind_replica(config, number, load, environment)
        for number, model in enumerate(config.all_models)
    }
    return serve.deployment(
        name=INGRESS_NAME,
        num_replicas=config.front_ends,
        # It mostly waits; a reserved core would be missing for the model on a small machine.
        ray_actor_options={"num_cpus": 0, **environment},
        max_ongoing_requests=_INGRESS_REQUESTS_IN_PROGRESS,
        max_queued_requests=_REQUESTS_WAITING_FOR_A_REPLICA,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        max_surge_percent=100,
        graceful_shutdown_timeout_s=_DRAIN_S,
        logging_config=_LOGGING,
    )(Ingress).bind(config.with_absolute_paths(), replicas)


def _bind_replica(
    config: ServeConfig, number: int, load: Callable[[ModelSettings], Engine], environment: dict
) -> Application:
    model = config.all_models[number]
    suffix = f"-{number}-{re.sub('[^A-Za-z0-9_-]', '_', model.served_name)}" if config.models else ""
    return serve.deployment(
        name=f"{REPLICA_NAME}{suffix}",
        ray_actor_options={"num_cpus": model.num_cpus, "num_gpus": model.num_gpus, **environment},
        autoscaling_config=autoscaling_settings(model),
        request_router_config={"request_router_class": FewestTokensRouter},
        max_ongoing_requests=_MODEL_REQUESTS_IN_PROGRESS,
        max_queued_requests=_REQUESTS_WAITING_FOR_A_REPLICA,
        max_constructor_retry_count=2,
        max_surge_percent=config.surge_percent,
        graceful_shutdown_timeout_s=_DRAIN_S,
        logging_config=_LOGGING,
    )(EmbeddingReplica).bind(model.with_absolute_paths(), load)


def deploy(
    arguments: Mapping[str, Any], *, host: str = "127.0.0.1", port: int = 8000, timeout_s: float = 900
) -> str:
    """Serve a checkpoint on the connected Ray cluster, or on one started here, and return the endpoint's URL.

    Replaces an endpoint that already runs on the cluster. Replicas get the environment of
    `rayembed.common.ray_cluster.connect` from Ray Serve, and with it find the package uninstalled.

    Args:
        arguments: fields of `ServeConfig`; without num_cpus and num_gpus a replica gets one GPU if the
            cluster has any or can start one, else its share of the largest node's cores.
        host: address to listen on; anything but a loopback address needs API keys.
        port: TCP port.
        timeout_s: longest wait for the model to load.

    Raises:
        ConfigError: an argument is unknown or out of range, or API keys are needed and there are none.
        CheckpointError: the checkpoint folder is incomplete or its model does not load.
        ResourceError: the port is taken or the cluster has no room.
    """
    config = ServeConfig.parse(arguments)
    load_keyring(config.authentication, config.api_keys_file, host)
    check_models(config)
    if not joins_cluster():
        for name, value in haproxy_settings().items():
            os.environ.setdefault(name, value)
    connect_for_serving()
    config = with_fitting_resources(config, arguments)
    if "surge_percent" not in arguments and not _has_room_for_two(config):
        logger.info("the cluster has no room for old and new replicas at once: an update stops the old first")
        config = config.model_copy(update={"surge_percent": 0})
    if not _serve_is_running():
        check_port(host, port)
    serve.start(http_options={"host": host, "port": port})
    run_many(
        [RunTarget(build_application(config), name=APPLICATION_NAME, route_prefix="/")],
        wait_for_applications_running=False,
    )
    _wait_until_running(timeout_s)
    url = base_url(host, port)
    _wait_until_ready(url)
    return url


def base_url(host: str, port: int) -> str:
    """Where a client on this machine finds an endpoint that listens on `host`."""
    return f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"


def connect_for_serving() -> None:
    """`connect`, and where that starts Ray on this machine, with workers of the usual priority.

    Ray runs workers behind everything else on a machine; an endpoint's replicas are what it is there for.
    """
    connect(worker_niceness=0)


def drain() -> None:
    """Make the readiness probe of every HTTP front end fail; requests are answered as before."""
    serve.get_deployment_handle(INGRESS_NAME, APPLICATION_NAME).broadcast("drain").results()


def shut_down() -> None:
    """End the endpoint; other applications of the cluster stay."""
    serve.delete(APPLICATION_NAME)


def example_request(url: str, model: str, *, with_key: bool = False) -> str:
    """A curl line that asks the endpoint for a vector."""
    key = " -H 'Authorization: Bearer KEY'" if with_key else ""
    body = f'{{"model": "{model}", "input": "How do I read a file?"}}'
    return f"curl -s {url}/v1/embeddings -H 'Content-Type: application/json'{key} -d '{body}'"


def check_models(config: ServeConfig) -> None:
    """Raise CheckpointError unless every model has a complete checkpoint folder and its adapters."""
    for model in config.all_models:
        read_manifest(model.checkpoint_path)
        for adapter in model.adapters:
            if not (adapter.adapter_path / "adapter_config.json").is_file():
                raise CheckpointError(f"{adapter.adapter_path} has no adapter_config.json, as peft saves it")


def with_fitting_resources(config: ServeConfig, arguments: Mapping[str, Any]) -> ServeConfig:
    """The settings of `arguments` with a share of the connected cluster where these name none."""
    replicas = sum(model.max_replicas for model in config.all_models)
    return ServeConfig.parse({**_fitting_resources(replicas), **arguments})


def _fitting_resources(replicas: int) -> dict[str, float]:
    """Processor cores and GPUs of a replica when the user names none."""
    if counted_gpus():
        return {"num_gpus": 1}
    return {"num_cpus": max(1, max(int(node.get("CPU", 0)) for node in live_nodes()) // replicas)}


def _has_room_for_two(config: ServeConfig) -> bool:
    """Whether the replicas that always run fit the cluster twice."""
    there = ray.cluster_resources()
    running = [(max(model.min_replicas, 1), model) for model in config.all_models]
    cpus = sum(replicas * model.num_cpus for replicas, model in running)
    gpus = sum(replicas * model.num_gpus for replicas, model in running)
    return 2 * cpus <= there.get("CPU", 0) and 2 * gpus <= there.get("GPU", 0)


def _serve_is_running() -> bool:
    return bool(serve.status().proxies)


def check_port(host: str, port: int) -> None:
    """Raise ResourceError when nothing can listen on `port`."""
    bound_socket(host, port).close()


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that has the port and does not listen yet; ResourceError where it is taken."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be bound ({error.strerror})"
        raise ResourceError(f"port {port} on {host} {reason}; choose another one with --port") from error
    return bound


def _wait_until_running(timeout_s: float) -> None:
    started = reported = time.monotonic()
    logger.info("starting the replicas and loading the model")
    while True:
        application = serve.status().applications[APPLICATION_NAME]
        if application.status == ApplicationStatus.RUNNING:
            return
        details = "; ".join(
            f"{name}: {status.message}" for name, status in application.deployments.items() if status.message
        )
        if application.status == ApplicationStatus.DEPLOY_FAILED:
            raise CheckpointError(f"the endpoint did not start: {last_line(details or application.message)}")
        now = time.monotonic()
        if now - started > timeout_s:
            raise ResourceError(
                f"the endpoint is not ready after {timeout_s:.0f} s ({details or application.status}); "
                "free processors or GPUs on the cluster, or lower num_cpus and num_gpus"
            )
        if now - reported > _PROGRESS_EVERY_S:
            reported = now
            logger.info("waiting for %.0f s: %s", now - started, details or application.status.value)
        time.sleep(_POLL_S)


def last_line(failure: Exception | str) -> str:
    """What went wrong in another process: the last line of its traceback."""
    return (str(failure).strip() or type(failure).__name__).splitlines()[-1]


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + _PROXY_TIMEOUT_S
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=_PROXY_TIMEOUT_S):
                return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline:
                raise ResourceError(
                    f"the endpoint runs but {url} does not answer ({error}); Ray Serve of this cluster may "
                    "listen on another port: use that one, or run `serve shutdown` first"
                ) from error
        time.sleep(_POLL_S)
