"""The routes that change something, and those of the operator."""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated, Any, cast

from fastapi import APIRouter, Body, Path, Request, Response
from fastapi.exceptions import HTTPException
from pydantic import with_config

from service.faults import OUT_OF_SERVICE
from service.figures import summarise
from service.http import schemas
from service.http.errors import LOGGER
from service.http.schemas import (
    EventBodies,
    ForgetBody,
    ItemBody,
    ShownBody,
)
from service.http.writing import find_service, write_answer
from service.service import Service

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"content": {_PROMETHEUS: {"schema": {"type": "string"}}}}
}
_NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"description": "As 200, and users cannot be answered."}
}


@with_config(strict=True, extra="forbid")
class ProfilingBody(ForgetBody):
    """`false` opts a user out of profiling, `true` in again."""

    profile: bool


_LOG = logging.getLogger(LOGGER)

changing = APIRouter(responses=schemas.describe_errors(*schemas.ASKING))
operating = APIRouter(responses=schemas.describe_errors())
reloading = APIRouter(responses=schemas.describe_errors(409))
ItemPath = Annotated[
    str, Path(min_length=1, max_length=256, pattern=r"^[^\x00\ufffd]+$")
]


@changing.post(
    "/v1/events",
    response_model=schemas.EventsAnswer,
    summary="Keep events of users: they count in the next answer",
)
async def add_events(
    request: Request, body: Annotated[EventBodies, Body()]
) -> Response:
    service: Service = find_service(request)

    content = cast(dict[str, Any], body)
    events = content.get("events", [content])
    n_saved, left_out = await asyncio.to_thread(service.observe, events)
    request.app.state.shared.metrics.counters["events"].inc(n_saved)
    answer = {"kept": n_saved} | ({"left_out": left_out} if left_out else {})
    return write_answer(request, service.version, answer)


@changing.post(
    "/v1/shown",
    response_model=schemas.PutAnswer,
    summary="Confirm that a user saw the lists of a request",
)
async def confirm_shown(
    request: Request, body: Annotated[ShownBody, Body()]
) -> Response:
    service = find_service(request)
    await asyncio.to_thread(service.confirm, body["request_id"])
    return write_answer(request, service.version, {})


@changing.post(
    "/v1/users/forget",
    response_model=schemas.ForgetAnswer,
    summary="Erase a user, with a receipt",
)
async def forget_user(
    request: Request, body: Annotated[ForgetBody, Body()]
) -> Response:
    service: Service = find_service(request)
    user_known = await asyncio.to_thread(service.knows, body["user_id"])
    receipts = await asyncio.shield(
        asyncio.wrap_future(service.forget(body["user_id"]))
    )
    request.state.users = [  # for the audit log
        user for receipt in receipts for user in receipt["forgotten"]
    ]
    return write_answer(
        request, service.version, {"receipts": receipts, "user_known": user_known}
    )


@changing.post(
    "/v1/users/profiling",
    response_model=schemas.PutAnswer,
    summary="Let a user opt out of profiling, or in again",
)
async def choose_profiling(
    request: Request, body: Annotated[ProfilingBody, Body()]
) -> Response:
    service: Service = find_service(request)
    is_out = not body["profile"]
    request.state.users = await asyncio.to_thread(
        service.choose, body["user_id"], is_out
    )
    return write_answer(request, service.version, {})


@changing.put(
    "/v1/items/{item_id:path}",
    response_model=schemas.PutAnswer,
    summary="Add or change an item",
)
async def put_item(
    request: Request, item_id: ItemPath, body: Annotated[ItemBody, Body()]
) -> Response:
    service = find_service(request)
    await asyncio.to_thread(service.items.put, item_id, body["columns"])
    return write_answer(request, service.version, {})


@changing.delete(
    "/v1/items/{item_id:path}",
    response_model=schemas.DeleteAnswer,
    summary="Remove an item from all versions",
)
async def delete_item(request: Request, item_id: ItemPath) -> Response:
    service = find_service(request)
    was_there = await asyncio.to_thread(service.items.remove, item_id)
    return write_answer(request, service.version, {"was_there": was_there})


@operating.get("/health", summary="The process lives")
async def health() -> dict[str, str]:
    return {"status": "ok"}


@operating.get(
    "/ready",
    summary="Requests may be sent; faults that do not prevent answers are named",
    responses=_NOT_READY,
)
async def ready(request: Request, response: Response) -> dict[str, Any]:
    state = request.app.state.shared
    if state.leaving.is_set():
        response.status_code = 503
        return {"status": "leaving"}
    faults = state.find_faults()
    if not faults:
        return {"status": "ready"}
    if OUT_OF_SERVICE in faults:
        response.status_code = 503
    return {"status": "degraded", "faults": faults}


@operating.get("/v1/status", summary="What answers, and what became of the last reload")
async def status(request: Request) -> dict[str, Any]:
    service: Service = find_service(request)
    return service.describe() | {"measured": summarise(service.beside)}


@operating.get(
    "/metrics",
    response_class=Response,
    responses=_TEXT,
    summary="Counts and times for Prometheus",
)
async def metrics(request: Request) -> Response:
    state = request.app.state.shared
    await state.refresh()
    return Response(
        await asyncio.to_thread(state.metrics.write), media_type=_PROMETHEUS
    )


@reloading.post(
    "/v1/reload", response_model=schemas.ReloadAnswer, summary="Take up what is current"
)
async def reload(request: Request) -> dict[str, Any]:
    service = find_service(request)
    reason = await asyncio.to_thread(service.reload)

    outcome = "loaded" if reason is None else "refused"
    request.app.state.shared.metrics.counters["reloads"].labels(outcome).inc()
    if reason is not None:
        _LOG.warning("reload refused, keeping version %s: %s", service.version, reason)
        raise HTTPException(409, reason)

    _LOG.info("version %s answers from now on", service.version)
    return {"request_id": request.state.request_id, "version": service.version}
