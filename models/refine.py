"""Refine trained towers: item-item weights added to their scores, items shrunk towards their content.

    score(u, i) = u . v_i + sum over the items j of the history of w_j G_ji / sqrt(sum of w_j), G = sum of alpha_k G_k

The estimators G_k are those of `models.item_item`, and w_j = exp(-decay * events after j). The mean length of histories
sets the decay. `choose` accepts or rejects shrinkage by four events on the validation, then tries values of each alpha
in turn; `apply` refines any towers by what was chosen, for example after another training on more data.

Letters: B requests, N items, W entries of a vector, E owned items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from datamodules.batch import RequestBatch
from datamodules.datamodule import InteractionsDataModule
from models.cold_items import Shrinkage
from models.item_item import Interactions, ease, gf_cf, next_item
from models.towers import Towers
from models.validation import rank_views
from serve.index import Neighbours

# Candidates: standard deviation of the added scores in those of the towers' scores.
ALPHAS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
STRENGTH = 4.0  # events that content is worth where items are shrunk; 2 to 8 ranked alike
ROUNDS = 2
MAX_BATCHES, MAX_DRAWN = 16, 512  # validation batches that are ranked; users whose scores show how much these vary
LONG_HISTORY = 40  # mean events of a user, above which events long ago count
SHORT_DECAY, LONG_DECAY = 1 / 3, 0.1  # of histories that have an order
RIDGE_IN_ORDER, RIDGE_OF_SETS, RIDGE_BESIDE_MEMORY = 100.0, 100.0, 1000.0
MAX_BESIDE_MEMORY = 4_000
STANDARD_ERRORS = 2.0  # a candidate replaces the usual value only if its gain exceeds this many standard errors
MIN_GAIN = 0.01  # share of NDCG: a smaller gain of shrinkage is often chance
# Alphas from which the choice starts, near the best of the boards.
USUAL_IN_ORDER = {"next_item": 0.05, "gf_cf": 0.05}
USUAL_IN_SETS = {"ease": 0.4, "gf_cf": 0.2}
USUAL_BESIDE_MEMORY = {"ease": 0.01}
MIN_SPREAD = 1e-9
MAX_FACTORS, ITEMS_PER_FACTOR = 256, 16  # of GF-CF; the paper has 256: too many where there are few items

Estimator = Callable[[Interactions], sp.csr_array]
Figures = dict[str, np.ndarray]  # NDCG@10 of each user by view, as `models.validation.rank_views` returns it


@dataclass(frozen=True)
class Refinement:
    """Hold what the validation chose, as plain numbers."""

    alphas: Mapping[str, float] = field(default_factory=dict)  # of each estimator
    decay: float = 0.0  # an event counts by exp(-decay * events after it)
    content_events: float = 0.0  # that content is worth; 0: items stay where they were trained
    ndcg: float | None = None  # NDCG@10 of the validation; None: nothing could be validated, the values are the usual
    ndcg_before: float | None = None  # of the towers alone

    def describe(self) -> str:
        """Say in one line what was chosen."""
        parts = [f"{name} {alpha:g}" for name, alpha in self.alphas.items() if alpha]
        parts += [f"content worth {self.content_events:g} events"] if self.content_events else []
        figures = (
            f"validation NDCG@10 {self.ndcg_before:.4f} before, {self.ndcg:.4f} after" if self.ndcg else "the usual"
        )
        return f"refined by {', '.join(parts) or 'nothing'}: {figures}"


def list_estimators(data: InteractionsDataModule, top_k: int, seed: int) -> tuple[dict[str, Estimator], float]:
    """Return the estimators that suit the data by name, and the decay of events in a history."""
    if not top_k:
        return {}, 0.0
    if data.schema.repeats == "allow":
        return {"ease": partial(ease, top_k=top_k, ridge=RIDGE_BESIDE_MEMORY, most=MAX_BESIDE_MEMORY)}, 0.0
    n_factors = min(MAX_FACTORS, max(1, len(data.catalogue) // ITEMS_PER_FACTOR))
    filtered: Estimator = partial(gf_cf, top_k=top_k, n_factors=n_factors, seed=seed)
    if not data.trains_on_windows:
        return {"ease": partial(ease, top_k=top_k, ridge=RIDGE_OF_SETS), "gf_cf": filtered}, 0.0
    counts = data.sequences.events.counts  # (U,), 0 of users without events
    decay = LONG_DECAY if counts.sum() > LONG_HISTORY * np.count_nonzero(counts) else SHORT_DECAY
    regression = partial(next_item, top_k=top_k, ridge=RIDGE_IN_ORDER, decay=decay)
    return {"next_item": regression, "gf_cf": filtered}, decay


@torch.no_grad()
def choose(towers: Towers, data: InteractionsDataModule, top_k: int, seed: int) -> Refinement:
    """Choose the refinement: the usual values unless the validation ranks clearly better by others.

    Takes towers in evaluation mode to which nothing was added. The towers are unchanged afterwards.
    """
    estimators, decay = list_estimators(data, top_k, seed)
    is_repeated = data.schema.repeats == "allow"
    usual = USUAL_IN_ORDER if data.trains_on_windows else USUAL_BESIDE_MEMORY if is_repeated else USUAL_IN_SETS
    # Not with a memory: it was trained on the vectors of owned items, which shrinkage would move.
    can_shrink = bool(data.schema.item_features) and not is_repeated
    shrinkage = Shrinkage(towers, torch.from_numpy(data.count_targets()), seed) if can_shrink else None
    start = Refinement({name: usual[name] for name in estimators}, decay, STRENGTH if shrinkage else 0.0)
    batches = data.validation_batches[:: math.ceil(len(data.validation_batches) / MAX_BATCHES) or 1]
    if not any((batch.target_owned < 0).any() for batch in batches):
        return start
    validation = Validation(towers, batches)
    start = replace(start, content_events=0.0, ndcg_before=validation.ndcg)
    if shrinkage is not None:
        shrinkage.apply(STRENGTH)
        shrunk = Validation(towers, batches)
        if shrunk.ndcg >= (1 + MIN_GAIN) * validation.ndcg:
            validation, start = shrunk, replace(start, content_events=STRENGTH)
        else:
            shrinkage.apply(0.0)
    added = build_weights(estimators, read_interactions(data), towers, list(data.drawn_requests(MAX_DRAWN)), decay)
    chosen = _choose_alphas(validation, added, start)
    if shrinkage is not None:
        shrinkage.apply(0.0)
    return chosen


def _choose_alphas(validation: Validation, added: Mapping[str, sp.csr_array], start: Refinement) -> Refinement:
    """Try the candidates of each alpha in turn, given the other alphas."""
    found, figures = start, validation.rank(added, start.decay, [start.alphas])[0]
    for name in [*added] * ROUNDS:
        trials = [dict(found.alphas) | {name: alpha} for alpha in ALPHAS]
        ranked = validation.rank(added, found.decay, trials)
        best = max(range(len(trials)), key=lambda place: mean_of_views(ranked[place]))
        if is_better(ranked[best], figures):
            found, figures = replace(found, alphas=trials[best]), ranked[best]
    return replace(found, ndcg=mean_of_views(figures))


def is_better(figures: Figures, before: Figures) -> bool:
    """Tell whether the mean over users and views is higher by more than `STANDARD_ERRORS` of the difference."""
    gains = [figures[view] - before[view] for view in figures]  # (users,) each
    error = fmean(float(gain.std(ddof=1)) / len(gain) ** 0.5 if len(gain) > 1 else math.inf for gain in gains)
    return mean_of_views(figures) - mean_of_views(before) > STANDARD_ERRORS * error


def mean_of_views(figures: Figures) -> float:
    return fmean(float(values.mean()) for values in figures.values())


@torch.no_grad()
def apply(refinement: Refinement, towers: Towers, data: InteractionsDataModule, top_k: int, seed: int) -> None:
    """Refine trained towers, in evaluation mode, to which nothing was added yet."""
    if refinement.content_events:
        Shrinkage(towers, torch.from_numpy(data.count_targets()), seed).apply(refinement.content_events)
    estimators, _ = list_estimators(data, top_k, seed)
    named = {name: estimators[name] for name, alpha in refinement.alphas.items() if alpha}
    added = build_weights(
        named, read_interactions(data), towers, list(data.drawn_requests(MAX_DRAWN)), refinement.decay
    )
    terms: list[Any] = [refinement.alphas[name] * weights for name, weights in added.items()]  # (N, N) each
    summed = sum(terms)
    if isinstance(summed, sp.csr_array):
        summed.sort_indices()
        towers.neighbours = Neighbours(
            summed.indptr.astype(np.int64), summed.indices, summed.data.astype(np.float32), refinement.decay
        )


def read_interactions(data: InteractionsDataModule) -> Interactions:
    """Read the events of a training."""
    events, is_target = data.sequences.events, data.sequences.target_weight > 0
    return Interactions(
        events.segments(), events.item_row, is_target, len(data.sequences.user_ids), len(data.catalogue)
    )


def build_weights(
    estimators: Mapping[str, Estimator],
    interactions: Interactions,
    towers: Towers,
    requests: Sequence[RequestBatch],
    decay: float,
) -> dict[str, sp.csr_array]:
    """Estimate item-item weights, scaled so that what they add to requests varies as much as the towers' scores."""
    items = [towers.item_vectors(batch.popularity) for batch in requests]  # (N, W) each
    scores = [
        towers.request_vectors(batch, vectors)[0] @ vectors.T for batch, vectors in zip(requests, items, strict=True)
    ]  # (B, N) each
    has_memory = towers.user_tower.memory is not None
    is_compared = [~batch.mark_owned(towers.n_items) if has_memory else ... for batch in requests]
    weights = {}
    for name, estimate in estimators.items():
        found = estimate(interactions)  # (N, N)
        sums = [add_up(batch, found, decay) for batch in requests]  # (B, N) each
        weights[name] = found * np.float32(_spread(scores, is_compared) / max(_spread(sums, is_compared), MIN_SPREAD))
    return weights


def _spread(scores: Sequence[Tensor], is_compared: Sequence[Any]) -> float:
    """Return the standard deviation of scores (B, N) within batches; with a memory of items that users do not own."""
    variances = [part[chosen].var(correction=0).item() for part, chosen in zip(scores, is_compared, strict=True)]
    return math.sqrt(fmean(variances or [0.0]))


def add_up(batch: RequestBatch, weights: sp.csr_array, decay: float) -> Tensor:
    """Sum the weights (N, N) of the items of each history as `serve.index` does, (B, N)."""
    rows, lengths = batch.history_rows.numpy(), batch.arrays["history_lengths"].numpy()  # (B, L), (B,)
    later = lengths[:, None] - 1 - np.arange(rows.shape[1])  # (B, L) events after each, below 0 of padding
    counts = np.where(later >= 0, np.exp(-decay * np.maximum(later, 0)), 0.0)  # (B, L)
    counts /= np.sqrt(np.maximum(counts.sum(axis=1, keepdims=True), MIN_SPREAD))
    requests, places = counts.nonzero()  # (E,) both
    entries = (counts[requests, places].astype(np.float32), (requests, rows[requests, places]))
    history = sp.csr_array(entries, (len(rows), weights.shape[0]))
    return torch.from_numpy((history @ weights).toarray())  # (B, N)


class Validation:
    """Validation requests and the vectors that trained towers make for them."""

    def __init__(self, towers: Towers, batches: Sequence[RequestBatch]) -> None:
        self.batches = batches
        self.has_memory = towers.user_tower.memory is not None
        self.items = towers.item_vectors(batches[0].popularity)  # (N, W)
        self.users = [towers.request_vectors(batch, self.items) for batch in batches]  # (B, W) and (E,) each
        self.ndcg = mean_of_views(self.rank({}, 0.0, [{}])[0])

    def rank(
        self, added: Mapping[str, sp.csr_array], decay: float, trials: Sequence[Mapping[str, float]]
    ) -> list[Figures]:
        """Rank the validation by the scores of the towers with weights added, each times its alpha."""
        views: list[list[dict[str, np.ndarray]]] = [[] for _ in trials]
        for batch, (users, bonus) in zip(self.batches, self.users, strict=True):
            scores = users @ self.items.T  # (B, N)
            sums = {name: add_up(batch, weights, decay) for name, weights in added.items()}  # (B, N) each
            if self.has_memory:  # items that the memory scores get nothing
                is_owned = batch.mark_owned(scores.shape[1])  # (B, N)
                sums = {name: some.masked_fill(is_owned, 0.0) for name, some in sums.items()}  # (B, N) each
            for alphas, ranked in zip(trials, views, strict=True):
                changed = scores.clone()  # (B, N)
                for name, alpha in alphas.items():
                    changed.add_(sums[name], alpha=alpha)
                ranked.append(rank_views(changed, bonus if self.has_memory else None, batch))
        return [{view: np.concatenate([part[view] for part in ranked]) for view in ranked[0]} for ranked in views]
