"""Kinship of new items against dense algebra, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models import newcomers as newcomers_module
from models.kinship import ENTRIES, add_kinship
from models.newcomers import Newcomers, find_kinship, fit_newcomers
from models.towers import Towers
from models.warm_start import factorise_categories
from tests.tiny_data import BASKETS, ORDERED, N, make_data, make_world
from tests.tiny_towers import make_towers, one_thread


@pytest.fixture(scope="module", autouse=True)
def _alone():
    with one_thread():
        yield


@pytest.fixture
def baskets():
    world = make_world(BASKETS)
    data = make_data(world)
    return data, make_towers(world, data), torch.from_numpy(data.trends.popularity[-1])


def answer(data, towers: Towers, items: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return all users' vectors, memory scores and category preferences."""
    with torch.no_grad():
        batches = list(data.final_requests())
        vectors, scores = zip(*(towers.request_vectors(batch, items) for batch in batches), strict=True)
    preferences = [batch.arrays["category_preferences"] for batch in batches]
    return torch.cat(vectors), torch.cat(scores), torch.cat(preferences)


def split_off(vectors: torch.Tensor, n_windows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Take kinship out of vectors: what is left, and kinship."""
    stop = vectors.shape[1] - n_windows
    rest = torch.cat([vectors[:, : stop - ENTRIES], vectors[:, stop:]], dim=1)
    return rest, vectors[:, stop - ENTRIES : stop]


def test_nothing_else_changes_and_items_of_the_catalogue_have_none(baskets):
    data, towers, popularity = baskets
    with torch.no_grad():
        items = towers.item_vectors(popularity)
        users, scores, _ = answer(data, towers, items)
        add_kinship(towers, data.final_requests(), seed=0)
        wide_items = towers.item_vectors(popularity)
        wide_users, wide_scores, _ = answer(data, towers, wide_items)
    rest, kinship = split_off(wide_items, popularity.shape[1])
    assert torch.equal(rest, items)
    assert not kinship.any()
    rest, kinship = split_off(wide_users, popularity.shape[1])
    assert torch.equal(rest, users)
    assert kinship.any()
    torch.testing.assert_close(wide_scores, scores)


def test_kinship_is_the_best_of_its_rank_of_shares_times_rarity_squared(baskets, monkeypatch):
    data, towers, popularity = baskets
    monkeypatch.setattr("models.kinship.ENTRIES", 3)
    add_kinship(towers, data.final_requests(), seed=0)
    with torch.no_grad():
        users, _, preferences = answer(data, towers, towers.item_vectors(popularity))
    stop = users.shape[1] - popularity.shape[1]
    found = users[:, stop - 3 : stop] @ towers.item_tower.kinship[towers.categories].sum(dim=1).T  # (U, N)
    rows = towers.categories.numpy()
    sizes = np.array([(rows == category).sum() for category in range(preferences.shape[1])])
    rarity = np.log(N / np.maximum(sizes, 1)) ** 2
    taken = preferences.double().numpy()
    values = taken / np.maximum(taken.sum(axis=1, keepdims=True), 1e-12) * rarity * np.sqrt(sizes)
    left, lengths, right = np.linalg.svd(values, full_matrices=False)
    nearest = (left[:, :3] * lengths[:3]) @ right[:3] / np.sqrt(np.maximum(sizes, 1))
    expected = nearest[:, rows].sum(axis=2)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4 * np.abs(expected).max())


def test_tables_of_enough_entries_say_what_users_have():
    rng = np.random.default_rng(1)
    values, sizes = rng.random((40, 3)) @ rng.random((3, 9)), np.array([4, 1, 7, 0, 2, 2, 5, 1, 3])
    of_users, of_items = factorise_categories(values, sizes, 5, seed=0)
    found = values @ of_users.double().numpy() @ of_items.double().numpy().T
    np.testing.assert_allclose(found[:, sizes > 0], values[:, sizes > 0], atol=1e-4)
    assert not found[:, 3].any()  # nothing is of that category


def test_a_new_item_is_scored_by_what_its_user_takes(baskets):
    data, towers, popularity = baskets
    add_kinship(towers, data.final_requests(), seed=0)
    with torch.no_grad():
        users, _, _ = answer(data, towers, towers.item_vectors(popularity))
        columns = (towers.item_codes, towers.item_values, towers.categories)
        content, zeros = towers.item_tower.content, torch.zeros(popularity.shape[1])
        without, with_it = (
            users @ Newcomers(towers.item_tower, content, zeros, kinship=times)(*columns).T for times in (0.0, 2.0)
        )
    _, kinship = split_off(users, popularity.shape[1])
    own = kinship @ towers.item_tower.kinship[towers.categories].sum(dim=1).T
    torch.testing.assert_close(with_it - without, 2 * own, rtol=1e-4, atol=1e-4)


def test_it_counts_by_its_share_of_how_much_scores_vary(baskets):
    data, towers, popularity = baskets
    add_kinship(towers, data.final_requests(), seed=0)
    with torch.no_grad():
        vectors = towers.item_vectors(popularity)
        newcomers = Newcomers(towers.item_tower, towers.item_tower.content, torch.zeros(popularity.shape[1]))
        stand_ins = torch.tensor([0, 2, 3, 7])
        found = find_kinship(towers, vectors, stand_ins, newcomers, list(data.final_requests()))
        users, _, _ = answer(data, towers, vectors)
        columns = (towers.item_codes[stand_ins], towers.item_values[stand_ins], towers.categories[stand_ins])
        scores = []
        for times in (0.0, found):
            newcomers.kinship.fill_(times)
            scores.append(users @ newcomers(*columns).T)
    ratio = (scores[1] - scores[0]).std() / scores[0].std()
    assert float(ratio) == pytest.approx(newcomers_module.KINSHIP_SHARE, rel=1e-3)


def test_new_items_of_a_fitted_placement_have_kinship(baskets):
    data, towers, popularity = baskets
    add_kinship(towers, data.final_requests(), seed=0)
    newcomers = fit_newcomers(towers, popularity, torch.ones(N, dtype=torch.bool), data.drawn_requests(9), seed=4)
    assert newcomers.kinship > 0
    with torch.no_grad():
        placed = newcomers(towers.item_codes, towers.item_values, towers.categories)
    assert split_off(placed, popularity.shape[1])[1].any()


def test_without_a_memory_there_is_none():
    world = make_world(ORDERED)
    data = make_data(world)
    towers, popularity = make_towers(world, data), torch.from_numpy(data.trends.popularity[-1])
    before = towers.item_vectors(popularity)
    add_kinship(towers, data.final_requests(), seed=0)
    assert torch.equal(towers.item_vectors(popularity), before)
    newcomers = fit_newcomers(towers, popularity, torch.ones(N, dtype=torch.bool), data.drawn_requests(9), seed=4)
    assert newcomers.kinship == 0
