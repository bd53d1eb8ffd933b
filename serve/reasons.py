"""Say why items are listed, and which segment somebody is of.

**Effects** are found by occlusion: how far a score falls when one thing alone is left out of the
request. One thing is an item of the history with all of its events, a feature of the user or a
field of the context. The user, the moment and all else stay. The reduced requests run as one batch,
with item-item weights and memory.

**Reasons** are the effects that are special to an item. What lifts the whole list is no reason for
one of its items. So an item of the history is a reason if its effect here exceeds its mean effect
on the list and on what is listed for nobody in particular; a feature or a field is one if the item
would not be listed without it. Where nothing is special, nothing is said.

Letters: B requests, K items of a list, P parts of a request, C items that are compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from serve.arrays import Doubles, Id
from serve.cells import Vector, to_text
from serve.clock import DAY, Rhythm
from serve.recommendations import (
    Explanation,
    Reason,
    Segment,
)
from serve.recommender import RawRequest, Recommender
from serve.requests import Request
from serve.sentences import (
    MAX_NAME,
    complete_request,
    find_rhythms,
    find_verb,
    say_ago,
    say_habit,
)

MAX_VARIED = 50  # items of a history that are left out in turn
MAX_SAID = 5  # reasons for an item
MIN_SHARE = 0.02  # of the largest effect of a request: what is less is no reason
LISTED = 10  # items of the list that an item is compared with, at least
NEARLY = 0.5  # of the most special part of an item: what is more may come first


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


@dataclass(frozen=True)
class _Part:
    """One thing that a request can be without.

    Attributes:
        reason: what is said of it.
        without: the request without it.
        side: the field of the request that it is in.
        not_for: items that it is no reason for.
    """

    reason: Reason
    without: Request
    side: Literal["history", "features", "context"]
    not_for: Collection[Id] = ()

    def name_for(self, item_id: Id) -> str:
        """Name the kind of reason that it is for an item."""
        return "memory" if self.reason.item_id == item_id else self.side


def explain(
    recommender: Recommender,
    requests: Iterable[RawRequest],
    items: Sequence[Sequence[Id]],
) -> list[Explanation]:
    """Say why items are listed.

    Args:
        recommender: the bundle that ranked the items.
        requests: B requests; one without a datetime is explained at its moment.
        items: ids for each request, which are compared with those of its list.

    Returns:
        B explanations. An item has at most `MAX_SAID` reasons.
    """
    explained = []
    for request, item_ids in zip(recommender.check(requests), items, strict=True):
        completed = complete_request(
            request, recommender.profiles, recommender.bundle.schema
        )
        explained.append(_explain_list(recommender, completed, item_ids))
    return explained


def _explain_list(
    recommender: Recommender, request: Request, item_ids: Sequence[Id]
) -> Explanation:
    known = recommender.catalogue.item_ids
    rhythms = find_rhythms(request, recommender.just_taken, known)
    taken = [*_leave_out_items(recommender, request, rhythms, item_ids)]
    values = [
        *_leave_out_values(request, "features"),
        *_leave_out_values(request, "context"),
    ]
    nobody = replace(request, history=None, features=None, n_fresh=None, held=())
    compared = [request, nobody, *(part.without for part in values)]
    listed, popular, *others = _list_alike(recommender, compared, item_ids)
    deciding = [*_find_deciding(values, listed, popular, others)]

    parts = [*taken, *deciding]
    requests = [request, *(part.without for part in parts)]
    scores = recommender.score(requests, [*item_ids, *listed, *popular])
    falls = scores[0] - scores[1:]  # (P, C)
    n_items = len(item_ids)
    effects, on_list, on_popular = np.split(
        falls, [n_items, n_items + len(listed)], axis=1
    )
    least = MIN_SHARE * np.abs(effects).max(initial=0.0)
    usual = _mean(on_popular)
    n_taken = len(taken)
    usual[:n_taken] = np.maximum(usual, _mean(on_list))[:n_taken]
    special = np.where(effects > least, effects - usual[:, None], 0.0)  # (P, K)
    for place, part in enumerate(parts):
        special[place, [item_id in part.not_for for item_id in item_ids]] = 0.0

    reasons = []
    chosen = _choose(special, least)
    for item_id, on_item, places in zip(item_ids, effects.T, chosen, strict=True):
        of_item = []
        for place in places:
            reason = replace(parts[place].reason, effect=float(on_item[place]))
            if reason.item_id == item_id:
                reason = _remember(reason, rhythms.get(item_id), request.datetime or 0)
            of_item.append(reason)
        if not of_item and item_id in popular:
            of_item.append(Reason("popular", 0.0, "popular now"))
        reasons.append(of_item)

    lifts = np.where(effects > least, effects, 0.0)
    weights = _weigh(parts, item_ids, lifts)
    is_personal = set(listed[:n_items]) != set(popular[:n_items])
    return Explanation(reasons, weights, is_personal)


def _list_alike(
    recommender: Recommender, requests: Sequence[Request], item_ids: Sequence[Id]
) -> list[list[Id]]:
    """Return a list for each request, with owned items if the items of the first have some."""
    history = requests[0].history
    owned = set() if history is None else set(history.item_id.tolist())
    k = max(LISTED, len(item_ids))
    answers = recommender.recommend(requests, k, owned.isdisjoint(item_ids))
    return [answer.item_id.tolist() for answer in answers]


def _find_deciding(
    parts: Sequence[_Part],
    listed: Sequence[Id],
    popular: Sequence[Id],
    others: Sequence[Sequence[Id]],
) -> Iterator[_Part]:
    """Yield the parts without which the list has other items.

    They are no reasons for items that stay, nor features for items that anybody gets.
    """
    for part, other in zip(parts, others, strict=True):
        if set(other) != set(listed):
            anyway = {*other}
            if part.side == "features":
                anyway |= {*popular}
            yield replace(part, not_for=anyway)


def _mean(effects: Doubles) -> Doubles:
    """Return the mean effect (P,) on items (P, n), 0 if there are none."""
    return np.asarray(effects.sum(axis=1) / max(1, effects.shape[1]))


def _choose(special: Doubles, least: float) -> list[list[int]]:
    """Choose the parts that are said of each item, the most special first.

    Args:
        special: (P, K) by how much the effect of each part on each item exceeds its usual one.
        least: what is more than chance.

    Returns:
        K lists of parts. One that came first before comes first again only if no other is nearly
        as special.
    """
    chosen = []
    first: set[int] = set()
    for on_item in special.T:
        places = np.argsort(-on_item, kind="stable")
        said = places[on_item[places] > least].tolist()
        near = [
            place
            for place in said
            if place not in first and on_item[place] > NEARLY * on_item[said[0]]
        ]
        said = [*dict.fromkeys([*near[:1], *said])][:MAX_SAID]
        first.update(said[:1])
        chosen.append(said)

    return chosen


def _weigh(
    parts: Sequence[_Part], item_ids: Sequence[Id], lifts: Doubles
) -> dict[str, float]:
    """Return the share of each kind of reason in what lifts the items (P, K), which count alike."""
    weights: dict[str, float] = defaultdict(float)
    for item_id, on_item in zip(item_ids, lifts.T, strict=True):
        total = on_item.sum() * len(item_ids)
        for place in np.flatnonzero(on_item).tolist():
            weights[parts[place].name_for(item_id)] += float(on_item[place] / total)
        if not total:
            weights["popular"] += 1 / len(item_ids)

    return dict(weights)


def _remember(reason: Reason, rhythm: Rhythm | None, moment: int) -> Reason:
    """Turn a reason of the history into that of an item which is listed itself."""
    event = reason.event
    days_ago = reason.days_ago
    if rhythm is not None:  # it was taken, not only seen
        event = rhythm.event
        if days_ago is not None:
            days_ago = (moment - rhythm.days[-1]) // DAY

    text = say_habit(event, days_ago, rhythm)
    return replace(reason, kind="memory", text=text, event=event, days_ago=days_ago)


def _leave_out_items(
    recommender: Recommender,
    request: Request,
    rhythms: Mapping[Id, Rhythm],
    listed: Sequence[Id],
) -> Iterator[_Part]:
    """Yield each item of the history; those that are listed themselves come first, then the latest.

    An item is no reason for another one of the same name.
    """
    history = request.history
    if history is None:
        return

    latest = [*dict.fromkeys(history.item_id[::-1].tolist())]
    latest.sort(key=lambda item_id: item_id not in listed)
    item_ids = recommender.catalogue.item_ids
    varied = [item_id for item_id in latest if item_id in item_ids][:MAX_VARIED]
    listed_by_name = defaultdict(set)
    for item_id, name in zip(listed, recommender.name(listed), strict=True):
        listed_by_name[name].add(item_id)

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
        namesakes = listed_by_name[name] - {item_id}
        name = name[:MAX_NAME]
        past, *_ = find_verb(event)
        text = f"because {past.format(name)}{say_ago(days_ago)}"
        reason = Reason(
            "history", 0.0, text, item_id, event, days_ago, every_days, name
        )
        without = replace(request, history=history.take(~is_of_item))
        yield _Part(reason, without, "history", namesakes)


def _leave_out_values(
    request: Request, kind: Literal["features", "context"]
) -> Iterator[_Part]:
    """Yield each feature of the user, or each field of the context."""
    values: Mapping[str, Any] = getattr(request, kind) or {}
    for name in values:
        if values[name] is None:
            continue

        shown = _show(values[name])
        label = f"your {name}" if kind == "features" else name
        text = f"because of {label.replace('_', ' ')}"
        if shown is not None:
            text = f"{text}: {shown}"
        others: Any = {kind: {key: values[key] for key in values if key != name}}
        reason = Reason(kind, 0.0, text, name=name, value=shown)
        yield _Part(reason, replace(request, **others), kind)


def _show(value: Any) -> str | None:
    """Write a value for people; a vector says nothing to them."""
    if isinstance(value, (Vector, np.ndarray)):
        return None
    if isinstance(value, float):
        return f"{value:g}"
    texts = map(to_text, value if isinstance(value, list) else [value])
    return ", ".join(text or "" for text in texts)[:MAX_NAME]
