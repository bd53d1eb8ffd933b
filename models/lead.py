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
        return cls(best_scores(scores, is_owned), best_scores(scores, ~is_owned))

    def against(self, scores: Tensor, is_owned: Tensor) -> Contest:
        """Let the same owned items compete with others that score anew, (B, N)."""
        return Contest(self.owned, best_scores(scores, ~is_owned))

    def places(self, lead: Tensor) -> int:
        """Count the places that owned items take with so much more than their scores, (B, 1)."""
        return count_places(self.owned + lead, self.others)


def find_lead(before: Sequence[Contest], after: Sequence[Contest], change: Sequence[Tensor]) -> float:
    """Find what owned items need after a change to take, in all lists together, as many places as before it.

    Where they take as many already they need nothing.

    Args:
        before: the contests.
        after: the same with the other items changed.
        change: (B, 1) how much the others of each list change: what owned items need is in proportion to it.
    """
    wanted = sum(contest.places(torch.zeros(1)) for contest in before)

    def count(lead: float) -> int:
        return sum(contest.places(lead * size) for contest, size in zip(after, change, strict=True))

    if count(0.0) == wanted:
        return 0.0
    most = _widest(after) / float(torch.cat(list(change)).mean())
    return halve(count, max(wanted, 1), -most, most)


def _widest(contests: Sequence[Contest]) -> float:
    """Return by how much scores differ at most: with such a lead owned items stand before all others, or behind."""
    scores = torch.cat([part.flatten() for contest in contests for part in (contest.owned, contest.others)])
    finite = scores[scores.isfinite()]
    return float(finite.max() - finite.min())
