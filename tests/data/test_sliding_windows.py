from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from datamodules.batch import FeatureDropout
from datamodules.sliding_windows import WindowExamples, count_batches, cut_windows
from datamodules.values import TARGET_WEIGHT
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_data import EVERYTHING_SHOWN, ORDERED, batches, make_data, make_world

WORLD = make_world(ORDERED)
counts_of_users = st.lists(st.integers(0, 40), min_size=1, max_size=9)


def offsets_of(counts: list[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


@settings(max_examples=60, deadline=None)
@given(counts=counts_of_users, length=st.integers(2, 11), seed=st.integers(0, 99))
def test_windows_are_a_partition_of_the_targets(counts, length, seed):
    offsets = offsets_of(counts)
    users, starts, stops = cut_windows(offsets, length, np.random.default_rng(seed))
    targets: Counter[int] = Counter()
    for user, start, stop in zip(users, starts, stops, strict=True):
        assert offsets[user] <= start < stop <= offsets[user + 1]
        assert stop - start <= length
        targets.update(range(start + (start > offsets[user]), stop))
    assert targets == Counter(range(sum(counts)))


@settings(max_examples=40, deadline=None)
@given(counts=counts_of_users, length=st.integers(2, 11), size=st.integers(1, 5))
def test_every_epoch_has_as_many_batches(counts, length, size):
    n_batches = count_batches(np.array(counts), length, size)
    n_windows = [
        len(cut_windows(offsets_of(counts), length, np.random.default_rng(seed))[0])
        for seed in range(30)
    ]
    assert n_batches == max(1, min(n_batches, *n_windows))  # no batch is empty, unless all are
    assert n_batches <= -(-max(n_windows) // size) or n_batches == 1


def plans_of(data) -> list:
    """Return the plans of an epoch, which are several."""
    plans = data.examples.plan(7, 0)
    assert len(plans) > 1
    return plans


def plan_key(plan) -> tuple:
    return plan.users.tolist(), plan.starts.tolist(), plan.stops.tolist(), plan.seed


def test_a_plan_is_a_function_of_seed_and_epoch():
    examples = make_data(WORLD).examples
    assert isinstance(examples, WindowExamples)
    plans = {
        (seed, epoch): list(map(plan_key, examples.plan(seed, epoch)))
        for seed in (1, 2)
        for epoch in (0, 1, 2)
    }
    again = {
        (seed, epoch): list(map(plan_key, examples.plan(seed, epoch)))
        for seed, epoch in reversed(plans)
    }
    assert plans == again
    assert len({str(plan) for plan in plans.values()}) == 6
    assert len({len(plan) for plan in plans.values()}) == 1


def test_a_batch_equals_a_loop_over_the_table():
    data = make_data(WORLD)
    sequences, events = data.sequences, data.sequences.events
    for plan in plans_of(data):
        batch = data.examples[plan]
        lengths = plan.stops - plan.starts
        assert batch.history_rows.shape == (len(lengths), lengths.max())
        assert batch.arrays["history_lengths"].tolist() == lengths.tolist()
        for b, (user, start) in enumerate(zip(plan.users, plan.starts, strict=True)):
            assert torch.equal(
                batch.arrays["user_codes"][b],
                torch.from_numpy(sequences.user.codes[user]),
            )
            for i in range(lengths.max()):
                place = start + i
                is_first = place == events.offsets[user]
                is_new = (
                    i < lengths[b]
                    and events.item_row[place] not in events.item_row[events.offsets[user] : place]
                )
                assert batch.is_target[b, i] == (is_new and (i > 0 or is_first))
                if i >= lengths[b]:
                    assert batch.recency[b, i] == 0
                    continue
                assert batch.history_rows[b, i] == events.item_row[place]
                assert batch.arrays["history_times"][b, i] == events.time[place]
                assert batch.arrays["history_events"][b, i] == events.event[place]
                assert batch.arrays["history_groups"][b, i] == i + 1
                assert batch.context_codes[b, i].tolist() == sequences.context.codes[place].tolist()
                assert batch.recency[b, i] == (
                    events.time[place] - events.time[place - 1] if i else 0
                )
        assert batch.sees_history.all()


# Windows have no next group.
PARTS = [field.name for field in fields(FeatureDropout) if field.name != "time_of_next"]


@pytest.mark.parametrize("name", PARTS)
def test_one_part_is_withheld_without_the_others(name):
    data = make_data(WORLD, replace(EVERYTHING_SHOWN, **{name: 1.0}))
    for plan in plans_of(data):
        batch, shown = data.examples[plan], make_data(WORLD).examples[plan]
        is_shown = {
            "history": bool(batch.sees_history.all()),
            "user": torch.equal(batch.arrays["user_codes"], shown.arrays["user_codes"]),
            "context": torch.equal(
                batch.context_codes[batch.is_target],
                shown.context_codes[shown.is_target],
            ),
            "time": torch.equal(batch.recency, shown.recency),
        }
        assert [part for part, is_there in is_shown.items() if not is_there] == [name]


def test_targets_weigh_what_is_declared():
    rows = WORLD.tables.interactions
    weighed = rows.assign(**{TARGET_WEIGHT: rows["event"].map({"view": 0.0, "buy": 1.5})})
    weighed.loc[weighed["device"] == "web", TARGET_WEIGHT] *= 2
    data = make_data(replace(WORLD, tables=replace(WORLD.tables, interactions=weighed)))
    assert len(np.unique(data.sequences.target_weight)) == 3
    for plan in plans_of(data):
        batch = data.examples[plan]
        for b, (start, stop) in enumerate(zip(plan.starts, plan.stops, strict=True)):
            declared = data.sequences.target_weight[start:stop].tolist()
            weights = batch.target_weights[b, : stop - start].tolist()
            assert all(weight in (one, 0) for weight, one in zip(weights, declared, strict=True))
    assert {
        weight for batch in batches(data) for weight in batch.target_weights.unique().tolist()
    } == {0.0, 1.5, 3.0}
