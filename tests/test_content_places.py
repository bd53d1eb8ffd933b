"""Where content puts items, against sums over items one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models import content_places
from models.content_places import LIKES, SHARPNESS, ContentPlaces, fit_content, fit_places, normalise_taste, place_all
from models.towers import Towers
from tests.models.tiny_towers import make_towers, one_thread
from tests.tiny_data import BASKETS, ORDERED, D, N, make_data, make_world

OUTSIDE = N - 2  # items from here on have no content
KNOWN = torch.arange(OUTSIDE)


@pytest.fixture(scope="module", autouse=True)
def _alone():
    with one_thread():
        yield


@pytest.fixture(params=[(ORDERED, "cosine"), (BASKETS, "dot")], ids=["ordered", "baskets"])
def known(request) -> tuple[Towers, torch.Tensor]:
    """Return towers and the vectors of the catalogue; two pairs of items have the same content."""
    config, similarity = request.param
    world = make_world(config)
    data = make_data(world)
    towers = make_towers(world, data, similarity)
    for one, other in ((0, 5), (0, 9), (3, 7)):
        towers.item_codes[other], towers.item_values[other] = towers.item_codes[one], towers.item_values[one]
    with torch.no_grad():
        return towers, towers.item_vectors(torch.from_numpy(data.trends.popularity[-1]))


def fit(known, rows=KNOWN) -> ContentPlaces:
    towers, vectors = known
    return fit_places(towers, vectors, rows, torch.Generator().manual_seed(2))


def place(places: ContentPlaces, towers: Towers, rows=slice(None)) -> np.ndarray:
    with torch.no_grad():
        return places(towers.item_codes[rows], towers.item_values[rows]).double().numpy()


def fitted(places: ContentPlaces, towers: Towers) -> np.ndarray:
    with torch.no_grad():
        content = places.content(towers.item_codes, towers.item_values)
        return normalise_taste(towers.item_tower, content).double().numpy()


def test_an_item_goes_towards_the_mean_of_all_known_items_weighed_by_likeness(known):
    towers, vectors = known
    places, stand = fit(known), vectors[:, :D].double().numpy()
    alone = fitted(places, towers)
    for item, found in enumerate(place(places, towers)):
        total, mean = 0.0, np.zeros(D)
        for other in range(OUTSIDE):
            lengths = max(np.linalg.norm(alone[item]) * np.linalg.norm(alone[other]), 1e-12)
            weight = np.exp(SHARPNESS * (alone[item] @ alone[other] / lengths - 1))
            total, mean = total + weight, mean + weight * stand[other]
        expected = (1 - LIKES) * alone[item] + LIKES * mean / total
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_contents_that_most_items_have_are_kept(known):
    towers, vectors = known
    places = fit_places(towers, vectors, KNOWN, torch.Generator().manual_seed(2), 2)
    assert places.log_counts.exp().tolist() == pytest.approx([3, 2])
    for row, items in enumerate(([0, 5, 9], [3, 7])):
        torch.testing.assert_close(places.means[row], vectors[items, :D].mean(dim=0))


def test_items_whose_likes_disagree_are_placed_nearer_to_nowhere(known):
    """With cosine all known items are of one length; the mean of those that point elsewhere is short."""
    towers, _ = known
    places = fit(known)
    key = places.keys[:1]
    agreed, opposed = (
        ContentPlaces(
            towers.item_tower, places.content, key.expand(2, -1), torch.stack([key[0], sign * key[0]]), torch.ones(2)
        )
        for sign in (1.0, -1.0)
    )
    alone = fitted(places, towers)[:OUTSIDE]
    likeness = alone @ key[0].double().numpy() / np.linalg.norm(alone, axis=1)
    lengths = [np.linalg.norm(place(of, towers, [likeness.argmax()])) for of in (agreed, opposed)]
    alone = np.linalg.norm(alone[likeness.argmax()])
    assert lengths[1] == pytest.approx((1 - LIKES) * alone, rel=1e-4)
    assert lengths[0] == pytest.approx((1 - LIKES) * alone + LIKES, rel=1e-4)


def test_an_item_is_placed_alike_however_many_others_are(known, monkeypatch):
    towers, _ = known
    places = fit(known)
    monkeypatch.setattr(content_places, "TILE", 5)
    in_tiles = place_all(places, towers.item_codes, towers.item_values).double().numpy()
    np.testing.assert_allclose(place(places, towers), in_tiles, atol=1e-6)
    one_by_one = np.concatenate([place(places, towers, [row]) for row in range(N)])
    np.testing.assert_allclose(place(places, towers), one_by_one, atol=1e-6)


def test_without_known_items_the_trained_content_is_left(known):
    towers, _ = known
    places = fit(known, KNOWN[:0])
    assert torch.equal(places.content.table.weight, towers.item_tower.content.table.weight)
    np.testing.assert_allclose(place(places, towers), (1 - LIKES) * fitted(places, towers), atol=1e-6)


def test_other_items_teach_nothing(known):
    towers, vectors = known
    rows = KNOWN[KNOWN != 3]
    moved = vectors.clone()
    moved[3] += 5
    first, second = fit((towers, vectors), rows), fit((towers, moved), rows)
    assert np.array_equal(place(first, towers), place(second, towers))


def test_content_of_one_category_is_fitted_to_its_mean():
    world = make_world(BASKETS)
    data = make_data(world)
    towers, popularity = make_towers(world, data, "dot"), torch.from_numpy(data.trends.popularity[-1])
    codes = towers.item_codes
    towers.item_codes = torch.cat([codes[:, :1], torch.zeros_like(codes[:, 1:])], dim=1)  # the category alone
    towers.item_values = torch.zeros_like(towers.item_values)
    with torch.no_grad():
        vectors = towers.item_vectors(popularity)
        content = fit_content(towers, vectors, KNOWN, torch.Generator().manual_seed(0))
        placed = content(towers.item_codes, towers.item_values)
    for code in codes[:OUTSIDE, 0].unique():
        members = (codes[:OUTSIDE, 0] == code).nonzero().squeeze(1)
        assert (placed[members[0]] - vectors[members, :D].mean(dim=0)).abs().max() < 0.05
