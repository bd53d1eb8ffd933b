"""What items of a set say of each other, pair by pair, against dense algebra."""

from __future__ import annotations

import numpy as np
import pytest

from models import outside_pairs, pair_correlations
from models.pair_correlations import correlate_pairs
from serve.index import Neighbours
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


@pytest.mark.parametrize("most", [N + 30, 9])
def test_items_that_nobody_has_say_nothing_are_told_nothing_and_are_not_inverted(most):
    owned = draw(seed=6)
    listed = np.zeros((U, N + 30), np.float32)
    places = np.sort(np.random.default_rng(8).permutation(N + 30)[:N])
    listed[:, places] = owned
    alone = correlate_pairs(*owned.nonzero(), owned.shape, RIDGE, most)
    among = correlate_pairs(*listed.nonzero(), listed.shape, RIDGE, most)
    assert len(among.rows) == len(among.numbers) == min(most, N)
    found, beside = alone.find_neighbours(3), among.find_neighbours(3)
    assert np.diff(beside.offsets)[np.setdiff1d(np.arange(N + 30), places)].max() == 0
    for item, place in enumerate(places.tolist()):
        told = {int(places[row]): weight for row, weight in told_by(found, item).items()}
        assert told_by(beside, place) == pytest.approx(told, rel=1e-4)


def draw_with_a_copy() -> np.ndarray:
    """Let the least popular item be had by some who have the most popular one, and by nobody else."""
    owned = np.tile(draw(seed=6), (20, 1))
    copied, copy = order_of(owned)[0], order_of(owned)[-1]
    owned[:, copy] = 0
    owned[owned[:, copied].nonzero()[0][: len(owned) // 4], copy] = 1
    return owned


def draw_apart() -> np.ndarray:
    """Add users who have popular items alone, and some who have only others."""
    owned = draw(seed=6)
    order = order_of(owned)
    apart = np.zeros((23, N), np.float32)
    apart[:20, order[:3]] = apart[20:, order[-2:]] = 1
    owned = np.vstack([apart, owned])
    core, others = order_of(owned)[:9], order_of(owned)[9:]
    assert not owned[:20, others].any()
    assert not owned[20:23, core].any()
    return owned


@pytest.mark.parametrize(
    "owned", [draw(seed=6), draw_with_a_copy(), draw_apart()], ids=["any", "nearly a copy", "apart"]
)
@pytest.mark.parametrize("at_once", [1, 70, 2**24], ids=["one by one", "some", "all at once"])
@pytest.mark.parametrize(("most", "kept", "wanted"), [(9, 128, 50), (9, 3, 50), (9, 128, 3), (9, 128, 1), (1, 128, 50)])
def test_an_item_outside_tells_and_is_told_as_if_it_were_the_only_one_more(
    monkeypatch, owned, at_once, most, kept, wanted
):
    monkeypatch.setattr(outside_pairs, "KEPT", kept)
    monkeypatch.setattr(outside_pairs, "MOST_SUMS", at_once)
    monkeypatch.setattr(outside_pairs, "MOST_COMPARED", at_once)
    found = correlate_pairs(*owned.nonzero(), owned.shape, RIDGE, most).find_neighbours(wanted)
    core, others = order_of(owned)[:most], order_of(owned)[most:]
    heard_by: dict[int, dict[int, float]] = {row: {} for row in core}
    for item in others:
        precision = invert(owned[:, [*core, item]])
        said = dict(zip(core, -precision[-1] / np.diag(precision), strict=False))
        heard = dict(zip(core, -precision[:-1, -1] / precision[-1, -1], strict=True))
        strength = {row: said[row] * heard[row] for row in core}  # the partial correlation, squared
        neighbours = told_by(found, item)
        assert set(neighbours) == set(sorted(core, key=strength.__getitem__)[-min(kept, wanted) :])
        assert neighbours == pytest.approx({row: said[row] for row in neighbours}, rel=1e-3, abs=1e-5)
        for row in neighbours:
            heard_by[row][item] = heard[row]
    for row, heard in heard_by.items():
        largest = sorted(heard, key=lambda item: -abs(heard[item]))[:wanted]
        told = {item: number for item, number in told_by(found, row).items() if item in others}
        assert told == pytest.approx({item: heard[item] for item in largest}, rel=1e-3, abs=1e-5)


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
