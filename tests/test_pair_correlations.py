"""What items of a set say of each other, pair by pair, against dense algebra."""

from __future__ import annotations

import numpy as np
import pytest

from models import outside_pairs, pair_correlations
from models.pair_correlations import correlate_pairs
from serve.neighbours import Neighbours
from tests.test_item_correlations import RIDGE, N, U, draw


def told_by(found: Neighbours, item: int) -> dict[int, float]:
    """Return the neighbours of an item with their numbers."""
    part = slice(found.offsets[item], found.offsets[item + 1])
    assert (np.diff(found.rows[part]) > 0).all()
    return dict(zip(found.rows[part].tolist(), found.weights[part].tolist(), strict=True))


def order_of(owned: np.ndarray) -> list[int]:
    """Return the items, the most popular ones first."""
    order: list[int] = np.argsort(-owned.sum(axis=0), kind="stable").tolist()
    return order


def invert(owned: np.ndarray) -> np.ndarray:
    return np.linalg.inv(owned.T.astype(np.float64) @ owned + RIDGE * np.eye(owned.shape[1]))


@pytest.mark.parametrize(("most", "wanted"), [(N, 3), (9, 3), (9, 50)])
def test_neighbours_are_the_largest_numbers_of_an_item_among_those_that_are_correlated(monkeypatch, most, wanted):
    monkeypatch.setattr(pair_correlations, "CHUNK", 4)
    owned = draw(seed=6)
    found = correlate_pairs(*owned.nonzero(), owned.shape, RIDGE, most).find_neighbours(wanted)
    core = order_of(owned)[:most]
    precision = invert(owned[:, core])
    assert found.n_items == N
    for place, item in enumerate(core):
        told = {row: weight for row, weight in told_by(found, item).items() if row in core}
        numbers = dict(zip(core, -precision[place] / np.diag(precision), strict=True))
        assert len(told) == min(wanted, most - 1)
        assert told == pytest.approx({row: numbers[row] for row in told}, rel=1e-3, abs=1e-5)
        others = [abs(numbers[row]) for row in core if row not in {item, *told}]
        assert max(others, default=0) <= min(map(abs, told.values())) + 1e-5


@pytest.mark.parametrize("at_once", [1, 70, 2**24], ids=["one by one", "some", "all at once"])
@pytest.mark.parametrize(("kept", "wanted"), [(128, 50), (3, 50), (128, 3)])
def test_an_item_outside_tells_and_is_told_as_if_it_were_the_only_one_more(monkeypatch, at_once, kept, wanted):
    monkeypatch.setattr(outside_pairs, "KEPT", kept)
    monkeypatch.setattr(outside_pairs, "MOST_SUMS", at_once)
    monkeypatch.setattr(outside_pairs, "MOST_COMPARED", at_once)
    owned, most = draw(seed=6), 9
    found = correlate_pairs(*owned.nonzero(), owned.shape, RIDGE, most).find_neighbours(wanted)
    core = order_of(owned)[:most]
    inside = invert(owned[:, core])
    spread = np.diag(inside) ** -0.5
    for item in order_of(owned)[most:]:
        weights = inside @ owned[:, core].T @ owned[:, item]  # its regression on those inside
        varies = invert(owned[:, [*core, item]])[-1, -1] ** -0.5
        heard = dict(zip(core, weights, strict=True))
        said = dict(zip(core, weights * (spread / varies) ** 2, strict=True))  # with their spread beside each other
        strength = dict(zip(core, np.abs(weights * spread), strict=True))
        neighbours = told_by(found, item)
        assert set(neighbours) == set(sorted(core, key=strength.__getitem__)[-min(kept, wanted) :])
        assert neighbours == pytest.approx({row: said[row] for row in neighbours}, rel=1e-3, abs=1e-5)
        back = {row: told_by(found, row)[item] for row in core if item in told_by(found, row)}
        assert back == pytest.approx({row: heard[row] for row in neighbours}, rel=1e-3, abs=1e-5)


def test_numbers_of_all_items_score_as_ease_does():
    owned = draw(seed=6)
    precision = invert(owned)
    weights = -precision / np.diag(precision)
    np.fill_diagonal(weights, 0)
    added = correlate_pairs(*owned.nonzero(), owned.shape, RIDGE, N).find_neighbours(N).of_histories(*lay_out(owned))
    assert added is not None
    scores = added.spread(slice(0, U), N).T * np.sqrt(owned.sum(axis=1))[:, None]
    np.testing.assert_allclose(scores, owned @ weights, atol=1e-4)


def lay_out(owned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of each user's items, padded, and how many there are."""
    lengths = owned.sum(axis=1).astype(int)
    rows = np.zeros((len(owned), lengths.max()), int)
    for user, length in enumerate(lengths):
        rows[user, :length] = owned[user].nonzero()[0]
    return rows, lengths


def test_an_item_that_nobody_has_beside_others_tells_nothing():
    owned = draw(seed=6)
    owned[:, [4, 5]] = owned[0] = 0
    owned[0, 5] = 1  # alone
    found = correlate_pairs(*owned.nonzero(), owned.shape, RIDGE, 9).find_neighbours(50)
    assert told_by(found, 4) == told_by(found, 5) == {}
    assert all(not {4, 5} & set(told_by(found, item)) for item in range(N))
