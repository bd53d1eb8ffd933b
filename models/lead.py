"""What owned items need to keep their places where all others are scored anew.

How many of them lists hold was learned: what makes the others better shall not change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.halving import halve
from models.places import best_scores, count_places


@dataclass(frozen=True)
class Contest:
    """What stands against each other for the places of B lists."""

    owned: Tensor
    """(B, k) the best scores of items that the user has, -inf where there are fewer."""
    others: Tensor
    """(B, k) the best scores of those that she does not have."""

    @classmethod
    def hold(cls, scores: Tensor, is_owned: Tensor) -> Contest:
        """Let items compete by their scores (B, N)."""
        return cls(best_scores(scores, is_owned), best_scores(scores, ~is_owned))  # (B, k) both

    def against(self, scores: Tensor, is_owned: Tensor) -> Contest:
        """Let the same owned items compete with others that score anew, (B, N)."""
        return Contest(self.owned, best_scores(scores, ~is_owned))  # (B, k) both

    def places(self, lead: Tensor) -> int:
        """Count the places that owned items take with so much more than their scores, (B, 1)."""
        return count_places(self.owned + lead, self.others)  # of (B, k) both


def find_lead(before: Sequence[Contest], after: Sequence[Contest], sizes: Sequence[Tensor], most: float) -> float:
    """Find what owned items need after a change to take, in all lists together, as many places as before it.

    Where they take as many already they need nothing.

    Args:
        before: the contests.
        after: the same with the other items changed.
        sizes: (B, 1) each, what the lead of a list is in proportion to.
        most: times which no item of any list changed more, either way: a lead that is always enough.
    """
    wanted = sum(contest.places(torch.zeros(1)) for contest in before)

    def count(lead: float) -> int:
        return sum(contest.places(lead * size) for contest, size in zip(after, sizes, strict=True))

    return 0.0 if count(0.0) == wanted else halve(count, max(wanted, 1), -most, most)
