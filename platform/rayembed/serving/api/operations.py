"""Paths for those who run the endpoint (health, metrics, a summary), over all its HTTP front ends; and pages.

Pages have nothing from another host.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from starlette.exceptions import HTTPException

import rayembed
from rayembed.common.templates import templates
from rayembed.serving.api.dialect import ERROR_RESPONSES
from rayembed.serving.errors import ApiError, unavailable
from rayembed.serving.metrics import IngressMetrics, exposition
from rayembed.serving.router import ModelRouter

_ASSETS = {"playground.js": "text/javascript", "style.css": "text/css"}
_POLICY = {"Content-Security-Policy": "default-src 'self'; img-src 'self' data:"}


@dataclass(frozen=True)
class IngressSummary:
    """What /debug shows of one front end: responses by route and status."""

    process: str
    draining: bool
    responses: dict[tuple[str, str], int]


class IngressPeers:
    """This HTTP front end, and through a Serve handle all of them."""

    def __init__(self, process: str, metrics: IngressMetrics, peers: Any = None):
        """`peers` are the replicas of the ingress deployment itself; None for a single front end."""
        self.draining = False
        self._process = process
        self._metrics = metrics
        self._peers = peers

    def own_metrics(self) -> tuple[str, list[Metric]]:
        """This process's name and metrics."""
        return self._process, self._metrics.collect()

    def own_summary(self) -> IngressSummary:
        """What this process answered."""
        responses: dict[tuple[str, str], int] = {}
        for metric in self._metrics.responses.collect():
            for sample in metric.samples:
                if sample.name.endswith("_total"):
                    key = (sample.labels["route"], sample.labels["status"])
                    responses[key] = responses.get(key, 0) + int(sample.value)
        return IngressSummary(self._process, self.draining, responses)

    async def metrics(self) -> Sequence[tuple[str, list[Metric]]]:
        """Metrics of all front ends."""
        return await self._of_all("own_metrics", self.own_metrics)

    async def summaries(self) -> Sequence[IngressSummary]:
        """What all front ends answered."""
        return await self._of_all("own_summary", self.own_summary)

    async def _of_all(self, method: str, own: Callable[[], Any]) -> Sequence[Any]:
        """Answers of all front ends that come in time; of this one alone where no other can be asked."""
        answers = [] if self._peers is None else await self._peers.answers(method)
        return answers or [own()]


def routes(models: ModelRouter, peers: IngressPeers) -> APIRouter:
    """Routes for probes, Prometheus and people."""
    router = APIRouter(tags=["Operation"])

    @router.get("/health/live")
    @router.get("/v1/health/live", include_in_schema=False)
    async def live() -> dict[str, str]:
        """Whether the HTTP side runs."""
        return {"status": "live"}

    @router.get("/health/ready", responses={503: ERROR_RESPONSES[503]})
    @router.get("/v1/health/ready", include_in_schema=False)
    @router.get("/health", include_in_schema=False)
    @router.get("/healthz", include_in_schema=False)
    @router.get("/ping", include_in_schema=False)
    async def ready() -> dict[str, str]:
        """Whether requests should be sent here: a replica answers and no shutdown has begun."""
        if peers.draining:
            raise ApiError(unavailable("this endpoint is shutting down"))
        await models.check_ready()
        return {"status": "ready"}

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics of all processes of the endpoint."""
        processes = [*await models.from_every_replica("metrics"), *await peers.metrics()]
        return Response(exposition(processes), media_type=CONTENT_TYPE_LATEST)

    @router.get("/debug", response_class=HTMLResponse)
    async def debug() -> HTMLResponse:
        """A page for people: models, replicas, queues and responses."""
        return HTMLResponse(
            _render(
                "debug.html",
                draining=peers.draining,
                cards=await models.described(),
                replicas=await models.from_every_replica("status"),
                fronts=await peers.summaries(),
            )
        )

    return router


def pages(models: ModelRouter) -> APIRouter:
    """Routes that a browser opens."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def playground() -> HTMLResponse:
        """Paste passages, type a query, see what the model finds."""
        return HTMLResponse(_render("playground.html", models=models.names), headers=_POLICY)

    @router.get("/assets/{name}")
    async def asset(name: str) -> Response:
        """A script or a style sheet."""
        if name not in _ASSETS:
            raise HTTPException(404)
        content = resources.files("rayembed.serving.api").joinpath("assets", name).read_bytes()
        return Response(content, media_type=_ASSETS[name], headers={"Cache-Control": "max-age=300"})

    return router


def _render(template: str, **values: Any) -> str:
    """A page from its template in `assets`."""
    assets = templates("rayembed.serving.api", "assets", html=True)
    return assets.get_template(template).render(version=rayembed.__version__, **values)
