"""The HTTP front ends as one: whether they are shutting down, and what all of them counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client.metrics_core import Metric

from rayembed.serving.metrics import IngressMetrics


@dataclass(frozen=True)
class FrontSummary:
    """What /debug shows of one front end: responses by route and status."""

    process: str
    draining: bool
    responses: dict[tuple[str, str], int]


class Front:
    """This front end, and through a handle its siblings."""

    def __init__(self, process: str, metrics: IngressMetrics, siblings: Any = None):
        """`siblings` is the Serve handle of the ingress deployment itself; None for a single front end."""
        self.draining = False
        self._process = process
        self._metrics = metrics
        self._siblings = siblings

    def own_metrics(self) -> tuple[str, list[Metric]]:
        """This process's name and metrics."""
        return self._process, self._metrics.collect()

    def own_summary(self) -> FrontSummary:
        """What this process answered."""
        responses: dict[tuple[str, str], int] = {}
        for metric in self._metrics.responses.collect():
            for sample in metric.samples:
                if sample.name.endswith("_total"):
                    key = (sample.labels["route"], sample.labels["status"])
                    responses[key] = responses.get(key, 0) + int(sample.value)
        return FrontSummary(self._process, self.draining, responses)

    async def metrics(self) -> Sequence[tuple[str, list[Metric]]]:
        """Metrics of all front ends."""
        if self._siblings is None:
            return [self.own_metrics()]
        return await self._siblings.broadcast("front_metrics").results_async()

    async def summaries(self) -> Sequence[FrontSummary]:
        """What all front ends answered."""
        if self._siblings is None:
            return [self.own_summary()]
        return await self._siblings.broadcast("front_summary").results_async()
