"""Ridge regression of each item on a few others, for catalogues too large to invert a matrix of.

EASE and next-item regression (`models.item_item`) invert a matrix of the most popular items, the
core. The rest of a large catalogue gets its weights here, on the scale of the same regressions:

    a target i outside of the core   B[S, i] = (G[S, S] + lambda I)^-1 F[S, i], where S are the
                                     `MAX_SOURCES` items that go together with i most
    a source j outside of the core,  B[j, i] = (F[j, i] - G[j, :] B[:, i]) / (G[j, j] + lambda):
    a target i in it                 what the core leaves unexplained, one step of Jacobi's method

G are the products of histories and F those of histories and targets: H'H and H'Y of next-item
regression, and X'X both of EASE. Both are sparse. A restriction of each regression to a few sources
is how sparse approximate inverses begin (Spisak et al., "Scalable Approximate NonSymmetric
Autoencoder for Collaborative Filtering", RecSys 2023).

Letters: N items, n targets, c rows of a tile, s sources of a target, P entries of a sparse matrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from evaluation.ranking import cut_rows, keep_largest_entries
from serve.arrays import Floats, Ints

# Items that a target is regressed on: the ones beyond them go together with it once.
MAX_SOURCES = 24


def regress_rest(
    gram: sp.csr_array,
    following: sp.csr_array,
    of_core: sp.csr_array,
    core: Ints,
    ridge: float,
    top_k: int,
) -> sp.csr_array:
    """Complete the weights of the core by those of all other items.

    Args:
        gram: (N, N) products G of histories.
        following: (N, N) products F of histories and targets.
        of_core: (N, N) weights between the items of the core.
        core: the items of the core.
        ridge: lambda, the strength of the ridge.
        top_k: weights that are kept per row.

    Returns:
        (N, N) sparse weights: row j holds what an item j of a history adds to the other items.
    """
    is_rest = np.ones(gram.shape[0], np.bool_)  # (N,)
    is_rest[core] = False
    rest = np.flatnonzero(is_rest)  # (n,)
    of_rest = explain_rest(gram, following, of_core, rest, ridge)  # (N, N)
    targets = regress_targets(gram, following, rest, ridge)  # (N, N)
    whole = (of_core + of_rest + targets).tocsr()  # (N, N)
    whole.sort_indices()

    return keep_largest_entries(whole, top_k)


def regress_targets(
    gram: sp.csr_array,
    following: sp.csr_array,
    targets: Ints,
    ridge: float,
    max_sources: int = MAX_SOURCES,
) -> sp.csr_array:
    """Predict each target from the items that go together with it most, by ridge regression.

    Args:
        gram: (N, N) products G of histories.
        following: (N, N) products F of histories and targets.
        targets: (n,) items to predict; no item predicts itself.
        ridge: lambda, the strength of the ridge.
        max_sources: items that a target is predicted from.

    Returns:
        (N, N) sparse weights, whose columns are those of the targets.
    """
    wanted = following.T.tocsr()[targets]  # (n, N)
    is_own = wanted.indices == np.repeat(targets, np.diff(wanted.indptr))  # (P,)
    wanted.data[is_own] = 0
    wanted.eliminate_zeros()
    wanted = keep_largest_entries(wanted, max_sources)  # (n, N)

    sizes = np.diff(wanted.indptr)  # (n,)
    weights = np.zeros(wanted.nnz, np.float32)  # (P,)
    by_size = np.argsort(
        sizes, kind="stable"
    )  # those of a tile have about as many sources
    by_size = by_size[np.count_nonzero(sizes == 0) :]

    for tile in cut_rows(sizes[by_size] ** 2):
        rows = by_size[tile]  # (c,)
        width = sizes[rows[-1]]
        places = wanted.indptr[rows][:, None] + np.arange(width)  # (c, s)
        is_source = np.arange(width) < sizes[rows][:, None]  # (c, s)
        places = np.where(is_source, places, wanted.indptr[rows][:, None])
        solved = _solve(gram, wanted, places, is_source, ridge)  # (c, s)
        weights[places[is_source]] = solved[is_source]

    cells = (wanted.indices, np.repeat(targets, sizes))  # (P,) both
    return sp.csr_array((weights, cells), gram.shape)


def _solve(
    gram: sp.csr_array, wanted: sp.csr_array, places: Ints, is_source: Any, ridge: float
) -> Floats:
    """Solve the regressions of c targets on their sources, (c, s), 0 where there is none.

    The sources of a target and their products with it are the entries of `wanted` at `places`
    (c, s).
    """
    sources = wanted.indices[places]  # (c, s)
    shape = (*sources.shape, sources.shape[1])
    left = np.broadcast_to(sources[:, :, None], shape)  # (c, s, s)
    right = np.broadcast_to(sources[:, None, :], shape)  # (c, s, s)
    is_pair = is_source[:, :, None] & is_source[:, None, :]  # (c, s, s)

    products = np.zeros(shape, np.float32)  # (c, s, s)
    products[is_pair] = gram[left[is_pair], right[is_pair]]
    diagonal = np.arange(shape[1])
    products[:, diagonal, diagonal] += np.float32(ridge)
    values = np.where(is_source, wanted.data[places], 0)  # (c, s)

    return np.asarray(np.linalg.solve(products, values[:, :, None])[:, :, 0])


def explain_rest(
    gram: sp.csr_array,
    following: sp.csr_array,
    of_core: sp.csr_array,
    sources: Ints,
    ridge: float,
) -> sp.csr_array:
    """Return what items outside of the core say of those in it beyond the core, (N, N).

    Args:
        gram: (N, N) products G of histories.
        following: (N, N) products F of histories and targets.
        of_core: (N, N) weights between the items of the core.
        sources: (n,) items outside of the core.
        ridge: lambda, the strength of the ridge.
    """
    n_items = gram.shape[0]
    is_target = np.zeros(n_items, np.float32)  # (N,)
    is_target[of_core.indices] = 1
    steps = 1 / (gram.diagonal() + ridge)  # (N,)
    per_row = np.diff(of_core.indptr)  # (N,)
    n_products = gram[sources] @ per_row  # (n,) multiplications at most
    parts = [sp.csr_array((0, n_items), dtype=np.float32)]

    for tile in cut_rows(n_products.astype(np.int64)):
        rows = sources[tile]  # (c,)
        wanted = following[rows] @ sp.diags_array(is_target)  # (c, N)
        predicted = gram[rows] @ of_core  # (c, N)
        left = wanted - predicted.multiply(wanted != 0)  # (c, N)
        parts.append(sp.csr_array(sp.diags_array(steps[rows]) @ left))

    stacked = sp.vstack(parts, format="coo")  # (n, N)
    cells = (sources[stacked.row], stacked.col)
    return sp.csr_array((stacked.data, cells), gram.shape)
