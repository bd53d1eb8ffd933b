"""Rank what several callers ask at once: one pass over the catalogue for all, a fault its caller's alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

from serve.errors import SchemaError
from serve.recommendations import Recommendations
from serve.recommender import Recommender
from serve.requests import Request
from serve.state.store import Recalled

Name = tuple[str, int, bool | None, int | None, Recalled]
"""The words of a request, k, `filter_viewed`, the moment, and what the store has of who asks."""


@dataclass(frozen=True)
class Question:
    """What one caller asks of a recommender."""

    requests: Sequence[Request]
    k: int
    filter_viewed: bool | None
    """As of `Recommender.recommend`."""
    name: Name | None = None
    """Of questions that are the same; None: nobody can tell."""


@dataclass(frozen=True)
class Ranked:
    """The answer to a question."""

    requests: Sequence[Request]
    lists: Recommendations


Outcome = Ranked | SchemaError


def rank_together(recommender: Recommender, questions: Sequence[Question | SchemaError]) -> list[Outcome]:
    """Answer each question as `Recommender.recommend` does, or with the error that it raises.

    Questions for lists of one kind share the passes of the tower and of the search. An error in place of a question
    stays where it is.
    """
    alike: dict[tuple[int, bool | None], dict[int, Question]] = {}
    outcomes: dict[int, Outcome] = {}
    for place, one in enumerate(questions):
        if isinstance(one, SchemaError):
            outcomes[place] = one
        else:
            alike.setdefault((one.k, one.filter_viewed), {})[place] = one
    for members in alike.values():
        outcomes |= zip(members, _rank_alike(recommender, [*members.values()]), strict=True)
    return [outcomes[place] for place in range(len(questions))]


def _rank_alike(recommender: Recommender, questions: Sequence[Question]) -> list[Outcome]:
    first, requests = questions[0], [*chain.from_iterable(question.requests for question in questions)]
    try:
        lists = recommender.recommend(requests, first.k, first.filter_viewed)
    except SchemaError as error:
        if len(questions) == 1:
            return [_name_place(recommender, requests, error)]
        return [outcome for question in questions for outcome in _rank_alike(recommender, [question])]
    sizes = [len(question.requests) for question in questions]
    parts = [lists.part(stop - size, stop) for size, stop in zip(sizes, accumulate(sizes), strict=True)]
    return [Ranked(question.requests, part) for question, part in zip(questions, parts, strict=True)]


def _name_place(recommender: Recommender, requests: Sequence[Request], error: SchemaError) -> SchemaError:
    """Say which of several requests has the filters that do not fit the catalogue."""
    for place, one in enumerate(requests if len(requests) > 1 else ()):
        try:
            recommender.admission.check(one.filters)
        except SchemaError as fault:
            return SchemaError(f"requests[{place}]: {fault}")
    return error
