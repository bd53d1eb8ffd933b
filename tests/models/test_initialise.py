from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from datamodules.config import FeaturesConfig
from models.config import TEMPERATURE
from models.initialise import (
    FIRST_SCORE,
    build_towers,
    item_factors,
    read_matrix,
    start_taste,
)
from models.towers import Towers
from tests.models.tiny_towers import RECIPE, make_towers
from tests.tiny_data import (
    BASKETS,
    D,
    N,
    U,
    make_data,
    make_set_world,
    make_world,
    pairs_of,
)


@pytest.fixture(scope="module")
def data():
    return make_data(make_set_world(FeaturesConfig(context={"device": "categorical"})))


@pytest.fixture(scope="module")
def bare():
    """Data in which there is no request context to be learned."""
    return make_data(make_set_world(FeaturesConfig()))


def start_towers(data, similarity: str) -> Towers:
    """Build the towers of a set as a run does, and take away what the head adds at random."""
    recipe = replace(RECIPE, n_blocks=0, n_heads=1, similarity=similarity, id_dropout=0.0)
    towers = build_towers(data, recipe, 2).eval()
    torch.nn.init.zeros_(towers.user_tower.head[-1].weight)
    for parameter in towers.user_tower.context.parameters():
        torch.nn.init.zeros_(parameter)
    return towers


@torch.no_grad()
def score_everything(data, towers: Towers) -> np.ndarray:
    items = towers.item_vectors(torch.from_numpy(data.trends.popularity[-1]))
    return np.concatenate(
        [(towers.request_vectors(one, items)[0] @ items.T).numpy() for one in data.final_requests()]
    )


def count_owners(data) -> np.ndarray:
    owners = np.zeros(N)
    for rows in pairs_of(data).values():
        owners[sorted(rows)] += 1
    return owners


def normalise(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("world", ["data", "bare"])
def test_a_user_of_a_set_starts_as_the_sum_of_her_items_and_what_is_popular(
    world, similarity, request
):
    data = request.getfixturevalue(world)
    towers = start_towers(data, similarity)
    factors = towers.item_tower.id_table.weight.detach().double().numpy()
    factors = factors if similarity == "dot" else normalise(factors)
    pairs = pairs_of(data)
    share = 1.0 if similarity == "dot" else TEMPERATURE
    log = np.log1p(count_owners(data))
    popular = share * (log - log.mean())
    expected = np.tile(popular, (U, 1))  # all that there is of a user without items
    for user, rows in pairs.items():
        taste = FIRST_SCORE * factors[sorted(rows)].sum(axis=0) / len(rows) ** 0.5
        expected[user] += factors @ (taste if similarity == "dot" else normalise(taste))
    assert np.abs(score_everything(data, towers) - expected).max() < 2e-5


def test_a_set_is_ordered_without_a_look_at_pairs_of_its_events(bare):
    tower = start_towers(bare, "dot").user_tower
    for batch in bare.final_requests():
        tower.is_set = True
        gaps, groups = tower.order(batch.arrays)
        tower.is_set = False
        expected_gaps, expected_groups = tower.order(batch.arrays)
        assert torch.equal(gaps, expected_gaps)
        assert torch.equal(groups, expected_groups)
    assert any((batch.arrays["history_lengths"] > 1).any() for batch in bare.final_requests())


def test_items_start_as_the_factors_of_who_has_what(data):
    pairs = pairs_of(data)
    owned = np.zeros((U, N))
    for user, rows in pairs.items():
        owned[user, sorted(rows)] = 1
    scaled = owned * (owned.sum(axis=0) + 1) ** -0.25
    _, _, right = np.linalg.svd(scaled, full_matrices=False)
    expected = right[:D].T * (N / D) ** 0.5
    factors = start_towers(data, "dot").item_tower.id_table.weight.detach().numpy()
    assert np.allclose(
        factors @ factors.T, expected @ expected.T, atol=1e-4
    )  # up to the signs of the columns
    again = item_factors(read_matrix(data), D, 2)
    assert np.allclose(again.numpy(), factors, atol=1e-6)
    lighter = scaled * (owned.sum(axis=1, keepdims=True) + 1) ** -0.7
    right = np.linalg.svd(lighter, full_matrices=False)[2][:D]
    found = item_factors(read_matrix(data), D, 2, user_power=-0.7).numpy()
    assert np.allclose(found @ found.T, right.T @ right * N / D, atol=1e-4)


def test_where_repeats_are_learned_an_item_of_a_user_counts_less_the_more_she_has():
    data = make_data(make_world(BASKETS))
    towers = start_towers(data, "dot")
    owned = np.zeros((U, N))
    owned[data.early_pairs()] = 1
    scaled = owned * ((owned.sum(axis=0) + 1) * (owned.sum(axis=1, keepdims=True) + 1)) ** -0.25
    right = np.linalg.svd(scaled, full_matrices=False)[2][:D]
    with torch.no_grad():
        content = towers.item_tower.content(towers.item_codes, towers.item_values)
        found = (towers.item_tower.id_table.weight + content).numpy()
    assert np.allclose(found @ found.T, right.T @ right * N / D, atol=1e-4)


def test_content_explains_what_it_can_and_ids_the_rest():
    """A new item has no id: it stands where its content says, among the items that are like it."""
    world = make_world(BASKETS)
    towers = make_towers(world, make_data(world))
    tower, codes, values = towers.item_tower, towers.item_codes, towers.item_values
    seed, started = (
        torch.Generator().manual_seed(5),
        copy.deepcopy(tower.content.state_dict()),
    )
    with torch.no_grad():
        for parameter in tower.content.parameters():
            parameter.normal_(generator=seed)
        of_content = tower.content(codes, values)  # (N, D)
        tower.content.load_state_dict(started)
    factors = of_content + 0.1 * torch.randn(N, D, generator=seed)  # (N, D)
    start_taste(towers, factors)
    with torch.no_grad():
        said = tower.content(codes, values)  # (N, D)
    assert torch.allclose(said + tower.id_table.weight, factors, atol=1e-6)
    assert (said - of_content).square().mean() < 0.05 * of_content.square().mean()


def test_no_rounding_error_decides_the_sign_of_a_factor():
    """Two items that are alike but for who has them: one factor says (1, -1) of them, and which is larger is chance."""
    alike = np.kron([[1.0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0.5]], np.ones((3, 1)))  # (U, N)
    expected = item_factors(sp.csr_array(alike), 2, 0)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        found = item_factors(
            sp.csr_array(alike * (1 + 1e-15 * rng.standard_normal(alike.shape))), 2, 0
        )
        assert torch.equal(found, expected)


@pytest.mark.parametrize("seed", [3, 5, 6])
def test_users_of_one_item_each_start_as_any_others(seed):
    # all singular values are equal, at which Lanczos' method stops
    places = np.arange(1000) % 50
    if seed == 6:
        places = np.random.default_rng(seed).permutation(1000) % 50
    matrix = sp.csr_array((np.ones(1000, np.float32), (np.arange(1000), places)), (1000, 50))
    factors = item_factors(matrix, 16, seed).numpy()
    # items that nobody takes together are apart: unit singular vectors, scaled
    np.testing.assert_allclose(factors.T @ factors, 50 / 16 * np.eye(16), atol=1e-3)
    assert np.array_equal(item_factors(matrix, 16, seed).numpy(), factors)
