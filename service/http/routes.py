"""The routes that only read: lists of items, and what the page at `/` asks for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Annotated, Any, cast

from fastapi import APIRouter, Body, Query, Request, Response
from pydantic import Discriminator, Tag

from serve import rerank
from serve.arrays import Repeats
from serve.errors import SchemaError
from serve.recommendations import Answer
from serve.recommender import Recommender
from serve.requests import Request as ParsedRequest
from serve.rerank import Dials
from service.answers import show_answer
from service.experiment import Arm
from service.exploration import explore
from service.http import page, schemas
from service.http.middleware import Worker
from service.http.schemas import DueBody, RecommendBody, RecommendManyBody, SimilarBody
from service.http.writing import ENCODER, find_service, write_answer, write_json
from service.live_items import Arms
from service.service import POLICY, Service

DEFAULT_K = 10  # items of a list
_DIALS = tuple(field.name for field in fields(Dials))
_NO_DIALS = Dials()
_SHARED = frozenset({"k", "repeats", "explain", *_DIALS})  # of all requests of a body
_SLOW = frozenset({"requests", "filters", "explain", *_DIALS})  # not in the event loop
_MAX_SHORT = 16  # requests of a body that is answered among short calls
_STEP = 4  # requests answered in one go; fewer would round products otherwise
_MAX_EXPLAINED = 100  # items of a list with reasons, which are found in one step
_MAX_BRIEF = 200_000  # items among which one request is answered in the event loop


router = APIRouter(responses=schemas.describe_errors(*schemas.ASKING))
OneBody = Annotated[RecommendBody, Tag("one")]
ManyBody = Annotated[RecommendManyBody, Tag("many")]
RecommendBodies = Annotated[
    OneBody | ManyBody,
    Discriminator(lambda body: schemas.find_tag(body, "requests")),
]
SearchText = Annotated[
    str, Query(min_length=1, max_length=256, description="Words, or parts of some.")
]
SearchLength = Annotated[int, Query(ge=1, le=100)]


@router.post(
    "/v1/recommend",
    response_model=schemas.ListsAnswer,
    summary="The best items for one request or many",
)
async def recommend(
    request: Request, body: Annotated[RecommendBodies, Body()]
) -> Response:
    content = cast(Mapping[str, Any], body)
    call = _Call.read(request, content)

    if call.service.arms is None and not content.keys() & _SLOW:
        return await _recommend_one(call, _drop_shared(content))

    raw = content.get("requests") or [_drop_shared(content)]
    if len(raw) * call.k > schemas.MAX_LISTED:
        raise SchemaError(
            f"requests: k times their number is above {schemas.MAX_LISTED:,}; "
            "ask for shorter lists, or in several bodies"
        )
    if call.is_explained and call.k > _MAX_EXPLAINED:
        raise SchemaError(
            f"k is above {_MAX_EXPLAINED}; allowed with explain: {_MAX_EXPLAINED} or fewer"
        )

    worker: Worker = request.app.state.shared.answers
    steps = _recommend_in_steps(call, raw)
    turns = worker.long if len(raw) > _MAX_SHORT else worker.short
    return await turns.run_steps(steps, request.is_disconnected)


@router.post(
    "/v1/similar",
    response_model=schemas.SimilarAnswer,
    summary="The items nearest to an item",
)
async def similar(request: Request, body: Annotated[SimilarBody, Body()]) -> Response:
    k = body.get("k", DEFAULT_K)
    find = partial(find_service(request).similar, body["item_id"], k)
    return await _compute(request, partial(find, body.get("explain", False)))


@router.post(
    "/v1/due",
    response_model=schemas.DueAnswer,
    summary="What a user takes again, and when it is due",
)
async def due(request: Request, body: Annotated[DueBody, Body()]) -> Response:
    raw = _drop_shared(cast(Mapping[str, Any], body))
    due = find_service(request).due
    return await _compute(request, partial(due, raw, body.get("k", DEFAULT_K)))


@router.get(
    "/v1/items",
    response_model=schemas.FoundAnswer,
    summary="Items by a part of their name",
)
async def items(
    request: Request, search: SearchText, k: SearchLength = DEFAULT_K
) -> Response:
    current = find_service(request).current

    def find() -> tuple[str, dict[str, Any]]:
        return current.version, {"items": page.search_items(current, search, k)}

    return await _compute(request, find)


async def _compute(
    request: Request, call: Callable[[], tuple[str, dict[str, Any]]]
) -> Response:
    """Write the version and the content that a call returns in a computing thread."""
    worker: Worker = request.app.state.shared.answers
    version, content = await worker.short.run(call)
    return write_answer(request, version, content)


@router.get(
    "/v1/segments",
    response_model=schemas.SegmentsAnswer,
    summary="Kinds of users, and what marks them",
)
async def segments(request: Request) -> Response:
    current = find_service(request).current
    segments = current.bundle.segments
    described = [] if segments is None else segments.describe()
    return write_answer(request, current.version, {"segments": described})


@router.get(
    "/v1/page", response_model=dict[str, Any], summary="What the page at / offers"
)
async def form(request: Request) -> Response:
    service = find_service(request)
    current = service.current
    role = getattr(request.state, "role", schemas.Role.ADMIN)

    may_change = role >= schemas.Role.WRITE and not (
        request.app.state.shared.access.read_only
    )

    def answer() -> Response:
        content = page.describe_form(current)
        content |= {
            "users": [],
            "may_change": may_change,
            "clock": service.clock(current),
        }
        if role is schemas.Role.ADMIN:  # people are not for all to see
            content["users"] = [
                user
                for user in page.choose_users(current)
                if service.knows(user["user_id"])
            ]

        return write_answer(request, current.version, content)

    return await asyncio.to_thread(answer)


@dataclass(frozen=True)
class _Call:
    """What the requests of one body share."""

    request: Request
    service: Service
    current: Recommender
    k: int
    repeats: Repeats | None
    dials: Dials
    is_explained: bool
    started: float

    @classmethod
    def read(cls, request: Request, body: Mapping[str, Any]) -> _Call:
        service = find_service(request)
        k = body.get("k", DEFAULT_K)
        is_explained = body.get("explain", False)
        chosen = {name: body[name] for name in _DIALS if name in body}

        return cls(
            request=request,
            service=service,
            current=service.current,
            k=k,
            repeats=body.get("repeats"),
            dials=Dials(**chosen),
            is_explained=is_explained,
            started=time.perf_counter(),
        )

    @property
    def filter_viewed(self) -> bool | None:
        return None if self.repeats is None else self.repeats == "exclude"


@dataclass(frozen=True)
class _Batch:
    """Requests that one recommender answered under one policy."""

    recommender: Recommender
    requests: Sequence[ParsedRequest]
    answers: Sequence[Answer]
    policy: str
    arm: Arm | None = None

    def list_logged(self) -> list[Answer]:
        """Return the answers that may be kept: none to a request without profiling."""
        pairs = zip(self.requests, self.answers, strict=True)
        return [answer for parsed, answer in pairs if parsed.profile]

    def show(self, is_explained: bool) -> list[dict[str, Any]]:
        lists = []
        for parsed, answer in zip(self.requests, self.answers, strict=True):
            shown = show_answer(self.recommender, parsed, answer, is_explained)
            if self.arm is not None:
                shown |= {"arm": self.arm.name, "version": self.recommender.version}
            lists.append(shown)

        return lists


def _recommend_in_steps(
    call: _Call, raw: Sequence[Mapping[str, Any]]
) -> Generator[None, None, Response]:
    """Answer the requests of a body by one version; it may be stopped at each `yield`."""
    requests = []
    for parsed in call.service.read(raw, call.current):
        requests.append(parsed)
        yield

    batches = []
    lists: list[dict[str, Any]] = []
    texts = []
    for batch in _answer_in_batches(call, requests):
        yield
        shown = batch.show(call.is_explained)
        batches.append(batch)
        lists += shown
        texts.append(ENCODER.encode(shown)[1:-1])
        yield

    return _write_lists(call, batches, lists, texts)


def _answer_in_batches(
    call: _Call, requests: Sequence[ParsedRequest]
) -> Iterator[_Batch]:
    arms = call.service.arms
    if arms is not None:
        for position, parsed in enumerate(requests):
            yield _answer_in_arm(call, arms, parsed, position)
        return

    starts = range(0, max(1, len(requests) - _STEP + 1), _STEP)
    for start in starts:
        end = None if start == starts[-1] else start + _STEP
        yield _rerank(call, call.current, requests[start:end])


def _rerank(
    call: _Call,
    recommender: Recommender,
    requests: Sequence[ParsedRequest],
    arm: Arm | None = None,
) -> _Batch:
    answers = rerank.recommend(recommender, requests, call.k, call.repeats, call.dials)
    return _Batch(recommender, requests, [*answers], call.dials.policy, arm)


def _answer_in_arm(
    call: _Call, arms: Arms, parsed: ParsedRequest, position: int
) -> _Batch:
    """Answer a request as the arm of its user says."""
    seed = f"{call.request.state.request_id} {position}"
    user_id = parsed.user_id
    arm = arms.experiment.assign(seed if user_id is None else user_id)
    recommender = arms.recommender(arm, call.current)

    is_plain = call.dials != _NO_DIALS or not parsed.profile
    if is_plain or not call.service.explores(user_id, arm.policy):
        return _rerank(call, recommender, [parsed], arm)

    answer = explore(recommender, parsed, call.k, call.filter_viewed, arm.policy, seed)
    return _Batch(recommender, [parsed], [answer], str(arm.policy), arm)


async def _recommend_one(call: _Call, raw: Mapping[str, Any]) -> Response:
    """Answer one request in a batch with others that came at the same time."""
    current = call.current
    worker: Worker = call.request.app.state.shared.answers
    n_single = worker.n_single
    read = partial(next, call.service.read([raw], current))
    if call.service.shared is None:
        parsed = read()
    else:  # the event loop does not wait for a server
        parsed = await asyncio.to_thread(read)

    rank = partial(current.recommend, k=call.k, filter_viewed=call.filter_viewed)
    key = current, call.k, call.filter_viewed
    is_brief = len(current.catalogue) <= _MAX_BRIEF
    answer = await worker.answer(key, parsed, rank, is_brief)
    worker.note(time.perf_counter() - call.started, n_single)

    batch = _Batch(current, [parsed], [answer], POLICY)
    lists = batch.show(is_explained=False)
    return _write_lists(call, [batch], lists, [ENCODER.encode(lists)[1:-1]])


def _write_lists(
    call: _Call,
    batches: Sequence[_Batch],
    lists: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
) -> Response:
    """Log lists as shown, count them, and write their JSON texts behind the head."""
    request_id = call.request.state.request_id
    for batch in batches:
        arm = None if batch.arm is None else batch.arm.label
        call.service.log_shown(
            batch.recommender, batch.list_logged(), request_id, batch.policy, arm
        )

    metrics = call.request.app.state.shared.metrics
    metrics.count_lists(lists, call.k, time.perf_counter() - call.started)

    clock = call.service.clock(call.current)
    head = write_json(
        call.request, call.current.version, {"clock": clock, "answers": []}
    )
    return Response(f"{head[:-2]}{','.join(texts)}]}}", media_type="application/json")


def _drop_shared(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: body[name] for name in body if name not in _SHARED}
