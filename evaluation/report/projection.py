"""The item vectors seen from above: a plane through the most popular items, coloured by a category."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from evaluation.metrics import Floats
from evaluation.report.item_names import category_columns
from evaluation.targets import Ints
from serve.encoding import to_text
from serve.schema import Schema

MOST_ITEMS = 2000
MOST_COLOURS = 8
NEIGHBOURS = 10
OTHER = "other or missing"


@dataclass(frozen=True)
class Colouring:
    """A category of each of n items."""

    column: str
    labels: tuple[str, ...]
    """The most frequent values, then, where anything is left, `OTHER`."""
    codes: Ints
    """(n,) places in `labels`."""

    @property
    def named(self) -> Ints:
        """The codes of the named values, -1 for all that is left, (n,)."""
        is_left = np.array([label == OTHER for label in self.labels])
        return np.where(is_left[self.codes], -1, self.codes)


def project(vectors: Floats) -> tuple[Floats, float]:
    """Lay vectors (n, D) on the plane of their two main directions (principal components).

    Returns:
        (n, 2) coordinates, and the share of the vectors' variance that they show.
    """
    centred = vectors - vectors.mean(axis=0)
    _, spread, directions = np.linalg.svd(centred, full_matrices=False)
    axes = np.zeros((vectors.shape[1], 2))
    axes[:, : min(2, len(directions))] = directions[:2].T
    variance = spread**2
    total = variance.sum()
    return centred @ axes, float(variance[:2].sum() / total) if total else 0.0


def share_of_alike(vectors: Floats, codes: Ints, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Say how often the k nearest items by cosine are of an item's own category, and how often any item is.

    Args:
        vectors: (n, D), of at least 2 items.
        codes: (n,) category of each item, -1 for one that has none: it is nobody's kin.
        k: neighbours of an item.
    """
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    likeness = unit @ unit.T  # (n, n)
    np.fill_diagonal(likeness, -np.inf)
    k = min(k, len(codes) - 1)
    nearest = np.argpartition(-likeness, k - 1, axis=1)[:, :k]
    has_one = codes >= 0
    sizes = np.bincount(codes[has_one])
    by_chance = (sizes * (sizes - 1)).sum() / max(int(has_one.sum()) * (len(codes) - 1), 1)
    is_kin = codes[nearest[has_one]] == codes[has_one][:, None]
    return float(is_kin.mean()) if is_kin.size else 0.0, float(by_chance)


def choose_colouring(items: pa.Table, schema: Schema) -> Colouring | None:
    """Colour by the column of categories whose few most frequent values part the items best.

    That is the entropy of these values and the rest, times the share of items that have one of them. None where no
    column parts anything.
    """
    found = [colour_by(items, column) for column in category_columns(items, schema)]
    usable = [colouring for colouring in found if len(colouring.labels) > 1]
    return max(usable, key=_worth, default=None)


def colour_by(items: pa.Table, column: str) -> Colouring:
    """Give the most frequent values of a column their own codes, in falling order; equal ones by letters."""
    values = pd.Series([to_text(value) for value in items.column(column).to_pylist()], dtype=object)
    counts = values.value_counts().sort_index(kind="stable").sort_values(ascending=False, kind="stable")
    frequent = [str(value) for value in counts.index[:MOST_COLOURS]]
    codes = pd.Index(frequent, dtype=object).get_indexer(pd.Index(values, dtype=object)).astype(np.int64)
    is_other = codes < 0
    labels = (*frequent, OTHER) if is_other.any() else tuple(frequent)
    return Colouring(column, labels, np.where(is_other, len(frequent), codes))


def _worth(colouring: Colouring) -> float:
    shares = np.bincount(colouring.codes, minlength=len(colouring.labels)) / len(colouring.codes)
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    named = 1 - shares[-1] if colouring.labels[-1] == OTHER else 1.0
    return float(entropy * named)
