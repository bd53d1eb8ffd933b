"""Users of the validation as judges of what is added to trained towers, and the rule by which the least is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
import torch

from datamodules.batch import RequestBatch
from models.towers import Towers
from models.validation import rank_views
from models.yardstick import Measured

MOST_JUDGES = 100
"""Batches of the validation."""
NEARLY_ALL = 0.95
"""Of the best gain. Pairs of 7,000 users of Amazon Beauty found 4 % more on the test by it than by the best, MovieLens
and groceries chose alike by both."""

Views = Mapping[str, np.ndarray]
"""As of `models.validation.rank_views`."""
Choice = TypeVar("Choice")


@dataclass(frozen=True)
class Figures:
    """NDCG@10 of the validation, of each user who has a target in a view."""

    by_view: Views
    """Of all items there is none without a memory, where owned ones are not recommended."""

    @classmethod
    def join(cls, batches: Sequence[Views]) -> Figures:
        """Put the users of all batches together."""
        return cls({view: np.concatenate([batch[view] for batch in batches]) for view in batches[0]})

    @property
    def novel(self) -> float:
        return float(self.by_view["novel"].mean())

    @property
    def mean(self) -> float:
        """Of all views alike."""
        return fmean(float(view.mean()) for view in self.by_view.values())

    def error_of_gain(self, before: Figures) -> float:
        """Return the standard error of how much the mean is above another, at most: of one user it is infinite."""
        gains = [view - before.by_view[name] for name, view in self.by_view.items()]  # (at most R,) each
        return fmean(float(gain.std(ddof=1)) / len(gain) ** 0.5 if len(gain) > 1 else math.inf for gain in gains)


def pick_least(found: Mapping[Choice, Figures], none: Choice, errors: float, order: Callable[[Choice], Any]) -> Choice:
    """Choose what gains nearly as much as the best that surely gains something: little more is gained by chance.

    Args:
        found: how each ranks.
        none: that nothing is gained by; it is chosen where nothing gains more than so many of its standard errors.
        errors: times which the standard error of a gain is taken off; the best is that with the most left.
        order: of the choices, of which the first is preferred.
    """
    gains = {one: judged.mean - found[none].mean for one, judged in found.items()}
    sure = {one: gain - errors * found[one].error_of_gain(found[none]) for one, gain in gains.items()}
    best = max(sure, key=lambda one: sure[one])
    if sure[best] <= 0:
        return none
    return min((one for one in gains if sure[one] > 0 and gains[one] >= NEARLY_ALL * gains[best]), key=order)


def find_judges(validation: Sequence[RequestBatch], most: int = MOST_JUDGES) -> Sequence[RequestBatch]:
    """Return batches of the validation to judge by: of very many a part; none where nothing new is taken in them."""
    batches = validation[:: math.ceil(len(validation) / most) or 1]
    return batches if any((batch.target_owned < 0).any() for batch in batches) else ()


class Jury:
    """Users of the validation, with the vectors that the towers make."""

    def __init__(self, towers: Towers, batches: Sequence[RequestBatch]) -> None:
        self.towers, self.batches = towers, batches
        self.has_memory = towers.user_tower.memory is not None
        self.items = towers.item_vectors(batches[0].popularity)  # (N, W)
        self.alone = [towers.request_vectors(batch, self.items) for batch in batches]  # (B, W) and (E,) each

    def judge_alone(self) -> Figures:
        """Judge what the towers say, with what is blended into them already."""
        views = []
        for batch, (users, bonus) in zip(self.batches, self.alone, strict=True):
            scores = self.towers.score_items(users, self.items, batch)  # (B, N)
            views.append(rank_views(scores, bonus if self.has_memory else None, batch))
        return Figures.join(views)

    def judge(self, tried: Mapping[Choice, Measured], shares: Sequence[float]) -> dict[tuple[Choice, float], Figures]:
        """Judge what each of several correlations says beside the towers, by several shares of their yardsticks."""
        leads = {one: [measured.find_lead(share) for share in shares] for one, measured in tried.items()}
        ranked: dict[tuple[Choice, float], list[Views]] = {key: [] for key in product(tried, shares)}
        room = self.items.new_empty(max(len(users) for users, _ in self.alone), len(self.items))  # (B, N)
        for batch, (users, bonus) in zip(self.batches, self.alone, strict=True):
            base = self.towers.score_items(users, self.items, batch)  # (B, N)
            for one, measured in tried.items():
                summed = measured.correlated.sum_batch(batch)  # (B, R or N)
                more = measured.correlated.score(summed)  # (B, N)
                of_owned = more[batch.owned_users, batch.owned_rows]  # (E,)
                lengths = summed.norm(dim=1)[batch.owned_users]  # (E,)
                for share, lead in zip(shares, leads[one], strict=True):
                    weight = share * measured.unit
                    scores = torch.mul(more, weight, out=room[: len(more)]).add_(base)  # (B, N)
                    changed = bonus + weight * (lead * lengths - of_owned)  # (E,)
                    ranked[one, share].append(rank_views(scores, changed if self.has_memory else None, batch))
        return {key: Figures.join(views) for key, views in ranked.items()}
