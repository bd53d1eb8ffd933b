"""List what is due again.

**An item is due** if it has a rhythm: it was taken on two days or more. `serve.clock` measures it,
and sentences state the same one. Lists are in the order of how often an item was taken, where a day
counts the less the longer ago it was: this says more of the next days than when an item would be
due (docs/decisions.md). What was just taken and is held back from lists comes last.

Letters: B requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from serve.arrays import Id
from serve.clock import DAY, Rhythm
from serve.recommendations import Answer, DueItem, DueList
from serve.recommender import RawRequest, Recommender
from serve.requests import Request
from serve.sentences import complete_request, find_rhythms, say_habit

FADING = 112  # days after which a day that an item was taken on counts 1 / e
MIN_DAYS = 8  # from which on a day is named: of fewer, "in ten days" is nearer
# What is overdue is expected after this share of the mean days per day with an event.
WAIT = 0.35


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

    profiles = recommender.profiles
    completed = [complete_request(request, profiles, schema) for request in checked]
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
    rhythms = find_rhythms(request, recommender.just_taken, item_ids)
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
        text=say_habit(rhythm.event, (moment - last) // DAY, rhythm),
    )
