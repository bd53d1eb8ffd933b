from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from datamodules.sequences import FOLDS
from tests.tiny_data import (
    DEVICE,
    EVERYTHING_SHOWN,
    NO_CONTEXT,
    make_data,
    make_set_world,
    pairs_of,
)


@pytest.mark.parametrize("features", [NO_CONTEXT, DEVICE], ids=["alone", "in context"])
def test_every_item_is_predicted_once_an_epoch_from_others_alone(features):
    data = make_data(make_set_world(features))
    owned = pairs_of(data)
    for epoch in range(3):
        asked: dict[int, list[int]] = {}
        for plan in data.examples.plan(7, epoch):
            batch = data.examples[plan]
            for b, user in enumerate(plan.users.tolist()):
                targets = set(batch.target_rows[batch.target_users == b].tolist())
                seen = set(batch.owned_rows[batch.owned_users == b].tolist())
                length = int(batch.arrays["history_lengths"][b])
                assert set(batch.history_rows[b, :length].tolist()) == seen
                assert targets
                assert not targets & seen
                assert targets | seen <= owned[user]
                assert (
                    len(targets) == 1
                    if features is DEVICE
                    else len(targets) <= -(-len(owned[user]) // FOLDS)
                )
                asked.setdefault(user, []).extend(targets)
        assert {user: sorted(rows) for user, rows in asked.items()} == {
            u: sorted(rows) for u, rows in owned.items()
        }


def test_a_plan_is_a_function_of_seed_and_epoch_and_every_epoch_has_as_many_batches():
    examples = make_data(make_set_world()).examples
    first, again, later = examples.plan(7, 3), examples.plan(7, 3), examples.plan(7, 4)
    assert len(first) == len(later)
    for plan, same in zip(first, again, strict=True):
        assert np.array_equal(plan.users, same.users)
        assert np.array_equal(plan.fold_of_event, same.fold_of_event)
        one, other = examples[plan], examples[same]
        assert all(np.array_equal(one.arrays[name], other.arrays[name]) for name in one.arrays)
    assert not np.array_equal(first[0].fold_of_event, later[0].fold_of_event)


@pytest.mark.parametrize("features", [NO_CONTEXT, DEVICE], ids=["alone", "in context"])
def test_the_examples_of_a_user_weigh_together_like_the_root_of_how_many_items_she_has(
    features,
):
    world = make_set_world(features)
    rows = world.tables.interactions.drop_duplicates(["user_id", "item_id"], ignore_index=True)
    data = make_data(replace(world, tables=replace(world.tables, interactions=rows)))
    totals = dict.fromkeys(pairs_of(data), 0.0)
    for plan in data.examples.plan(7, 0):
        batch = data.examples[plan]
        owners = plan.users[batch.target_users.numpy()].tolist()
        for user, weight in zip(owners, batch.target_weights.tolist(), strict=True):
            totals[user] += weight
    roots = {user: len(items) ** 0.5 for user, items in pairs_of(data).items()}
    assert len(set(roots.values())) > 4
    assert totals == pytest.approx(roots, rel=0.02)  # parts of unlike size are a little less


def test_the_context_is_that_of_an_event_on_the_target():
    data = make_data(make_set_world(DEVICE), EVERYTHING_SHOWN)
    events, codes = data.sequences.events, data.sequences.context.codes[:, 0]
    plans = data.examples.plan(7, 0)
    assert len(plans) > 1
    for plan in plans:
        batch = data.examples[plan]
        for b, user in enumerate(plan.users.tolist()):
            (row,) = batch.target_rows[batch.target_users == b].tolist()
            mine = np.arange(events.offsets[user], events.offsets[user + 1])
            assert (
                batch.arrays["context_codes"][b, 0].item()
                in codes[mine[events.item_row[mine] == row]]
            )
