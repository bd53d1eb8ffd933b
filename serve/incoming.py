"""What callers ask of a service, read as questions: checked, asked at a time, completed by what happened just now."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from serve.errors import SchemaError
from serve.kept_answers import MINUTE, name_question
from serve.questions import Name, Question
from serve.recommender import Recommender
from serve.requests import Request, parse_request
from serve.schema import Schema
from serve.state.live_requests import complete_with, recall
from serve.state.store import Recalled, StateStore


@dataclass(frozen=True)
class Asked:
    """What one caller asks for."""

    raw: Sequence[Mapping[str, Any]]
    """Requests."""
    k: int
    filter_viewed: bool | None
    """As of `Recommender.recommend`."""
    request_id: str


def read_question(recommender: Recommender, state: StateStore, one: Asked, now: int) -> Question | SchemaError:
    """Read what a caller asks of a recommender, or return what is wrong with it.

    Args:
        recommender: that will answer.
        state: what users did while it serves.
        one: what is asked.
        now: UTC seconds.
    """
    schema, profiles = recommender.bundle.schema, recommender.profiles
    try:
        parsed = _parse(one.raw, schema)
    except SchemaError as error:
        return error
    recalled = [recall(each, state) for each in parsed]
    requests = [_at(each, past, now) for each, past in zip(parsed, recalled, strict=True)]
    completed = [complete_with(each, profiles, past) for each, past in zip(requests, recalled, strict=True)]
    return Question(completed, one.k, one.filter_viewed, _name(one, requests, recalled))


def _parse(raw: Sequence[Mapping[str, Any]], schema: Schema) -> list[Request]:
    """Check requests; of several, say which one is wrong."""
    if len(raw) == 1:
        return [parse_request(raw[0], schema)]
    parsed = []
    for place, one in enumerate(raw):
        try:
            parsed.append(parse_request(one, schema))
        except SchemaError as error:
            raise SchemaError(f"requests[{place}]: {error}") from error
    return parsed


def _at(request: Request, recalled: Recalled, now: int) -> Request:
    """Ask a request now, where it does not say when: at a time that stays for a minute unless something happens.

    That is the beginning of the minute, or her latest event where it came later, of those that lie not ahead.
    """
    if request.datetime is not None:
        return request
    history = recalled.history if request.history is None else request.history
    times = history.datetime or ()
    n_past = bisect_right(times, now)
    return replace(request, datetime=max([now - now % MINUTE, *times[n_past - 1 : n_past]]))


def _name(one: Asked, requests: Sequence[Request], recalled: Sequence[Recalled]) -> Name | None:
    """Name a question of one request; longer ones are seldom asked again."""
    if len(requests) != 1:
        return None
    return name_question(one.raw[0], one.k, one.filter_viewed, requests[0].datetime, recalled[0])
