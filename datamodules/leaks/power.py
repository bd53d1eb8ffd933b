"""How much a column tells about the item chosen, measured on users that nothing was learnt from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.leaks.codes import MISSING, rank_numbers
from datamodules.leaks.sample import Neighbours, Sample

MIN_DECISIVE = 100
"""With fewer rows that a guess can be right or wrong about, nothing is said of a column: at 100, chance alone moves the
ratio of two counts of errors by sqrt(2 / 100) = 0.14, so that half is more than three such errors away from nothing."""
MIN_OF_EACH = 50
"""With fewer targets, or fewer other events, nothing is said of what tells them apart."""
LIST_LENGTH = 10
MIN_REPEATS = 2

Loss = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]]


@dataclass(frozen=True)
class Guesses:
    """Share of the measured rows whose item is guessed, from the column's value and from popularity alone."""

    first: float
    popular_first: float
    within_ten: float
    popular_within_ten: float
    exclusive: float
    """Share of the rows, of values that come twice or more, whose value goes with one item alone."""

    @property
    def power(self) -> float:
        """What the first guess gains of all that popularity leaves open."""
        return gain(self.first, self.popular_first)


@dataclass(frozen=True)
class Telling:
    """How a column tells targets from other events."""

    power: float
    """`found` less `mistaken` (Youden's J)."""
    found: float
    """Share of the targets that it calls targets."""
    mistaken: float
    """Share of the others that it calls targets."""


def gain(share: float, chance: float) -> float:
    """Return how far a share has come from chance (0) to certainty (1)."""
    return (share - chance) / (1 - chance) if chance < 1 else 0.0


def measure_fact(sample: Sample, codes: NDArray[np.int64]) -> float:
    """Return how much of a column of categories is told by the item.

    Each item's most frequent value is its guess. 1 - errors / errors against a neighbour's value: a column of the
    user, of the visit or of the moment is the same in the neighbour's row, and gets 0 however often the guess is right.
    """
    learnt, known = sample.is_learnt & (codes != MISSING), codes != MISSING
    guess = np.full(int(sample.item.max()) + 1, MISSING)
    pairs = count_pairs(sample.item[learnt], codes[learnt])
    guess[pairs.left[pairs.rank == 0]] = pairs.right[pairs.rank == 0]
    guessed = guess[sample.item]
    is_measured = ~sample.is_learnt & known & (guessed != MISSING)
    return _compare(sample, codes, guessed, is_measured, known, _is_other)


def measure_number_fact(sample: Sample, values: NDArray[np.float64]) -> float:
    """Return how much of the variance of a column of numbers, taken as ranks, is told by the item's mean.

    Against the difference from a neighbour's value, as in `measure_fact`.
    """
    known = ~np.isnan(values)
    ranks = rank_numbers(values)
    learnt = sample.is_learnt & known
    count = np.bincount(sample.item[learnt], minlength=int(sample.item.max()) + 1)
    total = np.bincount(sample.item[learnt], ranks[learnt], minlength=len(count))
    guessed = (total / np.maximum(count, 1))[sample.item]
    is_measured = ~sample.is_learnt & known & (count[sample.item] > 0)
    return _compare(sample, ranks, guessed, is_measured, known, _square)


def guess_items(sample: Sample, codes: NDArray[np.int64]) -> Guesses | None:
    """Guess the item of each measured row by what other users chose at the same value; None with too few rows.

    A value that no other user has is worth nothing: popularity guesses in its place.
    """
    known = codes != MISSING
    learnt, measured = sample.is_learnt & known, ~sample.is_learnt & known
    if min(learnt.sum(), measured.sum()) < MIN_DECISIVE:
        return None
    popular = np.argsort(-np.bincount(sample.item[learnt]), kind="stable")[:LIST_LENGTH]
    item, value = sample.item[measured], codes[measured]
    by_popularity = np.full(int(sample.item.max()) + 1, LIST_LENGTH)
    by_popularity[popular] = np.arange(len(popular))
    pairs = count_pairs(codes[learnt], sample.item[learnt])
    rank = np.where(np.isin(value, pairs.left), pairs.find_rank(value, item), by_popularity[item])
    return Guesses(
        float((rank == 0).mean()),
        float((by_popularity[item] == 0).mean()),
        float((rank < LIST_LENGTH).mean()),
        float((by_popularity[item] < LIST_LENGTH).mean()),
        _measure_exclusive(codes[known], sample.item[known]),
    )


def tell_targets(sample: Sample, codes: NDArray[np.int64], is_target: NDArray[np.bool_]) -> Telling | None:
    """Call an event a target where its value, missing included, goes with targets more often than usual."""
    learnt = sample.is_learnt
    n_targets = min(is_target[learnt].sum(), is_target[~learnt].sum())
    n_others = min((~is_target[learnt]).sum(), (~is_target[~learnt]).sum())
    if min(n_targets, n_others) < MIN_OF_EACH:
        return None
    value = codes - MISSING
    count = np.bincount(value[learnt], minlength=int(value.max()) + 1)
    targets = np.bincount(value[learnt], is_target[learnt], minlength=len(count))
    is_called = (targets > is_target[learnt].mean() * count)[value[~learnt]]
    found = float(is_called[is_target[~learnt]].mean())
    mistaken = float(is_called[~is_target[~learnt]].mean())
    return Telling(found - mistaken, found, mistaken)


@dataclass(frozen=True)
class CountedPairs:
    """Distinct pairs, by ascending `left` and then the most frequent first."""

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    count: NDArray[np.int64]
    rank: NDArray[np.int64]
    """Place among the pairs of the same left."""

    def find_rank(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rank of each asked pair; one that never was is at the end of all."""
        width = max(int(self.right.max()), int(right.max())) + 1
        key = self.left * width + self.right
        order = np.argsort(key)
        place = np.minimum(np.searchsorted(key[order], left * width + right), len(key) - 1)
        is_there = key[order][place] == left * width + right
        ranks: NDArray[np.int64] = np.where(is_there, self.rank[order][place], len(key))
        return ranks


def count_pairs(left: NDArray[np.int64], right: NDArray[np.int64]) -> CountedPairs:
    """Count the pairs of two columns of numbers from 0 up; equally frequent ones are by ascending `right`."""
    width = int(right.max(initial=0)) + 1
    keys, count = np.unique(left * width + right, return_counts=True)
    order = np.lexsort((keys, -count, keys // width))
    owner = keys[order] // width
    rank = np.arange(len(owner)) - np.searchsorted(owner, owner)
    return CountedPairs(owner, keys[order] % width, count[order], rank)


def _measure_exclusive(codes: NDArray[np.int64], item: NDArray[np.int64]) -> float:
    pairs = count_pairs(codes, item)
    n_items, n_rows = np.bincount(pairs.left), np.bincount(pairs.left, pairs.count)
    repeated = n_rows >= MIN_REPEATS
    total = float(n_rows[repeated].sum())
    return float(n_rows[repeated & (n_items == 1)].sum()) / total if total else 0.0


def _compare(
    sample: Sample,
    values: NDArray[Any],
    guessed: NDArray[Any],
    is_measured: NDArray[np.bool_],
    known: NDArray[np.bool_],
    loss: Loss,
) -> float:
    """Return 1 - loss of own values / loss of neighbours' values, by the kind of neighbours that leaves least."""

    def compare_with(neighbours: Neighbours) -> float:
        is_kept = is_measured[neighbours.row] & known[neighbours.other]
        row, other = neighbours.row[is_kept], neighbours.other[is_kept]
        if np.count_nonzero(values[row] != values[other]) < 2 * MIN_DECISIVE:  # a row is in two pairs
            return 0.0
        chance = float(loss(values[other], guessed[row]).sum())
        return 1 - float(loss(values[row], guessed[row]).sum()) / chance if chance else 0.0

    return min(compare_with(neighbours) for neighbours in sample.neighbours)


def _is_other(values: NDArray[Any], guessed: NDArray[Any]) -> NDArray[np.float64]:
    errors: NDArray[np.float64] = (values != guessed).astype(np.float64)
    return errors


def _square(values: NDArray[Any], guessed: NDArray[Any]) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = (values - guessed) ** 2
    return squares
