"""Paths for those who run the endpoint: health, metrics and a summary."""

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

import rayembed
from rayembed.serving import pages
from rayembed.serving.errors import ApiError, unavailable
from rayembed.serving.front import Front
from rayembed.serving.gateway import Gateway
from rayembed.serving.metrics import exposition
from rayembed.serving.schemas.errors import ERROR_RESPONSES


def operation_routes(gateway: Gateway, front: Front) -> APIRouter:
    """Routes for probes, Prometheus and people."""
    router = APIRouter(tags=["Operation"])

    @router.get("/health/live")
    async def live() -> dict[str, str]:
        """Whether the HTTP side runs."""
        return {"status": "live"}

    @router.get("/health/ready", responses={503: ERROR_RESPONSES[503]})
    async def ready() -> dict[str, str]:
        """Whether requests should be sent here: a replica answers and no shutdown has begun."""
        if front.draining:
            raise ApiError(unavailable("this endpoint is shutting down"))
        await gateway.check_ready()
        return {"status": "ready"}

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics of all processes of the endpoint."""
        processes = [*await gateway.from_every_replica("metrics"), *await front.metrics()]
        return Response(exposition(processes), media_type=CONTENT_TYPE_LATEST)

    @router.get("/debug", response_class=HTMLResponse)
    async def debug() -> HTMLResponse:
        """A page for people: models, replicas, queues and responses."""
        return HTMLResponse(
            pages.render(
                "debug.html",
                version=rayembed.__version__,
                draining=front.draining,
                cards=await gateway.described(),
                replicas=await gateway.from_every_replica("status"),
                fronts=await front.summaries(),
            )
        )

    return router
