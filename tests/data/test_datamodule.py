from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from datamodules import datamodule
from datamodules.datamodule import InteractionsDataModule
from datamodules.values import TARGET_WEIGHT
from tests.tiny_data import (
    BASKETS,
    DAY,
    FIRST,
    ORDERED,
    World,
    batches,
    hold_out,
    make_data,
    make_world,
)


@pytest.fixture(scope="module", params=[ORDERED, BASKETS], ids=["ordered", "baskets"])
def world(request):
    return make_world(request.param)


def held_out(world: World) -> tuple[World, pd.DataFrame]:
    """Hold events out, and give a user whom training does not know two of them."""
    world, validation = hold_out(world)
    validation.iloc[:2, validation.columns.get_loc("user_id")] = 104_000
    validation["datetime"] += 40 * DAY
    return world, validation


def test_a_validation_request_is_all_of_a_users_training_events(world):
    world, validation = held_out(world)
    data = make_data(world, validation=validation)
    (batch,) = data.validation_batches
    train = world.tables.interactions
    row_of = {item_id: row for row, item_id in enumerate(world.catalogue.item_ids.tolist())}
    is_in_context = world.schema.repeats == "exclude"  # a request for each target, in its context
    asked = validation.drop_duplicates(["user_id", "item_id"] if is_in_context else ["user_id"])
    asked = asked.sort_values(["user_id", "item_id"])
    counts = asked["user_id"].map(train["user_id"].value_counts()).fillna(0)
    lengths = counts.clip(upper=world.schema.history_length).to_numpy()
    users = asked["user_id"].to_numpy()[np.argsort(lengths, kind="stable")]
    assert len(batch.history_rows) == len(users) > 1
    wanted = list(zip(batch.target_users.tolist(), batch.target_rows.tolist(), strict=True))
    rows = [
        (user, row_of[item])
        for user, item in validation[["user_id", "item_id"]].drop_duplicates().to_numpy()
    ]
    assert sorted((users[b], row) for b, row in wanted) == sorted(rows)
    for b, user_id in enumerate(users):
        mine = train[train["user_id"] == user_id].sort_values("datetime", kind="stable")
        recent = [row_of[item_id] for item_id in mine["item_id"]][-world.schema.history_length :]
        length = int(batch.arrays["history_lengths"][b])
        assert batch.history_rows[b, :length].tolist() == recent
        assert batch.owned_rows[batch.owned_users == b].tolist() == sorted(
            {row_of[i] for i in mine["item_id"]}
        )
        assert batch.arrays["request_times"][b] == mine["datetime"].max() if length else True
    is_known = (batch.arrays["context_codes"] != 1).any()
    assert bool(is_known) == is_in_context


def test_validation_is_asked_at_its_moment():
    world = make_world(BASKETS)
    at = FIRST + 50 * DAY
    train = world.tables.interactions
    data = InteractionsDataModule(
        train,
        train.head(9),
        world.tables.users,
        world.catalogue,
        world.schema,
        4,
        7,
        validation_at=at,
    )
    (batch,) = data.validation_batches
    assert set(batch.arrays["request_times"].tolist()) == {at}
    assert np.array_equal(batch.popularity, data.trends.popularity[-1])
    assert data.trends.moments[-1] == world.schema.data_until


def test_cuts_leave_room_for_their_horizon():
    world = make_world(BASKETS)
    data = make_data(world, horizon=3 * DAY)
    moments, end = data.trends.moments, world.schema.data_until
    assert moments[-1] == end
    assert len(moments) > 2
    assert (moments[:-1] <= end - 3 * DAY).all()
    assert (np.diff(moments) > 0).all()


@pytest.mark.parametrize("days", [10, 17, 30])
def test_a_horizon_as_long_as_the_data_still_trains(days):
    world = make_world(BASKETS)
    data = make_data(world, horizon=days * DAY)
    plans = data.examples.plan(7, 0)
    assert sum(len(data.examples[plan].target_rows) for plan in plans) > 0
    assert len(data.trends.moments) == 2
    assert len(data.early_pairs()[0]) > 0


def test_factors_see_no_target_of_a_cut():
    world = make_world(BASKETS)
    data = make_data(world, horizon=3 * DAY)
    users, rows = data.early_pairs()
    events = data.sequences.events
    is_early = events.time < data.trends.moments[0]
    assert rows.tolist() == events.item_row[is_early].tolist()
    assert users.tolist() == events.segments[is_early].tolist()
    assert 0 < len(rows) < len(events.time)


def test_factors_see_no_target_of_a_next_group_that_comes_again():
    data = make_data(make_world(BASKETS))
    events = data.sequences.events
    drawn = [plan for epoch in range(40) for plan in data.examples.plan(7, epoch)]
    users = np.concatenate([plan.users for plan in drawn])
    stops = np.concatenate([plan.stops for plan in drawn])
    first = {user: stops[users == user].min() for user in np.unique(users)}
    positions = np.arange(len(events.time))
    is_early = [at < first[user] for at, user in zip(positions, events.segments, strict=True)]
    assert 0 < sum(is_early) < len(positions)
    assert data.early_pairs()[1].tolist() == events.item_row[is_early].tolist()


def test_where_nothing_comes_again_factors_see_all_events_before_a_next_group():
    data = make_data(make_world(replace(BASKETS, repeats="exclude")))
    assert len(data.early_pairs()[0]) == len(data.sequences.events.time)


def test_targets_are_counted_without_what_is_evidence_alone(world):
    rows = world.tables.interactions
    weighed = rows.assign(**{TARGET_WEIGHT: np.where(rows["event"] == "buy", rows["weight"], 0.0)})
    data = make_data(replace(world, tables=replace(world.tables, interactions=weighed)))
    bought = rows.loc[rows["event"] == "buy", "item_id"].value_counts()
    assert data.count_targets().tolist() == [
        bought.get(item_id, 0) for item_id in world.catalogue.item_ids.tolist()
    ]
    assert 0 < data.count_targets().sum() < len(rows)


@pytest.mark.parametrize("horizon", [None, 20 * DAY])
@pytest.mark.parametrize("repeats", ["exclude", "allow"])
@pytest.mark.parametrize("ties", ["ordered", "simultaneous"])
def test_every_protocol_gives_batches_with_targets(ties, repeats, horizon):
    world = make_world(replace(ORDERED, ties=ties, repeats=repeats))
    data = make_data(world, horizon=horizon)
    n_targets = [
        int(b.is_target.sum() if hasattr(b, "is_target") else len(b.target_rows))
        for b in batches(data, 0)
    ]
    assert min(n_targets) > 0


def test_a_large_catalogue_is_validated_by_some_users_with_all_their_targets(world, monkeypatch):
    world, validation = held_out(world)
    whole = make_data(world, validation=validation)
    n_users = validation["user_id"].nunique()
    limit = len(world.catalogue) * (n_users // 2)
    monkeypatch.setattr(datamodule, "MAX_VALIDATION_SCORES", limit)
    monkeypatch.setattr(datamodule, "MAX_SCORES", len(world.catalogue))
    some = make_data(world, validation=validation)

    def count_targets(data) -> list[list[int]]:
        """List the targets of each request."""
        lists = []
        for batch in data.validation_batches:
            for request in range(len(batch.history_rows)):
                rows = batch.target_rows[batch.target_users == request]
                lists.append(rows.tolist())
        return lists

    drawn, asked = count_targets(some), count_targets(whole)
    assert 0 < len(drawn) < len(asked)
    for targets in drawn:
        assert targets in asked
    assert {len(batch.history_rows) for batch in some.validation_batches} <= {1, 2}
    assert count_targets(make_data(world, validation=validation)) == drawn
