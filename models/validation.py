"""NDCG of the validation by full ranking: of the towers alone, or with item-item weights.

The views are `novel` (owned items excluded, novel targets only) and, where the towers have a
memory, `all` (nothing excluded). Lists are judged to a depth of 10; those that item-item weights
of sets are chosen by to 20, since a user of a set has many targets at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from datamodules.batch import RequestBatch
from evaluation.metrics import ndcg
from models.towers import Towers
from serve.arrays import Doubles
from serve.encode import encode_features
from serve.kinds import Feature
from serve.schema import Schema

TOP = 10
TOP_OF_SETS = 20
MIN_SUM = 1e-9
MIN_SPREAD = 1e-9
MIN_REQUESTS = 30  # of a view that is compared

# Items of a catalogue that are all ranked for every trial; of a larger one the best by the towers
# and those that something is added to.
MAX_RANKED = 16_000
N_BEST = 256

# NDCG of each request that has a target, by view.
Figures = Mapping[str, Doubles]

# Item-item weights (N, N), or a trend (1, N), by name.
WeightsByName = Mapping[str, sp.csr_array]

Estimator = Callable[[], sp.csr_array]

DEEP = 4  # times the depth of a list from which it is filled where variants are limited


class Limit(NamedTuple):
    """At most so many of the first rows share a value; the others follow."""

    codes: Tensor  # (N,) of items, -1 without a value
    most: int

    def put_apart(self, listed: Tensor) -> Tensor:
        """Return the best items (B, K) with those behind the others that are too many."""
        codes = self.codes[listed]  # (B, K)
        is_same = codes[:, :, None] == codes[:, None, :]  # (B, K, K)
        n_before = is_same.tril(-1).sum(dim=2)  # (B, K)
        is_over = (n_before >= self.most) & (codes >= 0)  # (B, K)
        return listed.gather(1, is_over.int().argsort(dim=1, stable=True))


def request_ndcg(
    users: Tensor, bonus: Tensor | None, items: Tensor, batch: RequestBatch
) -> Figures:
    """Rank the whole catalogue (N, W) for the users (B, W) of requests; see `rank_views`."""
    # bfloat16 would tie many items.
    with torch.autocast(users.device.type, enabled=False):
        scores = users.float() @ items.float().T  # (B, N)
    return rank_views(scores, bonus, batch)


def rank_views(
    scores: Tensor,
    bonus: Tensor | None,
    batch: RequestBatch,
    depth: int = TOP,
    limit: Limit | None = None,
) -> Figures:
    """Measure the rankings of requests in each view.

    Args:
        scores: (B, N) scores without the memory; overwritten.
        bonus: (E,) scores that the memory adds to owned items; None without a memory.
        batch: the requests, with owned items and targets.
        depth: slots of a list.
        limit: of variants.

    Returns:
        NDCG of each request that has a target in the view, by view.
    """
    figures = {}
    owned = (batch.owned_users, batch.owned_rows)  # (E,) both
    is_target = torch.zeros_like(scores, dtype=torch.bool)  # (B, N)
    is_target[batch.target_users, batch.target_rows] = True

    if bonus is not None:
        scores.index_put_(owned, bonus.to(scores.dtype), accumulate=True)
        figures["all"] = _ndcg(scores, is_target, depth, limit)

    scores[owned] = -torch.inf
    is_target[owned] = False
    figures["novel"] = _ndcg(scores, is_target, depth, limit)
    return figures


def _ndcg(
    scores: Tensor, is_target: Tensor, depth: int, limit: Limit | None
) -> Doubles:
    """Measure the lists by scores (B, N) of the requests that have a target, (B, N) bool."""
    n_best = min(depth if limit is None else DEEP * depth, scores.shape[1])
    listed = scores.topk(n_best, dim=1).indices  # (B, K)
    if limit is not None:
        listed = limit.put_apart(listed)[:, :depth]
    hits = is_target.gather(1, listed).cpu().numpy()  # (B, K)
    n_targets = is_target.sum(dim=1).cpu().numpy()  # (B,)
    has_target = n_targets > 0  # (B,)
    return ndcg(hits[has_target], n_targets[has_target], depth)


def join_figures(parts: Sequence[Figures]) -> Figures:
    """Join the figures of several batches."""
    return {
        view: np.concatenate([figures[view] for figures in parts]) for view in parts[0]
    }


def mean_of_views(figures: Figures) -> float:
    """Average the means of the views that have a target; 0 if none has."""
    means = [float(values.mean()) for values in figures.values() if len(values)]
    return fmean(means or [0.0])


def is_better(figures: Figures, before: Figures, errors: float) -> bool:
    """Return whether the mean is higher by more than `errors` standard errors of the difference.

    A view of a few requests says nothing beside another one: its error would hide that one's gain.
    """
    told = {
        view: values for view, values in figures.items() if len(values) >= MIN_REQUESTS
    }
    told = told or dict(figures)
    earlier = {view: before[view] for view in told}
    difference = mean_of_views(told) - mean_of_views(earlier)
    return difference > errors * estimate_error(told, earlier)


def is_told(figures: Figures) -> bool:
    """Return whether a view has enough requests to compare anything by."""
    return any(len(values) >= MIN_REQUESTS for values in figures.values())


def estimate_error(figures: Figures, before: Figures) -> float:
    """Estimate the standard error of the difference; the mean of those of the views."""
    standard_errors = []
    for view, values in figures.items():
        n_users = len(values)
        spread = np.std(values - before[view], ddof=1) if n_users > 1 else math.inf
        standard_errors.append(float(spread) / n_users**0.5)

    return fmean(standard_errors)


def take_batches(
    batches: Sequence[RequestBatch], n_requests: int
) -> list[RequestBatch]:
    """Take whole batches, evenly, with at most about so many requests."""
    n_held_out = sum(len(batch.history_rows) for batch in batches)
    stride = max(1, math.ceil(n_held_out / n_requests))
    return list(batches[::stride])


class Validation:
    """Validation requests, all as of one moment, and the vectors of trained towers for them."""

    def __init__(self, towers: Towers, batches: Sequence[RequestBatch]) -> None:
        self.towers = towers
        self.batches = batches
        self.limit: Limit | None = None
        self.items = towers.item_vectors(batches[0].popularity)  # (N, W)
        # In a context each request has one target.
        has_many = any(
            len(batch.target_rows) > len(batch.history_rows) for batch in batches
        )
        self.depth = TOP_OF_SETS if towers.user_tower.is_set and has_many else TOP
        self.users = [towers.request_vectors(batch, self.items) for batch in batches]
        self.is_large = len(self.items) > MAX_RANKED
        vectors = [users for users, _ in self.users]  # (B, W) each
        self.best = vectors
        if self.is_large:
            scores = (users @ self.items.T for users in vectors)  # (B, N) each
            self.best = [of_batch.topk(N_BEST).indices for of_batch in scores]
        (self.figures,) = self.rank({}, [{}])
        self.ndcg = mean_of_views(self.figures)

    def rank(
        self,
        weights: WeightsByName,
        trials: Sequence[Mapping[str, float]],
        decay: float = 0.0,
        context_gain: float = 0.0,
    ) -> list[Figures]:
        """Rank the requests by the scores of the towers with item-item weights added.

        Args:
            weights: (N, N) weights, or (1, N) a trend, by name.
            trials: the factor of each of the weights, by name.
            decay: see `sum_terms`.
            context_gain: see `sum_terms`.

        Returns:
            The figures of each trial.
        """
        parts: list[list[Figures]] = [[] for _ in trials]
        for batch, (users, bonus), best in zip(
            self.batches, self.users, self.best, strict=True
        ):
            terms = {
                name: sum_terms(batch, matrix, decay, context_gain)
                for name, matrix in weights.items()
            }
            items = self.items
            if self.is_large:
                batch, columns = _narrow(batch, terms.values(), best)
                items = items[columns]  # (n, W)
                places = columns.numpy()
                terms = {name: part[:, places] for name, part in terms.items()}

            limit = self.limit
            if limit is not None and self.is_large:
                limit = limit._replace(codes=limit.codes[columns])
            scores = users @ items.T  # (B, n)
            sums = {}
            for name, sparse in terms.items():
                added = torch.from_numpy(sparse.toarray())  # (B, n) or (1, n)
                # Items that the memory scores get the greatest term of another item.
                if bonus is not None and len(weights[name].indptr) > 2:
                    is_owned = batch.mark_owned(len(items))  # (B, n)
                    others = added.masked_fill(is_owned, 0.0)  # (B, n)
                    added = others + is_owned * others.amax(dim=1, keepdim=True)
                sums[name] = added

            for alphas, figures in zip(trials, parts, strict=True):
                changed = scores.clone()  # (B, n)
                for name, alpha in alphas.items():
                    changed.add_(sums[name], alpha=alpha)
                figures.append(rank_views(changed, bonus, batch, self.depth, limit))

        return [join_figures(figures) for figures in parts]


def _narrow(
    batch: RequestBatch, terms: Iterable[sp.csr_array], best: Tensor
) -> tuple[RequestBatch, Tensor]:
    """Number owned items and targets by their places among the items that may be listed, (n,).

    These are the `best` by the towers and those that something is added to. A list misses an item
    only if `N_BEST` - `depth` of the best are owned or lose by what is added.
    """
    added = [torch.from_numpy(matrix.indices) for matrix in terms]
    named = [best.ravel(), batch.owned_rows, batch.target_rows, *added]
    columns = torch.unique(torch.cat(named))  # (n,) ascending
    narrow = batch._replace(
        owned_rows=torch.searchsorted(columns, batch.owned_rows),
        target_rows=torch.searchsorted(columns, batch.target_rows),
    )
    return narrow, columns


def add_up(
    batch: RequestBatch, weights: sp.csr_array, decay: float, context_gain: float = 0.0
) -> Tensor:
    """Return the sums of `sum_terms` as scores of all items, (B, N)."""
    sums = sum_terms(batch, weights, decay, context_gain)  # (B, N) or (1, N)
    return torch.from_numpy(sums.toarray()).expand(len(batch.history_rows), -1)


def sum_terms(
    batch: RequestBatch, weights: sp.csr_array, decay: float, context_gain: float = 0.0
) -> sp.csr_array:
    """Sum the item-item weights of each history, as `serve.index` does.

    Args:
        batch: B requests with histories of L positions.
        weights: (N, N) weights B; or a trend, (1, N), which is the same for every request.
        decay: an event counts c_j = exp(-decay * events after it).
        context_gain: an event in the context of the request counts 1 + context_gain times that.

    Returns:
        (B, N) sum over j of w_j B[j, i] with w_j = c_j / sqrt(sum of c); the trend as it is.
    """
    if weights.shape[0] == 1:
        return weights

    rows = batch.history_rows.numpy()  # (B, L)
    lengths = batch.arrays["history_lengths"].numpy()[:, None]  # (B, 1)
    n_later = lengths - 1 - np.arange(rows.shape[1])  # (B, L), below 0 of padding

    fading = np.exp(-decay * np.maximum(n_later, 0))  # (B, L)
    counts = np.where(n_later >= 0, fading, 0.0)  # (B, L)
    counts *= 1 + context_gain * batch.arrays["history_matches"].numpy()
    counts /= np.sqrt(np.maximum(counts.sum(axis=1, keepdims=True), MIN_SUM))

    requests, positions = counts.nonzero()  # (E,) both
    values = counts[requests, positions].astype(np.float32)  # (E,)
    cells = (requests, rows[requests, positions])  # (E,) both
    history = sp.csr_array((values, cells), (len(rows), weights.shape[0]))  # (B, N)

    sums: sp.csr_array = history @ weights  # (B, N)
    return sums


# ---- weights on the scale of the towers


def build_weights(
    estimators: Mapping[str, Estimator],
    towers: Towers,
    requests: Sequence[RequestBatch],
    decay: float,
) -> WeightsByName:
    """Estimate item-item weights on one scale.

    Args:
        estimators: the estimators, by name.
        towers: trained towers in evaluation mode.
        requests: requests whose scores are compared.
        decay: see `add_up`.

    Returns:
        (N, N) weights by name, whose sums vary as much as the scores of the towers.
    """
    has_memory = towers.user_tower.memory is not None

    def score(batch: RequestBatch) -> Tensor:
        items = towers.item_vectors(batch.popularity)  # (N, W)
        return towers.request_vectors(batch, items)[0] @ items.T  # (B, N)

    spread_of_towers = _measure_spread(score, requests, has_memory)
    weights = {}
    for name, estimate in estimators.items():
        matrix = estimate()  # (N, N)
        sum_up = partial(add_up, weights=matrix, decay=decay)
        spread = max(_measure_spread(sum_up, requests, has_memory), MIN_SPREAD)
        weights[name] = matrix * np.float32(spread_of_towers / spread)
    return weights


def _measure_spread(
    score: Callable[[RequestBatch], Tensor],
    requests: Sequence[RequestBatch],
    has_memory: bool,
) -> float:
    """Return the standard deviation of scores (B, N) within batches, with a memory of new items."""
    variances = []
    for batch in requests:
        scores = score(batch)  # (B, N)
        if has_memory:
            scores = scores[~batch.mark_owned(scores.shape[1])]  # (new,)
        variances.append(scores.var(correction=0).item())
    return math.sqrt(fmean(variances or [0.0]))


# ---- with and without the features of a side


def compare_sides(
    validation: Validation, schema: Schema, rank: Callable[[Validation], Figures]
) -> dict[str, dict[str, float]]:
    """Compare the lists of the validation with those of requests without features of a side.

    A request may lack its features, and training withholds them at times. A difference around 0
    says that the towers do not use them; what a training without them would give is not measured.
    Nor are item features, which are for new items: a validation has too few of these.

    Args:
        validation: with all features, of towers as they are served.
        schema: declares the features.
        rank: adds item-item weights to the scores of the towers.

    Returns:
        `user` or `context` -> NDCG with (`ndcg`) and `without`, and the standard `error` of the
        difference.
    """
    sides = {"user": schema.user_features}
    if schema.repeats == "exclude":  # else these requests look ahead, without a context
        sides["context"] = schema.context_features

    figures = rank(validation)
    compared = {}
    for side, features in sides.items():
        if features:
            batches = [withhold(batch, side, features) for batch in validation.batches]
            without = rank(Validation(validation.towers, batches))
            compared[side] = {
                "ndcg": mean_of_views(figures),
                "without": mean_of_views(without),
                "error": estimate_error(without, figures),
            }

    return compared


def tell(features: Mapping[str, Mapping[str, float]], errors: float) -> bool:
    """Return whether lists without a side rank lower by more than so many standard errors."""
    return any(
        side["ndcg"] - side["without"] > errors * side["error"]
        for side in features.values()
    )


def withhold(
    batch: RequestBatch, side: str, features: tuple[Feature, ...]
) -> RequestBatch:
    """Return the requests without the features of a side."""
    missing = encode_features(features, {}, len(batch.history_rows))
    arrays = dict(batch.arrays)
    arrays[f"{side}_codes"] = torch.from_numpy(missing.codes)  # (B, C)
    arrays[f"{side}_values"] = torch.from_numpy(missing.values)  # (B, V)

    if side == "context":  # no event of the history is in the same one
        arrays["history_matches"] = torch.zeros_like(arrays["history_matches"])
    return batch._replace(arrays=arrays)
