"""What owned items need to keep their places where all others are scored anew.

How many of them a list holds was learned: what makes the others better shall not change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.batch import RequestBatch
from models.halving import halve

PLACES = 10
"""Of a list."""


@dataclass(frozen=True)
class Contest:
    """What stands against each other for the places of B lists."""

    owned: Tensor
    """(B, k) the best scores of items that the user has, -inf where there are fewer."""
    others: Tensor
    """(B, k) the best scores of those that she does not have."""

    @classmethod
    def hold(cls, products: Tensor, bonus: Tensor, batch: RequestBatch) -> Contest:
        """Let items compete by their products (B, N), owned ones with what they have beyond these (E,)."""
        owned = torch.full_like(products, float("-inf"))  # (B, N)
        pairs = (batch.owned_users, batch.owned_rows)
        owned[pairs] = products[pairs] + bonus
        k = min(PLACES, products.shape[1])
        return cls(owned.topk(k, dim=1).values, _best_others(products, batch))

    def against(self, products: Tensor, batch: RequestBatch) -> Contest:
        """Let the same owned items compete with others that score by other products (B, N)."""
        return Contest(self.owned, _best_others(products, batch))

    def places(self, lead: float) -> int:
        """Count the places that owned items take with so much more than their scores."""
        n_places = self.owned.shape[1]
        merged = torch.cat([self.owned + lead, self.others], dim=1)  # (B, 2 k)
        best = merged.topk(n_places, dim=1)  # (B, k)
        return int(((best.indices < n_places) & best.values.isfinite()).sum())


def find_lead(before: Sequence[Contest], after: Sequence[Contest], most: float) -> float:
    """Find what owned items need after a change to take as many places as before it, within `most` either way.

    Where they had none, or have as many as before already, they need nothing: every lower lead would do as well.
    """
    wanted = sum(contest.places(0.0) for contest in before)

    def count(lead: float) -> int:
        return sum(contest.places(lead) for contest in after)

    return 0.0 if wanted in (0, count(0.0)) else halve(count, wanted, -most, most)


def _best_others(products: Tensor, batch: RequestBatch) -> Tensor:
    barred = products.index_put((batch.owned_users, batch.owned_rows), products.new_tensor(float("-inf")))  # (B, N)
    return barred.topk(min(PLACES, products.shape[1]), dim=1).values  # (B, k)
