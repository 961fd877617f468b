"""A Ray head on loopback for one command, and jobs submitted to it."""

import asyncio
import contextlib
import logging
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray.job_submission import JobStatus, JobSubmissionClient

import rayembed
from rayembed.common.errors import ResourceError
from rayembed.common.paths import atomic_write

logger = logging.getLogger(__name__)

_START_SECONDS = 90
_STOP_SECONDS = 60
_BIN = Path(sys.executable).parent
_TEMPORARY = "/tmp"  # other folders make paths that are too long for Ray's sockets


@dataclass(frozen=True)
class Head:
    """A running head.

    Attributes:
        address: where drivers connect, host:port.
        dashboard: where jobs are submitted, a URL.
        environment: variables that every process which talks to this head needs.
        jobs: submits jobs to this head.
    """

    address: str
    dashboard: str
    environment: dict[str, str]
    jobs: JobSubmissionClient

    def submit(self, entrypoint: Sequence[str], *, working_dir: Path | None = None) -> None:
        """Run a job with its log on this terminal, and wait for it.

        Args:
            entrypoint: command and arguments.
            working_dir: folder that is sent along and that the job starts in.

        Raises:
            ResourceError: the job failed; its last log lines say why.
        """
        command = shlex.join(entrypoint)
        logger.info("job: %s", command)
        environment: dict[str, Any] = {"working_dir": str(working_dir)} if working_dir else {}
        job = self.jobs.submit_job(entrypoint=command, runtime_env=environment)

        async def show_log() -> None:
            async for text in self.jobs.tail_job_logs(job):
                print(text, end="", flush=True)

        asyncio.run(show_log())
        if self.jobs.get_job_status(job) != JobStatus.SUCCEEDED:
            raise ResourceError(
                f"the job {' '.join(entrypoint[:4])} failed; its log is above. "
                "Run the same command again to continue where it stopped"
            )


@contextlib.contextmanager
def local_head(workspace: Path) -> Iterator[Head]:
    """Start a head on free loopback ports and stop it, by its process alone, at the end.

    A head that an earlier, killed call left behind is stopped first: its job may still be writing. Ray looks
    in its temporary folder for the cluster that a job is to join and takes the newest one, so this head has a
    folder of its own. It is removed at the end and kept, for its logs, when the body raises.

    Args:
        workspace: folder that relative paths of the jobs refer to.

    Raises:
        ResourceError: the head does not come up.
    """
    port, dashboard_port, client_port, agent_port = _free_ports(4)
    token = os.environ.get("RAY_AUTH_TOKEN") or secrets.token_hex(32)
    library = str(Path(rayembed.__file__).resolve().parents[1])
    # Jobs name their interpreter `python`; it is looked up on the head's PATH.
    environment = {
        **os.environ,
        "PATH": f"{_BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": f"{library}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "RAYEMBED_HOME": str(workspace),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    folder = Path(tempfile.mkdtemp(prefix="rayembed-ray-", dir=_TEMPORARY))
    command = [
        str(_BIN / "ray"), "start", "--head", "--block", "--node-ip-address", "127.0.0.1",
        "--temp-dir", str(folder),
        "--port", str(port), "--ray-client-server-port", str(client_port),
        "--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard_port),
        "--include-dashboard", "true",
        # Jobs are started by the agent, whose usual port any other Ray on this machine holds.
        "--dashboard-agent-listen-port", str(agent_port),
    ]  # fmt: skip
    log, pid_file = workspace / "runs" / "ray-head.log", workspace / "runs" / "ray-head.pid"
    log.parent.mkdir(parents=True, exist_ok=True)
    _stop_left_over(pid_file)
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    atomic_write(pid_file, f"{process.pid}\n")
    dashboard = f"http://127.0.0.1:{dashboard_port}"
    try:
        jobs = _connect(dashboard, token, process, log)
        yield Head(f"127.0.0.1:{port}", dashboard, environment, jobs)
    except BaseException:
        logger.info("Ray's own logs are in %s", folder)
        raise
    finally:
        _stop(process.pid)
        pid_file.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _connect(dashboard: str, token: str, process: subprocess.Popen[bytes], log: Path) -> JobSubmissionClient:
    """Connect once the head answers; submitting waits for the rest of it by itself."""
    headers = {"Authorization": f"Bearer {token}"}
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(ConnectionError, RuntimeError):
            client = JobSubmissionClient(dashboard, headers=headers)
            logger.info("Ray head is up, dashboard on %s", dashboard)
            return client
        time.sleep(0.2)
    raise ResourceError(f"the Ray head did not come up within {_START_SECONDS} s; see {log}")


def _free_ports(count: int) -> list[int]:
    """Free loopback ports below the ranges that Ray's workers use."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        for candidate in range(20_000 + os.getpid() % 5_000, 32_000):
            listener = stack.enter_context(socket.socket())
            try:
                listener.bind(("127.0.0.1", candidate))
            except OSError:
                continue
            ports.append(candidate)
            if len(ports) == count:
                return ports
    raise ResourceError(
        "no free TCP port between 20000 and 32000 on loopback; end a process that listens there"
    )


def _stop_left_over(pid_file: Path) -> None:
    """Stop the head that an earlier call recorded, unless the number belongs to another process by now."""
    if not pid_file.is_file():
        return
    with contextlib.suppress(psutil.NoSuchProcess, ValueError):
        process = psutil.Process(int(pid_file.read_text()))
        if {"start", "--head", "--block"} <= set(process.cmdline()):
            logger.warning("stopping the Ray head %d that an interrupted run left", process.pid)
            _stop(process.pid)


def _stop(pid: int) -> None:
    """Ask the head to stop, then end its process group, so that other Ray clusters on the machine stay."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except psutil.TimeoutExpired:
            logger.warning("the Ray head did not stop within %d s; it is killed", _STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
