"""Sources, lanes and checkpoints in a store that is slow and fails, or whose writers are killed."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import count

import pytest
import torch

from rayembed.common.paths import fetch, resolve
from rayembed.common.stores import open_location
from rayembed.config.data import UserSourceConfig
from rayembed.data import build
from rayembed.data.plan_store import PlanReader
from rayembed.data.store import read_split
from rayembed.data.stream import local_batches
from rayembed.records import text_files
from rayembed.training.checkpoint import CheckpointStore, TrainingState, load_training_state
from tests.data.test_stream import content
from tests.stores import Fault, faulty_server
from tests.training.sources import stage, stream_spec

KINDS: tuple[Fault, ...] = ("refuse", "cut", "lose")


def every_first_time() -> Callable[[str, int], Fault | None]:
    """Each request goes wrong the first time, in one way or another."""
    turn = count()
    return lambda request, number: KINDS[next(turn) % 3] if number == 1 else None


@pytest.fixture
def faulty(s3):
    with faulty_server(s3, every_first_time()) as server:
        yield server


def test_sources_are_read_and_written_in_spite_of_faults(faulty, s3, node, monkeypatch):
    monkeypatch.setattr(build, "on_all_cpus", lambda function, jobs, title, *, here: map(function, jobs))
    monkeypatch.setattr(text_files, "PART_BYTES", 20_000)
    rows = [{"query": f"question {row}", "positive": f"answer {row} " * 20} for row in range(300)]
    store, folder = s3.open("bucket/faults/rows")
    with store.open_output_stream(f"{folder}/a.jsonl") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    data = resolve(faulty.uri("bucket/faults/data"))
    build.build_user_source("mine", UserSourceConfig(path=faulty.uri(folder)), data)
    node("b")
    table = read_split(resolve(s3.uri("bucket/faults/data")), "mine", "train")
    assert table["query"].to_pylist() == [row["query"] for row in rows]
    assert sum(faulty.seen.values()) > 50


def test_lanes_are_written_and_read_in_spite_of_faults(faulty, tmp_path, tiny_base):
    spec = stream_spec(tmp_path, tiny_base, stage(batch_size=7, steps=4))
    whole = [content(batch) for batch in local_batches(spec, start=0, stop=4)]
    location = faulty.uri("bucket/faults")
    lanes = replace(spec.lanes, location=location, name="lanes", steps_of_a_range=2).begin()
    cutter, plan = spec.cutter(), PlanReader(spec.plan)
    for number in lanes.missing():
        lanes.write(number, (cutter.cut(plan.read(step)) for step in lanes.steps_in(number)))
    assert lanes.missing() == []
    assert [content(batch) for batch in lanes.batches(0, 4, rank=0, world_size=1)] == whole
    parts = [list(lanes.batches(0, 4, rank=rank, world_size=2)) for rank in range(2)]
    assert [sum(len(batch.rows) for batch in both) for both in zip(*parts, strict=True)] == [7] * 4


def state(step: int) -> TrainingState:
    weights = {"head": torch.arange(3_000_000, dtype=torch.float32)}  # more than one part of an upload
    return TrainingState("retrieval", step, step, weights, {"exp_avg.head": weights["head"] + 1})


def test_checkpoints_are_written_and_read_in_spite_of_faults(faulty, node):
    location = faulty.uri("bucket/faults/checkpoints")
    store = CheckpointStore(*open_location(location))
    store.write("step-0000004", state(4))
    assert store.newest_step() == 4
    read = load_training_state(resolve(location) / "step-0000004")
    assert read.next_step == 4
    assert torch.equal(read.moments["exp_avg.head"], state(4).moments["exp_avg.head"])


WRITERS = {
    "lanes": """
        from rayembed.records.stored_folder import StoredFolder
        StoredFolder({location!r}).put("range-000000.arrow", bytes(2**24))
    """,
    "checkpoint": """
        from rayembed.common.stores import open_location
        from rayembed.training.checkpoint import CheckpointStore
        from tests.test_store_faults import state
        CheckpointStore(*open_location({location!r})).write("step-0000004", state(4))
    """,
    "model": """
        from rayembed.common.paths import atomic_directory, resolve
        with atomic_directory(resolve({location!r}) / "model") as folder:
            (folder / "config.json").write_text("small")
            (folder / "weights.bin").write_bytes(bytes(2**24))
    """,
}


@pytest.mark.parametrize(
    ("name", "held"), [("lanes", "partNumber=2"), ("checkpoint", "state.json"), ("model", "weights.bin")]
)
def test_what_a_killed_process_wrote_half_does_not_count(s3, node, name, held):
    def hold(request: str, number: int) -> Fault | None:
        return "hold" if request.startswith("PUT") and held in request else None

    folder = f"bucket/killed/{name}"
    with faulty_server(s3, hold) as server:
        code = "\n".join(line[8:] for line in WRITERS[name].splitlines()).format(location=server.uri(folder))
        process = subprocess.Popen([sys.executable, "-c", code])
        assert server.held.wait(120)
        process.kill()
        process.wait()
    location = s3.uri(folder)
    node("b")
    if name == "checkpoint":
        store = CheckpointStore(*open_location(location))
        assert store.names() == ["step-0000004"]
        assert store.newest_step() == 0
        assert store.new_name(4) == "step-0000004-1"
    else:
        assert not fetch(resolve(location)).exists()
