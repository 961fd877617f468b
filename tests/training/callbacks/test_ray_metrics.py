"""Metrics of training as Prometheus reads them from Ray, and the dashboard that draws them."""

import json
import re
import time
from pathlib import Path

import pytest
import ray
import requests

from rayembed.common.ray_cluster import connect
from rayembed.training.callbacks.metrics import StepMetrics
from rayembed.training.callbacks.trackers import RayMetrics

DASHBOARD = Path(__file__).resolve().parents[3] / "deploy" / "grafana" / "training.json"
MEASURES = ("loss", "accuracy", "positive_score", "negative_score", "margin", "alignment")
STEP = StepMetrics(
    stage="retrieval", step=6, loss=0.5, learning_rate=1e-3, gradient_norm=1.5, tokens=2000,
    tokens_per_second=1000.0, seconds=2.0, phases={"data": 0.1, "forward": 0.4}, memory=10**9,
    utilization=0.4, padding=0.0, uniformity=None,
    sources={"my/pairs": dict.fromkeys(MEASURES, 0.25) | {"rows": 8}},
)  # fmt: skip


def drawn_by_the_dashboard() -> set[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    return {name for text in expressions for name in re.findall(r"ray_\w+", text)}


@pytest.fixture
def exposition():
    """What the node of a fresh local cluster offers to Prometheus, as a function."""
    connect(num_cpus=1)
    [node] = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    yield lambda: requests.get(url, timeout=10).text
    ray.shutdown()


@pytest.mark.ray
def test_prometheus_finds_what_the_dashboard_draws(exposition):
    metrics = RayMetrics("mine", "retrieval")
    deadline, text = time.monotonic() + 60, ""
    while not drawn_by_the_dashboard() <= set(re.findall(r"^ray_rayembed\w+", text, re.MULTILINE)):
        assert time.monotonic() < deadline, sorted(set(re.findall(r"^ray_rayembed.*", text, re.MULTILINE)))
        metrics.log(STEP.scalars(), STEP.step)  # Ray forgets what is not set again
        time.sleep(1)
        text = exposition()

    def value(name: str, **tags: str) -> float:
        wanted = [f'{key}="{tag}"' for key, tag in (tags | {"run": "mine", "stage": "retrieval"}).items()]
        [line] = [
            line
            for line in text.splitlines()
            if line.startswith(f"ray_rayembed_train_{name}{{") and all(tag in line for tag in wanted)
        ]
        return float(line.rpartition(" ")[2])

    assert value("step") == 7
    assert value("loss") == 0.5
    assert value("phase_seconds", phase="forward") == 0.4
    assert value("source_margin", source="my/pairs") == 0.25
