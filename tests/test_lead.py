from __future__ import annotations

import numpy as np
import pytest
import torch

from models.lead import PLACES, Contest, find_lead
from tests.tiny_data import BASKETS, hold_out, make_data, make_world

B, N = 40, 90


@pytest.fixture
def batch():
    """Give requests whose owned items are drawn anew: some users have none, some more than a list holds."""
    world, held_out = hold_out(make_world(BASKETS))
    (batch,) = make_data(world, validation=held_out).validation_batches
    counts = np.random.default_rng(4).integers(0, 2 * PLACES, B)
    rows = [np.sort(np.random.default_rng(user).permutation(N)[:count]) for user, count in enumerate(counts)]
    return batch._replace(
        owned_users=torch.from_numpy(np.repeat(np.arange(B), counts)), owned_rows=torch.from_numpy(np.concatenate(rows))
    )


def draw(batch, seed):
    """Draw products (B, N) and what owned items have beyond them (E,)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, N, generator=generator), torch.randn(len(batch.owned_rows), generator=generator) + 1.0


def count_by_sorting(products, beyond, batch):
    """Count the owned items in each list, a user at a time."""
    total = 0
    for user in range(B):
        mine = batch.owned_users == user
        scores, owned = products[user].clone(), batch.owned_rows[mine]
        scores[owned] += beyond[mine]
        total += len(set(scores.argsort(descending=True)[:PLACES].tolist()) & set(owned.tolist()))
    return total


@pytest.mark.parametrize("lead", [-2.0, 0.0, 0.7, 9.0])
def test_owned_items_take_the_places_that_a_sort_gives_them(batch, lead):
    products, bonus = draw(batch, 1)
    assert Contest.hold(products, bonus, batch).places(lead) == count_by_sorting(products, bonus + lead, batch)


@pytest.mark.parametrize("lift", [-1.5, 0.0, 2.0])
def test_with_their_lead_owned_items_keep_their_places(batch, lift):
    products, bonus = draw(batch, 2)
    change = lift + 0.5 * torch.randn(B, N, generator=torch.Generator().manual_seed(3))
    before = Contest.hold(products, bonus, batch)
    lead = find_lead([before], [before.against(products + change, batch)], 20.0)
    pairs = batch.owned_users, batch.owned_rows
    wanted = count_by_sorting(products, bonus, batch)
    assert abs(count_by_sorting(products + change, bonus - change[pairs] + lead, batch) - wanted) <= 1
    assert lead == pytest.approx(lift, abs=0.8)
    if lift:
        assert abs(count_by_sorting(products + change, bonus - change[pairs], batch) - wanted) > 20


def test_a_lead_has_bounds(batch):
    products, bonus = draw(batch, 5)
    before = Contest.hold(products, bonus, batch)
    assert find_lead([before], [before.against(products + 100.0, batch)], 3.0) == pytest.approx(3.0)


def test_owned_items_that_no_list_held_are_not_pushed_away(batch):
    products, bonus = draw(batch, 7)
    before = Contest.hold(products, bonus - 50.0, batch)
    for change in (0.0, 1.0, -100.0):
        assert find_lead([before], [before.against(products + change, batch)], 20.0) == 0.0


def test_users_without_items_have_no_owned_places(batch):
    nobody = batch._replace(owned_users=batch.owned_users[:0], owned_rows=batch.owned_rows[:0])
    products, _ = draw(nobody, 6)
    assert Contest.hold(products, torch.zeros(0), nobody).places(50.0) == 0
