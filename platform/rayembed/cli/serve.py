"""`rayembed serve`."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml

from rayembed.cli.options import FilePath, Set
from rayembed.common.errors import ConfigError, ResourceError
from rayembed.common.settings import read_yaml
from rayembed.serving.authentication import load_keyring
from rayembed.serving.config import ServeConfig

logger = logging.getLogger(__name__)

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000


def serve(
    checkpoint: Annotated[FilePath, typer.Argument(help="Checkpoint folder.")],
    host: Annotated[str | None, typer.Option(help="Address to listen on (default: 127.0.0.1).")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port (default: 8000).")] = None,
    model_name: Annotated[str | None, typer.Option(help="Name of the model (default: the folder's).")] = None,
    config: Annotated[FilePath | None, typer.Option(help="Serve config file with the defaults.")] = None,
    set: Set = None,
    on: Annotated[
        Literal["local", "ray"] | None,
        typer.Option(help="This machine alone, or Ray Serve (default: local where the settings allow it)."),
    ] = None,
    drain_seconds: Annotated[
        float, typer.Option(help="On SIGTERM, seconds from the failing readiness probe to the stop.")
    ] = 10,
    blocking: Annotated[
        bool, typer.Option(help="Stay until Ctrl-C; --no-blocking leaves it on the cluster of RAY_ADDRESS.")
    ] = True,
) -> str:
    """Serve a checkpoint over HTTP with an OpenAI-compatible API.

    Args:
        checkpoint: checkpoint folder.
        host: address to listen on; None takes the config file's, else 127.0.0.1.
        port: TCP port; None takes the config file's, else 8000.
        model_name: name of the model; None takes the folder's.
        config: Serve config file that gives the defaults.
        set: any other serving setting, each `key=value`.
        on: `local` answers on this machine alone, `ray` is Ray Serve; None takes local where it is possible.
        drain_seconds: on SIGTERM, seconds from the failing readiness probe to the stop.
        blocking: stay until Ctrl-C; False leaves the endpoint on the cluster of RAY_ADDRESS.

    Returns:
        The endpoint's URL, after its stop where `blocking`.

    Raises:
        UserError: the checkpoint or a setting cannot be used, or the port is taken.

    Example:
        rayembed.serve("runs/quickstart/model", port=8000)
    """
    # Ray Serve and torch take seconds to import.
    from rayembed.serving.deploy import deploy, drain, example_request, shut_down
    from rayembed.serving.local import serve_locally, why_not_locally

    if not blocking and "RAY_ADDRESS" not in os.environ:
        raise ResourceError(
            "--no-blocking needs a Ray cluster that outlives this command; "
            "run `ray start --head` and set RAY_ADDRESS=127.0.0.1:6379"
        )
    arguments, http_options = read_config_file(Path(config)) if config else ({}, {})
    arguments |= dict(_split_setting(setting) for setting in set or [])
    arguments["checkpoint"] = str(checkpoint)
    if model_name is not None:
        arguments["model_name"] = model_name
    host = host or http_options.get("host", DEFAULT_HOST)
    port = port or http_options.get("port", DEFAULT_PORT)
    serving = ServeConfig.parse(arguments)
    reason = "it was asked for" if on == "ray" else why_not_locally(serving)
    if reason and on == "local":
        raise ConfigError(f"--on local: {reason}, which needs Ray Serve; use --on ray or change that")
    if not reason:
        logger.info("serving on this machine alone; --on ray uses Ray Serve")
        endpoint = serve_locally(arguments, host=host, port=port)
        url, drain, stop, check = endpoint.url, endpoint.drain, endpoint.stop, endpoint.check
    else:
        logger.info("serving with Ray Serve: %s", reason)
        url, stop, check = deploy(arguments, host=host, port=port), shut_down, _nothing
    with_key = load_keyring(serving.authentication, serving.api_keys_file, host) is not None
    example = example_request(url, serving.served_name, with_key=with_key)
    typer.echo(f"ready: {url}\ntry it:\n  {example}")
    if blocking:
        _stay_until_stopped(drain, stop, check, drain_seconds)
    return url


def _nothing() -> None:
    """Ray Serve looks after its own processes."""


def read_config_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The application's `args` and the `http_options` of a Serve config file with one application.

    Raises:
        ConfigError: the file is missing, not YAML, or has not exactly one application.
    """
    try:
        content = yaml.safe_load(path.read_text())
        [application] = content["applications"]
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is not a Serve config file with one application: {error}") from error
    return dict(application.get("args", {})), dict(content.get("http_options", {}))


def _split_setting(setting: str) -> tuple[str, Any]:
    key, separator, value = setting.partition("=")
    if not separator:
        raise ConfigError(f"--set {setting}: write it as KEY=VALUE")
    if value[:1] in ("[", "{"):
        try:
            return key, read_yaml(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {key}: {value} is not a YAML list or mapping") from error
    return key, value


def _stay_until_stopped(
    drain: Callable[[], None], stop: Callable[[], None], check: Callable[[], None], drain_seconds: float
) -> None:
    """Wait for Ctrl-C, or for SIGTERM, after which orchestrators keep sending requests for a while."""
    terminated = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: terminated.set())
    logger.info("press Ctrl-C to stop")
    try:
        while not terminated.wait(1):
            check()
        logger.info("the readiness probe fails from now on; stopping in %g s", drain_seconds)
        drain()
        time.sleep(drain_seconds)
    except KeyboardInterrupt:
        pass
    logger.info("stopping")
    stop()
