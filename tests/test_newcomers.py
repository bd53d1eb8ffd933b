from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from datamodules.config import FeaturesConfig
from models import newcomers as newcomers_module
from models import places
from models.content_places import normalise_taste
from models.correlated_history import CorrelatedHistory
from models.features import FeatureEmbedding
from models.item_tower import ItemTower
from models.newcomers import LONGEST, Newcomers, find_length, find_level, fit_newcomers, match_length
from models.towers import Towers
from serve.index import Neighbours
from tests.models.tiny_towers import make_towers, one_thread
from tests.tiny_data import BASKETS, ORDERED, D, N, make_data, make_set_world, make_world

ALL = torch.ones(N, dtype=torch.bool)
OUTSIDE = N - 2  # items from here on have no content
LIFT = 0.15


@pytest.fixture(scope="module", autouse=True)
def _alone():
    with one_thread():
        yield


@pytest.fixture(scope="module", params=[(ORDERED, "cosine"), (BASKETS, "dot")], ids=["ordered", "baskets"])
def side(request):
    config, similarity = request.param
    world = make_world(config)
    data = make_data(world)
    return data, make_towers(world, data, similarity), torch.from_numpy(data.trends.popularity[-1])


def place(newcomers: Newcomers, towers: Towers, rows=slice(None)) -> torch.Tensor:
    with torch.no_grad():
        return newcomers(towers.item_codes[rows], towers.item_values[rows], towers.categories[rows])


class Fitted(nn.Module):
    """Place items by a content part alone."""

    def __init__(self, tower: ItemTower, content: FeatureEmbedding) -> None:
        super().__init__()
        self.tower, self.content = tower, content

    def forward(self, codes: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return normalise_taste(self.tower, self.content(codes, values))


def make_newcomers(towers: Towers, n_popularity: int, length: float = 1.0) -> Newcomers:
    """Make what places new items by a copy of the trained content part."""
    content = Fitted(towers.item_tower, copy.deepcopy(towers.item_tower.content))
    return Newcomers(towers.item_tower, content, torch.zeros(n_popularity), length)


def fit(side, is_taken=ALL) -> tuple[Newcomers, torch.Tensor]:
    data, towers, popularity = side
    newcomers = fit_newcomers(towers, popularity, is_taken, data.drawn_requests(9), seed=4)
    return newcomers, place(newcomers, towers)


def distance(placed: torch.Tensor, vectors: torch.Tensor) -> float:
    return float((placed - vectors)[:OUTSIDE, :D].square().sum(dim=1).mean())


def test_new_items_stand_nearer_to_items_like_them_than_the_trained_content_does(side):
    _, towers, popularity = side
    tower = towers.item_tower
    with torch.no_grad():
        vectors = towers.item_vectors(popularity)
        content = tower.content(towers.item_codes, towers.item_values)
        trained = tower.join(content, tower.correlations, towers.categories, popularity)
    newcomers, placed = fit(side)
    placed[:, :D] /= newcomers.length
    assert distance(placed, vectors) < distance(trained, vectors)
    if tower.similarity == "dot":  # there the nearest that content can place them is known
        assert distance(placed, vectors) < 1.15 * least_distance(towers, vectors)  # the trained content: 1.33
    else:
        assert distance(placed, vectors) < 0.8 * distance(trained, vectors)


def least_distance(towers: Towers, vectors: torch.Tensor) -> float:
    """Solve by least squares for the content tables that place items nearest to where they stand."""
    content = towers.item_tower.content
    n_codes, n_values = len(content.table.weight), len(content.number_table)
    columns = FeatureEmbedding(make_world(BASKETS).schema.item_features, n_codes + n_values).eval()
    with torch.no_grad():  # what each entry of the tables counts in each item
        columns.table.weight.copy_(torch.eye(n_codes, n_codes + n_values))
        columns.number_table.copy_(torch.eye(n_codes + n_values)[n_codes:])
        design = columns(towers.item_codes, towers.item_values)[:OUTSIDE].double()  # (n, codes + values)
    wanted = vectors[:OUTSIDE, :D].double()
    found = torch.linalg.lstsq(design, wanted, driver="gelsd").solution
    return float((design @ found - wanted).square().sum(dim=1).mean())


def test_nothing_that_was_trained_changes(side):
    _, towers, _ = side
    before = copy.deepcopy(towers.state_dict())
    fit(side)
    after = towers.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_same_seed_places_alike(side):
    first, second = fit(side)[1], fit(side)[1]
    assert torch.equal(first, second)


def count_places(
    towers: Towers, data, vectors: torch.Tensor, stand_ins: list[int], placed: torch.Tensor, n_places: int = 10
) -> int:
    """Count by sorting each user's list how many of its places the new items take."""
    count = 0
    for batch in data.drawn_requests(9):
        with torch.no_grad():
            users, _ = towers.request_vectors(batch, vectors)
        for row, user in enumerate(users):
            owned = set(batch.owned_rows[batch.owned_users == row].tolist())
            old = [(float(user @ vectors[item]), False) for item in set(range(N)) - owned - set(stand_ins)]
            new = [(float(user @ placed[i]), True) for i, item in enumerate(stand_ins) if item not in owned]
            count += sum(is_new for _, is_new in sorted(old + new)[-n_places:])
    return count


def test_new_items_take_the_share_of_places_that_is_their_number_s():
    world = make_world(BASKETS)
    data = make_data(world)
    towers, popularity = make_towers(world, data, "dot"), torch.from_numpy(data.trends.popularity[-1])
    stand_ins = [1, 4, 8, 15]
    newcomers = make_newcomers(towers, popularity.shape[1])
    with torch.no_grad():
        vectors = towers.item_vectors(popularity)
        level = find_level(towers, vectors, torch.tensor(stand_ins), newcomers, data.drawn_requests(9))
    counts = []
    for change in (-0.001, 0.001):
        placed = place(newcomers, towers, stand_ins)
        placed[:, -popularity.shape[1] :] = level + change
        counts.append(count_places(towers, data, vectors, stand_ins, placed))
    wanted = 9 * 10 * len(stand_ins) / N
    assert counts[0] < wanted <= counts[1]


def make_cosine_newcomers() -> tuple:
    world = make_world(ORDERED)
    data = make_data(world)
    towers = make_towers(world, data, "cosine")
    with torch.no_grad():
        vectors = towers.item_vectors(torch.zeros(N, 0))
    return data, towers, vectors, make_newcomers(towers, 0)


def test_new_items_are_as_long_as_those_that_stand_in_for_them_but_not_much_longer_than_content_makes_them():
    world = make_world(BASKETS)
    data = make_data(world)
    towers, popularity = make_towers(world, data, "dot"), torch.from_numpy(data.trends.popularity[-1])
    stand_ins = torch.tensor([1, 4, 8, 15])
    columns = (towers.item_codes[stand_ins], towers.item_values[stand_ins], towers.categories[stand_ins])
    with torch.no_grad():
        vectors = towers.item_vectors(popularity)
        lengths = vectors[stand_ins, :D].norm(dim=1)
        for share, expected in ((0.8, 1 / 0.8), (0.1, LONGEST), (3.0, 1 / 3.0)):
            newcomers = make_newcomers(towers, popularity.shape[1])
            scale = share * lengths.mean() / newcomers(*columns)[:, :D].norm(dim=1).mean()
            for table in newcomers.places.content.parameters():
                table.mul_(scale)
            assert match_length(towers, vectors, stand_ins, newcomers) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("is_set", [False, True])
def test_only_with_a_memory_new_items_are_made_as_long_as_the_others_before_they_get_popularity(is_set, monkeypatch):
    lengths = []

    def watch(towers, vectors, stand_ins, newcomers, requests):
        lengths.append(float(newcomers.length))
        return find_level(towers, vectors, stand_ins, newcomers, requests)

    monkeypatch.setattr(newcomers_module, "match_length", lambda *args: 1.7)
    monkeypatch.setattr(newcomers_module, "find_level", watch)
    world = make_set_world(FeaturesConfig(item={"category": "categorical"})) if is_set else make_world(BASKETS)
    data = make_data(world)
    towers, popularity = make_towers(world, data, "dot"), torch.from_numpy(data.trends.popularity[-1])
    newcomers = fit_newcomers(towers, popularity, ALL, data.drawn_requests(9), seed=0)
    assert lengths == pytest.approx([1.0 if is_set else 1.7])
    assert float(newcomers.length) == pytest.approx(lengths[0])


def test_without_popularity_the_length_that_is_found_is_the_whole_length_with_a_memory_too(monkeypatch):
    asked = []

    def find(towers, vectors, stand_ins, newcomers, requests):
        asked.append(float(newcomers.length))
        return 0.7

    monkeypatch.setattr(newcomers_module, "match_length", lambda *args: 1.7)
    monkeypatch.setattr(newcomers_module, "find_length", find)
    world = make_world(BASKETS)
    data = make_data(world)
    towers = make_towers(world, data, "dot")
    assert towers.user_tower.memory is not None
    newcomers = fit_newcomers(towers, torch.zeros(N, 0), ALL, data.drawn_requests(9), seed=0)
    assert asked == [1.0]
    assert float(newcomers.length) == pytest.approx(0.7)


def test_new_items_of_one_length_with_the_others_are_made_shorter_until_they_have_their_share(monkeypatch):
    monkeypatch.setattr(places, "PLACES", 3)  # of a list: all of them worth having
    data, towers, vectors, newcomers = make_cosine_newcomers()
    stand_ins = [0, 1, 2, 3]
    wanted = 9 * 3 * len(stand_ins) / N
    with torch.no_grad():
        length = find_length(towers, vectors, torch.tensor(stand_ins), newcomers, data.drawn_requests(9))
    placed = place(newcomers, towers, stand_ins)
    before, below, above = (
        count_places(towers, data, vectors, stand_ins, times * placed, 3)
        for times in (1, length - 0.001, length + 0.001)
    )
    assert 0.5 < length < 1
    assert below < wanted <= above < before


def test_new_items_are_made_longer_where_neighbours_lift_the_others(monkeypatch):
    monkeypatch.setattr(places, "PLACES", 3)
    data, towers, vectors, newcomers = make_cosine_newcomers()
    stand_ins, asked = [0, 1, 2, 3], list(data.drawn_requests(9))
    lifting = Neighbours(np.arange(N + 1) * N, np.tile(np.arange(N), N), np.full(N * N, LIFT, np.float32))
    with torch.no_grad():
        alone = find_length(towers, vectors, torch.tensor(stand_ins), newcomers, asked)
        towers.neighbours = lifting  # all that is not new, by the same
        length = find_length(towers, vectors, torch.tensor(stand_ins), newcomers, asked)
        towers.neighbours = replace(lifting, weights=100 * lifting.weights)
        longest = find_length(towers, vectors, torch.tensor(stand_ins), newcomers, asked)
        towers.neighbours = lifting
        below, above = (
            count_lifted(towers, vectors, stand_ins, asked, times * place(newcomers, towers, stand_ins))
            for times in (length - 0.001, length + 0.001)
        )
    assert alone < 1 < length < LONGEST
    assert longest == LONGEST
    assert below < 9 * 3 * len(stand_ins) / N <= above


def count_lifted(towers, vectors, stand_ins, asked, placed) -> int:
    """Count the places of three that new items take beside others whose neighbours lift them."""
    n_places = 0
    for batch in asked:
        users, _ = towers.request_vectors(batch, vectors)
        scores = towers.score_items(users, vectors, batch)
        scores[:, stand_ins] = users @ placed.T
        best = scores.masked_fill(batch.mark_owned(N), -np.inf).topk(3, dim=1)
        n_places += int((torch.isin(best.indices, torch.tensor(stand_ins)) & best.values.isfinite()).sum())
    return n_places


def test_new_items_keep_half_their_length_where_nothing_makes_them_rare():
    data, towers, vectors, newcomers = make_cosine_newcomers()
    with torch.no_grad():
        users = torch.cat([towers.request_vectors(batch, vectors)[0] for batch in data.drawn_requests(9)])
        table = newcomers.places.content.table.weight
        table.copy_(users.mean(dim=0).expand_as(table))
        found = find_length(towers, vectors, torch.tensor([0, 1, 2, 3]), newcomers, data.drawn_requests(9))
    assert found == pytest.approx(0.5, abs=1e-5)  # lists of ten are half of what there is


def test_the_length_is_that_of_the_vectors_that_are_made():
    _, towers, _, newcomers = make_cosine_newcomers()
    short = make_newcomers(towers, 0, length=0.25)
    torch.testing.assert_close(place(short, towers), 0.25 * place(newcomers, towers))


def test_popularity_stays_within_that_of_the_catalogue(side):
    _, _, popularity = side
    newcomers, placed = fit(side)
    assert len(newcomers.popularity) == popularity.shape[1]
    assert (newcomers.popularity >= popularity.amin(dim=0)).all()
    assert (newcomers.popularity <= popularity.amax(dim=0)).all()
    assert torch.equal(placed[:, placed.shape[1] - popularity.shape[1] :], newcomers.popularity.expand(N, -1))


def test_where_nothing_was_taken_the_trained_content_stays(side):
    _, towers, popularity = side
    newcomers, _ = fit(side, torch.zeros(N, dtype=torch.bool))
    assert torch.equal(newcomers.places.content.table.weight, towers.item_tower.content.table.weight)
    assert torch.equal(newcomers.popularity, popularity.amin(dim=0))


def test_new_items_are_placed_among_correlations_too():
    data, towers, _, _ = make_cosine_newcomers()
    popularity = torch.from_numpy(data.trends.popularity[-1])
    columns = (towers.item_codes, towers.item_values)
    factors = towers.item_tower.content.widen(D + 3)  # what content says, in other entries
    with torch.no_grad():
        factors.table.weight.normal_(generator=torch.Generator().manual_seed(3))
        factors.number_table.normal_(generator=torch.Generator().manual_seed(4))
        towers.item_tower.correlations = factors(*columns)[:, D:]  # (N, 3)
        towers.user_tower.correlated_history = CorrelatedHistory()
        newcomers = fit_newcomers(towers, popularity, ALL, data.drawn_requests(9), seed=4)
        placed = place(newcomers, towers)[:OUTSIDE, D : D + 3] / newcomers.length
        wanted = towers.item_tower.correlations[:OUTSIDE]
    assert (placed - wanted).square().mean() < 0.05 * wanted.square().mean()


def test_stand_ins_are_drawn_by_the_seed_and_placed_without_having_been_learned_from(side, monkeypatch):
    data, towers, popularity = side
    is_taken = ALL.clone()
    is_taken[:3] = False
    known = set(range(3, OUTSIDE))  # that have content and were taken
    fit_places, learned, apart = newcomers_module.fit_places, [], []

    def watch(towers, vectors, rows, *rest):
        learned.append(set(rows.tolist()))
        return fit_places(towers, vectors, rows, *rest)

    def find(towers, vectors, stand_ins, *rest):
        apart.append(set(stand_ins.tolist()))
        return 0.5

    monkeypatch.setattr(newcomers_module, "fit_places", watch)
    monkeypatch.setattr(newcomers_module, "find_level", find)
    monkeypatch.setattr(newcomers_module, "find_length", find)
    for seed in range(6):
        fit_newcomers(towers, popularity, is_taken, data.drawn_requests(9), seed)
    assert [len(rows) for rows in apart] == [int(0.1 * len(known))] * 6
    assert [rest | rows for rest, rows in zip(learned[::2], apart, strict=True)] == [known] * 6
    assert not any(rest & rows for rest, rows in zip(learned[::2], apart, strict=True))
    assert learned[1::2] == [known] * 6  # in the end all are learned from
    assert len(set(map(frozenset, apart))) > 2
