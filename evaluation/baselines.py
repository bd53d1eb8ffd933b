"""Baselines: popularity, personal frequency, ItemKNN and EASE, and the choice of their one parameter on validation.

Every `fit_*` returns or yields functions that score the whole catalogue for user rows, (b,) -> float32 (b, N).
Letters: E events, U users, N items, M items that have events, K neighbours of an item.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import linalg, sparse
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from evaluation.holdout import Events, Strength
from evaluation.ranking import ScoreRows, Scores, tiles, top_k
from serve.arrays import Doubles, Ints
from serve.clock import DAY
from serve.errors import SchemaError, name_nearest
from serve.schema import Repeats

Real = TypeVar("Real", np.float32, np.float64)
as_binary: Strength = np.ones_like
as_counts: Strength = np.asarray
Fit = Callable[
    [Events, Sequence[float]], Iterator[ScoreRows]
]  # values of a parameter -> scorers, one by one
Criterion = Callable[[ScoreRows], float]
Fitted = tuple[
    str, dict[str, Any], ScoreRows | None
]  # name, entry in `metrics.json`, scorer unless it was skipped
Log = Callable[[str], None]

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
SHRINK = 10.0  # added to the product of norms: a cosine over few users counts less
NEAR_NOTHING = -1.0  # added to the popularity of items near to nothing the user has: below every sum of cosines
SMALL = 4096  # rows of a matrix below which one core inverts it: OpenBLAS's threads spin while they wait for each other


@dataclass(frozen=True)
class Baseline:
    """A baseline before it is fitted, the candidates for its parameter, and the memory of a cell of its matrix.

    The report's words for it are in `evaluation/templates/words.jinja`.
    """

    name: str
    fit: Fit
    parameter: str | None = None
    values: tuple[float, ...] = (0.0,)
    needs_time: bool = False
    bytes_per_cell: int = 0


def as_logs(counts: Doubles) -> Doubles:
    """Return 1 + ln(count): the tenth purchase says less than the second."""
    return np.asarray(1 + np.log(counts))


def fit_popularity(events: Events, strength: Strength) -> ScoreRows:
    """Rank items by the sum of their strengths over users."""
    popularity = events.popularity(strength)
    return lambda users: np.tile(popularity, (len(users), 1))


def fit_recent_popularity(
    events: Events, days: Sequence[float], strength: Strength
) -> Iterator[ScoreRows]:
    """Yield popularity within the last `days` before the last event, one after the other."""
    since_last = events.since_last()
    for window in days:
        yield fit_popularity(events.keep(since_last < window * DAY), strength)


def fit_decayed_personal(events: Events, days: Sequence[float]) -> Iterator[ScoreRows]:
    """Yield personal frequencies whose events count exp(-recency / time constant), one per time constant."""
    since_last = events.since_last()
    for constant in days:
        yield fit_personal(events, np.exp(-since_last / (constant * DAY)))


def fit_personal(events: Events, weights: Doubles | None = None) -> ScoreRows:
    """Rank a user's own items first, by the number or weight of their events, then popularity, then row.

    The score of an owned item is its place from the end, 1 and more, which float32 keeps; others are below 1.
    """
    pairs, pair = np.unique(
        events.user_row * events.n_items + events.item_row, return_inverse=True
    )
    user, item = np.divmod(pairs, events.n_items)
    popularity = events.popularity(as_counts)
    order = np.lexsort(
        (-item, popularity[item], np.bincount(pair, weights=weights), user)
    )
    bounds = np.concatenate(
        [[0], np.cumsum(np.bincount(user, minlength=events.n_users))]
    )
    place = np.empty(len(pairs), np.float32)
    place[order] = np.arange(len(pairs)) - bounds[user[order]] + 1
    places = sparse.csr_array(
        (place, item, bounds), shape=(events.n_users, events.n_items)
    )

    def score(users: Ints) -> Scores:
        scores = np.tile(popularity, (len(users), 1))
        own = places[users].tocoo()
        scores[own.row, own.col] = own.data
        return scores

    return score


def fit_itemknn(
    events: Events, neighbours: Sequence[float], strength: Strength
) -> Iterator[ScoreRows]:
    """Yield ItemKNN (Sarwar et al., 2001): cosines summed over what the user has; an item is its own neighbour too."""
    matrix = events.matrix(strength).astype(np.float32)
    n_items = events.n_items
    most = min(int(max(neighbours)), n_items)  # (N, U)
    by_item = matrix.T.tocsr()
    norms = np.sqrt(np.asarray(matrix.power(2).sum(axis=0)).ravel())  # (N,)
    item = np.empty((n_items, most), np.int64)  # nearest first
    cosine = np.empty((n_items, most), np.float32)
    for rows in tiles(n_items, n_items):
        products = np.ascontiguousarray(
            (by_item @ by_item[rows].toarray().T).T
        )  # (b, N)
        products /= norms[rows, None] * norms + SHRINK
        item[rows] = top_k(products, most)
        cosine[rows] = np.take_along_axis(products, item[rows], axis=1)
    popularity = events.popularity(as_counts)

    def scorer(k: int) -> ScoreRows:
        entries = (
            cosine[:, :k].ravel(),
            item[:, :k].ravel(),
            np.arange(n_items + 1) * min(k, item.shape[1]),
        )
        similarity = sparse.csr_array(entries, shape=(n_items, n_items), copy=True)
        similarity.eliminate_zeros()

        def score(users: Ints) -> Scores:
            scores = (matrix[users] @ similarity).toarray()
            return np.where(scores > 0, scores, popularity + NEAR_NOTHING).astype(
                np.float32
            )

        return score

    for k in neighbours:
        yield scorer(int(k))


def fit_ease(
    events: Events, regularisations: Sequence[float], strength: Strength
) -> Iterator[ScoreRows]:
    """Yield EASE (Steck, "Embarrassingly Shallow Autoencoders", 2019) per lambda, by the smaller Gram matrix.

    With X (U, N) the strengths of users' items, P = (X'X + lambda I)^-1 and B = I - P / diag(P), scores are X B.
    """
    if events.n_users < events.n_items:
        yield from _fit_dual_ease(events, regularisations, strength)
        return
    matrix = events.matrix(strength).astype(np.float32)
    gram = (matrix.T @ matrix).toarray()  # (N, N)
    popularity = events.popularity(as_counts)
    for regularisation in regularisations:
        weights = invert_regularised(
            gram, regularisation
        ).T  # symmetric; users read it by rows
        weights /= -weights.diagonal()
        np.fill_diagonal(weights, 0)
        yield partial(_score_primal, matrix, weights, popularity)


def _score_primal(
    x: sparse.csr_array, weights: Scores, popularity: Scores, users: Ints
) -> Scores:
    return _fill_strangers(x[users], x[users] @ weights, popularity)


def _fit_dual_ease(
    events: Events, regularisations: Sequence[float], strength: Strength
) -> Iterator[ScoreRows]:
    """Yield X B = X - (X P) / diag(P) from A = (XX' + lambda I)^-1, (U, U).

    By the Woodbury identity X P = A X and diag(P) = (1 - diag(X' A X)) / lambda.
    """
    matrix = events.matrix(strength)
    by_item = matrix.T.tocsr()  # (N, U)
    gram = (matrix @ by_item).toarray()  # (U, U)
    popularity = events.popularity(as_counts)
    strengths = matrix.astype(np.float32)
    for regularisation in regularisations:
        inverse = invert_regularised(gram, regularisation)
        explained = np.zeros(events.n_items)  # diag(X' A X)
        for rows in tiles(events.n_users, events.n_items):
            explained += (
                matrix[rows].multiply((by_item @ inverse[:, rows]).T).sum(axis=0)
            )
        diagonal = (1 - explained) / regularisation  # (N,)
        scaled_items = (
            by_item.multiply(1 / diagonal[:, None]).tocsr().astype(np.float32)
        )
        yield partial(
            _score_dual, strengths, scaled_items, inverse.astype(np.float32), popularity
        )


def _score_dual(
    x: sparse.csr_array,
    scaled: sparse.csr_array,
    inverse: Scores,
    popularity: Scores,
    users: Ints,
) -> Scores:
    return _fill_strangers(
        x[users], x[users].toarray() - (scaled @ inverse[:, users]).T, popularity
    )


def _fill_strangers(
    own: sparse.csr_array, scores: Scores, popularity: Scores
) -> Scores:
    is_stranger = np.diff(own.indptr) == 0
    return np.where(is_stranger[:, None], popularity, scores)


def invert_regularised(
    gram: npt.NDArray[Real], regularisation: float
) -> npt.NDArray[Real]:
    """Return (gram + lambda I)^-1 of a symmetric matrix without negative eigenvalues, (n, n)."""
    regularised = gram.T.copy(
        order="F"
    )  # symmetric: of a matrix in order of rows a plain copy
    np.fill_diagonal(regularised, gram.diagonal() + regularisation)
    with threadpool_limits(1, "blas") if len(gram) < SMALL else nullcontext():
        factor = linalg.cholesky(
            regularised, lower=True, overwrite_a=True, check_finite=False
        )
        invert_factor = (
            linalg.lapack.dpotri if factor.dtype == np.float64 else linalg.lapack.spotri
        )
        inverse: npt.NDArray[Real] = invert_factor(factor, lower=1, overwrite_c=1)[0]
    inverse += np.tril(
        inverse, -1
    ).T  # LAPACK leaves the upper triangle, which the factor has empty
    return inverse


def fit_used(
    fit: Fit, score_of_others: float, events: Events, values: Sequence[float]
) -> Iterator[ScoreRows]:
    """Fit on the items that have events; a fit on the whole catalogue would give the others `score_of_others`."""
    items = np.flatnonzero(
        np.bincount(np.append(events.item_row, 0))
    )  # (M,) ascending, 1 or more
    item_row = np.searchsorted(items, events.item_row)
    used = Events(events.user_row, item_row, events.time, events.n_users, len(items))

    def spread(score: ScoreRows, users: Ints) -> Scores:
        scores = np.full((len(users), events.n_items), score_of_others, np.float32)
        scores[:, items] = score(users)
        return scores

    yield from (partial(spread, score) for score in fit(used, values))


def choose_baselines(repeats: Repeats, names: Sequence[str] | None) -> list[Baseline]:
    """Return the named baselines of a protocol, the cheapest first; None names all."""
    declared = declare_baselines(repeats == "allow")
    allowed = [baseline.name for baseline in declared]
    for name in names or []:
        if name not in allowed:
            raise SchemaError(
                f"'{name}' is no baseline where repeats is {repeats}; {name_nearest(name, allowed)}"
            )
    return [
        baseline for baseline in declared if names is None or baseline.name in names
    ]


def declare_baselines(is_repeating: bool) -> list[Baseline]:
    """Declare all baselines: counts carry the signal where repeats are allowed, elsewhere a pair counts once."""
    counted, logged = (as_counts, as_logs) if is_repeating else (as_binary, as_binary)
    neighbours = (2, 5, 20, 100, 400) if is_repeating else (20, 50, 100, 200, 400)
    regularisations = (
        (3, 10, 30, 100, 300) if is_repeating else (10, 30, 100, 300, 1000)
    )
    recent = partial(fit_recent_popularity, strength=counted)
    itemknn = partial(fit_used, partial(fit_itemknn, strength=counted), NEAR_NOTHING)
    ease = partial(fit_used, partial(fit_ease, strength=logged), 0.0)
    personal = [
        Baseline("personal", lambda events, _: iter([fit_personal(events)])),
        Baseline(
            "personal-decayed",
            fit_decayed_personal,
            "days",
            (15, 30, 60, 120, 240),
            needs_time=True,
        ),
    ]
    return [
        Baseline(
            "popularity", lambda events, _: iter([fit_popularity(events, counted)])
        ),
        Baseline(
            "popularity-recent", recent, "days", (7, 14, 28, 56, 112), needs_time=True
        ),
        *(personal if is_repeating else []),
        Baseline(
            "itemknn", itemknn, "neighbours", neighbours, bytes_per_cell=36
        ),  # 400 neighbours, thrice
        Baseline(
            "ease", ease, "lambda", regularisations, bytes_per_cell=20
        ),  # five matrices
    ]


def fit_baselines(
    chosen: Sequence[Baseline],
    train: Events,
    later: Events,
    criterion: Criterion | None,
    log: Log,
) -> Iterator[Fitted]:
    """Tune each baseline on `train`, or take the middle value, and fit it with the `later` events, one by one."""
    whole = train.join(later)
    for baseline in chosen:
        n_fits = (
            1
            if criterion is None or baseline.parameter is None
            else len(baseline.values) + 1
        )
        log(
            f"{baseline.name}: {train.n_items:,} items, {train.n_users:,} users, fits: {n_fits}"
        )
        start = time.perf_counter()
        record, score = _fit(baseline, train, whole, criterion)
        yield baseline.name, record, score
        parameter = [
            f"{name} {value:g}" for name, value in record.get("parameter", {}).items()
        ]
        outcome = record.get("skipped") or " ".join(parameter) or "no parameter"
        log(f"{baseline.name}: {outcome}, {time.perf_counter() - start:.1f} s")


def _fit(
    baseline: Baseline, train: Events, whole: Events, criterion: Criterion | None
) -> tuple[dict[str, Any], ScoreRows | None]:
    if baseline.needs_time and whole.time is None:
        return {"skipped": "the interactions have no times"}, None
    n_items = int(
        np.count_nonzero(whole.count_items())
    )  # EASE is in float64 of users or float32 of items
    n_cells = (
        min(n_items**2, 2 * whole.n_users**2)
        if baseline.name == "ease"
        else n_items * 400
    )
    if baseline.bytes_per_cell * n_cells > read_free_bytes() / 2:
        return {"skipped": "needs more than half of the free memory"}, None
    start = time.perf_counter()
    validation: dict[float, float] = {}
    best = baseline.values[len(baseline.values) // 2]
    if baseline.parameter is not None and criterion is not None:
        scorers = baseline.fit(train, baseline.values)
        validation = {
            value: criterion(score)
            for value, score in zip(baseline.values, scorers, strict=True)
        }
        best = max(validation, key=lambda value: validation[value])
    (score,) = baseline.fit(whole, [best])
    record = {
        "parameter": {} if baseline.parameter is None else {baseline.parameter: best},
        "validation": {f"{value:g}": quality for value, quality in validation.items()},
        "seconds": round(time.perf_counter() - start, 3),
    }
    return record, score


def read_free_bytes() -> int:
    """Return the memory this process can still get: what the machine has free, within a container's limit."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf(
        "SC_PAGE_SIZE"
    )  # of macOS, which has no estimate
    if _MEMINFO.exists():
        free = int(_MEMINFO.read_text().split("MemAvailable:")[1].split()[0]) * 1024
    try:
        limit, used = (
            (_CGROUP / name).read_text().strip()
            for name in ("memory.max", "memory.current")
        )
    except OSError:
        return free
    return min(free, max(int(limit) - int(used), 0)) if limit.isdecimal() else free
