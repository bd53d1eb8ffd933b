"""Routes that change what is answered: events of users, items, and users who are to be forgotten."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, cast

from fastapi import APIRouter, Body, Path, Request

from serve.http.answers import write_head
from serve.http.bodies import ForgetBody, ItemBody, Tell
from serve.http.documents import (
    EVENT_EXAMPLES,
    FAULTS,
    FORGET_EXAMPLES,
    ITEM_EXAMPLES,
    Forgotten,
    Head,
    Removed,
    Told,
)
from serve.http.parts import Parts
from serve.http.strict_route import StrictRoute

ItemPath = Annotated[str, Path(min_length=1, max_length=256, pattern=r"^[^\x00]+$")]


def make_changing(parts: Parts) -> APIRouter:
    """Make the routes."""
    router = APIRouter(route_class=StrictRoute, responses=FAULTS)
    service = parts.service

    @router.post(
        "/v1/events",
        response_model=Told,
        summary="Users did something: it counts in the next answer, and survives a kill",
    )
    async def tell(request: Request, body: Annotated[Tell, Body(openapi_examples=EVENT_EXAMPLES)]) -> dict[str, Any]:
        events = cast(list[dict[str, Any]], body.get("events", [body]))
        n_kept = await parts.telling.run(partial(service.observe, events))
        parts.metrics.events.inc(n_kept)
        return _say(request, service.version, kept=n_kept)

    @router.post(
        "/v1/users/forget",
        response_model=Forgotten,
        summary="Erase a user; the receipt says what was erased and what is out of reach",
    )
    async def forget(
        request: Request, body: Annotated[ForgetBody, Body(openapi_examples=FORGET_EXAMPLES)]
    ) -> dict[str, Any]:
        receipts = await parts.forgetting.run(partial(service.forget, body["user_id"]))
        return _say(request, service.version, receipts=receipts)

    _add_items(router, parts)
    return router


def _add_items(router: APIRouter, parts: Parts) -> None:
    service, stocking = parts.service, parts.stocking

    @router.put(
        "/v1/items/{item_id:any_text}", response_model=Head, summary="Add or change an item: it is in the next answer"
    )
    async def put(
        request: Request, item_id: ItemPath, body: Annotated[ItemBody, Body(openapi_examples=ITEM_EXAMPLES)]
    ) -> dict[str, Any]:
        await stocking.run(partial(service.put_item, item_id, body["columns"]))
        return _say(request, service.version)

    @router.delete(
        "/v1/items/{item_id:any_text}",
        response_model=Removed,
        summary="Remove an item: no version lists it until it is put again",
    )
    async def remove(request: Request, item_id: ItemPath) -> dict[str, Any]:
        was_there = await stocking.run(partial(service.remove_item, item_id))
        return _say(request, service.version, was_there=was_there)


def _say(request: Request, version: str, **content: Any) -> dict[str, Any]:
    state = request.scope["state"]
    return {**write_head(state["request_id"], version, state["started"]), **content}
