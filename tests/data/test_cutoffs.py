from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from datamodules.batch import FeatureDropout
from datamodules.values import TARGET_WEIGHT
from tests.tiny_data import BASKETS, DAY, ORDERED, World, make_data, make_world

HORIZON = 2 * DAY
WORLDS = {
    "next basket": (make_world(BASKETS), None),
    "horizon": (make_world(BASKETS), HORIZON),
    "next basket, nothing twice": (
        make_world(replace(ORDERED, ties="simultaneous")),
        None,
    ),
    "next event, repeats": (make_world(replace(ORDERED, repeats="allow")), None),
}


@pytest.fixture(params=WORLDS)
def case(request):
    return WORLDS[request.param]


def table_of(data) -> pd.DataFrame:
    """Return the events in the order of the flat arrays."""
    events = data.sequences.events
    return pd.DataFrame({"user": events.segments, "item": events.item_row, "time": events.time})


def targets_of(batch, request: int) -> list[int]:
    return batch.target_rows[batch.target_users == request].tolist()


def plans_of(data, epoch: int = 0) -> list:
    """Return the plans of an epoch, which are several."""
    plans = data.examples.plan(7, epoch)
    assert len(plans) > 2
    return plans


@pytest.mark.parametrize("epoch", range(3))
def test_history_ends_where_targets_begin(case, epoch):
    world, horizon = case
    data = make_data(world, horizon=horizon)
    table, contexts = table_of(data), data.sequences.context.codes
    for plan in plans_of(data, epoch):
        batch = data.examples[plan]
        for b, (user, time) in enumerate(zip(plan.users, plan.times, strict=True)):
            mine = table[table["user"] == user]
            if world.schema.ties == "ordered":
                stop = plan.stops[b]
                before, after = mine[mine.index < stop], mine[mine.index == stop]
                assert after["time"].item() == time
            else:
                before, after = mine[mine["time"] < time], mine[mine["time"] >= time]
                last = after["time"].min() + 1 if horizon is None else time + horizon
                after = after[after["time"] < last]
            assert targets_of(batch, b) == sorted(set(after["item"])) != []
            length = int(batch.arrays["history_lengths"][b])
            recent = before["item"].tolist()[-world.schema.history_length :]
            assert batch.history_rows[b, :length].tolist() == recent
            owned = batch.owned_rows[batch.owned_users == b].tolist()
            assert owned == sorted(set(before["item"]))
            assert batch.arrays["request_times"][b] == time
            assert batch.arrays["context_codes"][b].tolist() == contexts[after.index[0]].tolist()
            past = [number for number, at in enumerate(data.trends.moments) if at <= time]
            assert plan.trend[b] == max(past, default=0)
        is_owned = [
            row in batch.owned_rows[batch.owned_users == b].tolist() for b, row in pairs(batch)
        ]
        assert (batch.target_owned >= 0).tolist() == is_owned


def test_where_items_come_again_each_of_the_last_groups_is_a_target_and_no_earlier_one():
    data = make_data(make_world(BASKETS))
    table = table_of(data)
    drawn = {}
    for epoch in range(40):
        for plan in data.examples.plan(7, epoch):
            for user, time in zip(plan.users, plan.times, strict=True):
                drawn.setdefault(user, set()).add(time)

    for user, mine in table.groupby("user"):
        times = sorted(mine["time"].unique())
        n_last = max(4, math.ceil(len(times) / 4))
        assert sorted(drawn[user]) == (times[1:][-n_last:] or times)
    assert table.groupby("user")["time"].nunique().max() > 5


def test_half_of_the_next_groups_are_asked_for_as_of_the_last_event():
    withheld = FeatureDropout(0.0, 0.0, 0.0, 0.0, time_of_next=0.5)
    world = make_world(BASKETS)
    data = make_data(world, withheld)
    events = data.sequences.events
    is_last = []
    for epoch in range(8):
        for plan in plans_of(data, epoch):
            has_past = plan.stops > events.offsets[plan.users]
            asked = data.examples[plan].arrays["request_times"].numpy()
            last = events.time[plan.stops - 1]
            assert ((asked == last) | (asked == plan.times))[has_past].all()
            is_last += (asked == last)[has_past].tolist()
    assert len(is_last) > 40
    assert 0.35 < np.mean(is_last) < 0.65


def pairs(batch) -> list[tuple[int, int]]:
    return list(zip(batch.target_users.tolist(), batch.target_rows.tolist(), strict=True))


def with_changed_future(world: World, user_id: int, time: int) -> World:
    """Give the user's events from a moment on, and all others' too, other items, types and weights."""
    events = world.tables.interactions.copy()
    is_later = (events["datetime"] >= time).to_numpy()
    other = {"view": "buy", "buy": "view"}
    events.loc[is_later, "item_id"] = (events.loc[is_later, "item_id"] - 500 + 5) % 23 + 500
    events.loc[is_later, "event"] = events.loc[is_later, "event"].map(other)
    events.loc[is_later, "weight"] += 3
    return replace(world, tables=replace(world.tables, interactions=events))


@pytest.mark.parametrize("horizon", [None, HORIZON], ids=["next basket", "horizon"])
def test_nothing_at_or_after_the_cut_reaches_a_request(horizon):
    world = make_world(BASKETS)
    data = make_data(world, horizon=horizon)
    for plan in plans_of(data)[:6]:
        first = int(plan.times.min())
        kept = plan.times == first
        batch = data.examples[plan]
        later = make_data(with_changed_future(world, 0, first), horizon=horizon)
        again = later.examples[plan]
        for name, array in batch.arrays.items():
            if name not in ("owned_users", "owned_statistics", "owned_preferences"):
                assert torch.equal(array[kept], again.arrays[name][kept]), name
        rows, users = np.flatnonzero(kept), batch.owned_users.numpy()
        mine, mine_again = (
            np.isin(users, rows),
            np.isin(again.owned_users.numpy(), rows),
        )
        assert torch.equal(batch.history_rows[kept], again.history_rows[kept])
        assert torch.equal(batch.owned_rows[mine], again.owned_rows[mine_again])
        if data.trends.moments[plan.trend[0]] <= first:
            assert torch.equal(batch.popularity, again.popularity)
            for name in ("owned_statistics", "owned_preferences"):
                assert torch.equal(batch.arrays[name][mine], again.arrays[name][mine_again]), name


def test_a_plan_is_a_function_of_seed_and_epoch(case):
    world, horizon = case
    examples = make_data(world, horizon=horizon).examples

    def key(seed: int, epoch: int) -> str:
        plans = examples.plan(seed, epoch)
        return str(
            [(plan.users.tolist(), plan.stops.tolist(), plan.trend.tolist()) for plan in plans]
        )

    keys = {(seed, epoch): key(seed, epoch) for seed in (1, 2) for epoch in (0, 1, 2)}
    assert keys == {place: key(*place) for place in reversed(keys)}
    assert len(set(keys.values())) == 6


@pytest.mark.parametrize("batch_size", [1, 2, 5, 99])
def test_every_epoch_asks_each_user_once_in_as_many_batches(case, batch_size):
    world, horizon = case
    data = make_data(world, horizon=horizon, batch_size=batch_size)
    epochs = [data.examples.plan(3, epoch) for epoch in range(9)]
    users_of_epochs = [
        sorted(user for plan in plans for user in plan.users.tolist()) for plans in epochs
    ]
    users = users_of_epochs[0]
    assert len({len(plans) for plans in epochs}) == 1
    assert users_of_epochs == [users] * 9
    assert len(set(users)) == len(users) > 5
    assert all(len(plan.users) > 0 for plans in epochs for plan in plans)
    assert len(epochs[0]) * batch_size >= len(users)


def test_evidence_is_known_and_never_asked_for_and_targets_weigh_what_is_declared(case):
    world, horizon = case
    rows = world.tables.interactions
    weighed = rows.assign(**{TARGET_WEIGHT: np.where(rows["event"] == "view", 0.0, rows["weight"])})
    data = make_data(
        replace(world, tables=replace(world.tables, interactions=weighed)),
        horizon=horizon,
    )
    events, weight = data.sequences.events, data.sequences.target_weight
    for plan in plans_of(data):
        batch = data.examples[plan]
        for b, user in enumerate(plan.users):
            declared: dict[int, list[float]] = {}
            for position in range(plan.stops[b], plan.ends[b]):
                if weight[position]:
                    row = int(events.item_row[position])
                    declared.setdefault(row, []).append(float(weight[position]))
            weights = {
                row: sum(each) / len(each) * (1 + math.log(len(each)))
                for row, each in declared.items()
            }
            root = math.sqrt(sum(weights.values()))
            is_mine = batch.target_users == b
            rows = batch.target_rows[is_mine].tolist()
            found = dict(zip(rows, batch.target_weights[is_mine].tolist(), strict=True))
            expected = {row: weight / root for row, weight in weights.items()}
            assert found == pytest.approx(expected) != {}
            past = events.item_row[events.offsets[user] : plan.stops[b]].tolist()
            assert batch.owned_rows[batch.owned_users == b].tolist() == sorted(set(past))
