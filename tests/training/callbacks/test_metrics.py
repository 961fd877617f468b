"""Lines of metrics: one unbroken trace, and the names that trackers show."""

import json

import pytest

from rayembed.common.paths import fetch, here, push, resolve
from rayembed.training.callbacks.metrics import MetricsRecorder, StepMetrics


def metrics(step, loss=1.0):
    return StepMetrics(
        stage="test", step=10 + step, loss=loss, learning_rate=0.1, gradient_norm=1.0, tokens=100,
        tokens_per_second=200.0, seconds=0.5, memory=2**20,
        utilization=0.4, padding=0.0, phases={"data": 0.1, "forward": 0.2}, uniformity=None,
        sources={"one": {"loss": loss, "accuracy": 0.5, "rows": 4}},
    )  # fmt: skip


@pytest.mark.parametrize("stored", [False, True])
def test_metrics_hold_one_unbroken_trace_after_a_resume(tmp_path, node, request, stored):
    folder = resolve(request.getfixturevalue("s3").uri("bucket/metrics")) if stored else tmp_path
    recorder = MetricsRecorder(folder, first_step=0, total_steps=6, steps_before=10)
    for step in range(4):
        recorder.record(metrics(step, loss=1.0))
    recorder.close()
    path = fetch(folder / "metrics.jsonl")
    path.write_text(path.read_text() + '{"stage": "test", "st')
    push(path)
    node("b")  # where the next first rank is
    recorder = MetricsRecorder(here(folder), first_step=2, total_steps=6, steps_before=10)
    recorder.record(metrics(2, loss=2.0))
    recorder.close()
    node("a")
    lines = [json.loads(line) for line in fetch(path).read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(10, 1.0), (11, 1.0), (12, 2.0)]
    assert lines[0]["tokens_per_second"] == 200
    assert lines[0]["sources"]["one"] == {"loss": 1.0, "accuracy": 0.5, "rows": 4}
    assert len(list(fetch(folder / "tensorboard").iterdir())) >= 1 + stored, "events of both stay"


def test_trackers_get_the_numbers_and_nothing_else():
    assert metrics(3).scalars() == {
        "train/loss": 1.0,
        "train/learning_rate": 0.1,
        "train/gradient_norm": 1.0,
        "train/tokens_per_second": 200.0,
        "train/seconds": 0.5,
        "train/memory": 2**20,
        "train/utilization": 0.4,
        "train/padding": 0.0,
        "phase/data": 0.1,
        "phase/forward": 0.2,
        "source/one/loss": 1.0,
        "source/one/accuracy": 0.5,
        "source/one/rows": 4,
    }
