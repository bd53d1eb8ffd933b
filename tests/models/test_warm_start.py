"""Weights of an earlier run under grown vocabularies: rows by what they stand for, all else as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datamodules.schema_fitting import fit_schema
from datamodules.sequences import build_catalogue
from datamodules.tables import Tables
from models.initialise import IDS, Start, name_rows, take_over
from models.two_tower import TwoTower
from serve.errors import SchemaError
from serve.events import statistic_names
from tests.models.tiny_towers import RECIPE, make_towers
from tests.tiny_data import BASKETS, ORDERED, World, make_data, make_world

CONFIGS = {"ordered": ORDERED, "baskets": BASKETS}


def make_model(world, n_blocks=2, seed=5):
    towers = make_towers(world, make_data(world), n_blocks=n_blocks, seed=seed)
    return TwoTower(towers, replace(RECIPE, n_blocks=n_blocks), None, 0)


def shrink(world, config):
    """Leave out some items, and with them a category and a type of event."""
    events, users, items = (
        world.tables.interactions,
        world.tables.users,
        world.tables.items,
    )
    gone = set(items.loc[items["category"] == items["category"].iloc[0], "item_id"])
    kept = events[~events["item_id"].isin(gone) & (events["event"] == "view")]
    tables = Tables(kept, users, items[~items["item_id"].isin(gone)])
    schema = fit_schema(tables, kept, config)
    return World(tables, schema, build_catalogue(tables.items, kept, schema)), gone


def grow(world, config, schema):
    """Fit the whole world after an earlier schema."""
    grown = fit_schema(world.tables, world.tables.interactions, config, schema)
    return replace(
        world,
        schema=grown,
        catalogue=build_catalogue(world.tables.items, world.tables.interactions, grown),
    )


def start_from(world, model):
    rows = name_rows(world.schema, world.catalogue.item_ids.tolist())
    weights = {name: one.clone() for name, one in model.state_dict().items()}
    return Start(Path("old.ckpt"), model.recipe.to_config(), weights, rows)


@pytest.fixture(params=CONFIGS)
def grown(request):
    """An earlier world and its model, the grown world, the new model before and after, and the new items."""
    config = CONFIGS[request.param]
    whole = make_world(config)
    old, gone = shrink(whole, config)
    new = grow(whole, config, old.schema)
    was, model = make_model(old), make_model(new, seed=9)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    take_over(model, start_from(old, was), new.catalogue.item_ids.tolist(), new.schema)
    return old, was.state_dict(), new, before, model, gone


def test_kept_items_keep_their_rows_and_new_ones_stand_where_content_places_them(grown):
    old, was, new, before, model, gone = grown
    table = model.state_dict()[IDS]
    old_rows = {item: row for row, item in enumerate(old.catalogue.item_ids.tolist())}
    fresh = [item for item in new.catalogue.item_ids.tolist() if item not in old_rows]
    assert gone <= set(fresh)
    listed = set(new.tables.items["item_id"])
    for row, item in enumerate(new.catalogue.item_ids.tolist()):
        start = torch.zeros_like(table[row]) if item in listed else before[IDS][row]
        assert torch.equal(table[row], was[IDS][old_rows[item]] if item in old_rows else start), (
            item
        )


def test_rows_of_values_go_by_feature_and_value(grown):
    old, was, new, before, model, _ = grown
    for side, tower in (
        ("item", "item_tower.content"),
        ("user", "user_tower.demographics"),
    ):
        name, offset = f"towers.{tower}.table.weight", 0
        table, starts, place = model.state_dict()[name], {}, 0
        for feature in old.schema.features(side):
            if not feature.has_values:
                starts[feature.name], place = place, place + feature.n_codes
        n_new = 0
        for feature in new.schema.features(side):
            if feature.has_values:
                continue
            known = next(one for one in old.schema.features(side) if one.name == feature.name)
            for code in range(feature.n_codes):
                value = None if code < 2 else feature.vocabulary[code - 2]
                there = (
                    code
                    if code < 2
                    else 2 + known.vocabulary.index(value)
                    if value in known.vocabulary
                    else None
                )
                expected = (
                    before[name][offset + code]
                    if there is None
                    else was[name][starts[feature.name] + there]
                )
                n_new += there is None
                assert torch.equal(table[offset + code], expected)
            offset += feature.n_codes
        assert n_new or side == "user"
    events = model.state_dict()["towers.user_tower.event_table.weight"]
    assert torch.equal(events[:3], was["towers.user_tower.event_table.weight"])
    assert len(events) == 4


def test_what_does_not_grow_is_as_it_was(grown):
    _, was, _, _, model, _ = grown
    alike = [
        name
        for name, one in model.state_dict().items()
        if one.shape == was[name].shape and "table" not in name
    ]
    assert len(alike) > 20
    assert all(
        torch.equal(model.state_dict()[name], was[name]) for name in alike if "shares" not in name
    )


def test_the_memory_gets_a_column_for_a_new_type_of_event(grown):
    old, was, new, before, model, _ = grown
    n_known = len(statistic_names(old.schema.decay_days, old.schema.event_types))
    names = [
        name
        for name in model.state_dict()
        if name.endswith(("memory.item_score.0.weight", "memory.profile_weight.weight"))
    ]
    assert len(names) == (2 if new.schema.repeats == "allow" else 0)
    for name in names:
        table = model.state_dict()[name]
        assert table.shape[1] == was[name].shape[1] + 1
        assert torch.equal(table[:, :n_known], was[name][:, :n_known])
        assert torch.equal(table[:, n_known], before[name][:, n_known])
        assert torch.equal(table[:, n_known + 1 :], was[name][:, n_known:])


@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_data_gives_the_same_vectors(name):
    world = make_world(CONFIGS[name])
    was, model = make_model(world), make_model(world, seed=9)
    take_over(model, start_from(world, was), world.catalogue.item_ids.tolist(), world.schema)
    popularity = torch.from_numpy(make_data(world).trends.popularity[-1])
    with torch.no_grad():
        found, expected = (one.towers.eval().item_vectors(popularity) for one in (model, was))
    np.testing.assert_array_equal(found, expected)


def test_a_model_of_another_shape_is_refused_before_anything_changes():
    world = make_world(ORDERED)
    start = start_from(world, make_model(world))
    for model in (make_model(world, n_blocks=1), make_model(make_world(BASKETS))):
        before = {name: one.clone() for name, one in model.state_dict().items()}
        with pytest.raises(SchemaError, match=r"old\.ckpt"):
            take_over(model, start, world.catalogue.item_ids.tolist(), world.schema)
        assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
