"""Say which items are alike by what is known of them: cosines of their features.

Letters: N items, E events, C columns of codes, K codes of items.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from datamodules.sequences import Catalogue
from evaluation.ranking import multiply_items
from serve.arrays import Floats, Ints
from serve.encode import code_slices
from serve.kinds import UNKNOWN

# Items with one value of a feature, above which it says too little.
MAX_SHARING = 100
EVENTS_POWER = 0.25  # of the events of an item, by which its cosines grow


def content_cosines(items: Ints, catalogue: Catalogue, top_k: int) -> sp.csr_array:
    """Return the cosines of items by their features, more of an item with more events, (N, N).

    A value counts the more the rarer it is. What more than `MAX_SHARING` items have, numbers and
    vectors do not count.

    Args:
        items: (E,) item rows of events.
        catalogue: the N items with their features.
        top_k: cosines that are kept per row.

    Source: inverse document frequencies (Sparck Jones, Journal of Documentation 1972).
    """
    values = _list_values(catalogue)  # (codes, N)
    n_sharing = np.maximum(values.sum(axis=1), 1)  # (codes,)
    rarity = np.log(len(catalogue) / n_sharing)  # (codes,)
    rarity *= n_sharing <= MAX_SHARING
    weighted = values.multiply(rarity[:, None]).tocsr()  # (codes, N)
    weighted.eliminate_zeros()
    lengths = np.sqrt(weighted.power(2).sum(axis=0))  # (N,)
    n_events = np.bincount(items, minlength=len(catalogue))  # (N,)
    prior = (n_events + 1.0) ** EVENTS_POWER  # (N,)

    def rescale(products: Floats, rows: Ints, columns: Ints) -> Floats:
        cosines = products / (lengths[rows] * lengths[columns])
        return np.asarray(cosines * prior[columns] * (rows != columns), np.float32)

    return multiply_items(weighted, top_k, rescale)


def _list_values(catalogue: Catalogue) -> sp.csr_array:
    """Return which items have which code of their features, (codes, N) of zeros and ones."""
    firsts: list[int] = []  # the first row of each column's feature, (C,)
    n_codes = 0
    for feature, span in code_slices(catalogue.item_features):
        firsts += [n_codes] * (span.stop - span.start)
        n_codes += feature.n_codes

    codes = catalogue.features.codes  # (N, C)
    items, columns = (codes > UNKNOWN).nonzero()  # (K,) both
    rows = codes[items, columns] + np.array(firsts, np.int64)[columns]  # (K,)
    ones = np.ones(len(rows), np.float32)
    values = sp.csr_array((ones, (rows, items)), (n_codes, len(catalogue)))
    values.data[:] = 1  # duplicates were summed
    return values
