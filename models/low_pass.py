"""What the smooth part of who has what says of items, beside what is learned and what single pairs say.

With V (N, K) and n of `models.smooth_factors`, the ideal low-pass filter of GF-CF (Shen et al., "How Powerful is Graph
Convolution for Recommendation?", CIKM 2021) scores by

    x diag(n^-1/2) V V' diag(n^1/2)

Partial correlations and transitions tell what sets an item apart from all others; this tells what they leave out. With
the same power of n on both sides a history sums the vectors that an index searches (`models.blending`): an item gets K
more entries, its row of diag(n^p) V. The validation chooses K and how much it counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datamodules.batch import RequestBatch
from models.blending import add_vectors
from models.correlated_history import CorrelatedHistory
from models.correlated_scores import ByVectors
from models.jury import Figures, Jury, find_judges, pick_least
from models.smooth_factors import SmoothFactors
from models.towers import Towers
from models.yardstick import Yardstick

POWER = 1 / 8
"""Of how many have an item. Beside finished lists of MovieLens, LastFM and groceries it ranked as well as the paper's
two powers or better; on LastFM better than 1 / 4, elsewhere as well, and on groceries better than 0."""
CUTS = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of the factors that are tried."""
SHARES = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
ERRORS = 1.0
"""Standard errors by which the gain must be above nothing."""
MOST_JUDGES = 16
"""Batches of the validation: every number of factors and share is ranked anew."""


@dataclass(frozen=True)
class LowPass:
    """How many factors count, and how that ranks what users of the validation took next."""

    factors: int
    share: float
    """How much their scores vary, as a share of how much those of the towers do; 0: they are left out."""
    ndcg: float | None = None
    """NDCG@10 with them; None: there is nothing to validate it by."""
    ndcg_alone: float | None = None
    """NDCG@10 without."""


def filter_vectors(smooth: SmoothFactors, factors: int) -> Tensor:
    """Return the entries of items that up to so many factors are, (N, K) float32, the strongest first.

    The paper's first power makes a history blind to items that nobody has, another one does not.
    """
    return torch.from_numpy(smooth.vectors[:, :factors] * (smooth.n_users**POWER)[:, None])  # (N, K)


@torch.no_grad()
def add_low_pass(towers: Towers, found: Tensor, chosen: LowPass, requests: Sequence[RequestBatch]) -> None:
    """Put the factors that were chosen into the vectors of towers.

    Args:
        towers: without memory; what is blended in stays as it is.
        found: (N, K) all factors.
        chosen: how many of them, and how much they count.
        requests: as of `choose_low_pass`.
    """
    if not chosen.share:
        return
    correlated = ByVectors(CorrelatedHistory(), found[:, : chosen.factors])
    measured = Yardstick(towers, requests).measure(correlated)
    if measured.unit:
        add_vectors(towers, correlated, measured, chosen.share)


@torch.no_grad()
def choose_low_pass(
    towers: Towers, found: Tensor, requests: Sequence[RequestBatch], validation: Sequence[RequestBatch]
) -> LowPass:
    """Find how many factors count, and how much, by how they rank what users of the validation took next.

    Args:
        towers: without memory; what is blended in stays as it is.
        found: (N, K) all factors.
        requests: of some users who have events, to see how much scores vary.
        validation: with targets, all as of one moment; of very many a part is judged by.
    """
    judges, none = find_judges(validation, MOST_JUDGES), LowPass(0, 0.0)
    if not judges:
        return none
    yardstick, jury = Yardstick(towers, requests), Jury(towers, judges)
    numbers = sorted({max(1, round(cut * found.shape[1])) for cut in CUTS})
    tried = {factors: yardstick.measure(ByVectors(CorrelatedHistory(), found[:, :factors])) for factors in numbers}
    judged = {LowPass(factors, share): one for (factors, share), one in jury.judge(tried, SHARES).items()}
    return pick({none: jury.judge_alone()} | judged, none)


def pick(found: Mapping[LowPass, Figures], none: LowPass) -> LowPass:
    """Choose the fewest factors with which nearly all is gained, and the least share of these."""
    chosen = pick_least(found, none, ERRORS, lambda one: (one.factors, one.share))
    return replace(chosen, ndcg=found[chosen].mean, ndcg_alone=found[none].mean)
