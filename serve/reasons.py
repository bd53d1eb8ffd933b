"""Say why items are listed, and what is due again.

**Reasons** are found by occlusion: how far a score falls when one thing alone is left out of the
request. One thing is an item of the history with all of its events, a feature of the user or a
field of the context. The user, the moment and all else stay. The reduced requests run as one batch,
with item-item weights and memory.

**An item is due** if it has a rhythm: it was taken on two days or more. `serve.clock` measures it,
and sentences state the same one. Lists are in the order of `rank_owned`, memory included: how often
and how lately an item was taken says more of the next days than when it would be due
(docs/decisions.md). What was just taken and is held back from lists comes last.

Letters: B requests, K items of a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from serve.arrays import Id, Ints, to_arrow
from serve.catalogue import name_items
from serve.cells import Vector, to_text
from serve.clock import DAY, Rhythm, Rhythms
from serve.filters import Takings
from serve.index import UNKNOWN_ROW
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
    ("", "took {}", "take {}"),
)

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


def _find_takings(recommender: Recommender, request: Request) -> Takings:
    moment = request.datetime or 0
    return recommender.just_taken.find(request, moment, recommender.admission)


def find_segment(recommender: Recommender, request: Request) -> Segment | None:
    """Return the segment of a request's user as of their last event, which no clock changes."""
    segments = recommender.bundle.segments
    if segments is None:
        return None
    vectors = recommender.encode_users([replace(request, datetime=None, context=None)])
    return segments.segments[int(segments.of(vectors)[0])]


def _name_rows(recommender: Recommender, rows: Ints) -> list[str]:
    table = recommender.catalogue.table.take(to_arrow(rows))
    return name_items(table, recommender.bundle.schema.item_features)


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
    takings = _find_takings(recommender, request)
    parts = [
        *_leave_out_items(recommender, request, takings.rhythms, set(item_ids)),
        *_leave_out_values(request, "features"),
        *_leave_out_values(request, "context"),
    ]
    reduced = [without for without, _ in parts]
    scores = recommender.score([request, *reduced], item_ids)  # (1 + parts, K)
    effects = scores[0] - scores[1:]
    least = MIN_SHARE * np.abs(effects).max(initial=0.0)
    has_memory = recommender.catalogue.facts is not None

    explained = []
    rows = recommender.catalogue.item_ids.find(item_ids).tolist()
    for row, item_id, effects_on_item in zip(rows, item_ids, effects.T, strict=True):
        reasons = []
        places = np.argsort(-effects_on_item, kind="stable")[:MAX_SAID]
        for place in places[effects_on_item[places] > least].tolist():
            reason = replace(parts[place][1], effect=float(effects_on_item[place]))
            if has_memory and reason.item_id == item_id:
                habit = _find_habit(takings, row, request.datetime)
                reason = _remember(reason, habit)
            reasons.append(reason)
        explained.append(reasons or [Reason("popular", 0.0, "popular now")])

    return explained


def _remember(reason: Reason, habit: Habit) -> Reason:
    """Turn a reason of the history into that of an item which is listed itself."""
    if not habit.rhythm.days:  # it was seen, but not taken
        habit = replace(habit, event=reason.event, days_ago=reason.days_ago)
    return replace(
        reason,
        kind="memory",
        text=habit.text,
        event=habit.event,
        days_ago=habit.days_ago,
    )


def _leave_out_items(
    recommender: Recommender,
    request: Request,
    rhythms: Rhythms,
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
    rows = recommender.catalogue.item_ids.find(latest)
    places = np.flatnonzero(rows != UNKNOWN_ROW)[:MAX_VARIED]
    names = _name_rows(recommender, rows[places])

    for place, name in zip(places.tolist(), names, strict=True):
        item_id = latest[place]
        is_of_item = history.item_id == item_id
        events = history.take(is_of_item)
        event = None if events.event is None else events.event[-1]
        days_ago = None
        if request.datetime is not None and events.datetime is not None:
            days_ago = max(0, (request.datetime - int(events.datetime[-1])) // DAY)

        every_days = rhythms.of(int(rows[place])).every_days or None
        past, _ = _find_verb(event)
        name = name[:MAX_NAME]
        text = f"because you {past.format(name)}{_say_ago(days_ago)}"
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


@dataclass(frozen=True)
class Habit:
    """How a user takes an item."""

    event: str | None  # type of the last one that took it
    days_ago: int | None  # None: the history has no times
    rhythm: Rhythm

    @property
    def text(self) -> str:
        """Say what they do with an item that is listed itself.

        A rhythm needs `MIN_GAPS` gaps, and has ended after `FADED` more.
        """
        past, present = _find_verb(self.event)
        ago = _say_ago(self.days_ago)
        n_days = len(self.rhythm.days)
        if n_days < 2 or self.days_ago is None:
            return f"you {past.format('this')}{ago}"
        if n_days <= MIN_GAPS:
            times = "twice" if n_days == 2 else f"{n_days} times"
            if self.rhythm.n_times > n_days:
                times = f"on {n_days} days"
            return f"you {past.format('this')} {times}, last{ago}"

        every_days = self.rhythm.every_days
        days = max(1, round(every_days))
        often = f"about every {days} days" if days > 1 else "nearly every day"
        if self.days_ago > FADED * min(days, every_days):
            present = f"used to {present}"
        return f"you {present.format('this')} {often}, last{ago}"


def _find_habit(takings: Takings, row: int, moment: int | None) -> Habit:
    """Find the habit with an item, without days if it was not taken."""
    rhythm = takings.rhythms.of(row)
    events = takings.events.take(takings.rows == row)
    event = None
    if events.event is not None and len(events):
        event = events.event[-1]

    days_ago = None
    if rhythm.days and events.datetime is not None and moment is not None:
        days_ago = (moment - rhythm.days[-1]) // DAY
    return Habit(event, days_ago, rhythm)


def say_past(event: str | None) -> str:
    """Return the past tense for an event, with a place for the item: "bought {}"."""
    past, _ = _find_verb(event)
    return past


def _find_verb(event: str | None) -> list[str]:
    name = (event or "").lower()
    return next(verbs for pattern, *verbs in _VERBS if re.search(pattern, name))


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
    takings = _find_takings(recommender, request)
    moment = request.datetime
    if takings.events.datetime is None or moment is None:
        return ()

    rows = recommender.catalogue.item_ids.find(answer.item_id)
    order = np.argsort(np.isin(rows, takings.held_back), kind="stable")
    items: list[DueItem] = []
    for place in order.tolist():
        if len(items) == k:
            break
        habit = _find_habit(takings, rows[place], moment)
        if habit.rhythm.gap:
            (name,) = _name_rows(recommender, rows[[place]])
            score = float(answer.score[place])
            item_id = answer.item_id.item(place)
            items.append(_expect(item_id, habit, score, name, moment))

    return tuple(items)


def _expect(item_id: Id, habit: Habit, score: float, name: str, moment: int) -> DueItem:
    """Say when an item is expected next."""
    rhythm = habit.rhythm
    first, *_, last = rhythm.days
    n_days = len(rhythm.days)
    due: float = last + rhythm.gap
    is_overdue = due < moment
    if is_overdue:
        due = moment + WAIT * rhythm.irregularity * (moment - first) / n_days

    return DueItem(
        item_id=item_id,
        name=name,
        due=int(due),
        is_overdue=is_overdue,
        last=last,
        n_days=n_days,
        every_days=rhythm.every_days,
        regularity=round(1 - rhythm.irregularity, 2),
        score=score,
        text=habit.text,
    )
