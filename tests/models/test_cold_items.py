"""Cold items: where content places them, how far items with few events are shrunk, and how visible new ones are."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from models.cold_items import (
    ColdItems,
    Contest,
    Shrinkage,
    find_fair,
    fit_cold_items,
    fit_places,
    place_all,
)
from models.towers import Towers
from serve.index import Neighbours
from tests.models.tiny_towers import make_towers
from tests.tiny_data import BASKETS, ORDERED, D, N, make_data, make_world
from torch import nn

from models import cold_items

ALL = torch.ones(N, dtype=torch.bool)
OUTSIDE = N - 2  # items from here on have no content
N_EVENTS = torch.arange(N) % 5  # items 0, 5, ... have none
SEED, MANY = 3, 100
STAND_INS = [0, 1, 2, 3]


@pytest.fixture(params=[(ORDERED, "cosine"), (BASKETS, "dot")], ids=["ordered", "baskets"])
def side(request):
    config, similarity = request.param
    world = make_world(config)
    data = make_data(world)
    return (
        data,
        make_towers(world, data, similarity).eval(),
        torch.from_numpy(data.trends.popularity[-1]),
    )


def vectors_of(towers: Towers, popularity: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return towers.item_vectors(popularity)


def place(cold: nn.Module, towers: Towers, rows=slice(None)) -> torch.Tensor:
    with torch.no_grad():
        return cold(towers.item_codes[rows], towers.item_values[rows], towers.categories[rows])


def fit(side, is_taken=ALL, seed: int = 4) -> ColdItems:
    data, towers, popularity = side
    return fit_cold_items(towers, popularity, is_taken, data.drawn_requests(9), seed)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def known_rows() -> torch.Tensor:
    return torch.tensor([row for row in range(OUTSIDE) if N_EVENTS[row] > 0])


def test_new_items_stand_nearer_to_items_like_them_than_the_trained_content_does(side):
    _, towers, popularity = side
    vectors, tower = vectors_of(towers, popularity), towers.item_tower
    cold = fit(side)

    def distance(placed: torch.Tensor) -> float:
        return float((placed - vectors[:, :D])[:OUTSIDE].square().sum(dim=1).mean())

    with torch.no_grad():
        trained = tower.normalise(tower.content(towers.item_codes, towers.item_values))
    assert distance(place(cold, towers)[:, :D] / cold.length) < 0.8 * distance(trained)


def test_nothing_that_was_trained_changes_and_the_same_seed_places_alike(side):
    _, towers, _ = side
    before = copy.deepcopy(towers.state_dict())
    first, second = place(fit(side), towers), place(fit(side), towers)
    assert all(torch.equal(value, before[name]) for name, value in towers.state_dict().items())
    assert torch.equal(first, second)
    assert not torch.equal(first, place(fit(side, seed=5), towers))


def test_where_nothing_was_taken_the_trained_content_stays(side):
    _, towers, popularity = side
    cold = fit(side, torch.zeros(N, dtype=torch.bool))
    assert torch.equal(cold.places.content.table.weight, towers.item_tower.content.table.weight)
    assert torch.equal(cold.popularity, popularity.amin(dim=0))


def test_items_with_one_content_are_placed_between_the_fit_and_the_mean_of_those_like_them(
    side,
):
    """Against sums item by item."""
    _, towers, popularity = side
    vectors, rows = vectors_of(towers, popularity)[:, :D].double(), known_rows()
    places = fit_places(towers, vectors.float(), rows, generator(), MANY)
    with torch.no_grad():
        fitted = towers.item_tower.normalise(
            places.content(towers.item_codes, towers.item_values)
        ).double()
    found = place_all(places, towers.item_codes, towers.item_values).double()
    keys = nn.functional.normalize(fitted, dim=1)
    for row in range(N):
        weights = torch.exp(cold_items.SHARPNESS * (keys[rows] @ keys[row]))
        mean = (weights[:, None] * vectors[rows]).sum(dim=0) / weights.sum()
        expected = (1 - cold_items.NEIGHBOUR_SHARE) * fitted[
            row
        ] + cold_items.NEIGHBOUR_SHARE * mean
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strength", [1.0, 7.0])
def test_an_item_stands_between_its_own_place_and_that_of_its_content(side, strength):
    _, towers, _ = side
    nothing = torch.zeros(N, 0)
    before = vectors_of(towers, nothing)
    places = fit_places(towers, before, known_rows(), generator(), MANY)
    placed = place_all(places, towers.item_codes, towers.item_values)
    Shrinkage(towers, N_EVENTS.numpy(), SEED).apply(strength)
    moved = vectors_of(towers, nothing)[:, :D]
    assert len(moved) == N
    for row, found in enumerate(moved):
        n, own = int(N_EVENTS[row]), before[row, :D]
        wanted = (n * own + strength * placed[row]) / (n + strength) if row in known_rows() else own
        if towers.item_tower.similarity == "cosine":
            wanted = wanted / wanted.norm()
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_items_without_events_or_content_stay_bit_for_bit_and_a_strength_can_be_taken_back(
    side,
):
    _, towers, _ = side
    table, before = (
        towers.item_tower.id_table.weight,
        copy.deepcopy(towers.state_dict()),
    )
    shrinkage = Shrinkage(towers, N_EVENTS.numpy(), SEED)
    shrinkage.apply(4.0)
    kept = (N_EVENTS == 0) | ~towers.item_has_content
    trained = before.pop("item_tower.id_table.weight")
    assert torch.equal(table[kept], trained[kept])
    assert (table != trained).any(dim=1)[~kept].all()
    assert all(torch.equal(value, towers.state_dict()[name]) for name, value in before.items())
    shrinkage.apply(0.0)
    assert torch.equal(table, trained)


def count_slots(towers: Towers, data, vectors: torch.Tensor, placed: torch.Tensor, k: int) -> int:
    """Count by sorting each user's list how many of its slots the new items take."""
    count = 0
    for batch in data.drawn_requests(9):
        with torch.no_grad():
            users, _ = towers.request_vectors(batch, vectors)
            scores = towers.score_items(users, vectors, batch)
        for row, user in enumerate(users):
            owned = set(batch.owned_rows[batch.owned_users == row].tolist())
            old = [
                (float(scores[row, item]), False) for item in set(range(N)) - owned - set(STAND_INS)
            ]
            new = [
                (float(user @ placed[i]), True)
                for i, item in enumerate(STAND_INS)
                if item not in owned
            ]
            count += sum(is_new for _, is_new in sorted(old + new)[-k:])
    return count


def hold_contests(side, k: int, monkeypatch) -> tuple[list[Contest], ColdItems, torch.Tensor]:
    monkeypatch.setattr(cold_items, "SLOTS", k)
    data, towers, popularity = side
    cold = ColdItems(towers.item_tower, PlacedByContent(towers), torch.zeros(popularity.shape[1]))
    vectors, rows = vectors_of(towers, popularity), torch.tensor(STAND_INS)
    with torch.no_grad():
        return (
            [Contest(towers, vectors, rows, cold, batch) for batch in data.drawn_requests(9)],
            cold,
            vectors,
        )


class PlacedByContent(nn.Module):
    """Place items by the content that was trained."""

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.tower, self.content = (
            towers.item_tower,
            copy.deepcopy(towers.item_tower.content),
        )

    def forward(self, codes: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return self.tower.normalise(self.content(codes, values))


def test_new_items_take_the_share_of_slots_that_their_number_deserves(side, monkeypatch):
    """By popularity where vectors hold some, by their length where they do not, also beside item-item weights."""
    data, towers, popularity = side
    k, share = 3, len(STAND_INS) / N
    towers.neighbours = Neighbours(
        np.arange(N + 1), np.roll(np.arange(N), 1), np.full(N, 0.01, np.float32)
    )
    contests, cold, vectors = hold_contests(side, k, monkeypatch)
    placed, wanted = place(cold, towers, STAND_INS), 9 * k * share
    counts = []
    if popularity.shape[1]:
        found = find_fair(contests, Contest.with_popularity, share, -9.0, 9.0)
        for change in (-0.001, 0.001):
            changed = placed.clone()
            changed[:, -popularity.shape[1] :] = found + change
            counts.append(count_slots(towers, data, vectors, changed, k))
    else:
        low, high = cold_items.MIN_LENGTH, cold_items.MAX_LENGTH
        found = find_fair(contests, Contest.with_length, share, low, high)
        assert low < found < high
        counts = [
            count_slots(towers, data, vectors, (found + change) * placed, k)
            for change in (-0.001, 0.001)
        ]
    assert counts[0] < wanted <= counts[1]


def test_an_owned_item_takes_no_slot(side, monkeypatch):
    contests, _, _ = hold_contests(side, 3, monkeypatch)
    batches = list(side[0].drawn_requests(9))
    assert batches
    for contest, batch in zip(contests, batches, strict=True):
        is_owned = batch.mark_owned(N)[:, STAND_INS]
        assert torch.equal(contest.scores == -math.inf, is_owned)
        assert contest.count_slots(torch.full_like(contest.scores, -math.inf)) == 0
