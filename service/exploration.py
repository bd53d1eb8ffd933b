"""Exploration: the last slots of a list are drawn at random, with exact propensities.

Items are drawn one after the other in proportion to exp(score / temperature), which is the order of
these logits plus Gumbel noise (Plackett and Luce; Kool et al., ICML 2019). Seen as exponential
clocks, the item of rate w is the j-th to ring with the probability of the integral over t of w
exp(-w t) times that of j - 1 others having rung by t: one smooth integral over log t for each item
that is shown, not a sum over all orders.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from serve.arrays import Doubles, Floats, Ints
from serve.recommendations import Answer
from serve.recommender import Recommender
from serve.requests import Request
from serve.rerank import POOL, find_new, recommend_only
from service.experiment import Policy

_EARLIEST = 1e-11  # of clocks, by their mean time: less than 1e-10 lies outside
_LATEST = 30.0
_STEP = 0.1  # of log time: the sum is exact to 1e-9
_LOWEST = 20.0  # logits are at most so much below the highest, so that all are drawn


def explore(
    recommender: Recommender,
    request: Request,
    k: int,
    filter_viewed: bool | None,
    policy: Policy,
    seed: str,
) -> Answer:
    """Answer a request as a policy says.

    The last slots are drawn from the best items of the request that are not listed above them, and
    from new items where the policy adds to their scores. Items keep the filters of their request.

    Args:
        recommender: the version that answers.
        request: whose user and filters count.
        k: length of a list.
        filter_viewed: leave out what the user has; None leaves it to the bundle.
        policy: which slots are drawn, and how.
        seed: the same seed draws the same.

    Returns:
        An answer with the propensities of its items.
    """
    candidates = find_candidates(recommender, request, k, filter_viewed, policy)
    chosen = candidates.draw(seed)
    slots = np.arange(len(chosen))
    propensities = candidates.propensities(chosen, slots)

    pool = candidates.pool
    reason = pool.reason if len(chosen) < k else None
    return replace(
        pool,
        item_id=candidates.item_id[chosen],
        score=candidates.score[chosen],
        rank=slots + 1,
        reason=reason,
        propensity=propensities,
    )


def find_candidates(
    recommender: Recommender,
    request: Request,
    k: int,
    filter_viewed: bool | None,
    policy: Policy,
) -> Candidates:
    """Find what the list of a request may hold; the arguments are those of `explore`."""
    (pool,) = recommender.recommend([request], max(k, POOL), filter_viewed)
    ids = pool.item_id
    scores = pool.score
    is_new = find_new(recommender)
    if policy.new_items and is_new.any():
        (more,) = recommend_only(
            recommender, [request], policy.slots, filter_viewed, is_new
        )
        is_more = ~np.isin(more.item_id, ids)
        ids = np.append(ids, more.item_id[is_more])
        scores = np.append(scores, more.score[is_more])

    # Logits are scores in standard deviations of the pool, by temperature.
    rows = recommender.catalogue.item_ids.find(ids)
    bonus = policy.new_items * is_new[rows].astype(np.float64)
    scale = float(pool.score.std()) or 1.0
    logits = (scores.astype(np.float64) / scale + bonus) / policy.temperature
    n_listed = min(k, len(pool.item_id))
    n_fixed = max(0, n_listed - policy.slots)
    logits = logits[n_fixed:]
    return Candidates(pool, ids, scores, logits, n_fixed, n_listed, policy.share)


@dataclass(frozen=True, eq=False)
class Candidates:
    """The M items of which a list is drawn: those of the pool, by falling score, then new ones."""

    pool: Answer
    item_id: NDArray[np.generic]  # (M,)
    score: Floats  # (M,)
    logits: Doubles  # (M - n_fixed,), of the items that may be drawn
    n_fixed: int  # slots of the list that are not drawn
    n_listed: int
    share: float  # of lists that are explored

    def draw(self, seed: str) -> Ints:
        """Return the indices of the items to list, (K,)."""
        chosen = np.arange(self.n_listed)
        n_drawn = self.n_listed - self.n_fixed
        if n_drawn > 0 and is_explored(seed, self.share):
            chosen[self.n_fixed :] = self.n_fixed + draw(seed, self.logits, n_drawn)
        return chosen

    def propensities(self, items: Ints, slots: Ints) -> Doubles:
        """Return the probabilities of items in slots.

        Args:
            items: (R,) indices of items.
            slots: (R,) slots from 0.

        Returns:
            (R,) probabilities under the policy, given the request.
        """
        result: Doubles = (items == slots).astype(np.float64)
        is_explored_slot = slots >= self.n_fixed
        result[is_explored_slot] *= 1 - self.share
        is_drawn = is_explored_slot & (items >= self.n_fixed)
        if is_drawn.any():
            items = items[is_drawn] - self.n_fixed
            slots = slots[is_drawn] - self.n_fixed
            result[is_drawn] += self.share * probabilities(self.logits, items, slots)

        return result


def draw(seed: str, logits: Doubles, n_slots: int) -> Ints:
    """Draw indices of items for slots, in order; the same seed draws the same."""
    digest = hashlib.sha256(seed.encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:16], "big"))
    perturbed = _bound(logits) + rng.gumbel(size=len(logits))
    return np.argsort(-perturbed, kind="stable")[:n_slots]


def is_explored(seed: str, share: float) -> bool:
    """Tell whether the list of a seed is one of the share that is explored."""
    digest = hashlib.sha256(f"share {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def probabilities(logits: Doubles, items: Ints, slots: Ints) -> Doubles:
    """Return the probabilities with which `draw` puts items into slots.

    The other items that have rung by a time are counted by their Poisson-binomial distribution.

    Args:
        logits: (M,) of the items that may be drawn.
        items: (R,) indices of items.
        slots: (R,) slots from 0.

    Returns:
        (R,) probabilities, exact to 1e-9.
    """
    rates = np.exp(_bound(logits))  # (M,)
    n_slots = int(slots.max()) + 1
    # Of the fastest items, as many as there are slots, the slowest rings last.
    slowest = np.sort(rates)[::-1][min(n_slots, len(rates)) - 1]
    start = np.log(_EARLIEST / rates.sum())
    stop = np.log(_LATEST / min(slowest, rates[items].min()))
    time = np.exp(np.arange(start, stop, _STEP))  # (T,)
    has_rung = -np.expm1(-np.outer(rates, time))  # (M, T), probabilities

    counts = np.zeros((len(items), n_slots, len(time)))  # (R, S, T), of others
    counts[:, 0] = 1
    for other in range(len(rates)):
        is_itself = (items == other)[:, None, None]
        share = np.where(is_itself, 0.0, has_rung[other])
        moved = counts[:, :-1] * share
        counts *= 1 - share
        counts[:, 1:] += moved

    survival = np.exp(-np.outer(rates[items], time))  # (R, T)
    densities = rates[items, None] * survival * time  # of log time
    chosen = counts[np.arange(len(items)), slots]  # (R, T)
    result: Doubles = (densities * chosen).sum(axis=1) * _STEP
    return result


def _bound(logits: Doubles) -> Doubles:
    bounded: Doubles = np.maximum(logits - logits.max(), -_LOWEST)
    return bounded
