"""The whole filter of who has what, pair by pair, in sets: what each item says of those that it is nearest to.

With X~ (U, N), V and n of `models.smooth_factors`, GF-CF (Shen et al., "How Powerful is Graph Convolution for
Recommendation?", CIKM 2021) scores a user who has x by

    x (X~'X~ + SMOOTH diag(n^-1/2) V V' diag(n^1/2))

its linear filter, who takes both of two items, and its ideal low-pass filter. The largest numbers of each row of this
matrix join the neighbours that an item has already (`serve.neighbours`). They cost a search no pass over the catalogue,
as entries of vectors do (`models.low_pass`): factors may be as many as a large catalogue needs, and the two powers of n
are those of the paper. The validation chooses how much they count. Where histories have an order it found next to
nothing: beside finished lists of Amazon Beauty .0001 at best, with a standard error of .001.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch

from datamodules.batch import RequestBatch
from evaluation.ranking import tiles, top_k
from models.correlated_scores import ByNeighbours
from models.jury import Jury, find_judges, pick_least
from models.smooth_factors import SmoothFactors
from models.towers import Towers
from models.yardstick import Yardstick
from serve.index import Neighbours

SMOOTH = 0.3
"""The paper's, for Gowalla."""
FACTORS = 256
"""The paper's."""
NEIGHBOURS = 64
"""Beside finished lists of Gowalla, and of Amazon Beauty as pairs, 64 to 256 ranked alike."""
SHARES = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
ERRORS = 1.0
"""Standard errors by which the gain must be above nothing."""
MOST_CELLS = 2**24
"""Numbers of the matrix that are there at once."""


@dataclass(frozen=True)
class PairFilter:
    """How much the filter counts, and how that ranks what users of the validation took next."""

    share: float
    """How much its scores vary, as a share of how much those of the towers' vectors do; 0: it is left out."""
    ndcg: float | None = None
    """NDCG@10 with it; None: there is nothing to validate it by."""
    ndcg_alone: float | None = None
    """NDCG@10 without."""


def filter_pairs(smooth: SmoothFactors) -> Neighbours:
    """Return the largest numbers of each item, a row of the filter; none below 0, and nothing of itself."""
    n_items = len(smooth.n_users)
    most = max(1, min(NEIGHBOURS, n_items - 1))
    root = np.sqrt(smooth.n_users)[:, None]  # (N, 1)
    tells = SMOOTH * smooth.vectors[:, :FACTORS] / root  # (N, K)
    told = np.ascontiguousarray((smooth.vectors[:, :FACTORS] * root).T)  # (K, N)
    users_of = smooth.scaled.T.tocsr()  # (N, U)
    parts = []
    for items in tiles(n_items, n_items, MOST_CELLS):  # (c,) each
        numbers = tells[items] @ told + (users_of[items] @ smooth.scaled).toarray()  # (c, N)
        numbers[np.arange(len(items)), items] = -np.inf
        rows = np.maximum(top_k(numbers, most), 0)  # (c, most); of a single item there is none: -inf, 0 below
        kept = np.maximum(np.take_along_axis(numbers, rows, axis=1), 0)  # (c, most)
        ends = np.arange(len(items) + 1) * most  # (c + 1,)
        part = sp.csr_array((kept.ravel(), rows.ravel(), ends), (len(items), n_items))
        part.eliminate_zeros()
        parts.append(part)
    return _to_neighbours(sp.vstack(parts, format="csr"))


@torch.no_grad()
def add_pair_filter(towers: Towers, found: Neighbours, share: float, requests: Sequence[RequestBatch]) -> None:
    """Add what the filter says to the neighbours of towers.

    Args:
        towers: of sets, without memory.
        found: the filter.
        share: how much it counts.
        requests: as of `choose_pair_filter`.
    """
    unit = Yardstick(towers, requests).measure(ByNeighbours(found)).unit if share else 0.0
    if unit:
        both = _to_matrix(towers.neighbours) + _to_matrix(found.scaled(share * unit))  # (N, N)
        towers.neighbours = _to_neighbours(both.tocsr())


@torch.no_grad()
def choose_pair_filter(
    towers: Towers, found: Neighbours, requests: Sequence[RequestBatch], validation: Sequence[RequestBatch]
) -> PairFilter:
    """Find how much the filter counts, by how it ranks what users of the validation took next.

    Args:
        towers: of sets, without memory; what is blended in stays as it is.
        found: the filter.
        requests: of some users who have events, to see how much scores vary.
        validation: with targets, all as of one moment; of very many a part is judged by.
    """
    judges, none = find_judges(validation), PairFilter(0.0)
    if not judges:
        return none
    jury, measured = Jury(towers, judges), Yardstick(towers, requests).measure(ByNeighbours(found))
    judged = {PairFilter(share): figures for (_, share), figures in jury.judge({none: measured}, SHARES).items()}
    judged[none] = jury.judge_alone()
    chosen = pick_least(judged, none, ERRORS, lambda one: one.share)
    return replace(chosen, ndcg=judged[chosen].mean, ndcg_alone=judged[none].mean)


def _to_matrix(neighbours: Neighbours) -> sp.csr_array:
    shape = (neighbours.n_items, neighbours.n_items)
    return sp.csr_array((neighbours.weights, neighbours.rows, neighbours.offsets), shape)


def _to_neighbours(matrix: sp.csr_array) -> Neighbours:
    matrix.sort_indices()
    return Neighbours(matrix.indptr.astype(np.int64), matrix.indices, matrix.data)
