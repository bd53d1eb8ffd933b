"""Say why items are listed, and what is due again.

**Reasons** are found by occlusion: how far a score falls when one thing alone is left out of the
request. One thing is an item of the history with all of its events, a feature of the user or a
field of the context. The user, the moment and all else stay. The reduced requests run as one batch,
with item-item weights and memory.

**An item is due** if it has a rhythm: it was taken on two days or more (UTC). Its gaps are those
between the last events of these days. The typical gap is their median, drawn towards the median of
all gaps of the user: less if there are many or if they are regular. Lists are in the order of
`rank_owned`, memory included: how often and how lately an item was taken says more of the next days
than when it would be due (docs/decisions.md).

Letters: B requests, K items of a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from serve.arrays import Id, Ints, to_arrow
from serve.catalogue import name_items
from serve.cells import Vector, to_text
from serve.clock import DAY
from serve.index import UNKNOWN_ROW
from serve.recommendations import Answer, DueItem, DueList, Reason, Segment
from serve.recommender import RawRequest, Recommender
from serve.requests import History, Request

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
    parts = [
        *_leave_out_items(recommender, request, set(item_ids)),
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
                habit = say_habit(reason.event, reason.days_ago, reason.every_days)
                reason = replace(reason, kind="memory", text=habit)
            reasons.append(reason)
        explained.append(reasons or [Reason("popular", 0.0, "popular now")])

    return explained


def _leave_out_items(
    recommender: Recommender, request: Request, listed: set[Id]
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
        reason = _describe(events, item_id, name[:MAX_NAME], request.datetime)
        yield replace(request, history=history.take(~is_of_item)), reason


def _describe(events: History, item_id: Id, name: str, moment: int | None) -> Reason:
    """Say what happened to an item of the history, when and how often."""
    event = None if events.event is None else events.event[-1]
    days_ago = None
    every_days = None
    times = events.datetime
    if moment is not None and times is not None:
        days_ago = max(0, (moment - int(times[-1])) // DAY)
        n_days = len(np.unique(times // DAY))
        if n_days > 1:
            every_days = round(int(times[-1] - times[0]) / DAY / (n_days - 1), 1)

    past, _ = _find_verb(event)
    text = f"because you {past.format(name)}{_say_ago(days_ago)}"
    return Reason("history", 0.0, text, item_id, event, days_ago, every_days, name)


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


def say_habit(event: str | None, days_ago: int | None, every_days: float | None) -> str:
    """Say what a user does with an item of their history, which is listed itself."""
    past, present = _find_verb(event)
    ago = _say_ago(days_ago)
    if every_days is None:
        return f"you {past.format('this')}{ago}"
    days = round(every_days)
    often = f"about every {days} days" if days > 1 else "nearly every day"
    return f"you {present.format('this')} {often}, last{ago}"


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
    history = _keep_targets(recommender, request.history)
    moment = request.datetime
    if history is None or history.datetime is None or moment is None:
        return ()

    find_rows = recommender.catalogue.item_ids.find
    times_by_row = _group_times(
        find_rows(history.item_id), np.minimum(history.datetime, moment)
    )
    usual = 1.0
    if times_by_row:
        usual = np.median(np.concatenate([*map(np.diff, times_by_row.values())]))

    last_event: dict[Id, str | None] = {}
    if history.event is not None:
        pairs = zip(history.item_id.tolist(), history.event.tolist(), strict=True)
        last_event = dict(pairs)

    rows = find_rows(answer.item_id)
    places = np.flatnonzero(np.isin(rows, [*times_by_row]))[:k]
    items = []
    for place, name in zip(places, _name_rows(recommender, rows[places]), strict=True):
        item_id = answer.item_id.item(place)
        rhythm = _measure_rhythm(times_by_row[rows[place]], usual, moment)
        days_ago = (moment - rhythm["last"]) // DAY
        text = say_habit(last_event.get(item_id), days_ago, rhythm["every_days"])
        score = float(answer.score[place])
        items.append(DueItem(item_id, name, **rhythm, score=score, text=text))

    return tuple(items)


def _keep_targets(recommender: Recommender, history: History | None) -> History | None:
    """Leave out events of types that were no targets of the training."""
    data = recommender.bundle.manifest.facts.config.get("data", {})
    targets = data.get("targets", {}).get("events")
    if history is None or history.event is None or targets is None:
        return history
    return history.take(np.isin(history.event.astype(str), targets))


def _group_times(rows: Ints, times: Ints) -> dict[int, Ints]:
    """Return, by item row, the time of the last event of each day, for items of several days."""
    times_by_row = {}
    for row in np.unique(rows[rows != UNKNOWN_ROW]).tolist():
        latest_first = np.sort(times[rows == row])[::-1]
        _, lasts = np.unique(latest_first // DAY, return_index=True)
        if len(lasts) > 1:
            times_by_row[row] = latest_first[lasts]

    return times_by_row


def _measure_rhythm(times: Ints, usual: float, moment: int) -> dict[str, Any]:
    """Measure the rhythm of an item.

    Args:
        times: of its last event on each of two days or more, ascending.
        usual: the median gap of the user.
        moment: of the request, in UTC seconds.

    Returns:
        Values of `DueItem` by their names.
    """
    first = int(times[0])
    last = int(times[-1])
    n_days = len(times)
    gaps = np.diff(times)
    deviation = ((gaps / gaps.mean() - 1) ** 2).sum()
    # As if one more gap deviated by the mean.
    irregularity = min(1.0, np.sqrt((1 + deviation) / n_days))
    share_of_user = irregularity / (n_days - 1 + irregularity)
    typical = np.rint(np.median(gaps) ** (1 - share_of_user) * usual**share_of_user)
    due = last + typical
    is_overdue = bool(due < moment)
    if is_overdue:
        due = moment + WAIT * irregularity * (moment - first) / n_days

    every_days = float(typical) / DAY
    return {
        "due": int(due),
        "is_overdue": is_overdue,
        "last": last,
        "n_days": n_days,
        "every_days": round(every_days, 2),
        "regularity": round(1 - float(irregularity), 2),
    }
