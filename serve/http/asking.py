"""Routes that ask: recommendations, and items that are like an item."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, Request, Response

from serve.errors import SchemaError
from serve.http import answers
from serve.http.answers import Asking, Written
from serve.http.bodies import Ask, AskSimilar
from serve.http.documents import ASK_EXAMPLES, FAULTS, SIMILAR_EXAMPLES, ListsAnswer, SimilarAnswer
from serve.http.gathering import Gathering
from serve.http.limits import MOST_LISTED, MOST_TOGETHER
from serve.http.parts import Parts
from serve.http.strict_route import StrictRoute


def make_asking(parts: Parts) -> APIRouter:
    """Make the routes."""
    router = APIRouter(route_class=StrictRoute, responses=FAULTS)
    service, metrics = parts.service, parts.metrics

    gathering = Gathering(parts.answering, partial(answers.recommend, service), MOST_TOGETHER)

    def is_alone() -> bool:
        """Tell whether nobody else waits: then an answer is given at once, which spares two changes of threads."""
        return parts.answering.is_idle and parts.crowd.n_asking <= 1 and not service.impressions.is_full

    async def answer(asked: Asking) -> Written:
        if asked.is_long:
            return _only(await parts.answering.run(partial(answers.recommend, service, [asked])))
        return _only(answers.recommend(service, [asked])) if is_alone() else await gathering.run(asked)

    @router.post("/v1/recommend", response_model=ListsAnswer, summary="The best items for one request or many")
    async def recommend(request: Request, body: Annotated[Ask, Body(openapi_examples=ASK_EXAMPLES)]) -> Response:
        asked = Asking(body, request.scope["state"])
        _check_length(asked)
        written = await answer(asked)
        metrics.count_lists(written)
        return Response(written.body, media_type="application/json")

    @router.post("/v1/similar", response_model=SimilarAnswer, summary="The items nearest to an item")
    async def similar(
        request: Request, body: Annotated[AskSimilar, Body(openapi_examples=SIMILAR_EXAMPLES)]
    ) -> Response:
        find = partial(answers.similar, service, body, request.scope["state"])
        written = find() if is_alone() else await parts.answering.run(find)
        return Response(written.body, media_type="application/json")

    return router


def _check_length(asked: Asking) -> None:
    if len(asked.requests) * asked.k > MOST_LISTED:
        raise SchemaError(
            f"requests: k times their number is above {MOST_LISTED:,}; ask for shorter lists, or in several bodies"
        )


def _only(outcomes: Sequence[Written | SchemaError]) -> Written:
    """Return the one answer, or raise the error in place of it."""
    (outcome,) = outcomes
    if isinstance(outcome, SchemaError):
        raise outcome
    return outcome
