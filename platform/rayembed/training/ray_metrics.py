"""Numbers of a running stage as Ray's own metrics, which every node offers to Prometheus.

`deploy/grafana/training.json` draws them. Ray puts `ray_` before each name.
"""

import re
from collections.abc import Mapping

from ray.util.metrics import Gauge

NAMES = re.compile(r"(?P<group>train|phase|source)/(?:(?P<source>.+)/)?(?P<measure>\w+)")


class RayMetrics:
    """The latest numbers of a stage, a tracker like others; made on rank 0 only, inside Ray.

    Gauges, with the tags `run` and `stage`:
        rayembed_train_step                 steps taken through all stages
        rayembed_train_MEASURE              of the whole batch, such as `loss` or `tokens_per_second`
        rayembed_train_phase_seconds        with the tag `phase`
        rayembed_train_source_MEASURE       with the tag `source`
    """

    def __init__(self, run: str, stage: str):
        self._tags = {"run": run, "stage": stage}
        self._gauges: dict[str, Gauge] = {}

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Set the gauges to the numbers of a step, named as `metrics.scalars` names them."""
        self._set("step", step + 1)
        for name, value in values.items():
            match = NAMES.fullmatch(name)
            assert match is not None, f"{name} is no name of a metric"
            group, source, measure = match["group"], match["source"], match["measure"]
            if group == "phase":
                self._set("phase_seconds", value, phase=measure)
            elif group == "source":
                self._set(f"source_{measure}", value, source=source)
            else:
                self._set(measure, value)

    def close(self) -> None:
        """The gauges end with their process."""

    def _set(self, name: str, value: float, **tags: str) -> None:
        tags = self._tags | tags
        if name not in self._gauges:
            description = f"{name.replace('_', ' ')} of the last training step"
            self._gauges[name] = Gauge(f"rayembed_train_{name}", description, tuple(tags))
        self._gauges[name].set(float(value), tags)
