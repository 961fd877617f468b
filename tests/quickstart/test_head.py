import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from rayembed.common.errors import ResourceError
from rayembed.quickstart import head

AGENT_PORT = 52365  # Ray's default


def sleeper(*arguments: str) -> subprocess.Popen:
    """A process that looks like `python -c ... arguments` to whoever reads its command line."""
    command = [sys.executable, "-c", "import time; time.sleep(60)", *arguments]
    return subprocess.Popen(command, start_new_session=True)


def test_a_head_left_behind_is_stopped(tmp_path):
    process = sleeper("start", "--head", "--block")
    pid_file = tmp_path / "pid"
    pid_file.write_text(f"{process.pid}\n")
    head._stop_left_over(pid_file)
    assert not psutil.pid_exists(process.pid)


def test_another_process_with_the_same_number_is_left_alone(tmp_path):
    process = sleeper("something", "else")
    pid_file = tmp_path / "pid"
    pid_file.write_text(f"{process.pid}\n")
    head._stop_left_over(pid_file)
    assert process.poll() is None
    process.kill()
    process.wait()
    assert not psutil.pid_exists(process.pid)
    head._stop_left_over(pid_file)  # a number that is gone is no error
    head._stop_left_over(tmp_path / "missing")


def test_free_ports_differ_and_stay_below_those_of_workers():
    ports = head._free_ports(3)
    assert len(set(ports)) == 3
    assert all(20_000 <= port < 32_000 for port in ports)


@pytest.mark.ray
def test_a_head_comes_up_next_to_another_ray_and_runs_jobs(tmp_path, monkeypatch, capfd):
    shared = tmp_path / "ray"  # where heads without a folder of their own note down who is the newest
    shared.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    before = set(Path("/tmp").glob("rayembed-ray-*"))
    with socket.socket() as other:
        with contextlib.suppress(OSError):  # another Ray does run
            other.bind(("0.0.0.0", AGENT_PORT))
            other.listen()
        with head.local_head(tmp_path) as running:
            assert running.dashboard.startswith("http://127.0.0.1:")
            (shared / "ray_current_cluster").write_text("127.0.0.1:1\n")
            running.submit(
                ["python", "-c", "import os; print('it ran on port', os.environ['RAY_ADDRESS'][-5:])"]
            )
            with pytest.raises(ResourceError, match="failed; its log is above"):
                running.submit(["python", "-c", "raise SystemExit(3)"])
    assert f"it ran on port {running.address[-5:]}" in capfd.readouterr().out
    assert set(Path("/tmp").glob("rayembed-ray-*")) == before
    assert not (tmp_path / "runs" / "ray-head.pid").exists()
