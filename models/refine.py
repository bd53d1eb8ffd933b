"""Refine trained towers: add item-item weights to scores, shrink items towards their content.

    score(u, i) = u . v_i  +  sum over j in history of w_j B[j, i]  +  m_u(i)  +  t_i

    B = sum over k of alpha_k B_k        the estimators B_k are those of `models.item_item`
    w_j = c_j / sqrt(sum of c)           c_j = exp(-decay * events after j), and 1 + context_gain
                                         times that where j is in the context of the request
    t = sum of alpha_n * popularity_n    of all events, or of late ones by one of three fades

The towers give u . v_i and the memory m_u(i) (`models.towers`); owned items get the user's greatest
second sum of other items. Item i is shrunk from its trained vector v to (n v + s c) / (n + s): n
are its events, c is the place by its content, which is worth s events (`models.cold_items`).

`choose` makes three choices, each by NDCG of the validation: whether items are shrunk, how much
an event in the context of the request counts, and the alphas in turn. It starts from the plan that
the kind of data suggests. Where events have an order it tries the plan of sets too, since the order
may say nothing. What is added must rank higher than the towers alone, and all of it better than
popularity or ItemKNN alone by one standard error: else the plainest ranks alone, unless features of
users or moments tell, of which towers learn more from the data held out.
`apply` refines any towers by these choices, such as after another training on more data.
Letters: U users, B requests, N items, W entries of a vector, L positions of a history, E events.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from datamodules.batch import RequestBatch
from datamodules.datamodule import InteractionsDataModule
from evaluation.content_cosines import content_cosines
from models.cold_items import Shrinkage
from models.item_item import (
    MAX_INVERTED,
    ease,
    item_knn,
    list_trends,
    next_item,
    read_interactions,
)
from models.plateau import plateau_filter
from models.towers import Towers
from models.validation import (
    Estimator,
    Figures,
    Validation,
    WeightsByName,
    build_weights,
    compare_sides,
    is_better,
    is_told,
    mean_of_views,
    take_batches,
    tell,
)
from models.variants import choose_variants
from serve.index import Neighbours

# Candidates for an alpha. With alpha 1 the added scores vary as much as those of the towers.
ALPHAS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 25.6)
CONTEXT_GAINS = (1.0, 3.0)  # candidates: such an event counts 2 or 4 times
STRENGTH = 4.0  # events that content is worth; 2 to 8 ranked alike
MIN_GAIN = 0.01  # share of NDCG: a smaller gain of shrinkage is often chance
ROUNDS = 2  # searches for each alpha
# standard errors by which another plan than the usual one, or what is less plain, must be better
PLAN_ERRORS = 1.0

# Terms that may rank alone, the plainest first, and the alpha that leaves the towers only ties;
# when these are served, the towers' scores are divided by it, so that scores stay small.
PLAIN = ("popularity", "slow_trend", "trend", "fast_trend", "item_knn")
ALONE = 1000.0

MAX_DRAWN = 512  # users whose scores show how much these vary
LONG_HISTORY = 40  # mean events of a user, above which events long ago count

RIDGE = 100.0
RIDGE_BESIDE_MEMORY = 1000.0
MAX_BESIDE_MEMORY = 4_000  # items with weights beside a memory
# Of next-item regression by time: what an old event keeps of its weight, and how fast reach ends.
TIME_FLOOR = 0.5
TIME_DECAY = 0.02

# Factors of the plateau filter; the paper has 512, which are too many for few items.
MIN_FACTORS = 8
ITEMS_PER_FACTOR = 32


@dataclass(frozen=True)
class Limits:
    """The most that a refinement may cost."""

    top_k: int  # weights kept per item; 0: none
    min_users: int = 1  # who took both items of a weight, at least
    n_inverted: int = MAX_INVERTED  # items of a matrix that is inverted
    n_factors: int = 512  # of the plateau filter
    n_requests: int = 4096  # validation requests that are ranked, by whole batches


@dataclass(frozen=True)
class Plan:
    """Values from which a search starts, near the best of docs/boards.md."""

    alphas: Mapping[str, float]
    # Another alpha replaces one only if its gain exceeds so many standard errors.
    standard_errors: float
    decay: float = 0.0


IN_SETS = Plan({"ease": 0.8, "ease_of_targets": 0.4, "plateau": 0.4}, 0.5)
IN_CONTEXT = Plan({"ease": 0.4, "ease_of_targets": 0.2, "plateau": 0.2}, 2.0)
BESIDE_NEXT = {"plateau": 0.05, "content": 0.0, "trend": 0.0}
IN_SHORT_ORDER = Plan(
    {"next_item": 0.05, "next_by_time": 0.1, **BESIDE_NEXT}, 1.0, 1 / 3
)
IN_LONG_ORDER = Plan({"next_item": 0.05, **BESIDE_NEXT}, 1.0, 0.1)
# One term of item-item weights alone: owned items are lifted by the greatest sum of it.
BESIDE_MEMORY = Plan({"ease": 0.1, "popularity": 0.0, "trend": 0.0}, 2.0)


@dataclass(frozen=True)
class Refinement:
    """The choices, as plain numbers."""

    alphas: Mapping[str, float] = field(default_factory=dict)  # by estimator
    decay: float = 0.0
    context_gain: float = 0.0
    # the s of the shrinkage; 0: items stay where they were trained
    content_events: float = 0.0
    ndcg: float | None = None  # of the validation; None without a validation
    ndcg_before: float | None = None  # of the towers alone
    # of the validation with and without the features of a side, see `models.validation`
    features: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    variants: Mapping[str, Any] = field(default_factory=dict)  # see `models.variants`

    def describe(self) -> str:
        """Describe the choices in one line."""
        parts = []
        for name, alpha in self.alphas.items():
            if alpha:
                parts.append(f"{name} {'alone' if alpha == ALONE else f'{alpha:g}'}")
        if self.context_gain:
            parts.append(f"events in the same context {1 + self.context_gain:g} times")
        if self.content_events:
            parts.append(f"content worth {self.content_events:g} events")
        line = f"refined by {', '.join(parts) or 'nothing'}"

        if self.ndcg:
            line += f": validation NDCG {self.ndcg_before:.4f}, now {self.ndcg:.4f}"
        if self.variants:
            limit = "; at most {most} of one {column} in ten rows: {without:.4f}, then {ndcg:.4f}"
            line += limit.format_map(self.variants)
        return line


class Candidate(NamedTuple):
    """A refinement and how it ranks the validation."""

    refinement: Refinement
    figures: Figures
    weights: WeightsByName

    @property
    def ndcg(self) -> float:
        return mean_of_views(self.figures)

    def rank(self, validation: Validation) -> Figures:
        """Rank other requests."""
        chosen = self.refinement
        (ranked,) = _rank(validation, self.weights, chosen, [chosen.alphas])
        return ranked.figures


def list_plans(data: InteractionsDataModule) -> list[Plan]:
    """Return the plans that suit the data, the usual one first."""
    if data.schema.repeats == "allow":
        return [BESIDE_MEMORY]
    if not data.trains_on_windows:
        return [IN_CONTEXT if data.schema.context_features else IN_SETS]
    counts = data.sequences.events.counts  # (U,), 0 of users without events
    is_long = counts.sum() > LONG_HISTORY * np.count_nonzero(counts)
    return [IN_LONG_ORDER if is_long else IN_SHORT_ORDER, IN_SETS]


def list_estimators(
    data: InteractionsDataModule, limits: Limits, seed: int
) -> dict[str, Estimator]:
    """Return the estimators that plans may name, each with its arguments."""
    top_k = limits.top_k
    if not top_k:
        return {}

    sizes = (len(data.sequences.user_ids), len(data.catalogue), limits.min_users)
    interactions = read_interactions(*data.sample_events(), *sizes)
    estimate = partial(ease, interactions, top_k)
    schema = data.schema
    trends = list_trends(data.sample_events()[0], sizes[1], schema.has_datetime)

    if schema.repeats == "allow":
        # Where nothing personal can be learned, a memory of habits is behind popularity.
        return {
            "ease": partial(estimate, RIDGE_BESIDE_MEMORY, MAX_BESIDE_MEMORY),
            **trends,
        }

    n_known = len(np.unique(interactions.item))
    n_factors = min(limits.n_factors, max(MIN_FACTORS, n_known // ITEMS_PER_FACTOR))
    largest = limits.n_inverted
    plateau = partial(plateau_filter, interactions, top_k, n_factors, seed)
    estimators: dict[str, Estimator] = {
        "ease": partial(estimate, RIDGE, largest),
        "plateau": plateau,
        "item_knn": partial(item_knn, interactions, top_k),
        **trends,
    }
    if not interactions.is_target.all():
        # Items that users only viewed or rated low are no sign of what they like.
        targets = interactions.only_targets()
        estimators["ease_of_targets"] = partial(ease, targets, top_k, RIDGE, largest)

    if data.trains_on_windows:
        decay = list_plans(data)[0].decay
        regression = partial(next_item, interactions, top_k, RIDGE)
        estimators["next_item"] = partial(regression, decay, largest)
        if data.schema.has_datetime:
            fading = partial(regression, TIME_DECAY, largest, floor=TIME_FLOOR)
            estimators["next_by_time"] = fading
        if data.schema.item_features:
            taken = interactions.item  # (E,)
            content = partial(content_cosines, taken, data.catalogue, top_k)
            estimators["content"] = content

    return estimators


@torch.no_grad()
def choose(
    towers: Towers, data: InteractionsDataModule, limits: Limits, seed: int
) -> Refinement:
    """Choose the refinement: the usual values unless the validation ranks clearly better by others.

    Args:
        towers: trained towers in evaluation mode without item-item weights; unchanged afterwards.
        data: training data with validation batches.
        limits: the most that it may cost.
        seed: of the fits.

    Returns:
        The best refinement; the usual one, without NDCG, if no validation target is novel.
    """
    estimators = list_estimators(data, limits, seed)
    plans = list_plans(data)

    # Not with a memory: it was trained on the vectors of owned items, which shrinkage would move.
    shrinkage = None
    if data.schema.item_features and data.schema.repeats == "exclude":
        shrinkage = Shrinkage(towers, data.count_targets(), seed)
    batches = take_batches(data.validation_batches, limits.n_requests)

    if not any((batch.target_owned < 0).any() for batch in batches):
        return _start(plans[0], estimators, STRENGTH if shrinkage else 0.0)

    validation = Validation(towers, batches)
    before = validation.ndcg
    strength = 0.0
    if shrinkage is not None:
        shrinkage.apply(STRENGTH)
        shrunk = Validation(towers, batches)
        if shrunk.ndcg >= (1 + MIN_GAIN) * before:
            validation = shrunk
            strength = STRENGTH
        else:
            shrinkage.apply(0.0)

    requests = list(data.drawn_requests(MAX_DRAWN))
    best = Candidate(Refinement(content_events=strength), validation.figures, {})

    for plan in plans:
        start = _start(plan, estimators, strength)
        planned = {name: estimators[name] for name in start.alphas}
        weights = build_weights(planned, towers, requests, plan.decay)
        (usual,) = _rank(validation, weights, start, [start.alphas])

        if data.schema.context_features:
            usual = _choose_gain(validation, weights, usual)
        is_usual = plan is plans[0]
        if is_usual or usual.ndcg >= best.ndcg:  # a search takes long
            chosen = _choose_alphas(validation, weights, usual, plan.standard_errors)
            errors = 0.0 if is_usual else PLAN_ERRORS
            if is_better(chosen.figures, best.figures, errors):
                best = chosen

    features = compare_sides(validation, data.schema, best.rank)
    plain = {} if tell(features, PLAN_ERRORS) else estimators
    best = _choose_plain(validation, plain, requests, best)
    variants = choose_variants(validation, data, best.rank)
    if shrinkage is not None:
        shrinkage.apply(0.0)
    return replace(
        best.refinement,
        ndcg=best.ndcg,
        ndcg_before=before,
        features=features,
        variants=variants,
    )


def _start(
    plan: Plan, estimators: Mapping[str, Estimator], strength: float
) -> Refinement:
    alphas = {name: alpha for name, alpha in plan.alphas.items() if name in estimators}
    return Refinement(alphas, plan.decay, content_events=strength)


def _rank(
    validation: Validation,
    weights: WeightsByName,
    refinement: Refinement,
    trials: Sequence[Mapping[str, float]],
) -> list[Candidate]:
    """Rank the validation by a refinement with each of the alphas."""
    ranked = validation.rank(weights, trials, refinement.decay, refinement.context_gain)
    return [
        Candidate(replace(refinement, alphas=alphas), figures, weights)
        for alphas, figures in zip(trials, ranked, strict=True)
    ]


def _choose_gain(
    validation: Validation, weights: WeightsByName, best: Candidate
) -> Candidate:
    """Let events in the context of the request count more if that ranks clearly better."""
    for gain in CONTEXT_GAINS:
        refinement = replace(best.refinement, context_gain=gain)
        (ranked,) = _rank(validation, weights, refinement, [refinement.alphas])
        if is_better(ranked.figures, best.figures, PLAN_ERRORS):
            best = ranked

    return best


def _choose_alphas(
    validation: Validation, weights: WeightsByName, best: Candidate, errors: float
) -> Candidate:
    """Set each alpha in turn to the nearest value that no other one beats significantly."""
    others_of_search: dict[str, Mapping[str, float]] = {}
    for name in [*weights] * ROUNDS:
        alphas = best.refinement.alphas
        trials = [{**alphas, name: alpha} for alpha in ALPHAS]
        if others_of_search.get(name) == trials[0]:  # no other alpha has changed
            continue

        others_of_search[name] = trials[0]
        ranked = _rank(validation, weights, best.refinement, trials)

        highest = max(ranked, key=lambda candidate: candidate.ndcg).figures
        if is_better(highest, best.figures, errors):
            now = bisect_left(ALPHAS, alphas[name])
            nearest = sorted(range(len(ALPHAS)), key=lambda trial: abs(trial - now))
            best = next(
                ranked[trial]
                for trial in nearest
                if not is_better(highest, ranked[trial].figures, errors)
            )

    return best


def _choose_plain(
    validation: Validation,
    estimators: Mapping[str, Estimator],
    requests: Sequence[RequestBatch],
    best: Candidate,
) -> Candidate:
    """Return the plainest of the terms alone and the best that nothing less plain clearly beats."""
    if not is_told(best.figures):  # nothing is clearly better than anything
        return best

    plain = {name: estimators[name] for name in PLAIN if name in estimators}
    weights = build_weights(plain, validation.towers, requests, decay=0.0)
    alone = Refinement(content_events=best.refinement.content_events)
    trials = [{name: ALONE} for name in weights]
    candidates = [*_rank(validation, weights, alone, trials), best]
    plainest = candidates[0]
    for candidate in candidates[1:]:
        if is_better(candidate.figures, plainest.figures, PLAN_ERRORS):
            plainest = candidate

    return plainest


@torch.no_grad()
def apply(
    refinement: Refinement,
    towers: Towers,
    data: InteractionsDataModule,
    limits: Limits,
    seed: int,
) -> None:
    """Refine trained towers.

    Args:
        refinement: the choices of `choose`.
        towers: towers in evaluation mode without item-item weights, which are set here.
        data: the data of their training.
        limits: as for `choose`.
        seed: of the fits.
    """
    if refinement.content_events:
        shrinkage = Shrinkage(towers, data.count_targets(), seed)
        shrinkage.apply(refinement.content_events)

    estimators = list_estimators(data, limits, seed)
    chosen = {
        name: estimators[name]
        for name, alpha in refinement.alphas.items()
        if alpha and name in estimators
    }
    requests = list(data.drawn_requests(MAX_DRAWN))
    weights = build_weights(chosen, towers, requests, refinement.decay)
    n_items = towers.n_items
    trend = sp.csr_array((1, n_items), dtype=np.float32)
    of_items = sp.csr_array((n_items, n_items), dtype=np.float32)
    largest = ALONE if ALONE in refinement.alphas.values() else 1.0
    towers.user_tower.output_scale = 1 / largest
    for name, matrix in weights.items():
        term = refinement.alphas[name] / largest * matrix
        if len(term.indptr) > 2:
            of_items = of_items + term
        else:
            trend = trend + term
    of_items.sort_indices()
    offsets = of_items.indptr.astype(np.int64)
    columns = np.concatenate([of_items.indices, trend.indices])
    values = np.concatenate([of_items.data, trend.data]).astype(np.float32)
    if refinement.variants:
        towers.variants = {refinement.variants["column"]: refinement.variants["most"]}
    towers.neighbours = Neighbours(
        offsets, columns, values, refinement.decay, refinement.context_gain
    )
