"""The HTTP application: its routes over a service."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, partial
from itertools import islice
from pathlib import Path as FilePath
from typing import Annotated, Any, cast

from fastapi import APIRouter, Body, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import HTTPException
from pydantic import Discriminator, Tag
from starlette.responses import FileResponse

from serve import rerank as dials
from serve.errors import SchemaError
from serve.recommendations import Answer
from serve.recommender import Recommender
from serve.rerank import Dials
from service.answers import show_answer, show_items
from service.experiment import Arm
from service.exploration import explore
from service.figures import summarise
from service.http import page, schemas
from service.http.access import Access, AccessMiddleware
from service.http.errors import HANDLERS, LOGGER
from service.http.metrics import Metrics
from service.http.middleware import Gathering, RequestMiddleware, Worker
from service.http.schemas import (
    AskDue,
    AskMany,
    AskOne,
    AskSimilar,
    EventBody,
    EventsBody,
    ForgetBody,
    ItemBody,
)
from service.live_items import Arms
from service.service import FAULTS, OUT_OF_SERVICE, Service

_ABOUT = "What would this user want, here and now. Every answer says which version of the bundle gave it."
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"content": {_PROMETHEUS: {"schema": {"type": "string"}}}}
}
_NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"description": "As 200, and users cannot be answered."}
}
_DEFAULT_K = 10
_DIALS = tuple(field.name for field in fields(Dials))
_OF_ALL = frozenset(
    {"k", "repeats", "explain", *_DIALS}
)  # names in a body that are about all of its requests
_LONG = frozenset(
    {"requests", "filters", "explain", *_DIALS}
)  # names in a body that takes long
_MAX_WAITING = 64  # of requests for answers
_DEADLINE = 1.0
_STEP = 4  # requests of a body that are answered in one go: of fewer, products would be rounded otherwise
_MAX_BRIEF = 200_000  # items among which a single request is answered in the event loop
_MAX_COMPARED = (
    2_000_000_000  # characters of different filters times items: about a second
)
_EVERYBODY = Access()
_LOG = logging.getLogger(LOGGER)
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_PAGES = {
    "/": "page.html",
    "/docs": "page.html",
    "/page.css": "page.css",
    "/page.js": "page.js",
}


def _by(name: str) -> Discriminator:
    """Tell a body of many requests or events by the name of their list."""
    return Discriminator(
        lambda body: "many" if isinstance(body, dict) and name in body else "one"
    )


Ask = Annotated[
    Annotated[AskOne, Tag("one")] | Annotated[AskMany, Tag("many")], _by("requests")
]
Tell = Annotated[
    Annotated[EventBody, Tag("one")] | Annotated[EventsBody, Tag("many")], _by("events")
]
SearchText = Annotated[
    str, Query(min_length=1, max_length=256, description="Words, or parts of some.")
]
SearchLength = Annotated[int, Query(ge=1, le=100)]
ItemPath = Annotated[
    str, Path(min_length=1, max_length=256, pattern=r"^[^\x00\ufffd]+$")
]
_errors = schemas.describe_errors
router, changing, operating, reloading = (
    APIRouter(responses=_errors(*of))
    for of in (schemas.ASKING, schemas.ASKING, (), (409,))
)


@dataclass(frozen=True)
class AppState:
    """The state that the routes of one server share."""

    service: Service
    metrics: Metrics
    answers: Worker
    gathering: Gathering
    access: Access

    async def refresh(self) -> None:
        """Take over what others count into the metrics; the server does so every second."""
        shown = self.service.impressions
        faults = self.service.find_faults()
        reload = self.service.last_reload or {
            "time": self.service.current.loaded_at,
            "is_loaded": True,
        }
        self.metrics.refresh(
            self.answers.n_waiting, shown.n_waiting, shown.n_lost, reload, faults
        )

    def close(self) -> None:
        """Finish what waits, and let go of threads and files."""
        self.answers.close()
        self.service.close()


def make_app(
    service: Service, access: Access = _EVERYBODY, max_waiting: int = _MAX_WAITING
) -> FastAPI:
    """Make the application, with the routes that its access admits; `max_waiting` bounds what waits."""
    app = FastAPI(
        title="Bascule",
        description=_ABOUT,
        version="1",
        openapi_url=None,  # it would be written anew each time
        docs_url=None,  # its page would be loaded from a network
        redoc_url=None,
        redirect_slashes=False,
        strict_content_type=False,  # the middleware looks at it
        generate_unique_id_function=lambda route: route.name,
        exception_handlers=HANDLERS,
    )
    metrics = Metrics(service.measure, service.beside, FAULTS)
    worker = Worker(max_waiting, _DEADLINE)
    app.state.shared = AppState(service, metrics, worker, Gathering(worker), access)
    app.add_middleware(AccessMiddleware, access=access)
    app.add_middleware(RequestMiddleware, metrics=metrics, worker=worker)
    may_reload = access.keys is not None or access.token is not None
    for each in (
        router,
        operating,
        *([] if access.read_only else [changing]),
        *([reloading] if may_reload else []),
    ):
        app.include_router(each)
    for path, name in _PAGES.items():
        app.add_route(path, partial(_send_page, name), methods=["GET"])
    write = partial(
        schemas.describe, app.openapi, lambda: service.current.catalogue.item_ids.ids
    )
    app.openapi = write  # type: ignore[method-assign]
    document = cache(lambda: _ENCODER.encode(app.openapi()))
    app.add_route(
        "/openapi.json",
        lambda _: Response(document(), media_type="application/json"),
        methods=["GET"],
    )
    return app


@router.post(
    "/v1/recommend",
    response_model=schemas.ListsAnswer,
    summary="The best items for one request or many",
)
async def recommend(request: Request, body: Annotated[Ask, Body()]) -> Response:
    state = _state(request)
    given = cast(Mapping[str, Any], body)
    if given.keys() & _LONG:  # these take long: not in the event loop
        steps = _recommend if state.service.arms is None else _recommend_in_arms
        return await state.answers.run_steps(
            steps(request, given), request.is_disconnected
        )
    return await _recommend_together(request, given)


@router.post(
    "/v1/similar",
    response_model=schemas.SimilarAnswer,
    summary="The items nearest to an item",
)
async def similar(request: Request, body: Annotated[AskSimilar, Body()]) -> Response:
    state = _state(request)
    k = body.get("k", _DEFAULT_K)
    explain = body.get("explain", False)
    return await state.answers.run(
        lambda: _write(request, *state.service.similar(body["item_id"], k, explain))
    )


@router.post(
    "/v1/due",
    response_model=schemas.DueAnswer,
    summary="What a user takes again, and when it is due",
)
async def due(request: Request, body: Annotated[AskDue, Body()]) -> Response:
    state = _state(request)
    k = body.get("k", _DEFAULT_K)
    asked = _only_request(cast(Mapping[str, Any], body))
    return await state.answers.run(
        lambda: _write(request, *state.service.due(asked, k))
    )


@router.get(
    "/v1/items",
    response_model=schemas.FoundAnswer,
    summary="Items by a part of their name",
)
async def items(
    request: Request, search: SearchText, k: SearchLength = _DEFAULT_K
) -> Response:
    state = _state(request)
    current = _state(request).service.current

    def answer() -> Response:
        ids = page.search_items(current, search, k)
        columns = show_items(
            current.catalogue.table, current.catalogue.item_ids.require(ids)
        )
        found = [
            {"item_id": item_id, "columns": one}
            for item_id, one in zip(ids, columns, strict=True)
        ]
        return _write(request, current.version, {"items": found})

    return await state.answers.run(answer)


@router.get(
    "/v1/segments",
    response_model=schemas.SegmentsAnswer,
    summary="Kinds of users, and what marks them",
)
async def segments(request: Request) -> Response:
    current = _state(request).service.current
    known = current.bundle.segments
    return _write(
        request,
        current.version,
        {"segments": [] if known is None else known.describe()},
    )


@router.get(
    "/v1/page", response_model=dict[str, Any], summary="What the page at / offers"
)
async def form(request: Request) -> Response:
    state = _state(request)
    role = getattr(request.state, "role", schemas.Role.ADMIN)
    service = state.service
    current = state.service.current
    may_change = role >= schemas.Role.WRITE and not state.access.read_only

    def answer() -> Response:
        users = (
            page.choose_users(current) if role is schemas.Role.ADMIN else []
        )  # people, who are not for all to see
        users = [one for one in users if service.knows(one["user_id"])]
        here = {
            "users": users,
            "may_change": may_change,
            "clock": service.clock(current),
        }
        return _write(request, current.version, page.describe_form(current) | here)

    return await asyncio.to_thread(answer)  # the first time it takes long


@changing.post(
    "/v1/events",
    response_model=schemas.EventsAnswer,
    summary="Keep events of users: they count in the next answer",
)
async def add_events(request: Request, body: Annotated[Tell, Body()]) -> Response:
    state = _state(request)
    given = cast(dict[str, Any], body)
    n_kept = await asyncio.to_thread(
        state.service.observe, given.get("events", [given])
    )
    state.metrics.events.inc(n_kept)
    return _write(request, state.service.version, {"kept": n_kept})


@changing.post(
    "/v1/users/forget",
    response_model=schemas.ForgetAnswer,
    summary="Erase a user, with a receipt",
)
async def forget_user(
    request: Request, body: Annotated[ForgetBody, Body()]
) -> Response:
    state = _state(request)
    user_known = state.service.knows(body["user_id"])
    receipts = await asyncio.shield(
        asyncio.wrap_future(state.service.forget(body["user_id"]))
    )
    request.state.users = [
        user for receipt in receipts for user in receipt["forgotten"]
    ]  # of the audit log
    return _write(
        request, state.service.version, {"receipts": receipts, "user_known": user_known}
    )


@changing.put(
    "/v1/items/{item_id:path}",
    response_model=schemas.PutAnswer,
    summary="Add or change an item",
)
async def put_item(
    request: Request, item_id: ItemPath, body: Annotated[ItemBody, Body()]
) -> Response:
    state = _state(request)
    await asyncio.to_thread(state.service.items.put, item_id, body["columns"])
    return _write(request, state.service.version, {})


@changing.delete(
    "/v1/items/{item_id:path}",
    response_model=schemas.DeleteAnswer,
    summary="Remove an item from all versions",
)
async def delete_item(request: Request, item_id: ItemPath) -> Response:
    state = _state(request)
    was_there = await asyncio.to_thread(state.service.items.remove, item_id)
    return _write(request, state.service.version, {"was_there": was_there})


@operating.get("/health", summary="The process lives")
async def health() -> dict[str, str]:
    return {"status": "ok"}


@operating.get(
    "/ready",
    summary="Requests may be sent; faults that do not prevent answers are named",
    responses=_NOT_READY,
)
async def ready(request: Request, response: Response) -> dict[str, Any]:
    faults = _state(request).service.find_faults()
    response.status_code = 503 if OUT_OF_SERVICE in faults else 200
    return {"status": "degraded", "faults": faults} if faults else {"status": "ready"}


@operating.get("/v1/status", summary="What answers, and what became of the last reload")
async def status(request: Request) -> dict[str, Any]:
    return _state(request).service.describe() | {
        "measured": summarise(_state(request).service.beside)
    }


@operating.get(
    "/metrics",
    response_class=Response,
    responses=_TEXT,
    summary="Counts and times for Prometheus",
)
async def metrics(request: Request) -> Response:
    state = _state(request)
    await state.refresh()
    return Response(state.metrics.write(), media_type=_PROMETHEUS)


@reloading.post(
    "/v1/reload", response_model=schemas.ReloadAnswer, summary="Take up what is current"
)
async def reload(request: Request) -> dict[str, Any]:
    state = _state(request)
    reason = await asyncio.to_thread(state.service.reload)
    state.metrics.reloads.labels("loaded" if reason is None else "refused").inc()
    if reason is not None:
        _LOG.warning(
            "a reload was refused, version %s answers on: %s",
            state.service.version,
            reason,
        )
        raise HTTPException(409, reason)
    _LOG.info("version %s answers from now on", state.service.version)
    return {"request_id": request.state.request_id, "version": state.service.version}


def _recommend(
    request: Request, body: Mapping[str, Any]
) -> Generator[None, None, Response]:
    """Answer the requests of a body by one version, in steps between which others may be answered."""
    begun = time.perf_counter()
    service = _state(request).service
    k = int(body.get("k", _DEFAULT_K))
    raw = body.get("requests") or [_only_request(body)]
    current = service.current
    _check_cost(raw, k, len(current.catalogue))
    turned = Dials(**{name: body[name] for name in _DIALS if name in body})
    reading = service.read(raw, current)
    starts = range(0, max(1, len(raw) - _STEP + 1), _STEP)
    found: list[Answer] = []
    shown: list[dict[str, Any]] = []
    lists: list[str] = []
    for start in starts:
        asked = []
        for one in islice(reading, len(raw) if start == starts[-1] else _STEP):
            asked.append(one)
            yield
        answers = [*dials.recommend(current, asked, k, body.get("repeats"), turned)]
        yield
        here = [
            show_answer(current, *pair, body.get("explain", False))
            for pair in zip(asked, answers, strict=True)
        ]
        found += answers
        shown += here
        lists.append(_ENCODER.encode(here)[1:-1])
        yield
    service.log_shown(current, found, request.state.request_id, turned.policy)
    return _write_lists(request, current, shown, lists, k, begun)


def _recommend_in_arms(
    request: Request, body: Mapping[str, Any]
) -> Generator[None, None, Response]:
    """Answer each request of a body as the arm of its user says, and log it as such."""
    begun = time.perf_counter()
    service = _state(request).service
    k = int(body.get("k", _DEFAULT_K))
    raw = body.get("requests") or [_only_request(body)]
    current = service.current
    arms = cast(Arms, service.arms)
    _check_cost(raw, k, len(current.catalogue))
    turned = Dials(**{name: body[name] for name in _DIALS if name in body})
    shown: list[dict[str, Any]] = []
    for place, asked in enumerate(service.read(raw, current)):
        seed = f"{request.state.request_id} {place}"
        arm = arms.experiment.assign(seed if asked.user_id is None else asked.user_id)
        recommender = arms.recommender(arm, current)
        policy = str(arm.policy)
        yield
        if turned != Dials() or not service.explores(asked.user_id, arm.policy):
            (answer,) = dials.recommend(
                recommender, [asked], k, body.get("repeats"), turned
            )
            policy = turned.policy
        else:
            (answer,) = explore(
                recommender, [asked], k, _filter_viewed(body), arm.policy, [seed]
            )
        here = show_answer(recommender, asked, answer, body.get("explain", False))
        shown.append(here | {"arm": arm.name, "version": recommender.version})
        service.log_shown(
            recommender, [answer], request.state.request_id, policy, arm.name
        )
        yield
    return _write_lists(
        request, current, shown, [_ENCODER.encode(shown)[1:-1]], k, begun
    )


def _check_cost(raw: Sequence[Mapping[str, Any]], k: int, n_items: int) -> None:
    """Refuse a body that would take more than a few seconds."""
    if len(raw) * k > schemas.MAX_LISTED:
        few = "ask for shorter lists, or in several bodies"
        raise SchemaError(
            f"requests: k times their number is above {schemas.MAX_LISTED:,}; {few}"
        )
    n_letters = sum(
        map(len, {(one.get("filters") or {}).get("where") or "" for one in raw})
    )
    allowed = max(schemas.MAX_TEXT, _MAX_COMPARED // n_items)
    if n_letters > allowed:
        few = f"allowed with {n_items:,} items: {allowed:,}; use fewer, or ask in several bodies"
        raise SchemaError(
            f"requests: their different filters have {n_letters:,} characters; {few}"
        )


async def _recommend_together(request: Request, body: Mapping[str, Any]) -> Response:
    """Answer one request together with those of others that came at the same time."""
    begun = time.perf_counter()
    state = _state(request)
    k = int(body.get("k", _DEFAULT_K))
    service = state.service
    current = state.service.current
    filter_viewed = _filter_viewed(body)
    (asked,) = service.read([_only_request(body)], current)
    arm: Arm | None = None
    if service.arms is not None:
        seed = f"{request.state.request_id} 0"
        arm = service.arms.experiment.assign(
            seed if asked.user_id is None else asked.user_id
        )
        if arm.policy.kind != "greedy":
            return await state.answers.run_steps(
                _recommend_in_arms(request, body), request.is_disconnected
            )
        current = service.arms.recommender(arm, current)
    rank = partial(current.recommend, k=k, filter_viewed=filter_viewed)
    is_brief = len(current.catalogue) <= _MAX_BRIEF
    answer = await state.gathering.answer(
        (current, k, filter_viewed), asked, rank, is_brief
    )
    state.answers.adapt(time.perf_counter() - request.state.started)
    shown = [show_answer(current, asked, answer, False)]
    if arm is not None:
        shown[0] |= {"arm": arm.name, "version": current.version}
    service.log_shown(
        current,
        [answer],
        request.state.request_id,
        arm=None if arm is None else arm.name,
    )
    return _write_lists(request, current, shown, [_ENCODER.encode(shown[0])], k, begun)


def _write_lists(
    request: Request,
    current: Recommender,
    shown: Sequence[Mapping[str, Any]],
    lists: Sequence[str],
    k: int,
    begun: float,
) -> Response:
    """Write lists that are JSON already behind the head of the answer."""
    clock = _state(request).service.clock(current)
    head = _write_json(request, current.version, {"clock": clock, "answers": []})
    content = Response(
        f"{head[:-2]}{','.join(lists)}]}}", media_type="application/json"
    )
    _state(request).metrics.count_lists(shown, k, time.perf_counter() - begun)
    return content


def _only_request(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in _OF_ALL}


def _filter_viewed(body: Mapping[str, Any]) -> bool | None:
    repeats = body.get("repeats")
    return None if repeats is None else repeats == "exclude"


def _write(request: Request, version: str, content: dict[str, Any]) -> Response:
    return Response(
        _write_json(request, version, content), media_type="application/json"
    )


def _write_json(request: Request, version: str, content: dict[str, Any]) -> str:
    latency = round((time.perf_counter() - request.state.started) * 1000, 3)
    head = {
        "request_id": request.state.request_id,
        "version": version,
        "latency_ms": latency,
    }
    return _ENCODER.encode(head | content)


def _state(request: Request) -> AppState:
    return request.app.state.shared  # type: ignore[no-any-return]


def _send_page(name: str, _: Request) -> Response:
    return FileResponse(FilePath(__file__).with_name(name))
