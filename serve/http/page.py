"""The page to try the service by hand: three static files, which may load nothing but each other."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


def make_page() -> APIRouter:
    """Make the routes."""
    router = APIRouter(include_in_schema=False)
    for path, (name, kind) in _FILES.items():
        router.add_api_route(path, _answer_with(name, kind), methods=["GET"])
    return router


def _answer_with(name: str, kind: str) -> Callable[[], Coroutine[Any, Any, Response]]:
    content = files("serve.http").joinpath(name).read_bytes()

    async def answer() -> Response:
        return Response(content, media_type=kind, headers={"content-security-policy": _POLICY})

    return answer
