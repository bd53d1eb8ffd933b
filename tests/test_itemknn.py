from __future__ import annotations

import numpy as np
import pytest

import evaluation.itemknn
from evaluation.events import Events, as_binary, as_counts
from evaluation.itemknn import SHRINK, fit_itemknn
from evaluation.ranking import tiles

U, N, E = 5, 11, 40


def make(seed: int) -> Events:
    rng = np.random.default_rng(seed)
    return Events(rng.integers(U - 1, size=E), rng.integers(9, size=E), None, U, N)


def score_naively(events: Events, k: int, binary: bool) -> np.ndarray:
    """Sum, item by item, the cosines to the k nearest of everything the user has."""
    counts = np.zeros((U, N))
    for user, item in zip(events.user_row, events.item_row, strict=True):
        counts[user, item] += 1
    popularity = counts.sum(axis=0) / (counts.sum(axis=0).max() + 1)
    if binary:
        counts = (counts > 0) * 1.0
    scores = np.zeros((U, N))
    for owned in range(N):
        cosines = []
        for other in range(N):
            norms = np.linalg.norm(counts[:, owned]) * np.linalg.norm(counts[:, other])
            cosines.append(counts[:, owned] @ counts[:, other] / (norms + SHRINK))
        for other in sorted(range(N), key=lambda item: (-np.float32(cosines[item]), item))[:k]:
            scores[:, other] += counts[:, owned] * cosines[other]
    return np.where(scores > 0, scores, popularity - 1)


@pytest.mark.parametrize(("strength", "binary"), [(as_counts, False), (as_binary, True)])
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_a_plain_loop(seed, strength, binary, monkeypatch):
    monkeypatch.setattr(evaluation.itemknn, "tiles", lambda rows, columns: tiles(rows, columns, 3 * N))
    events = make(seed)
    for k, model in zip((2, 3, 400), fit_itemknn(events, (2, 3, 400), strength), strict=True):
        expected = score_naively(events, k, binary)
        assert model.score(np.array([4, 0, 2])) == pytest.approx(expected[[4, 0, 2]], abs=1e-6)


def test_strangers_get_what_is_popular():
    events = make(5)
    (model,) = fit_itemknn(events, (3,), as_binary)
    popular = np.bincount(events.item_row, minlength=N)
    assert (
        np.argsort(model.score(np.array([U - 1]))[0], kind="stable").tolist()
        == np.argsort(popular, kind="stable").tolist()
    )
