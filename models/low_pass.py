"""What the smooth part of who has what says of items, beside what is learned and what single pairs say.

With X (U, N) who has what, and n the users of each item (N,) and the items of each user (U,), X is scaled to
X~ = diag(n_u^-1/2) X diag(n_i^-1/2). V (N, K) are its leading right singular vectors: tastes that many users share in
part. The ideal low-pass filter of GF-CF (Shen et al., "How Powerful is Graph Convolution for Recommendation?", CIKM
2021) scores by

    x diag(n^-1/2) V V' diag(n^1/2)

Partial correlations and transitions tell what sets an item apart from all others; this tells what they leave out. Each
item vector gets K more entries, its row of diag(n^1/2) V, and one for 1 / n, times which the former count in a history
(`models.correlated_history.WeighedHistory`): a score is still one product. The validation chooses K and how much it
counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from datamodules.batch import RequestBatch
from models.blending import Jury, find_judges
from models.correlated_history import WeighedHistory
from models.correlated_scores import ByVectors
from models.eigenvectors import KRYLOV_BLOCK, leading_eigenvectors
from models.item_correlations import who_has_what
from models.towers import Towers
from models.validation import rank_views
from models.yardstick import Yardstick

CUTS = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of the factors that are tried."""
SHARES = (0.025, 0.05, 0.1, 0.2, 0.4)
NEARLY_ALL, LEAST_GAIN = 0.95, 1.0
"""Of the best gain, and of its standard error. By one error MovieLens-100k (943 users, seeds 0 to 2) chooses 32 or 64
factors by 5 %, with which its test ranks 3 to 4 % better; Amazon Beauty and Gowalla choose none."""
MOST_JUDGES = 16
"""Batches of the validation: every number of factors and share is ranked anew."""
SMALLEST = 1e-3
"""Of the entry for 1 / n, beside vectors of taste: which items are nearest is not told by it."""


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


@dataclass(frozen=True)
class Filter:
    """A filter of all factors, the strongest first."""

    vectors: Tensor
    """(N, K) float32, diag(n^1/2) V."""
    rarity: Tensor
    """(N, 1) float32, 1 / n."""

    def cut(self, factors: int, length: float = 1.0) -> Tensor:
        """Return the parts of item vectors, (N, factors + 1), with factors `length` times as long as they come."""
        return torch.cat([length * self.vectors[:, :factors], SMALLEST * self.rarity], dim=1)  # (N, factors + 1)


class _Gram:
    """X~'X~ of a sparse X~ (U, N), by its products."""

    def __init__(self, matrix: sp.csr_array) -> None:
        self.matrix, self.turned = matrix, matrix.T.tocsr()

    def __matmul__(self, columns: np.ndarray, /) -> np.ndarray:
        product = np.empty_like(columns)  # (N, K)
        for start in range(0, columns.shape[1], KRYLOV_BLOCK):  # users are many: all at once they take (U, K)
            block = slice(start, start + KRYLOV_BLOCK)
            product[:, block] = self.turned @ (self.matrix @ columns[:, block])  # (N, block)
        return product

    def __array__(self, dtype: None = None, /, *, copy: bool | None = None) -> np.ndarray:
        whole: np.ndarray = (self.turned @ self.matrix).toarray()  # (N, N)
        return whole


def fit_filter(user: np.ndarray, item_row: np.ndarray, shape: tuple[int, int], factors: int, seed: int) -> Filter:
    """Find the leading factors of who has what.

    Args:
        user: (E,) user of each event.
        item_row: (E,) item of each event.
        shape: (U, N).
        factors: K, unless there are fewer.
        seed: of the first block of the search for them.
    """
    matrix = who_has_what(user, item_row, shape)  # (U, N)
    n_items, n_users = (np.maximum(matrix.sum(axis=axis), 1.0).astype(np.float32) for axis in (1, 0))  # (U,), (N,)
    scaled = sp.diags_array(n_items**-0.5) @ matrix @ sp.diags_array(n_users**-0.5)  # (U, N)
    rank = max(1, min(factors, shape[0], shape[1] - 1))
    _, columns = leading_eigenvectors(_Gram(scaled.tocsr()), shape[1], rank, seed)  # (K,), (N, K)
    vectors = columns * (n_users**0.5)[:, None]  # (N, K)
    vectors[np.diff(matrix.tocsc().indptr) == 0] = 0  # but for rounding they are: nobody has these
    return Filter(torch.from_numpy(vectors), torch.from_numpy(1 / n_users).unsqueeze(1))


@torch.no_grad()
def add_low_pass(towers: Towers, found: Filter, chosen: LowPass, requests: Sequence[RequestBatch]) -> None:
    """Put the factors that were chosen into the vectors of towers.

    Args:
        towers: without memory; what is blended in stays as it is.
        found: all factors.
        chosen: how many of them, and how much they count.
        requests: as of `choose_low_pass`.
    """
    scores = _score_by(found, chosen.factors)
    unit = Yardstick(towers, requests).measure(scores).unit if chosen.share else 0.0
    if not unit:
        return
    taste = towers.item_vectors(requests[0].popularity)[:, : towers.item_tower.dim]  # (N, D)
    cut = found.vectors[:, : chosen.factors]  # (N, K)
    length = chosen.share * float(taste.norm(dim=1).mean() / cut.norm(dim=1).mean())
    before = towers.item_tower.correlations  # (N, R)
    towers.item_tower.correlations = torch.cat([before, found.cut(chosen.factors, length)], dim=1)  # (N, R + K + 1)
    side = WeighedHistory(chosen.factors, chosen.share * unit / (SMALLEST * length**2))
    towers.user_tower.correlate(side)


@torch.no_grad()
def choose_low_pass(
    towers: Towers, found: Filter, requests: Sequence[RequestBatch], validation: Sequence[RequestBatch]
) -> LowPass:
    """Find how many factors count, and how much, by how they rank what users of the validation took next.

    Args:
        towers: without memory; what is blended in stays as it is.
        found: all factors.
        requests: of some users who have events, to see how much scores vary.
        validation: with targets, all as of one moment; of very many a part is judged by.
    """
    judges, none = find_judges(validation), LowPass(0, 0.0)
    if not judges:
        return none
    yardstick = Yardstick(towers, requests)
    scores = {factors: _score_by(found, factors) for factors in _cuts(found)}
    units = {factors: yardstick.measure(one).unit for factors, one in scores.items()}
    judged: dict[LowPass, list[np.ndarray]] = {none: []}
    jury = Jury(towers, judges[:: math.ceil(len(judges) / MOST_JUDGES)])
    room = jury.items.new_empty(max(len(users) for users, _ in jury.alone), len(jury.items))  # (B, N)
    for batch, (users, _) in zip(jury.batches, jury.alone, strict=True):
        base = towers.score_items(users, jury.items, batch)  # (B, N)
        judged[none].append(rank_views(base, None, batch)["novel"])
        for factors, one in scores.items():
            more = one.score(one.sum_batch(batch))  # (B, N)
            for share in SHARES:
                changed = torch.add(base, more, alpha=share * units[factors], out=room[: len(base)])  # (B, N)
                judged.setdefault(LowPass(factors, share), []).append(rank_views(changed, None, batch)["novel"])
    return pick({one: np.concatenate(parts) for one, parts in judged.items()}, none)


def pick(found: dict[LowPass, np.ndarray], none: LowPass) -> LowPass:
    """Choose by NDCG@10 of each user, (R,): the fewest factors that gain nearly all, and the least share of these."""
    gains = {one: float((values - found[none]).mean()) for one, values in found.items()}
    best = max(gains, key=lambda one: gains[one])
    error = (found[best] - found[none]).std() / len(found[none]) ** 0.5
    if gains[best] <= LEAST_GAIN * error:
        best = none
    able = [one for one in gains if gains[one] >= NEARLY_ALL * gains[best]] if best != none else [none]
    chosen = min(able, key=lambda one: (one.factors, one.share))
    return LowPass(chosen.factors, chosen.share, float(found[chosen].mean()), float(found[none].mean()))


def _cuts(found: Filter) -> list[int]:
    return sorted({max(1, round(cut * found.vectors.shape[1])) for cut in CUTS})


def _score_by(found: Filter, factors: int) -> ByVectors:
    return ByVectors(WeighedHistory(factors, 1 / SMALLEST), found.cut(factors))
