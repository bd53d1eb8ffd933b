"""Baselines: popularity, own items, transitions, ItemKNN, EASE; the choice of their one parameter.

Every `fit_*` returns or yields scorers of the whole catalogue, (b,) user rows -> (b, N) float32.
EASE is in `evaluation.ease`. The report's words for a baseline are in
`evaluation/templates/words.jinja`.

Letters: E events, U users, N items, M items that have events, K neighbours of an item, P pairs of a
user and an item with events, b users of one call.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from datamodules.sequences import count_within
from evaluation.ease import fit_ease
from evaluation.holdout import Events, Strength
from evaluation.ranking import (
    SHRINK,
    ScoreRows,
    keep_largest_entries,
    multiply_items,
)
from serve.arrays import Doubles, Floats, Ints, Repeats
from serve.clock import DAY
from serve.errors import SchemaError, name_nearest

as_binary: Strength = np.ones_like
as_counts: Strength = np.asarray

Criterion = Callable[[ScoreRows], float]
Log = Callable[[str], None]

# Fits a baseline once per value of its parameter and yields the scorers one by one.
Fit = Callable[[Events, Sequence[float]], Iterator[ScoreRows]]

# Name, entry in `metrics.json`, and scorer unless the baseline was skipped.
Fitted = tuple[str, dict[str, Any], ScoreRows | None]

_MEMINFO = Path("/proc/meminfo")
_LIMIT = Path("/sys/fs/cgroup/memory.max")

# Candidates for days of popularity and of personal frequency.
WINDOWS = (7, 14, 28, 56, 112)
DECAYS = (15, 30, 60, 120, 240)

# Added to the popularity of items without similar ones in a history: below every sum of cosines.
NEAR_NOTHING = -1.0

# Transitions: what a step back counts beside one forward, and popularity that parts equal scores.
BACK = 0.5
TIE_BREAK = 1e-4


@dataclass(frozen=True)
class Baseline:
    """A baseline before it is fitted."""

    name: str
    fit: Fit
    parameter: str | None = None
    values: tuple[float, ...] = (0.0,)  # candidates for the parameter
    needs: str = "events"  # or times, or an order
    n_bytes: Callable[[Events], int] = lambda events: 0  # of its matrices


def as_logs(counts: Doubles) -> Doubles:
    """Return 1 + ln(count): the tenth purchase says less than the second."""
    return np.asarray(1 + np.log(counts))


def fit_popularity(events: Events, strength: Strength) -> ScoreRows:
    """Rank items by the sum of their strengths over users."""
    popularity = events.popularity(strength)  # (N,)
    return lambda users: np.tile(popularity, (len(users), 1))  # (b, N)


def fit_recent_popularity(
    events: Events, days: Sequence[float], strength: Strength
) -> Iterator[ScoreRows]:
    """Yield popularity within the last `days` before the last event, once per value."""
    for window in days:
        recent = events.keep(events.since_last() < window * DAY)
        yield fit_popularity(recent, strength)


def fit_decayed_personal(events: Events, days: Sequence[float]) -> Iterator[ScoreRows]:
    """Yield personal frequencies whose events count exp(-recency / time constant in days)."""
    since_last = events.since_last()  # (E,)
    for constant in days:
        yield fit_personal(events, np.exp(-since_last / (constant * DAY)))


def fit_personal(events: Events, weights: Doubles | None = None) -> ScoreRows:
    """Rank a user's own items first, by their events, then all others by popularity.

    Args:
        events: events of U users with N items.
        weights: (E,) weight of each event; by default each counts 1.

    Returns:
        A scorer: an owned item scores its rank from the end of the user's own items, 1 and more;
        other items score below 1. Ties go to the more popular item, then to the lower row.
    """
    cells = events.user_row * events.n_items + events.item_row  # (E,)
    pairs, pair_of_event = np.unique(cells, return_inverse=True)  # (P,), (E,)
    user, item = np.divmod(pairs, events.n_items)  # (P,) both
    popularity = events.popularity(as_counts)  # (N,)
    frequency = np.bincount(pair_of_event, weights=weights)  # (P,)
    order = np.lexsort((-item, popularity[item], frequency, user))  # (P,)

    n_owned = np.bincount(user, minlength=events.n_users)  # (U,)
    bounds = np.concatenate([[0], np.cumsum(n_owned)])  # (U + 1,)
    ranks = np.empty(len(pairs), np.float32)  # (P,)
    ranks[order] = np.arange(len(pairs)) - bounds[user[order]] + 1
    shape = (events.n_users, events.n_items)
    ranks_by_user = sparse.csr_array((ranks, item, bounds), shape=shape)  # (U, N)

    def score(users: Ints) -> Floats:
        scores = np.tile(popularity, (len(users), 1))  # (b, N)
        own = ranks_by_user[users].tocoo()  # (b, N)
        scores[own.row, own.col] = own.data
        return scores

    return score


def fit_transitions(events: Events) -> ScoreRows:
    """Walk from a user's last two items to what comes next to them in histories.

    Walkers start at the last item, half as many at the one before, and step to neighbours by their
    counts. Items are ranked by the walkers who meet them with their first or second step.

    Source: Han et al., "An Embarrassingly Simple Graph Heuristic Reveals Shortcut-Solvable
    Benchmarks for Sequential Recommendation", arXiv 2605.07125, without its features.
    """
    order = np.argsort(events.user_row, kind="stable")[::-1]  # newest first, (E,)
    user = events.user_row[order]  # (E,)
    item = events.item_row[order]  # (E,)
    n_later = count_within(np.bincount(user)[::-1])  # (E,)
    has_next = n_later > 0  # (E,)
    following = np.roll(item, 1)[has_next]
    n_items = events.n_items

    steps = Events(item[has_next], following, None, n_items, n_items)
    forward = steps.matrix(as_counts)  # (N, N)
    counts = forward + BACK * forward.T  # (N, N)
    totals = counts.sum(axis=1) + 1  # (N,) nobody steps from an item without neighbours
    chances = sparse.diags_array(1 / totals) @ counts  # (N, N)

    weights = np.maximum(2 - n_later, 0)  # (E,)
    starts = sparse.csr_array((weights, (user, item)), (events.n_users, n_items))
    popularity = TIE_BREAK * events.popularity(as_counts)  # (N,)

    def score(users: Ints) -> Floats:
        near = starts[users] @ chances  # (b, N)
        scores = (near + near @ chances).toarray() + popularity  # (b, N)
        return np.asarray(scores, np.float32)

    return score


def fit_itemknn(
    events: Events, neighbours: Sequence[float], strength: Strength
) -> Iterator[ScoreRows]:
    """Fit ItemKNN: cosines between the columns of the interaction matrix, summed over a history.

    Args:
        events: events of U users with N items.
        neighbours: numbers of nearest items that are kept per item, itself included.
        strength: maps the counts of a user's events with an item to the entries of the matrix.

    Yields:
        The scorer of each number of neighbours. Items without a similar one in the history rank
        behind, by popularity.

    Source: Sarwar et al., "Item-based Collaborative Filtering Recommendation Algorithms", WWW 2001.
    """
    matrix = events.matrix(strength).astype(np.float32)  # (U, N)
    norms = np.sqrt(np.asarray(matrix.power(2).sum(axis=0)).ravel())  # (N,)

    def divide(products: Floats, rows: Ints, columns: Ints) -> Floats:
        return np.asarray(products / (norms[rows] * norms[columns] + SHRINK))

    cosines = multiply_items(matrix, int(max(neighbours)), divide)  # (N, N)
    popularity = events.popularity(as_counts)  # (N,)

    def score(similarity: sparse.csr_array, users: Ints) -> Floats:
        sums = (matrix[users] @ similarity).toarray()  # (b, N)
        scores = np.where(sums > 0, sums, popularity + NEAR_NOTHING)  # (b, N)
        return np.asarray(scores, np.float32)

    for number in neighbours:
        yield partial(score, keep_largest_entries(cosines, int(number)))


def fit_used(
    fit: Fit, score_of_others: float, events: Events, values: Sequence[float]
) -> Iterator[ScoreRows]:
    """Fit on the M items that have events; all others get `score_of_others`."""
    # Without events there still is one item.
    items = np.flatnonzero(np.bincount(np.append(events.item_row, 0)))  # (M,) ascending
    item_row = np.searchsorted(items, events.item_row)  # (E,)
    used = Events(events.user_row, item_row, events.time, events.n_users, len(items))

    def spread(score: ScoreRows, users: Ints) -> Floats:
        scores = np.full((len(users), events.n_items), score_of_others, np.float32)
        scores[:, items] = score(users)
        return scores  # (b, N)

    for score in fit(used, values):
        yield partial(spread, score)


def choose_baselines(repeats: Repeats, names: Sequence[str] | None) -> list[Baseline]:
    """Return the baselines of a protocol.

    Args:
        repeats: whether owned items may be recommended again.
        names: the baselines to take; None takes all.

    Returns:
        The baselines, the cheapest first.

    Raises:
        SchemaError: a name is no baseline of this protocol.
    """
    declared = declare_baselines(repeats == "allow")
    if names is None:
        return declared

    allowed = [baseline.name for baseline in declared]

    for name in names:
        if name not in allowed:
            raise SchemaError(
                f"'{name}' is no baseline where repeats is {repeats}; "
                f"{name_nearest(name, allowed)}"
            )

    return [baseline for baseline in declared if baseline.name in names]


def declare_baselines(is_repeating: bool) -> list[Baseline]:
    """Declare the baselines: counts matter where items repeat, elsewhere a pair counts once."""
    counted = logged = as_binary
    neighbours = (20, 50, 100, 200, 400)
    regularisations = (10, 30, 100, 300, 1000)

    if is_repeating:
        counted = as_counts
        logged = as_logs
        neighbours = (2, 5, 20, 100, 400)
        regularisations = (3, 10, 30, 100, 300)

    recent = partial(fit_recent_popularity, strength=counted)
    itemknn = partial(fit_used, partial(fit_itemknn, strength=counted), NEAR_NOTHING)
    ease = partial(fit_used, partial(fit_ease, strength=logged), 0.0)

    declared = [
        Baseline(
            "popularity", lambda events, _: iter([fit_popularity(events, counted)])
        ),
        Baseline("popularity-recent", recent, "days", WINDOWS, "times"),
    ]

    if is_repeating:
        declared += [
            Baseline("personal", lambda events, _: iter([fit_personal(events)])),
            Baseline("personal-decayed", fit_decayed_personal, "days", DECAYS, "times"),
        ]

    declared.append(
        Baseline(
            "transitions",
            lambda events, _: iter([fit_transitions(events)]),
            needs="order",
        )
    )
    declared += [
        Baseline(
            "itemknn", itemknn, "neighbours", neighbours, n_bytes=_count_knn_bytes
        ),
        Baseline("ease", ease, "lambda", regularisations, n_bytes=_count_ease_bytes),
    ]
    return declared


def _count_knn_bytes(events: Events) -> int:
    """Count three copies of 400 neighbours, or of the pairs that users have, of 8 bytes."""
    per_user = np.bincount(events.user_row)  # (U,)
    n_items = np.count_nonzero(events.count_items())
    return int(24 * min(400 * n_items, (per_user**2).sum()))


def _count_ease_bytes(events: Events) -> int:
    """Count five matrices, float32 between items or float64 between users."""
    n_items = int(np.count_nonzero(events.count_items()))
    return 20 * min(n_items**2, 2 * events.n_users**2)


def fit_baselines(
    chosen: Sequence[Baseline],
    train: Events,
    later: Events,
    criterion: Criterion | None,
    log: Log,
) -> Iterator[Fitted]:
    """Tune each baseline on `train` and fit it with the `later` events, one after the other.

    Args:
        chosen: the baselines, as `choose_baselines` returns them.
        train: events on which the candidates of a parameter are fitted.
        later: events that the final fit sees as well.
        criterion: maps a scorer to its quality on the validation; None takes the middle candidate.
        log: prints a line.

    Yields:
        The name, the entry of `metrics.json` and the scorer, which is None if the baseline was
        skipped for lack of times or memory.
    """
    whole = train.join(later)
    for baseline in chosen:
        is_tuned = criterion is not None and baseline.parameter is not None
        n_fits = len(baseline.values) + 1 if is_tuned else 1
        size = f"{train.n_items:,} items, {train.n_users:,} users"
        log(f"{baseline.name}: {size}, fits: {n_fits}")
        record, score = _fit(baseline, train, whole, criterion)
        yield baseline.name, record, score

        outcome = record.get("skipped", "no parameter")
        for name, value in record.get("parameter", {}).items():
            outcome = f"{name} {value:g}"
        log(f"{baseline.name}: {outcome}, {record.get('seconds', 0.0):.1f} s")


def _fit(
    baseline: Baseline, train: Events, whole: Events, criterion: Criterion | None
) -> tuple[dict[str, Any], ScoreRows | None]:
    is_missing = {"times": whole.time is None, "order": not whole.is_ordered}
    if is_missing.get(baseline.needs):
        return {"skipped": f"the interactions have no {baseline.needs}"}, None

    if baseline.n_bytes(whole) > read_free_bytes() / 2:
        return {"skipped": "needs more than half of the free memory"}, None

    start = time.perf_counter()
    best = baseline.values[len(baseline.values) // 2]
    parameter = {}
    validation = {}

    if baseline.parameter is not None:
        if criterion is not None:
            qualities = map(criterion, baseline.fit(train, baseline.values))
            validation = dict(zip(baseline.values, qualities, strict=True))
            best = max(baseline.values, key=validation.__getitem__)
        parameter[baseline.parameter] = best

    (score,) = baseline.fit(whole, [best])
    seconds = round(time.perf_counter() - start, 3)
    record = {
        "parameter": parameter,
        "validation": {f"{value:g}": quality for value, quality in validation.items()},
        "seconds": seconds,
    }
    return record, score


def read_free_bytes() -> int:
    """Return the free memory of the machine, within the limit of a container."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if _MEMINFO.exists():  # not on macOS
        free = 1024 * int(re.findall(r"MemAvailable:\s*(\d+)", _MEMINFO.read_text())[0])
    if _LIMIT.exists() and (limit := _LIMIT.read_text().strip()) != "max":
        used = int(_LIMIT.with_name("memory.current").read_text())
        free = min(free, max(int(limit) - used, 0))

    return free
