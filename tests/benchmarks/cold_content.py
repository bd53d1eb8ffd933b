"""Content-kNN, which new items are to be placed as well as: TF-IDF of the features that the config reads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from datamodules.config import FeatureConfig
from evaluation.baselines import Events
from evaluation.metrics import Ints
from evaluation.ranking import Scores
from serve.encode import split_cell, to_text

HALF_LIVES = (1.0, 4.0, 16.0, 64.0, np.inf)
"""Events after which one counts half as much."""


TIE = 1e-5
"""Drawn on top of cosines: many items have the same content, and their order in the catalogue says nothing."""


class ContentNeighbours:
    """Score items by the cosine of their content to that of the user's history, the later events counting more."""

    def __init__(self, content: sparse.csr_array, past: Events, half_life: float) -> None:
        order = np.lexsort((past.time if past.time is not None else np.arange(len(past.item_row)), past.user_row))
        user, item = past.user_row[order], past.item_row[order]
        ends = np.cumsum(np.bincount(user, minlength=past.n_users))
        weight = 0.5 ** ((ends[user] - 1 - np.arange(len(user))) / half_life)
        taken = sparse.csr_array((weight, (user, item)), shape=(past.n_users, past.n_items))
        self.profiles = unit_rows(sparse.csr_array(taken @ content))
        self.rng = np.random.default_rng(0)
        self.content = np.ascontiguousarray(content.T.toarray(), dtype=np.float32)

    def score(self, user_row: Ints) -> Scores:
        """Return (b, N) scores."""
        cosines = self.profiles[user_row].astype(np.float32) @ self.content
        return np.asarray(cosines + TIE * self.rng.random(cosines.shape, np.float32))


def content_matrix(items: pd.DataFrame, features: dict[str, FeatureConfig]) -> sparse.csr_array:
    """Weigh every item's values by inverse frequency, rows of length 1, (N, values)."""
    cells = [
        (row, f"{name}={token}")
        for name, feature in features.items()
        for row, cell in enumerate(items[str(feature.column)])
        for token in _tokens(feature, cell)
    ]
    rows = np.array([row for row, _ in cells])
    columns, names = pd.factorize(np.array([token for _, token in cells], object))
    frequency = np.bincount(columns)
    weights = np.log(len(items) / frequency)[columns]
    matrix = sparse.csr_array((weights, (rows, columns)), shape=(len(items), len(names)))
    return unit_rows(matrix)


def unit_rows(matrix: sparse.csr_array) -> sparse.csr_array:
    length = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return sparse.csr_array(sparse.diags_array(1 / np.maximum(length, 1e-9)) @ matrix)


def _tokens(feature: FeatureConfig, cell: Any) -> Iterator[str]:
    if feature.kind == "multi_categorical":
        yield from split_cell(cell, feature.separator)
    elif (text := to_text(cell)) is not None:
        yield from (set(re.findall(r"\w+", text.lower())) if feature.kind == "text" else [text])
