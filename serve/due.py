"""List what is due: the items that a user takes again, and when each is expected next.

An item has a rhythm if it was taken on two days or more (UTC). Its gaps are those between the last events of these
days. The typical one is their median, drawn towards the median of all gaps of the user: less if there are many or if
they are regular. Lists are in the order of `rank_owned`, memory included: how often and how lately an item was taken
says more of the next days than when it would be due (docs/decisions.md). E events of a user, R items with a rhythm.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.arrays import Ints, to_arrow
from serve.catalogue import name_items
from serve.clock import DAY
from serve.index import UNKNOWN_ROW
from serve.reasons import complete_request, say_habit
from serve.recommendations import Answer, DueItem, DueList, Reason
from serve.recommender import RawRequest, Recommender
from serve.requests import History, Request

WAIT = 0.35  # of the days since the first event over the days with one: so long until what is overdue is expected


def find_due(
    recommender: Recommender, requests: Iterable[RawRequest], k: int = 10
) -> list[DueList]:
    """List what the user of each request takes again, the likeliest next first.

    Where training had targets of some types of events, only these count. Events later than the request's moment count
    as happening at it. Filters and exclusions hold.
    """
    if k < 1:
        raise ValueError(f"k is {k}; allowed: 1 or more")
    checked = recommender.check(requests)
    schema = recommender.bundle.schema
    if schema.repeats != "allow" or not schema.has_datetime:
        missing = (
            "times"
            if schema.repeats == "allow"
            else "items that are taken again: repeats are excluded"
        )
        return [
            DueList(one.user_id, (), f"the bundle's data has no {missing}")
            for one in checked
        ]
    asked = [complete_request(recommender, one) for one in checked]
    longest = max(
        (len(one.history) for one in asked if one.history is not None), default=0
    )
    ranked = recommender.rank_owned(asked, max(1, longest))
    lists = []
    for given, one, answer in zip(checked, asked, ranked, strict=True):
        items = _list_items(recommender, one, answer, k)
        few = f"{len(items)} of the items that may be listed were taken on two days or more"
        lists.append(DueList(given.user_id, items, few if len(items) < k else None))
    return lists


def measure_rhythms(
    item_row: Ints, time: Ints, moment: int
) -> tuple[Ints, dict[str, NDArray[Any]]]:
    """Return item rows and facts of `DueItem`, (R,) each, from one user's events until a moment, (E,) each."""
    order = np.lexsort((time, item_row))
    row = item_row[order]
    time = time[order]
    is_last = np.ones(len(row), bool)  # of its day
    is_last[:-1] = (row[1:] != row[:-1]) | (time[1:] // DAY != time[:-1] // DAY)
    row = row[is_last]
    time = time[is_last]
    is_gap = row[1:] == row[:-1]
    gap = np.diff(time)[is_gap]
    since = time[:-1][is_gap]
    until = time[1:][is_gap]
    row = row[1:][is_gap]
    rows, begin, place, n_gaps = np.unique(
        row, return_index=True, return_inverse=True, return_counts=True
    )
    by_length = gap[np.lexsort((gap, row))]
    first = since[begin]
    last = until[begin + n_gaps - 1]
    median = (by_length[begin + (n_gaps - 1) // 2] + by_length[begin + n_gaps // 2]) / 2
    squares = np.bincount(
        place, (gap / ((last - first) / n_gaps)[place] - 1) ** 2, len(rows)
    )
    irregularity = np.minimum(
        1, np.sqrt((1 + squares) / (1 + n_gaps))
    )  # as if one more gap deviated by the mean
    share = irregularity / (n_gaps + irregularity)
    usual = np.median(gap) if len(gap) else 1.0
    typical = np.rint(median ** (1 - share) * usual**share)
    due = last + typical
    wait = WAIT * irregularity * (moment - first) / (n_gaps + 1)
    return rows, {
        "due": np.where(due < moment, moment + wait, due).astype(np.int64),
        "is_overdue": due < moment,
        "last": last,
        "n_days": n_gaps + 1,
        "every_days": np.round(typical / DAY, 2),
        "regularity": np.round(1 - irregularity, 2),
    }


def _list_items(
    recommender: Recommender, asked: Request, answer: Answer, k: int
) -> tuple[DueItem, ...]:
    history = _keep_targets(recommender, asked.history)
    moment = asked.datetime
    catalogue = recommender.catalogue
    if history is None or moment is None or history.datetime is None:
        return ()
    ids = history.item_id.tolist()
    row = catalogue.item_ids.find(ids)
    time = np.minimum(history.datetime, moment)
    rows, rhythms = measure_rhythms(
        row[row != UNKNOWN_ROW], time[row != UNKNOWN_ROW], moment
    )
    owned = catalogue.item_ids.find(answer.item_id)
    listed = np.flatnonzero(np.isin(owned, rows))[:k]
    names = name_items(
        catalogue.table.take(to_arrow(owned[listed])),
        recommender.bundle.schema.item_features,
    )
    events = (
        {}
        if history.event is None
        else dict(zip(ids, history.event.tolist(), strict=True))
    )
    items = []
    heads = zip(
        answer.item_id[listed].tolist(),
        names,
        answer.score[listed].tolist(),
        strict=True,
    )
    for (item_id, name, score), place in zip(
        heads, np.searchsorted(rows, owned[listed]), strict=True
    ):
        facts = {key: values[place].item() for key, values in rhythms.items()}
        days_ago = (moment - facts["last"]) // DAY
        every_days = facts["every_days"]
        habit = Reason(
            "memory",
            0.0,
            "",
            event=events.get(item_id),
            days_ago=days_ago,
            every_days=every_days,
        )
        items.append(
            DueItem(item_id, name, **facts, score=score, text=say_habit(habit).text)
        )
    return tuple(items)


def _keep_targets(recommender: Recommender, history: History | None) -> History | None:
    """Leave out events of types that were no targets of the training."""
    targets = (
        recommender.bundle.manifest.facts.config.get("data", {})
        .get("targets", {})
        .get("events")
    )
    if history is None or history.event is None or targets is None:
        return history
    return history.take(
        np.array([one in targets for one in history.event.tolist()], bool)
    )
