"""Routes that ask: recommendations, and items that are like an item."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response

from serve.http import answers
from serve.http.answers import Written
from serve.http.bodies import Ask, AskSimilar
from serve.http.documents import ASK_EXAMPLES, FAULTS, SIMILAR_EXAMPLES, ListsAnswer, SimilarAnswer
from serve.http.parts import Parts
from serve.http.strict_route import StrictRoute


def make_asking(parts: Parts) -> APIRouter:
    """Make the routes."""
    router = APIRouter(route_class=StrictRoute, responses=FAULTS)
    service, metrics = parts.service, parts.metrics

    async def compute(answer: Callable[[], Written], n_requests: int) -> Written:
        """Answer at once where nobody else waits and it takes an instant, which spares two changes of threads."""
        is_alone = parts.answering.is_idle and parts.crowd.n_asking <= 1
        if n_requests == 1 and is_alone and not service.impressions.is_full:
            return answer()
        return await parts.answering.run(answer)

    @router.post("/v1/recommend", response_model=ListsAnswer, summary="The best items for one request or many")
    async def recommend(request: Request, body: Annotated[Ask, Body(openapi_examples=ASK_EXAMPLES)]) -> Response:
        written = await compute(partial(answers.recommend, service, dict(body), request.scope["state"]), _size(body))
        metrics.count_lists(written)
        return Response(written.body, media_type="application/json")

    @router.post("/v1/similar", response_model=SimilarAnswer, summary="The items nearest to an item")
    async def similar(
        request: Request, body: Annotated[AskSimilar, Body(openapi_examples=SIMILAR_EXAMPLES)]
    ) -> Response:
        written = await compute(partial(answers.similar, service, dict(body), request.scope["state"]), 1)
        return Response(written.body, media_type="application/json")

    return router


def _size(body: Mapping[str, Any]) -> int:
    return len(body.get("requests", [body]))
