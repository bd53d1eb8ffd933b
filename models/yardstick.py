"""How much the scores of towers vary: the measure of how much correlations count beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datamodules.batch import RequestBatch
from models.correlated_history import CorrelatedHistory, CorrelatedOwned
from models.lead import Contest, find_lead
from models.towers import Towers

SHORTEST = 1e-9


class Yardstick:
    """What towers say to some users before anything is blended in."""

    def __init__(self, towers: Towers, requests: Sequence[RequestBatch]) -> None:
        """Ask towers with nothing blended in.

        Args:
            towers: trained.
            requests: of some users who have events.
        """
        self.requests = requests
        self.has_memory = towers.user_tower.memory is not None
        self.is_owned = [batch.mark_owned(towers.n_items) for batch in requests]  # (B, N) each
        answers = [_answer(towers, batch) for batch in requests]
        self.scores = [scores for scores, _ in answers]  # (B, N) each
        self.contests = [
            Contest.hold(scores + bonus, is_owned)
            for (scores, bonus), is_owned in zip(answers, self.is_owned, strict=True)
        ]
        self.spread = self._spread(self.scores)

    def measure(self, side: CorrelatedHistory | CorrelatedOwned, factors: Tensor) -> Measured:
        """Measure correlations, of factors (N, R), by it."""
        sums = [side.sum_batch(factors, batch) for batch in self.requests]  # (B, R) each
        correlated = [summed @ factors.T for summed in sums]  # (B, N) each
        return Measured(self, sums, correlated, self.spread / self._spread(correlated))

    def _spread(self, scores: Sequence[Tensor]) -> float:
        """Return the standard deviation of scores (B, N): with a memory of those that correlations change."""
        if self.has_memory:
            scores = [part[~is_owned] for part, is_owned in zip(scores, self.is_owned, strict=True)]
        variances = [part.var(correction=0).item() for part in scores if part.numel()]
        return max(math.sqrt(float(np.mean(variances or [0.0]))), SHORTEST)


@dataclass(frozen=True)
class Measured:
    """Correlations beside what towers say to the users of a yardstick."""

    yardstick: Yardstick
    sums: Sequence[Tensor]
    """(B, R) each, of the factors of the users' items."""
    correlated: Sequence[Tensor]
    """(B, N) each."""
    unit: float
    """Times which they vary as much as the towers' scores."""

    def find_lead(self, share: float) -> float:
        """Find what owned items need to keep their places where the others have a share of correlations more.

        Returns:
            What, times the weight of correlations and the length of the user's sum, her items are to have more.
        """
        kept, weight = self.yardstick, share * self.unit
        lifted = [scores + weight * more for scores, more in zip(kept.scores, self.correlated, strict=True)]
        after = map(Contest.against, kept.contests, lifted, kept.is_owned)
        change = [weight * summed.norm(dim=1, keepdim=True) for summed in self.sums]  # (B, 1) each
        return find_lead(kept.contests, list(after), change)


def _answer(towers: Towers, batch: RequestBatch) -> tuple[Tensor, Tensor]:
    """Return products, and what owned items have beyond them and the others 0, (B, N) both."""
    items = towers.item_vectors(batch.popularity)  # (N, W)
    users, bonus = towers.request_vectors(batch, items)  # (B, W), (E,)
    products = users @ items.T  # (B, N)
    beyond = torch.zeros_like(products).index_put((batch.owned_users, batch.owned_rows), bonus)  # (B, N)
    return products, beyond
