"""Exploration: the last slots of a list are drawn at random, better items more often, with exact propensities.

Items are drawn one after the other in proportion to exp(score / temperature), which is the order of these logits plus
Gumbel noise (Plackett and Luce; Kool et al., ICML 2019). Seen as exponential clocks, the item of rate w is the j-th to
ring with the probability of the integral over t of w exp(-w t) times that of j - 1 others having rung by t: one smooth
integral over log t for each item that is shown, not a sum over all orders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from serve.arrays import Doubles, Floats, Ints
from serve.recommendations import Answer
from serve.recommender import Recommender
from serve.requests import Request
from serve.rerank import POOL, find_new, recommend_only
from service.experiment import Policy

_EARLIEST = (
    1e-11  # of clocks, in shares of their mean time: outside lies less than 1e-10
)
_LATEST = 30.0
_STEP = 0.1  # of log time: the sum is exact to 1e-9
_LOWEST = 20.0  # logits are at most so much below the highest: what is rarer is drawn as often as that


def explore(
    recommender: Recommender,
    requests: Sequence[Request],
    k: int,
    filter_viewed: bool | None,
    policy: Policy,
    seeds: Sequence[str],
) -> list[Answer]:
    """Answer requests as the policy says, each with the propensities of its items; the same seed draws the same.

    The last slots are drawn from the best items of the request that are not listed above them, and from new items
    where the policy adds to their scores. Items keep the filters of their request.
    """
    found = find_candidates(recommender, requests, k, filter_viewed, policy)
    answers = []
    for candidates, seed in zip(found, seeds, strict=True):
        chosen = candidates.draw(seed)
        listed = replace(
            candidates.pool,
            item_id=candidates.item_id[chosen],
            score=candidates.score[chosen],
            rank=np.arange(1, len(chosen) + 1),
            reason=candidates.pool.reason if len(chosen) < k else None,
            propensity=candidates.propensities(chosen, np.arange(len(chosen))),
        )
        answers.append(listed)
    return answers


def find_candidates(
    recommender: Recommender,
    requests: Sequence[Request],
    k: int,
    filter_viewed: bool | None,
    policy: Policy,
) -> Iterator[Candidates]:
    """Find what the lists of requests may hold."""
    pools = recommender.recommend(requests, max(k, POOL), filter_viewed)
    is_new = find_new(recommender)
    fresh = None
    if policy.new_items and is_new.any():
        fresh = recommend_only(
            recommender, requests, policy.slots, filter_viewed, is_new
        )
    for place, pool in enumerate(pools):
        ids = pool.item_id
        scores = pool.score
        if fresh is not None:
            more = fresh.of(place)
            is_more = ~np.isin(more.item_id, ids)
            ids = np.append(ids, more.item_id[is_more])
            scores = np.append(scores, more.score[is_more])
        bonus: Doubles = policy.new_items * is_new[
            recommender.catalogue.item_ids.find(ids)
        ].astype(np.float64)
        yield Candidates(pool, ids, scores, bonus, min(k, len(pool.item_id)), policy)


@dataclass(frozen=True, eq=False)
class Candidates:
    """The items of which one list is drawn: M of them, those of the pool first, by falling score."""

    pool: Answer
    item_id: NDArray[np.generic]  # (M,)
    score: Floats  # (M,)
    bonus: Doubles  # (M,), of new items, in standard deviations
    n_listed: int
    policy: Policy

    def draw(self, seed: str) -> Ints:
        """Return the places of the items to list, (K,)."""
        chosen = np.arange(self.n_listed)
        if self._n_fixed < self.n_listed and is_explored(seed, self.policy.share):
            chosen[self._n_fixed :] = self._n_fixed + draw(
                seed, self._logits, self.n_listed - self._n_fixed
            )
        return chosen

    def propensities(self, places: Ints, slots: Ints) -> Doubles:
        """Return the probabilities of items, as places, in slots from 0, (R,) both."""
        found: Doubles = (places == slots).astype(np.float64)
        is_drawn = slots >= self._n_fixed
        found[is_drawn] *= 1 - self.policy.share
        which = is_drawn & (places >= self._n_fixed)
        if which.any():
            drawn = probabilities(
                self._logits,
                places[which] - self._n_fixed,
                slots[which] - self._n_fixed,
            )
            found[which] += self.policy.share * drawn
        return found

    @property
    def _n_fixed(self) -> int:
        return max(0, self.n_listed - self.policy.slots)

    @property
    def _logits(self) -> Doubles:
        """Return what the items that may be drawn are drawn by: scores in standard deviations of the pool."""
        scale = float(self.pool.score.std()) or 1.0
        logits: Doubles = (
            self.score.astype(np.float64) / scale + self.bonus
        ) / self.policy.temperature
        drawn_by: Doubles = logits[self._n_fixed :]
        return drawn_by


def draw(seed: str, logits: Doubles, n_slots: int) -> Ints:
    """Draw places of items for slots, in order; the same seed draws the same."""
    digest = hashlib.sha256(seed.encode()).digest()
    noise = np.random.default_rng(int.from_bytes(digest[:16], "big")).gumbel(
        size=len(logits)
    )
    order: Ints = np.argsort(-(_bound(logits) + noise), kind="stable")[:n_slots]
    return order


def is_explored(seed: str, share: float) -> bool:
    """Tell whether the list of a seed is one of the share that is explored."""
    digest = hashlib.sha256(f"share {seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def probabilities(logits: Doubles, items: Ints, slots: Ints) -> Doubles:
    """Return the probabilities with which `draw` puts items, as places in `logits` (M,), into slots from 0, (R,) both.

    The others that have rung by a time are counted by their Poisson-binomial distribution.
    """
    rates = np.exp(_bound(logits))  # (M,)
    n_slots = int(slots.max()) + 1
    slow = np.sort(rates)[::-1][
        min(n_slots, len(rates)) - 1
    ]  # among the fastest, the slot's last has rung by its time
    start = np.log(_EARLIEST / rates.sum())
    stop = np.log(_LATEST / min(slow, rates[items].min()))
    log_time = np.arange(start, stop, _STEP)
    time = np.exp(log_time)  # (T,)
    rung = -np.expm1(-np.outer(rates, time))  # (M, T), the probability of having rung
    counts = np.zeros(
        (len(items), n_slots, len(time))
    )  # (R, S, T), of others that have rung
    counts[:, 0] = 1
    for other in range(len(rates)):
        share = np.where(
            (items == other)[:, None, None], 0.0, rung[other]
        )  # an item is not another than itself
        moved = counts[:, :-1] * share
        counts *= 1 - share
        counts[:, 1:] += moved
    densities = (
        rates[items, None] * np.exp(-np.outer(rates[items], time)) * time
    )  # (R, T), of log time
    chosen = counts[np.arange(len(items)), slots]
    result: Doubles = (densities * chosen).sum(axis=1) * _STEP
    return result


def _bound(logits: Doubles) -> Doubles:
    bounded: Doubles = np.maximum(logits - logits.max(), -_LOWEST)
    return bounded
