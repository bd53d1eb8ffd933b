"""How much the scores of towers vary: the measure of how much correlations count beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from datamodules.batch import RequestBatch
from models.correlated_scores import ByVectors, CorrelatedScores
from models.lead import Contest, find_lead
from models.towers import Towers

LEAST_SPREAD = 1e-9


class Yardstick:
    """What towers say to some users by their vectors: what neighbours add is left out."""

    def __init__(self, towers: Towers, requests: Sequence[RequestBatch]) -> None:
        """Ask towers.

        Args:
            towers: trained; what their vectors hold already counts.
            requests: of some users who have events.
        """
        self.requests = requests
        self.has_memory = towers.user_tower.memory is not None
        self.is_owned = [batch.mark_owned(towers.n_items) for batch in requests]  # (B, N) each
        self.scores: list[Tensor] = []
        """(B, N) each: products."""
        self.contests: list[Contest] = []
        """Where there is a memory, of owned items with all that they have."""
        for batch, is_owned in zip(requests, self.is_owned, strict=True):
            items = towers.item_vectors(batch.popularity)  # (N, W)
            users, bonus = towers.request_vectors(batch, items)  # (B, W), (E,)
            products = users @ items.T  # (B, N)
            self.scores.append(products)
            if self.has_memory:
                pairs = (batch.owned_users, batch.owned_rows)
                remembered = products.index_put(pairs, bonus, accumulate=True)  # (B, N)
                self.contests.append(Contest.hold(remembered, is_owned))
        self.spread = self._spread(self.scores)

    def measure(self, correlated: CorrelatedScores) -> Measured:
        """Measure what correlations say by it."""
        sums = [correlated.sum_batch(batch) for batch in self.requests]  # (B, R or N) each
        spread = self._spread(list(map(correlated.score, sums)))
        return Measured(self, correlated, sums, self.spread / spread if spread > LEAST_SPREAD else 0.0)

    def _spread(self, scores: Sequence[Tensor]) -> float:
        """Return the standard deviation of scores (B, N): with a memory of those that correlations change."""
        if self.has_memory:
            scores = [part[~is_owned] for part, is_owned in zip(scores, self.is_owned, strict=True)]  # (any,) each
        variances = [part.var(correction=0).item() for part in scores if part.numel()]
        return math.sqrt(float(np.mean(variances or [0.0])))


@dataclass(frozen=True)
class Measured:
    """Correlations beside what towers say to the users of a yardstick."""

    yardstick: Yardstick
    correlated: CorrelatedScores
    sums: Sequence[Tensor]
    """(B, R or N) each, over the users' items."""
    unit: float
    """Times which they vary as much as the towers' scores; 0: they do not vary."""

    def find_lead(self, share: float) -> float:
        """Find what owned items need to keep their places where the others have a share of correlations more.

        Returns:
            What, times the weight of correlations and the length of the user's sum, her items are to have more; 0
            where there is no memory.
        """
        kept, weight = self.yardstick, share * self.unit
        if not (kept.has_memory and weight and isinstance(self.correlated, ByVectors)):
            return 0.0
        pairs = zip(kept.scores, self.sums, strict=True)
        lifted = [scores + weight * self.correlated.score(summed) for scores, summed in pairs]  # (B, N) each
        after = list(map(Contest.against, kept.contests, lifted, kept.is_owned))
        sizes = [weight * summed.norm(dim=1, keepdim=True) for summed in self.sums]  # (B, 1) each
        return find_lead(kept.contests, after, sizes, self.correlated.longest)
