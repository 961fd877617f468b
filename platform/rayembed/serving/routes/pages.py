"""The playground at `/` and the files it loads."""

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException

import rayembed
from rayembed.serving import pages
from rayembed.serving.gateway import Gateway

_POLICY = {"Content-Security-Policy": "default-src 'self'; img-src 'self' data:"}


def page_routes(gateway: Gateway) -> APIRouter:
    """Routes that a browser opens."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def playground() -> HTMLResponse:
        """Paste passages, type a query, see what the model finds."""
        page = pages.render("playground.html", models=gateway.names, version=rayembed.__version__)
        return HTMLResponse(page, headers=_POLICY)

    @router.get("/assets/{name}")
    async def asset(name: str) -> Response:
        """A script or a style sheet."""
        if name not in pages.ASSETS:
            raise HTTPException(404)
        return Response(
            pages.asset(name), media_type=pages.ASSETS[name], headers={"Cache-Control": "max-age=300"}
        )

    return router
