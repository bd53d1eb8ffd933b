"""Reasons for listed items by occlusion: how far a score falls when one thing alone is left out of the request.

One thing is an item of the history with all of its events, a feature of the user or a field of the context. The user,
the moment and all else stay. The reduced requests run as one batch, with item-item weights and memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from serve.arrays import to_arrow
from serve.catalogue import name_columns, name_items
from serve.clock import DAY
from serve.encode import to_text
from serve.index import UNKNOWN_ROW
from serve.kinds import Vector
from serve.recommendations import Reason
from serve.recommender import RawRequest, Recommender
from serve.requests import History, Id, Request
from serve.schema import Feature
from serve.segments import Segment

MAX_VARIED = 50  # items of a history that are left out in turn: those of the list, then the latest
MAX_SAID = 5  # reasons for an item
MIN_SHARE = (
    0.02  # of the largest effect of a request: what has less does not carry a score
)
MAX_NAME = 80  # characters of a name in a sentence
_VERBS = (  # what an event is called, then the past and the present; the first that fits
    ("remove|cancel|return|refund|dislike", "took {}", "take {}"),
    ("purchase|buy|bought|order|transaction|sale|checkout", "bought {}", "buy {}"),
    ("cart|basket", "put {} in the cart", "put {} in the cart"),
    ("rate|rating|review", "rated {}", "rate {}"),
    ("view|visit|detail|click|open", "viewed {}", "view {}"),
    ("play|listen|watch|stream", "played {}", "play {}"),
    ("like|fav|wish|save", "liked {}", "like {}"),
    ("", "took {}", "take {}"),
)


def explain(
    recommender: Recommender,
    requests: Iterable[RawRequest],
    items: Sequence[Sequence[Id]],
) -> list[list[list[Reason]]]:
    """Return the reasons for items, given by request: per request and item those that carry its score most first.

    A request without a datetime is explained at its moment.
    """
    asked = recommender.check(requests)
    return [
        _explain(recommender, one, ids) for one, ids in zip(asked, items, strict=True)
    ]


def complete_request(recommender: Recommender, request: Request) -> Request:
    """Return a request that names no user but has their history and features, and its moment."""
    schema = recommender.bundle.schema
    profile = (
        None if request.user_id is None else recommender.profiles.get(request.user_id)
    )
    history = (
        profile.history
        if profile is not None and request.history is None
        else request.history
    )
    features = (
        profile.features
        if profile is not None and request.features is None
        else request.features
    )
    moment = request.datetime
    if moment is None and schema.has_datetime:
        times = (
            []
            if history is None or history.datetime is None
            else history.datetime[-1:].tolist()
        )
        moment = times[0] if times else schema.data_until
    return replace(
        request, user_id=None, history=history, features=features, datetime=moment
    )


def find_segment(recommender: Recommender, request: Request) -> Segment | None:
    """Return the segment of a request's user as of their last event, which no clock changes; None: there are none."""
    segments = recommender.bundle.segments
    if segments is None:
        return None
    vectors = recommender.encode_users([replace(request, datetime=None, context=None)])
    return segments.segments[int(segments.of(vectors)[0])]


def _explain(
    recommender: Recommender, request: Request, item_ids: Sequence[Id]
) -> list[list[Reason]]:
    schema = recommender.bundle.schema
    asked = complete_request(recommender, request)
    parts = [
        *_leave_out_items(recommender, asked, set(item_ids)),
        *_leave_out_values(asked, "features", schema.user_features),
        *_leave_out_values(asked, "context", schema.context_features),
    ]
    scores = recommender.score(
        [asked, *(without for without, _ in parts)], item_ids
    )  # (1 + parts, K)
    effects = scores[0] - scores[1:]
    least = MIN_SHARE * np.abs(effects).max(initial=0.0)
    has_memory = recommender.catalogue.facts is not None
    explained = []
    for item_id, falls in zip(item_ids, effects.T.tolist(), strict=True):
        carrying = [
            replace(said, effect=fall)
            for (_, said), fall in zip(parts, falls, strict=True)
            if fall > least
        ]
        strongest = sorted(carrying, key=lambda reason: -reason.effect)[:MAX_SAID]
        said = [
            say_habit(one) if has_memory and one.item_id == item_id else one
            for one in strongest
        ]
        explained.append(said or [Reason("popular", 0.0, "popular now")])
    return explained


# ---- what is left out: reduced requests, and what is said of each, as if its effect were 0


def _leave_out_items(
    recommender: Recommender, asked: Request, listed: set[Id]
) -> Iterator[tuple[Request, Reason]]:
    if not (history := asked.history):
        return
    catalogue = recommender.catalogue
    features = recommender.bundle.schema.item_features
    latest = [*dict.fromkeys(history.item_id[::-1].tolist())]
    rows = dict(zip(latest, catalogue.item_ids.find(latest).tolist(), strict=True))
    known = [item_id for item_id in latest if rows[item_id] != UNKNOWN_ROW]
    varied = sorted(known, key=lambda item_id: item_id not in listed)[:MAX_VARIED]
    table = catalogue.table.select(
        ["item_id", *name_columns(catalogue.table, features)]
    )
    names = name_items(
        table.take(to_arrow(np.array([rows[one] for one in varied], np.int64))),
        features,
    )
    for item_id, name in zip(varied, names, strict=True):
        is_its = history.item_id == item_id
        said = _describe(history.take(is_its), item_id, name[:MAX_NAME], asked.datetime)
        yield replace(asked, history=history.take(~is_its)), said


def _describe(events: History, item_id: Id, name: str, moment: int | None) -> Reason:
    event = None if events.event is None else events.event[-1]
    times = np.empty(0, np.int64) if events.datetime is None else events.datetime
    days_ago = (
        None
        if moment is None or not len(times)
        else max(0, (moment - int(times[-1])) // DAY)
    )
    n_days = len(np.unique(times // DAY))
    every = (
        round(int(times[-1] - times[0]) / DAY / (n_days - 1), 1) if n_days > 1 else None
    )
    text = f"because you {_verb(event)[0].format(name)}{_ago(days_ago)}"
    return Reason("history", 0.0, text, item_id, event, days_ago, every, name)


def say_habit(said: Reason) -> Reason:
    """Say of an item of the history that it is listed itself."""
    past, present = (verb.format("this") for verb in _verb(said.event))
    text = f"you {past}{_ago(said.days_ago)}"
    if said.every_days is not None:
        days = round(said.every_days)
        often = f"about every {days} days" if days > 1 else "nearly every day"
        text = f"you {present} {often}, last{_ago(said.days_ago)}"
    return replace(said, kind="memory", text=text)


def _verb(event: str | None) -> tuple[str, str]:
    return next(
        (past, present)
        for called, past, present in _VERBS
        if re.search(called, (event or "").lower())
    )


def _ago(days: int | None) -> str:
    return (
        ""
        if days is None
        else {0: " today", 1: " yesterday"}.get(days, f" {days} days ago")
    )


def _leave_out_values(
    asked: Request, kind: Literal["features", "context"], known: Sequence[Feature]
) -> Iterator[tuple[Request, Reason]]:
    given: Mapping[str, Any] = getattr(asked, kind) or {}
    for feature in known:
        if (value := given.get(feature.name)) is not None:
            others = {name: one for name, one in given.items() if name != feature.name}
            shown = _show(value)
            label = f"{'your ' if kind == 'features' else ''}{feature.name.replace('_', ' ')}"
            text = f"because of {label}{'' if shown is None else f': {shown}'}"
            without = (
                replace(asked, features=others)
                if kind == "features"
                else replace(asked, context=others)
            )
            yield without, Reason(kind, 0.0, text, name=feature.name, value=shown)


def _show(value: Any) -> str | None:
    """Write a value for people; a vector says nothing to them."""
    if isinstance(value, (Vector, np.ndarray)):
        return None
    texts = [
        f"{one:g}" if isinstance(one, float) else to_text(one)
        for one in (value if isinstance(value, list) else [value])
    ]
    return ", ".join(filter(None, texts))[:MAX_NAME]
