"""Refine trained towers: item-item weights added to their scores, items shrunk towards their content.

    score(u, i) = u . v_i + sum over the items j of the history of w_j G_ji / sqrt(sum of w_j) + t_i
    G = sum of alpha_k G_k

The estimators G_k are those of `models.item_item`, t says what has been popular lately, and w_j = exp(-decay * events
after j), more where j happened in the context of the request. `choose` accepts or rejects shrinkage by four events on
the validation, then how much a like context counts, then tries values of each alpha in turn, in the plan that the kind
of data suggests and, where events have an order, in that of sets: the order may say nothing. `apply` refines any towers
by what was chosen, for example after another training on more data.

Letters: U users, B requests, N items, W entries of a vector, L positions of a history, E owned items, whose scores
have a `bonus` where the towers have a memory (`models.memory`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
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
from models.item_item import Interactions, ease, ease_of_targets, gf_cf, next_item
from models.towers import Towers
from models.validation import rank_views
from serve.index import Neighbours

# Candidates: standard deviation of the added scores in those of the towers' scores.
ALPHAS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 25.6)
STRENGTH = (
    4.0  # events that content is worth where items are shrunk; 2 to 8 ranked alike
)
ROUNDS = 2
CONTEXT_GAINS = (
    1.0,
    3.0,
)  # an event in the context of the request counts 1 + so many times
MAX_BATCHES = 16  # validation batches that are ranked; users whose scores show how much these vary
MAX_DRAWN = 512
LONG_HISTORY = 40  # mean events of a user, above which events long ago count
RIDGE = 100.0
RIDGE_BESIDE_MEMORY = 1000.0
MAX_BESIDE_MEMORY = 4_000
PLAN_ERRORS = (
    1.0  # standard errors by which another plan than the usual one must be better
)
MIN_GAIN = 0.01  # share of NDCG: a smaller gain of shrinkage is often chance
MIN_SPREAD = 1e-9
TREND_SHARE = (
    0.02  # events fade in this share of the time span, a week of a year; items kept
)
MAX_TRENDING = 512
MIN_FACTORS = 8  # of GF-CF; the paper has 256: too many for few items
MAX_FACTORS = 256
ITEMS_PER_FACTOR = 32


@dataclass(frozen=True)
class Plan:
    """Alphas from which a choice starts, near the best of docs/boards.md."""

    alphas: Mapping[str, float]
    standard_errors: float  # another alpha replaces one only if its gain exceeds this many standard errors
    decay: float = 0.0  # an event of a history counts by exp(-decay * events after it)


IN_SETS = Plan({"ease": 0.8, "ease_of_targets": 0.4, "gf_cf": 0.4}, 0.5)
IN_CONTEXT = Plan(
    {"ease": 0.4, "ease_of_targets": 0.2, "gf_cf": 0.2}, 2.0
)  # sets in which requests have one
IN_SHORT_ORDER = Plan({"next_item": 0.05, "gf_cf": 0.05, "trend": 0.0}, 1.0, 1 / 3)
IN_LONG_ORDER = Plan({"next_item": 0.05, "gf_cf": 0.05, "trend": 0.0}, 1.0, 0.1)
BESIDE_MEMORY = Plan({"ease": 0.01}, 2.0)
Estimator = Callable[[Interactions], sp.csr_array]
Figures = dict[
    str, np.ndarray
]  # NDCG@10 of each user by view, as `models.validation.rank_views` returns it


@dataclass(frozen=True)
class Refinement:
    """Hold what the validation chose, as plain numbers."""

    alphas: Mapping[str, float] = field(default_factory=dict)  # of each estimator
    decay: float = 0.0  # an event counts by exp(-decay * events after it)
    context_gain: float = (
        0.0  # and 1 + context_gain times that in the context of the request
    )
    content_events: float = (
        0.0  # that content is worth; 0: items stay where they were trained
    )
    ndcg: float | None = (
        None  # NDCG@10 of the validation; None: nothing could be validated, the values are the usual
    )
    ndcg_before: float | None = None  # of the towers alone

    def describe(self) -> str:
        """Say in one line what was chosen."""
        parts = [f"{name} {alpha:g}" for name, alpha in self.alphas.items() if alpha]
        parts += (
            [f"events in the same context {1 + self.context_gain:g} times"]
            if self.context_gain
            else []
        )
        parts += (
            [f"content worth {self.content_events:g} events"]
            if self.content_events
            else []
        )
        gain = (
            f"validation NDCG@10 {self.ndcg_before:.4f} before, {self.ndcg:.4f} after"
            if self.ndcg
            else "the usual"
        )
        return f"refined by {', '.join(parts) or 'nothing'}: {gain}"


def list_plans(data: InteractionsDataModule) -> list[Plan]:
    """Return the plans that suit the data, the usual one first."""
    if data.schema.repeats == "allow":
        return [BESIDE_MEMORY]
    if not data.trains_on_windows:
        return [IN_CONTEXT if data.schema.context_features else IN_SETS]
    counts = data.sequences.events.counts  # (U,), 0 of users without events
    is_long = counts.sum() > LONG_HISTORY * np.count_nonzero(counts)
    return [
        IN_LONG_ORDER if is_long else IN_SHORT_ORDER,
        IN_SETS,
    ]  # the second: the order may say nothing


def list_estimators(
    data: InteractionsDataModule, top_k: int, seed: int
) -> dict[str, Estimator]:
    """Return the estimators that the plans may name."""
    if not top_k:
        return {}
    if data.schema.repeats == "allow":
        return {
            "ease": partial(
                ease, top_k=top_k, ridge=RIDGE_BESIDE_MEMORY, most=MAX_BESIDE_MEMORY
            )
        }
    interactions = read_interactions(data)
    n_factors = min(
        MAX_FACTORS,
        max(MIN_FACTORS, len(np.unique(interactions.item)) // ITEMS_PER_FACTOR),
    )
    found: dict[str, Estimator] = {
        "ease": partial(ease, top_k=top_k, ridge=RIDGE),
        "gf_cf": partial(gf_cf, top_k=top_k, n_factors=n_factors, seed=seed),
    }
    if not (data.sequences.target_weight > 0).all():
        found["ease_of_targets"] = partial(ease_of_targets, top_k=top_k, ridge=RIDGE)
    if data.trains_on_windows and data.schema.has_datetime:
        found["trend"] = lambda _: find_trend(data)
    if data.trains_on_windows:
        decay = list_plans(data)[0].decay
        found["next_item"] = partial(next_item, top_k=top_k, ridge=RIDGE, decay=decay)
    return found


def find_trend(data: InteractionsDataModule) -> sp.csr_array:
    """Return by how much the items that have been popular lately stand out, the same for everybody, (1, N)."""
    events = data.sequences.events
    n_items = len(data.catalogue)
    age = (events.time.max() - events.time) / max(
        TREND_SHARE * np.ptp(events.time), 1.0
    )  # (E,)
    recent = np.log1p(np.bincount(events.item_row, np.exp(-age), n_items))  # (N,)
    least = np.sort(recent)[-min(MAX_TRENDING, n_items)]
    return sp.csr_array(np.maximum(recent - least, 0).astype(np.float32)[None])


@torch.no_grad()
def choose(
    towers: Towers, data: InteractionsDataModule, top_k: int, seed: int
) -> Refinement:
    """Choose the refinement: the usual values unless the validation ranks clearly better by others.

    Takes towers in evaluation mode to which nothing was added. The towers are unchanged afterwards.
    """
    estimators = list_estimators(data, top_k, seed)
    plans = list_plans(data)
    # Not with a memory: it was trained on the vectors of owned items, which shrinkage would move.
    can_shrink = bool(data.schema.item_features) and data.schema.repeats == "exclude"
    shrinkage = (
        Shrinkage(towers, torch.from_numpy(data.count_targets()), seed)
        if can_shrink
        else None
    )
    batches = data.validation_batches[
        :: math.ceil(len(data.validation_batches) / MAX_BATCHES) or 1
    ]
    if not any((batch.target_owned < 0).any() for batch in batches):
        return _start(plans[0], estimators, STRENGTH if shrinkage else 0.0)
    validation = Validation(towers, batches)
    before = validation.ndcg
    strength = 0.0
    if shrinkage is not None:
        shrinkage.apply(STRENGTH)
        shrunk = Validation(towers, batches)
        if shrunk.ndcg >= (1 + MIN_GAIN) * validation.ndcg:
            validation = shrunk
            strength = STRENGTH
        else:
            shrinkage.apply(0.0)
    weigh = partial(build_weights, interactions=read_interactions(data), towers=towers)
    found = Refinement()
    figures = validation.figures
    for plan in plans:
        start = _start(plan, estimators, strength)
        named = {name: estimators[name] for name in start.alphas}
        added = weigh(
            named, requests=list(data.drawn_requests(MAX_DRAWN)), decay=plan.decay
        )
        usual = validation.rank(added, start, [start.alphas])[0]
        if data.schema.context_features:
            start, usual = _choose_gain(validation, added, start, usual)
        if plan is not plans[0] and mean_of_views(usual) < mean_of_views(figures):
            continue  # a search takes long
        chosen, ranked = _choose_alphas(
            validation, added, start, usual, plan.standard_errors
        )
        if plan is plans[0] or is_better(ranked, figures, PLAN_ERRORS):
            found = chosen
            figures = ranked
    if shrinkage is not None:
        shrinkage.apply(0.0)
    return replace(found, ndcg=mean_of_views(figures), ndcg_before=before)


def _start(
    plan: Plan, estimators: Mapping[str, Estimator], strength: float
) -> Refinement:
    alphas = {name: alpha for name, alpha in plan.alphas.items() if name in estimators}
    return Refinement(alphas, plan.decay, content_events=strength)


def _choose_gain(
    validation: Validation,
    added: Mapping[str, sp.csr_array],
    found: Refinement,
    figures: Figures,
) -> tuple[Refinement, Figures]:
    """Choose how much more events in the context of the request count, if that ranks clearly better."""
    for gain in CONTEXT_GAINS:
        tried = replace(found, context_gain=gain)
        ranked = validation.rank(added, tried, [found.alphas])[0]
        if is_better(ranked, figures, PLAN_ERRORS):
            found = tried
            figures = ranked
    return found, figures


def _choose_alphas(
    validation: Validation,
    added: Mapping[str, sp.csr_array],
    found: Refinement,
    figures: Figures,
    errors: float,
) -> tuple[Refinement, Figures]:
    """Move each alpha in turn to the nearest candidate that none beats clearly; return them with their figures."""
    tried_with: dict[
        str, Mapping[str, float]
    ] = {}  # the other alphas of the last search for each
    for name in [*added] * ROUNDS:
        trials = [dict(found.alphas) | {name: alpha} for alpha in ALPHAS]
        if tried_with.get(name) == trials[0]:  # nothing else has changed since
            continue
        tried_with[name] = trials[0]
        ranked = validation.rank(added, found, trials)
        best = max(range(len(trials)), key=lambda place: mean_of_views(ranked[place]))
        if is_better(ranked[best], figures, errors):
            now = bisect_left(ALPHAS, found.alphas[name])
            near = sorted(range(len(trials)), key=lambda place: abs(place - now))
            chosen = next(
                place
                for place in near
                if not is_better(ranked[best], ranked[place], errors)
            )
            found = replace(found, alphas=trials[chosen])
            figures = ranked[chosen]
    return found, figures


def is_better(figures: Figures, before: Figures, errors: float) -> bool:
    """Tell whether the mean over users and views is higher by more than so many standard errors of the difference."""
    gains = [figures[view] - before[view] for view in figures]  # (users,) each
    error = fmean(
        float(gain.std(ddof=1)) / len(gain) ** 0.5 if len(gain) > 1 else math.inf
        for gain in gains
    )
    return mean_of_views(figures) - mean_of_views(before) > errors * error


def mean_of_views(figures: Figures) -> float:
    return fmean(float(values.mean()) for values in figures.values())


@torch.no_grad()
def apply(
    refinement: Refinement,
    towers: Towers,
    data: InteractionsDataModule,
    top_k: int,
    seed: int,
) -> None:
    """Refine trained towers, in evaluation mode, to which nothing was added yet."""
    if refinement.content_events:
        Shrinkage(towers, torch.from_numpy(data.count_targets()), seed).apply(
            refinement.content_events
        )
    estimators = list_estimators(data, top_k, seed)
    named = {
        name: estimators[name]
        for name, alpha in refinement.alphas.items()
        if alpha and name in estimators
    }
    requests = list(data.drawn_requests(MAX_DRAWN))
    added = build_weights(
        named, read_interactions(data), towers, requests, refinement.decay
    )
    terms = [
        refinement.alphas[name] * weights for name, weights in added.items()
    ]  # (N, N) each, (1, N) a trend
    of_items = sum(
        (one for one in terms if one.shape[0] > 1),
        sp.csr_array((towers.n_items,) * 2, dtype=np.float32),
    )
    of_items.sort_indices()
    entries = [of_items, *(one for one in terms if one.shape[0] == 1)]
    rows, weights = (
        np.concatenate([getattr(one, part) for one in entries])
        for part in ("indices", "data")
    )
    of_events = refinement.decay, refinement.context_gain
    towers.neighbours = Neighbours(
        of_items.indptr.astype(np.int64), rows, weights.astype(np.float32), *of_events
    )


def read_interactions(data: InteractionsDataModule) -> Interactions:
    """Read the events of a training."""
    events = data.sequences.events
    is_target = data.sequences.target_weight > 0
    return Interactions(
        events.segments,
        events.item_row,
        is_target,
        len(data.sequences.user_ids),
        len(data.catalogue),
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
    pairs = zip(requests, items, strict=True)
    scores = [
        towers.request_vectors(batch, vectors)[0] @ vectors.T
        for batch, vectors in pairs
    ]  # (B, N) each
    has_memory = towers.user_tower.memory is not None
    is_compared = [
        ~batch.mark_owned(towers.n_items) if has_memory else ... for batch in requests
    ]
    weights = {}
    for name, estimate in estimators.items():
        found = estimate(interactions)  # (N, N)
        sums = [add_up(batch, found, decay) for batch in requests]  # (B, N) each
        weights[name] = found * np.float32(
            _spread(scores, is_compared) / max(_spread(sums, is_compared), MIN_SPREAD)
        )
    return weights


def _spread(scores: Sequence[Tensor], is_compared: Sequence[Any]) -> float:
    """Return the standard deviation of scores (B, N) within batches; with a memory of items that users do not own."""
    variances = [
        part[chosen].var(correction=0).item()
        for part, chosen in zip(scores, is_compared, strict=True)
    ]
    return math.sqrt(fmean(variances or [0.0]))


def add_up(
    batch: RequestBatch, weights: sp.csr_array, decay: float, context_gain: float = 0.0
) -> Tensor:
    """Sum the weights (N, N) of the items of each history as `serve.index` does, or take the trend (1, N): (B, N)."""
    if weights.shape[0] == 1:
        return torch.from_numpy(weights.toarray()).expand(
            len(batch.history_rows), -1
        )  # (B, N)
    rows = batch.history_rows.numpy()  # (B, L), (B,)
    lengths = batch.arrays["history_lengths"].numpy()
    later = (
        lengths[:, None] - 1 - np.arange(rows.shape[1])
    )  # (B, L) events after each, below 0 of padding
    counts = np.where(later >= 0, np.exp(-decay * np.maximum(later, 0)), 0.0)  # (B, L)
    counts *= 1 + context_gain * batch.arrays["history_matches"].numpy()
    counts /= np.sqrt(np.maximum(counts.sum(axis=1, keepdims=True), MIN_SPREAD))
    requests, places = counts.nonzero()  # (E,) both
    entries = (
        counts[requests, places].astype(np.float32),
        (requests, rows[requests, places]),
    )
    history = sp.csr_array(entries, (len(rows), weights.shape[0]))
    return torch.from_numpy((history @ weights).toarray())  # (B, N)


class Validation:
    """Validation requests and the vectors that trained towers make for them."""

    def __init__(self, towers: Towers, batches: Sequence[RequestBatch]) -> None:
        self.batches = batches
        self.has_memory = towers.user_tower.memory is not None
        self.items = towers.item_vectors(batches[0].popularity)  # (N, W)
        self.users = [
            towers.request_vectors(batch, self.items) for batch in batches
        ]  # (B, W) and (E,) each
        self.figures = self.rank({}, Refinement(), [{}])[0]
        self.ndcg = mean_of_views(self.figures)

    def rank(
        self,
        added: Mapping[str, sp.csr_array],
        found: Refinement,
        trials: Sequence[Mapping[str, float]],
    ) -> list[Figures]:
        """Rank the validation by the scores of the towers with weights added, each times its alpha in a trial."""
        views: list[list[dict[str, np.ndarray]]] = [[] for _ in trials]
        for batch, (users, bonus) in zip(self.batches, self.users, strict=True):
            scores = users @ self.items.T  # (B, N)
            counted = found.decay, found.context_gain
            sums = {
                name: add_up(batch, weights, *counted)
                for name, weights in added.items()
            }  # (B, N) each
            if self.has_memory:  # items that the memory scores get nothing
                is_owned = batch.mark_owned(scores.shape[1])  # (B, N)
                sums = {
                    name: some.masked_fill(is_owned, 0.0) for name, some in sums.items()
                }  # (B, N) each
            for alphas, ranked in zip(trials, views, strict=True):
                changed = scores.clone()  # (B, N)
                for name, alpha in alphas.items():
                    changed.add_(sums[name], alpha=alpha)
                ranked.append(
                    rank_views(changed, bonus if self.has_memory else None, batch)
                )
        return [
            {
                view: np.concatenate([part[view] for part in ranked])
                for view in ranked[0]
            }
            for ranked in views
        ]
