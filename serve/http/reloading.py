"""The route that takes up another version: for whoever is on this machine and knows the token."""

from __future__ import annotations

import asyncio
import hmac
import logging
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv6Address, ip_address
from typing import Any

from fastapi import APIRouter, Request

from serve.http.documents import Loaded, describe_faults
from serve.http.faults import Fault
from serve.http.logs import LOGGER
from serve.http.parts import Parts

_LOG = logging.getLogger(LOGGER)
_MOST_AT_ONCE = 32
"""Reloads that are asked for at once; they wait for one load."""
_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")


def make_reloading(parts: Parts, token: str) -> APIRouter:
    """Make the route.

    Args:
        parts: of the server.
        token: that `Authorization: Bearer` must give.
    """
    router = APIRouter()
    threads = ThreadPoolExecutor(_MOST_AT_ONCE, "bascule-reloads")

    @router.post(
        "/v1/reload",
        response_model=Loaded,
        responses=describe_faults(401, 403, 409),
        summary="Take up what is current; whatever fails, the present version answers on",
    )
    async def reload(request: Request) -> dict[str, Any]:
        _admit(request, token)
        outcome = await asyncio.get_running_loop().run_in_executor(threads, parts.service.reload)
        parts.metrics.reloads.labels("loaded" if outcome.is_loaded else "refused").inc()
        if not outcome.is_loaded:
            _LOG.warning("a reload was refused, version %s answers on: %s", outcome.version, outcome.reason)
            raise Fault(409, outcome.reason or "the version cannot be loaded")
        _LOG.info("version %s answers from now on", outcome.version)
        return {"request_id": request.scope["state"]["request_id"], "version": outcome.version}

    return router


def _admit(request: Request, token: str) -> None:
    """Check who asks.

    Raises:
        Fault: 403 from another machine, or through a proxy; 401 without the token.
    """
    host = request.client.host if request.client else ""
    if not _is_loopback(host) or any(name in request.headers for name in _FORWARDED):
        raise Fault(403, "only a process on the same machine may ask for a reload")
    given = request.headers.get("authorization", "")
    if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
        raise Fault(401, "the token is missing or wrong", {"www-authenticate": "Bearer"})


def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback
