"""Pages for people, without anything from another host, and the playground at `/`."""

from importlib import resources
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException

import rayembed
from rayembed.common.templates import templates
from rayembed.serving.router import ModelRouter

_ASSETS = {"playground.js": "text/javascript", "style.css": "text/css"}
_POLICY = {"Content-Security-Policy": "default-src 'self'; img-src 'self' data:"}


def render(template: str, **values: Any) -> str:
    """A page from its template in `assets`."""
    assets = templates("rayembed.serving.api", "assets", html=True)
    return assets.get_template(template).render(version=rayembed.__version__, **values)


def routes(models: ModelRouter) -> APIRouter:
    """Routes that a browser opens."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def playground() -> HTMLResponse:
        """Paste passages, type a query, see what the model finds."""
        return HTMLResponse(render("playground.html", models=models.names), headers=_POLICY)

    @router.get("/assets/{name}")
    async def asset(name: str) -> Response:
        """A script or a style sheet."""
        if name not in _ASSETS:
            raise HTTPException(404)
        content = resources.files("rayembed.serving.api").joinpath("assets", name).read_bytes()
        return Response(content, media_type=_ASSETS[name], headers={"Cache-Control": "max-age=300"})

    return router
