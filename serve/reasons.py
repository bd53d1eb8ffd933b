"""Say why items are listed, and what is due again.

**Reasons** are found by occlusion: how far a score falls when one thing alone is left out of the
request. One thing is an item of the history with all of its events, a feature of the user or a
field of the context. The user, the moment and all else stay. The reduced requests run as one batch,
with item-item weights and memory.

**An item is due** if it has a rhythm: it was taken on two days or more. `serve.clock` measures it,
and sentences state the same one. Lists are in the order of how often an item was taken, where a day
counts the less the longer ago it was: this says more of the next days than when an item would be
due (docs/decisions.md). What was just taken and is held back from lists comes last.

Letters: B requests, K items of a list.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from serve.arrays import Id
from serve.cells import Vector, to_text
from serve.clock import DAY, Rhythm, measure_rhythms
from serve.recommendations import Answer, DueItem, DueList, Reason, Segment
from serve.recommender import RawRequest, Recommender
from serve.requests import Request

MAX_VARIED = 50  # items of a history that are left out in turn
MAX_SAID = 5  # reasons for an item
MIN_SHARE = 0.02  # of the largest effect of a request: a reason has at least this
MAX_NAME = 80  # characters of a name in a sentence

# Pattern of an event's name, past and present; the first that fits.
_VERBS = (
    ("remove|cancel|return|refund|dislike", "took {}", "take {}"),
    ("purchase|buy|bought|order|transaction|sale|checkout", "bought {}", "buy {}"),
    ("cart|basket", "put {} in the cart", "put {} in the cart"),
    ("rate|rating|review", "rated {}", "rate {}"),
    ("view|visit|detail|click|open", "viewed {}", "view {}"),
    ("play|listen|watch|stream", "played {}", "play {}"),
    ("like|fav|wish|save", "liked {}", "like {}"),
    ("^$", "took {}", "take {}"),
)

FADING = 112  # days after which a day that an item was taken on counts 1 / e
MIN_DAYS = 8  # from which on a day is named: of fewer, "in ten days" is nearer
# What is overdue is expected after this share of the mean days per day with an event.
WAIT = 0.35

MIN_GAPS = 3  # gaps of a rhythm that a sentence states
FADED = 2.5  # gaps after which a user no longer takes an item


def complete_request(recommender: Recommender, request: Request) -> Request:
    """Return a request that names no user, but has their history, features and moment.

    The moment of a request without a datetime is its last event, else the end of the data.
    """
    completed = replace(recommender.profiles.complete(request), user_id=None)
    schema = recommender.bundle.schema
    if request.datetime is not None or not schema.has_datetime:
        return completed

    moment = schema.data_until
    history = completed.history
    if history and history.datetime is not None:
        moment = int(history.datetime[-1])
    return replace(completed, datetime=moment)


def _find_rhythms(recommender: Recommender, request: Request) -> dict[Id, Rhythm]:
    """Return the rhythm of each item that the user of a request took."""
    if request.history is None:
        return {}
    moment = request.datetime or 0
    item_ids = recommender.catalogue.item_ids
    list_takings = recommender.just_taken.list_takings
    takings = list_takings(request.history, moment, item_ids)
    return measure_rhythms(takings, takings)


def assign_segments(
    recommender: Recommender, requests: Sequence[Request]
) -> list[Segment | None]:
    """Return the segment of each request's user as of their last event, which no clock changes.

    None describes a user without a history and features.
    """
    segments = recommender.bundle.segments
    if segments is None:
        return [None] * len(requests)

    known = [recommender.profiles.complete(request) for request in requests]
    undated = [replace(request, datetime=None, context=None) for request in known]
    nearest = segments.of(recommender.encode_users(undated)).tolist()
    assigned = []
    for request, index in zip(known, nearest, strict=True):
        values = (request.features or {}).values()
        is_known = request.history or any(value is not None for value in values)
        assigned.append(segments.segments[index] if is_known else None)

    return assigned


# ---- reasons


def explain(
    recommender: Recommender,
    requests: Iterable[RawRequest],
    items: Sequence[Sequence[Id]],
) -> list[list[list[Reason]]]:
    """Return the reasons for items.

    Args:
        recommender: the bundle that ranked the items.
        requests: B requests; one without a datetime is explained at its moment.
        items: ids for each request.

    Returns:
        By request and item, at most `MAX_SAID` reasons: those that carry its score most come first.
    """
    explained = []
    for request, item_ids in zip(recommender.check(requests), items, strict=True):
        explained.append(_explain_items(recommender, request, item_ids))
    return explained


def _explain_items(
    recommender: Recommender, request: Request, item_ids: Sequence[Id]
) -> list[list[Reason]]:
    request = complete_request(recommender, request)
    rhythms = _find_rhythms(recommender, request)
    parts = [
        *_leave_out_items(recommender, request, rhythms, set(item_ids)),
        *_leave_out_values(request, "features"),
        *_leave_out_values(request, "context"),
    ]
    reduced = [without for without, _ in parts]
    scores = recommender.score([request, *reduced], item_ids)  # (1 + parts, K)
    effects = scores[0] - scores[1:]
    least = MIN_SHARE * np.abs(effects).max(initial=0.0)
    has_memory = recommender.catalogue.facts is not None

    explained = []
    for item_id, effects_on_item in zip(item_ids, effects.T, strict=True):
        reasons = []
        places = np.argsort(-effects_on_item, kind="stable")[:MAX_SAID]
        for place in places[effects_on_item[places] > least].tolist():
            reason = replace(parts[place][1], effect=float(effects_on_item[place]))
            if has_memory and reason.item_id == item_id:
                reason = _remember(reason, rhythms.get(item_id), request.datetime or 0)
            reasons.append(reason)
        explained.append(reasons or [Reason("popular", 0.0, "popular now")])

    return explained


def _remember(reason: Reason, rhythm: Rhythm | None, moment: int) -> Reason:
    """Turn a reason of the history into that of an item which is listed itself."""
    event = reason.event
    days_ago = reason.days_ago
    if rhythm is not None:  # it was taken, not only seen
        event = rhythm.event
        if days_ago is not None:
            days_ago = (moment - rhythm.days[-1]) // DAY

    text = _say_habit(event, days_ago, rhythm)
    return replace(reason, kind="memory", text=text, event=event, days_ago=days_ago)


def _leave_out_items(
    recommender: Recommender,
    request: Request,
    rhythms: Mapping[Id, Rhythm],
    listed: set[Id],
) -> Iterator[tuple[Request, Reason]]:
    """Yield the request without each item of its history, and what is said of that item.

    Items that are listed themselves come first, then the latest.
    """
    history = request.history
    if history is None:
        return

    latest = [*dict.fromkeys(history.item_id[::-1].tolist())]
    latest.sort(key=lambda item_id: item_id not in listed)
    item_ids = recommender.catalogue.item_ids
    varied = [item_id for item_id in latest if item_id in item_ids][:MAX_VARIED]

    for item_id, name in zip(varied, recommender.name(varied), strict=True):
        is_of_item = history.item_id == item_id
        events = history.take(is_of_item)
        event = None if events.event is None else events.event[-1]
        days_ago = None
        if request.datetime is not None and events.datetime is not None:
            days_ago = max(0, (request.datetime - int(events.datetime[-1])) // DAY)

        every_days = None
        if item_id in rhythms:
            every_days = rhythms[item_id].every_days or None
        name = name[:MAX_NAME]
        past, *_ = _find_verb(event)
        text = f"because {past.format(name)}{_say_ago(days_ago)}"
        reason = Reason(
            "history", 0.0, text, item_id, event, days_ago, every_days, name
        )
        yield replace(request, history=history.take(~is_of_item)), reason


def _leave_out_values(
    request: Request, kind: Literal["features", "context"]
) -> Iterator[tuple[Request, Reason]]:
    """Yield the request without each of its features or its context, and what is said of it."""
    values: Mapping[str, Any] = getattr(request, kind) or {}
    for name in values:
        shown = _show(values[name])
        label = f"your {name}" if kind == "features" else name
        text = f"because of {label.replace('_', ' ')}"
        if shown is not None:
            text = f"{text}: {shown}"
        others: Any = {kind: {key: values[key] for key in values if key != name}}
        reason = Reason(kind, 0.0, text, name=name, value=shown)
        if values[name] is not None:
            yield replace(request, **others), reason


# ---- sentences


def _say_habit(event: str | None, days_ago: int | None, rhythm: Rhythm | None) -> str:
    """Say what a user does with an item that is listed itself.

    A rhythm needs `MIN_GAPS` gaps, and has ended after `FADED` more.
    """
    past, present, faded = _find_verb(event)
    ago = _say_ago(days_ago)
    if rhythm is None or not rhythm.gap or days_ago is None:
        return f"{past.format('this')}{ago}"

    n_days = len(rhythm.days)
    if n_days <= MIN_GAPS:
        times = "twice" if n_days == 2 else f"{n_days} times"
        if rhythm.n_times > n_days:
            times = f"on {n_days} days"
        return f"{past.format('this')} {times}, last{ago}"

    days = max(1, round(rhythm.every_days))
    often = f"about every {days} days" if days > 1 else "nearly every day"
    if days_ago > FADED * min(days, rhythm.every_days):
        present = faded
    return f"{present.format('this')} {often}, last{ago}"


def say_past(event: str | None) -> str:
    """Return the past tense for an event, with a place for the item: "bought {}".

    An event without a known verb, of any language, is called by its own name: "Kauf: {}".
    """
    past, *_ = _find_verb(event)
    return past.removeprefix("you ")


def _find_verb(event: str | None) -> list[str]:
    """Return what a user did, does and no longer does: "you bought {}", "you buy {}" and so on."""
    name = event or ""
    for pattern, past, present in _VERBS:
        if re.search(pattern, name.lower()):
            return [f"you {past}", f"you {present}", f"you used to {present}"]

    own = re.sub("[{}]", "", name)[:MAX_NAME] + ": {}"
    return [own, own, f"{own} used to come"]


def _say_ago(days: int | None) -> str:
    if days is None:
        return ""
    return {0: " today", 1: " yesterday"}.get(days, f" {days} days ago")


def _show(value: Any) -> str | None:
    """Write a value for people; a vector says nothing to them."""
    if isinstance(value, (Vector, np.ndarray)):
        return None
    if isinstance(value, float):
        return f"{value:g}"
    texts = map(to_text, value if isinstance(value, list) else [value])
    return ", ".join(text or "" for text in texts)[:MAX_NAME]


# ---- what is due


def find_due(
    recommender: Recommender, requests: Iterable[RawRequest], k: int = 10
) -> list[DueList]:
    """List what the user of each request takes again.

    Where training had targets of some types of events, only these count. Events later than the
    request's moment count as happening at it. Filters and exclusions hold.

    Args:
        recommender: a bundle whose data has times and repeats; otherwise the lists are empty.
        requests: B requests.
        k: length of the lists.

    Returns:
        A list for each request, the item that is likeliest next first. A list with fewer than k
        items has a reason.
    """
    if k < 1:
        raise ValueError(f"k is {k}; allowed: 1 or more")

    checked = recommender.check(requests)
    schema = recommender.bundle.schema
    if schema.repeats != "allow" or not schema.has_datetime:
        reason = "the bundle's data has no times, or no items that are taken again"
        return [DueList(request.user_id, (), reason) for request in checked]

    completed = [complete_request(recommender, request) for request in checked]
    lengths = [len(request.history or ()) for request in completed]
    ranked = recommender.rank_owned(completed, max([1, *lengths]))

    lists = []
    for request, history, answer in zip(checked, completed, ranked, strict=True):
        items = _list_due(recommender, history, answer, k)
        few = f"{len(items)} of the items that may be listed were taken on two days or more"
        lists.append(DueList(request.user_id, items, few if len(items) < k else None))

    return lists


def _list_due(
    recommender: Recommender, request: Request, answer: Answer, k: int
) -> tuple[DueItem, ...]:
    moment = request.datetime or 0
    item_ids = recommender.catalogue.item_ids
    rhythms = _find_rhythms(recommender, request)
    held_back = recommender.just_taken.find_held_back(request, moment, item_ids)

    items = []
    for item_id in answer.item_id.tolist():
        if item_id in rhythms and rhythms[item_id].gap:
            (name,) = recommender.name([item_id])
            items.append(_expect(item_id, rhythms[item_id], name, moment))

    items.sort(key=lambda item: (item.item_id in held_back, -item.score))
    return tuple(items[:k])


def _expect(item_id: Id, rhythm: Rhythm, name: str, moment: int) -> DueItem:
    """Say how likely an item is taken soon, and when it is expected next."""
    first, *_, last = rhythm.days
    n_days = len(rhythm.days)
    due: float = last + rhythm.gap
    is_overdue = due < moment
    if is_overdue:
        due = moment + WAIT * rhythm.irregularity * (moment - first) / n_days

    return DueItem(
        item_id=item_id,
        name=name,
        due=int(due) if n_days >= MIN_DAYS else None,
        is_overdue=is_overdue,
        last=last,
        n_days=n_days,
        every_days=rhythm.every_days,
        regularity=round(1 - rhythm.irregularity, 2),
        score=sum(math.exp((day - moment) / (FADING * DAY)) for day in rhythm.days),
        text=_say_habit(rhythm.event, (moment - last) // DAY, rhythm),
    )
