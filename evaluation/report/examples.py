"""A few users as examples: numbered, never named, with what they had and what they are recommended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from evaluation.report.asked import Asked, rank
from evaluation.targets import Ints
from serve.profiles import History
from serve.recommender import Recommender
from serve.request_values import Id
from serve.zones import find_zone, to_local

MOST_EXAMPLES = 10
MOST_EVENTS = 8
MOST_TARGETS = 8


@dataclass(frozen=True)
class Day:
    """Events of one date; without times all have the date ''."""

    date: str
    events: list[str]


@dataclass(frozen=True)
class Place:
    """A recommended item."""

    name: str
    is_hit: bool
    is_owned: bool


@dataclass(frozen=True)
class Ranking:
    """A list of recommendations."""

    title: str
    places: list[Place]

    @property
    def hits(self) -> int:
        return sum(place.is_hit for place in self.places)


@dataclass(frozen=True)
class Example:
    """One user, known by a number alone."""

    number: int
    history_length: int
    days: list[Day]
    """The last events, the newest first."""
    rankings: list[Ranking]
    targets: list[str] | None
    """Names of what should have been found, as many as are shown; None where nothing was held out."""
    n_targets: int


@dataclass(frozen=True)
class Names:
    """Readable names of the N items of a catalogue."""

    ids: pd.Index[Any]
    names: Sequence[str]

    def of_row(self, row: int) -> str:
        """Name an item by its row; -1 is one outside the catalogue."""
        return self.names[row] if row >= 0 else "an item outside the catalogue"

    def of_ids(self, ids: Any) -> list[str]:
        """Name items by their ids."""
        rows = self.ids.get_indexer(pd.Index(ids))
        return [self.of_row(row) for row in rows.tolist()]


def draw_examples(asked: Asked, seed: int) -> Asked:
    """Draw one user from each of ten equally large groups of history length, the shortest first."""
    users = pd.Series([request["user_id"] for request in asked.requests], dtype=object)
    single = np.flatnonzero(~users.duplicated().to_numpy())
    ordered = single[np.argsort(asked.history_length[single], kind="stable")]
    rng = np.random.default_rng(seed)
    groups = np.array_split(ordered, min(MOST_EXAMPLES, len(ordered))) if len(ordered) else []
    return asked.take(np.array([rng.choice(group) for group in groups], np.int64))


def describe_examples(recommender: Recommender, asked: Asked, names: Names) -> list[Example]:
    """Tell of every user asked for what she had, what she is recommended and what she chose then."""
    is_allowed = recommender.bundle.schema.repeats == "allow"
    views = {"All items": False, "New items only": True} if is_allowed else {"Recommended": True}
    lists = {title: rank(recommender, asked, filter_viewed) for title, filter_viewed in views.items()}
    is_weighted = _is_weighted(recommender.profiles.history)
    zone = find_zone(recommender.bundle.schema.timezone)
    examples = []
    for row, request in enumerate(asked.requests):
        history = _find_history(recommender, request["user_id"])
        told = history if is_weighted else replace(history, weight=None)
        if told.datetime is not None:
            told = replace(told, datetime=to_local(told.datetime, zone))
        targets = None if asked.targets is None else asked.targets.take(np.array([row])).item_row
        rankings = {title: ranked[row] for title, ranked in lists.items()}
        examples.append(_describe(row + 1, told, rankings, targets, names))
    return examples


def _find_history(recommender: Recommender, user_id: Id) -> History:
    profile = recommender.profiles.get(user_id)
    return History(np.empty(0, object)) if profile is None else profile.history


def _is_weighted(history: History) -> bool:
    """Tell whether weights say anything: some are neither 1 nor missing."""
    return history.weight is not None and bool((np.isfinite(history.weight) & (history.weight != 1)).any())


def _describe(number: int, history: History, lists: dict[str, Ints], targets: Ints | None, names: Names) -> Example:
    owned = set(names.ids.get_indexer(pd.Index(history.item_id)).tolist())
    wanted = [] if targets is None else targets.tolist()
    return Example(
        number=number,
        history_length=len(history),
        days=_last_days(history, names),
        rankings=[Ranking(title, _places(ranked, wanted, owned, names)) for title, ranked in lists.items()],
        targets=None if targets is None else [names.of_row(row) for row in wanted[:MOST_TARGETS]],
        n_targets=len(wanted),
    )


def _places(ranked: Ints, wanted: Sequence[int], owned: set[int], names: Names) -> list[Place]:
    return [Place(names.of_row(row), row in wanted, row in owned) for row in ranked.tolist() if row >= 0]


def _last_days(history: History, names: Names) -> list[Day]:
    """Say what the last events were, by day, the newest first."""
    last = history.take(slice(max(len(history) - MOST_EVENTS, 0), None))
    said = [name + _say_event(last, place) for place, name in enumerate(names.of_ids(last.item_id))]
    dates = (
        [""] * len(said) if last.datetime is None else last.datetime.astype("datetime64[s]").astype("M8[D]").astype(str)
    )
    events = list(zip(map(str, dates), said, strict=True))[::-1]
    return [Day(date, [name for _, name in same]) for date, same in groupby(events, lambda event: event[0])]


def _say_event(history: History, place: int) -> str:
    parts = [] if history.event is None or pd.isna(history.event[place]) else [str(history.event[place])]
    if history.weight is not None and np.isfinite(history.weight[place]):
        parts.append(f"weight {history.weight[place]:g}")
    return f" [{', '.join(parts)}]" if parts else ""
