"""The baselines a model has to beat, each with one parameter and at most five values of it.

Where repeats are allowed, counts carry the signal: an item bought ten times will be bought again. Where they
are not, a pair counts once. What compares items with each other is fitted on those that have events: a catalogue may
list many times more, of which nothing is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from evaluation.ease import estimate_ease_bytes, fit_ease
from evaluation.events import Events, Strength, as_binary, as_counts, as_logs
from evaluation.itemknn import NEAR_NOTHING, estimate_itemknn_bytes, fit_itemknn
from evaluation.popularity import fit_decayed_personal, fit_personal, fit_popularity, fit_recent_popularity
from evaluation.ranking import Scores
from evaluation.targets import Ints
from serve.errors import SchemaError, name_nearest
from serve.schema import Repeats


class Scorer(Protocol):
    """Anything that scores the whole catalogue for users: user rows (b,) -> float32 (b, N)."""

    def score(self, user_row: Ints) -> Scores: ...


Fit = Callable[[Events, Sequence[float]], Iterator[Scorer]]
"""Events and values of the parameter -> one scorer per value, made one after the other."""


@dataclass(frozen=True)
class Baseline:
    """A baseline before it is fitted."""

    name: str
    fit: Fit
    parameter: str | None = None
    values: tuple[float, ...] = (0.0,)
    """Candidates for the parameter; without a parameter one placeholder."""
    needs_time: bool = False
    estimate_bytes: Callable[[Events], int] = lambda events: 0
    """Peak memory of the fit, for those whose memory can be a limit."""


@dataclass(frozen=True)
class OfTaken:
    """A scorer of the items that have events, asked about the whole catalogue."""

    scorer: Scorer
    """Of M items."""
    item_row: Ints
    """(M,) ascending."""
    n_items: int
    of_others: float
    """The score of every other item."""

    def score(self, user_row: Ints) -> Scores:
        """Return (b, N) scores."""
        scores = np.full((len(user_row), self.n_items), self.of_others, np.float32)
        scores[:, self.item_row] = self.scorer.score(user_row)
        return scores


def declare_baselines(repeats: Repeats) -> list[Baseline]:
    """Return the baselines of a protocol, the cheapest first."""
    return _declare_repeating() if repeats == "allow" else _declare_excluding()


def choose_baselines(repeats: Repeats, names: Sequence[str] | None) -> list[Baseline]:
    """Return the named baselines of a protocol, the cheapest first; None names all.

    Raises:
        SchemaError: the protocol has no baseline of a name.
    """
    declared = declare_baselines(repeats)
    allowed = [baseline.name for baseline in declared]
    for name in names or []:
        if name not in allowed:
            raise SchemaError(f"'{name}' is no baseline where repeats is {repeats}; {name_nearest(name, allowed)}")
    return [baseline for baseline in declared if names is None or baseline.name in names]


def _declare_repeating() -> list[Baseline]:
    return [
        *_declare_popularity(as_counts),
        Baseline("personal", _without_parameter(fit_personal)),
        Baseline("personal-decayed", fit_decayed_personal, "days", (15, 30, 60, 120, 240), needs_time=True),
        _declare_itemknn((2, 5, 20, 100, 400), as_counts),
        _declare_ease((3, 10, 30, 100, 300), as_logs),
    ]


def _declare_excluding() -> list[Baseline]:
    return [
        *_declare_popularity(as_binary),
        _declare_itemknn((20, 50, 100, 200, 400), as_binary),
        _declare_ease((10, 30, 100, 300, 1000), as_binary),
    ]


def _declare_popularity(strength: Strength) -> list[Baseline]:
    recent = partial(fit_recent_popularity, strength=strength)
    return [
        Baseline("popularity", _without_parameter(partial(fit_popularity, strength=strength))),
        Baseline("popularity-recent", recent, "days", (7, 14, 28, 56, 112), needs_time=True),
    ]


def _declare_itemknn(neighbours: tuple[float, ...], strength: Strength) -> Baseline:
    fit = _on_taken(partial(fit_itemknn, strength=strength), NEAR_NOTHING)
    estimate = partial(estimate_itemknn_bytes, neighbours=neighbours)
    return Baseline("itemknn", fit, "neighbours", neighbours, estimate_bytes=_of_taken(estimate))


def _declare_ease(regularisations: tuple[float, ...], strength: Strength) -> Baseline:
    fit = _on_taken(partial(fit_ease, strength=strength), 0.0)
    return Baseline("ease", fit, "lambda", regularisations, estimate_bytes=_of_taken(estimate_ease_bytes))


def _on_taken(fit: Fit, of_others: float) -> Fit:
    """Fit on the items that have events; the others get the score that a fit on all items gives them."""

    def fit_taken(events: Events, values: Sequence[float]) -> Iterator[Scorer]:
        items = events.find_taken()
        if len(items) == events.n_items:
            yield from fit(events, values)
            return
        for scorer in fit(events.renumber(items), values):
            yield OfTaken(scorer, items, events.n_items, of_others)

    return fit_taken


def _of_taken(estimate: Callable[[Events], int]) -> Callable[[Events], int]:
    return lambda events: estimate(events.renumber(events.find_taken()))


def _without_parameter(fit: Callable[[Events], Scorer]) -> Fit:
    return lambda events, _: iter([fit(events)])
