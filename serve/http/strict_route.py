"""Routes whose bodies and paths are read by our own rules instead of the framework's."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import unquote_to_bytes

from fastapi.routing import APIRoute
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response

from serve.http.faults import Fault
from serve.http.strict_json import read_json


class _AnyText(PathConvertor):
    """What is left of a path, line breaks too: the framework's own `path` ends before them, and calls it the whole."""

    regex = r"[\s\S]*"


register_url_convertor("any_text", _AnyText())


class StrictRequest(Request):
    """A request with a body of JSON that ends early where it is too long."""

    async def body(self) -> bytes:
        """Return the body.

        Raises:
            Fault: 415 if it is not said to be JSON, or is compressed; 413 if it is too long.
        """
        if not hasattr(self, "_body"):
            if self.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
                raise Fault(415, "the content-type is not application/json")
            if self.headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
                raise Fault(415, "the body is compressed; send it as it is, without content-encoding")
            self._body = await self._read(self.scope["state"]["parts"].limits.body)
        return self._body

    async def json(self) -> Any:
        """Return the value that the body holds."""
        value = self.scope["state"]["body"] = read_json(await self.body())
        return value

    async def _read(self, most: int) -> bytes:
        declared = self.headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared[:20]) > most:
            raise Fault(413, f"the body is too long; allowed: {most} bytes")
        parts, n_bytes = [], 0
        async for part in self.stream():
            n_bytes += len(part)
            if n_bytes > most:
                raise Fault(413, f"the body is too long; allowed: {most} bytes")
            parts.append(part)
        return b"".join(parts)


class StrictRoute(APIRoute):
    """A route that reads its body as `StrictRequest` does, and no path that is no UTF-8."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the framework's handler."""
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            _check_path(request.scope["raw_path"])
            return await handle(StrictRequest(request.scope, request.receive))

        return handle_strictly


def _check_path(raw_path: bytes) -> None:
    """Refuse what the server has read with a mark in place of each byte that it could not: two ids would be one."""
    try:
        unquote_to_bytes(raw_path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Fault(400, "the path is no UTF-8: write other bytes of an id as %XX of its UTF-8") from error
