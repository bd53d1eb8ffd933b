"""Accuracy of ranked lists: hit rate, recall, NDCG, MRR and MAP at k.

Each metric is a value per request, (B,), from a hit matrix (B, K) and the number of targets (B,), never 0.
Values are averaged within a user and then over users, so that a busy user counts once. A list shorter than k
misses in its empty places.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from evaluation.targets import Bools, Ints, Targets, hit_matrix

Floats = npt.NDArray[np.float64]

CUTOFFS = (10, 20)


def hit_rate(hits: Bools, k: int) -> Floats:
    """Is a target among the first k?"""
    return np.asarray(hits[:, :k].any(axis=1), np.float64)


def recall(hits: Bools, n_targets: Ints, k: int) -> Floats:
    """Share of the targets among the first k."""
    return np.asarray(hits[:, :k].sum(axis=1) / n_targets)


def ndcg(hits: Bools, n_targets: Ints, k: int) -> Floats:
    """Gain 1 / log2(rank + 1) of the hits among the first k, over the most of min(k, targets) hits."""
    gains = 1.0 / np.log2(np.arange(k) + 2.0)
    best = np.cumsum(gains)[np.minimum(n_targets, k) - 1]
    return np.asarray(hits[:, :k] @ gains[: hits.shape[1]] / best)


def mrr(hits: Bools, k: int) -> Floats:
    """1 / rank of the first hit, 0 if it comes after place k."""
    first = hits[:, :k].argmax(axis=1)
    return np.asarray(hit_rate(hits, k) / (first + 1))


def average_precision(hits: Bools, n_targets: Ints, k: int) -> Floats:
    """Sum over the hits among the first k of the precision at their place, over min(k, targets)."""
    seen = hits[:, :k]
    precision = np.cumsum(seen, axis=1) / np.arange(1, seen.shape[1] + 1)
    return np.asarray((precision * seen).sum(axis=1) / np.minimum(n_targets, k))


def measure_requests(hits: Bools, n_targets: Ints, cutoffs: tuple[int, ...] = CUTOFFS) -> dict[str, Floats]:
    """Return every metric per request: `HR@k`, `Recall@k`, `NDCG@k`, `MRR@k`, `MAP@k` for every cut-off k."""
    values = {}
    for k in cutoffs:
        values[f"HR@{k}"] = hit_rate(hits, k)
        values[f"Recall@{k}"] = recall(hits, n_targets, k)
        values[f"NDCG@{k}"] = ndcg(hits, n_targets, k)
        values[f"MRR@{k}"] = mrr(hits, k)
        values[f"MAP@{k}"] = average_precision(hits, n_targets, k)
    return values


def measure_users(lists: Ints, targets: Targets, cutoffs: tuple[int, ...] = CUTOFFS) -> dict[str, Floats]:
    """Return every metric per user, (U,), users ascending; requests without a target are left out."""
    n_targets = targets.items.counts
    asked = n_targets > 0
    values = measure_requests(hit_matrix(lists, targets)[asked], n_targets[asked], cutoffs)
    return {name: average_by_user(value, targets.user[asked]) for name, value in values.items()}


def average_by_user(values: Floats, user: Ints) -> Floats:
    """Average the requests' values (B,) within each user, (U,), users in ascending order."""
    _, index = np.unique(user, return_inverse=True)
    return np.asarray(np.bincount(index, weights=values) / np.bincount(index))
