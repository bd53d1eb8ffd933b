from __future__ import annotations

import numpy as np
import pytest
import torch

from models.lead import Contest, find_lead
from models.places import PLACES
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
        history_rows=torch.zeros(B, 1, dtype=torch.int64),
        owned_users=torch.from_numpy(np.repeat(np.arange(B), counts)),
        owned_rows=torch.from_numpy(np.concatenate(rows)),
    )


def draw(batch, seed):
    """Draw scores (B, N), owned items a little better."""
    generator = torch.Generator().manual_seed(seed)
    is_owned = batch.mark_owned(N)
    return torch.randn(B, N, generator=generator) + is_owned, is_owned


def count_by_sorting(scores, is_owned):
    """Count the owned items in each list, a user at a time."""
    return sum(
        int(mine[one.argsort(descending=True)[:PLACES]].sum()) for one, mine in zip(scores, is_owned, strict=True)
    )


@pytest.mark.parametrize("lead", [-2.0, 0.0, 0.7, 9.0])
def test_owned_items_take_the_places_that_a_sort_gives_them(batch, lead):
    scores, is_owned = draw(batch, 1)
    found = Contest.hold(scores, is_owned).places(torch.tensor(lead))
    assert found == count_by_sorting(scores + lead * is_owned, is_owned)


@pytest.mark.parametrize("lift", [-1.5, 0.0, 2.0, 100.0])
def test_with_their_lead_owned_items_keep_their_places(batch, lift):
    scores, is_owned = draw(batch, 2)
    sizes = torch.linspace(0.5, 1.5, B).unsqueeze(1)
    change = sizes * (lift + 0.5 * torch.randn(B, N, generator=torch.Generator().manual_seed(3)))
    lifted = torch.where(is_owned, scores, scores + change)
    before = Contest.hold(scores, is_owned)
    lead = find_lead([before], [before.against(lifted, is_owned)], [sizes], 300.0)
    wanted = count_by_sorting(scores, is_owned)
    assert abs(count_by_sorting(lifted + lead * sizes * is_owned, is_owned) - wanted) <= 1
    assert lead == pytest.approx(lift, abs=0.8)
    if lift:
        assert abs(count_by_sorting(lifted, is_owned) - wanted) > 20


def test_owned_items_that_no_list_held_stay_out_and_are_not_pushed_away_for_it(batch):
    scores, is_owned = draw(batch, 7)
    scores -= 50.0 * is_owned
    before = Contest.hold(scores, is_owned)
    for change in (0.0, 1.0):
        assert find_lead([before], [before.against(scores + change, is_owned)], [torch.ones(B, 1)], 2.0) == 0.0
    fallen = torch.where(is_owned, scores, scores - 100.0)
    lead = find_lead([before], [before.against(fallen, is_owned)], [torch.ones(B, 1)], 100.0)
    assert count_by_sorting(fallen, is_owned) > 200
    assert count_by_sorting(fallen + lead * is_owned, is_owned) <= 1


def test_users_without_items_have_no_owned_places(batch):
    nobody = batch._replace(owned_users=batch.owned_users[:0], owned_rows=batch.owned_rows[:0])
    assert Contest.hold(*draw(nobody, 6)).places(torch.tensor(50.0)) == 0
