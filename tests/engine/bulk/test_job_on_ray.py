"""The job on Ray: several actors, actors and drivers that die, shards that fail."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from rayembed.common.ray_cluster import connect
from rayembed.engine.bulk.job import embed_files
from rayembed.engine.bulk.output import shard_path
from rayembed.engine.bulk.request import EmbedRequest, ShardWorker

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[3]
ROWS = 400


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.parquet"
    pq.write_table(pa.table({"text": [f"text {number} " * (1 + number % 7) for number in range(ROWS)]}), path)
    return path


@pytest.fixture(scope="module")
def expected(files, tiny_checkpoint, tmp_path_factory) -> pa.Table:
    """What the job makes in one process."""
    output = tmp_path_factory.mktemp("expected") / "out"
    embed_files(EmbedRequest(files, tiny_checkpoint, output, shard_rows=50, precision="fp32"), actors=0)
    return pq.read_table(output / "vectors")


def check_equal(output: Path, expected: pa.Table) -> None:
    table = pq.read_table(output / "vectors")
    assert table["row"].to_pylist() == list(range(ROWS))
    vectors, wanted = (np.array(side["vector"].to_pylist()) for side in (table, expected))
    np.testing.assert_allclose(vectors, wanted, atol=1e-5)


def test_dead_actors_and_failed_shards_are_retried_and_hopeless_ones_named(
    files, tiny_checkpoint, expected, tmp_path
):
    class Clumsy(ShardWorker):
        """Dies in shard 1 once and in shard 4 always, fails in shard 2 twice and in shard 3 always."""

        def embed(self, shard):
            attempts = len(list(tmp_path.glob(f"attempt-{shard}-*")))
            (tmp_path / f"attempt-{shard}-{attempts}").touch()
            if (shard == 1 and attempts == 0) or shard == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            if (shard == 2 and attempts < 2) or shard == 3:
                raise OSError("the disk is on fire")
            return super().embed(shard)

    request = EmbedRequest(files, tiny_checkpoint, tmp_path / "out", shard_rows=50, precision="fp32")
    connect(num_cpus=2)
    try:
        with pytest.raises(
            RuntimeError, match=r"2 of 8 shards failed 3 times.*000003\.parquet: OSError: the disk"
        ) as raised:
            embed_files(request, actors=2, worker=Clumsy)
        assert "000004.parquet: RuntimeError: its actor died 3 times" in str(raised.value)
        attempts = {shard: len(list(tmp_path.glob(f"attempt-{shard}-*"))) for shard in range(8)}
        assert attempts[1] == 2
        # One that was at work on an actor that another one killed is tried once more.
        assert all(3 <= attempts[shard] <= 6 for shard in (2, 3, 4))
        there = [shard for shard in range(8) if shard_path(tmp_path / "out", shard).exists()]
        assert there == [0, 1, 2, 5, 6, 7]
        manifest = embed_files(request, actors=2)
    finally:
        ray.shutdown()
    assert manifest["statistics"]["rows"] == ROWS
    assert manifest["failed"] == {}
    check_equal(tmp_path / "out", expected)


def test_a_killed_job_continues_where_it_was(files, tiny_checkpoint, expected, tmp_path):
    output, shards = tmp_path / "out", ROWS // 2
    command = [sys.executable, "jobs/embed.py", str(files), "--checkpoint", str(tiny_checkpoint)]
    command += ["--output", str(output), "--shard-rows", "2", "--precision", "fp32", "--actors", "1"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with open(tmp_path / "log", "w") as log:
        job = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            while job.poll() is None and not shard_path(output, 3).exists():
                time.sleep(0.01)
        finally:
            job.kill()
            job.wait()
    before = {path: path.stat().st_mtime_ns for path in (output / "vectors").glob("part-*")}
    assert 0 < len(before) < shards, (tmp_path / "log").read_text()
    manifest = embed_files(
        EmbedRequest(files, tiny_checkpoint, output, shard_rows=2, precision="fp32"), actors=0
    )
    assert manifest["status"] == "complete"
    kept = [path for path, written in before.items() if path.stat().st_mtime_ns == written]
    assert len(kept) >= len(before) - 2  # an actor may outlive the killed driver by its two shards
    check_equal(output, expected)
