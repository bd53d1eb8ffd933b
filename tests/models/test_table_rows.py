"""A bounded id table: who has a row of their own, who shares, and what a later training takes over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from models.config import ModelConfig
from models.initialise import ID_ROWS, Start, build_towers, take_over
from models.table_rows import assign_rows, bound_table, decayed_counts
from models.two_tower import TwoTower
from serve.errors import SchemaError
from tests.models.tiny_towers import RECIPE, make_towers
from tests.tiny_data import DAY, FIRST, ORDERED, make_data, make_world

ROWS = 16
SHARED = 2  # an eighth of them


@pytest.fixture(scope="module")
def data():
    return make_data(make_world(ORDERED))


def with_events(data, rows: list[int], ages_in_days: list[float]):
    """Replace the events by some on item rows, so many days before the last."""
    events = replace(
        data.sequences.events,
        item_row=np.array([*rows, 0]),
        time=np.array([FIRST - int(age * DAY) for age in [*ages_in_days, 0]]),
    )
    changed = make_data(make_world(ORDERED))
    changed.sequences = replace(data.sequences, events=events)
    return changed


def test_frequent_items_have_rows_of_their_own_and_the_others_share_the_rest(data):
    n_items = len(data.catalogue)
    counts = np.bincount(data.sequences.events.item_row, minlength=n_items)
    rows = assign_rows(data, ROWS).numpy()
    own = rows < ROWS - SHARED
    assert sorted(rows[own]) == list(range(ROWS - SHARED))
    assert set(rows[~own]) <= set(range(ROWS - SHARED, ROWS))
    assert len(rows[~own]) > SHARED
    decayed = decayed_counts(data.sequences.events, n_items)
    assert decayed[own].min() >= decayed[~own].max()
    assert np.corrcoef(decayed, counts)[0, 1] > 0.9


def test_old_events_count_less_until_new_items_take_the_row(data):
    once, often = 5, 7
    rows = [often] * 3 + [once]
    n_items = len(data.catalogue)
    recent = with_events(data, rows, [0, 0, 0, 0])
    assert decayed_counts(recent.sequences.events, n_items)[often] == pytest.approx(3)
    later = with_events(data, rows, [180, 180, 180, 0])
    counts = decayed_counts(later.sequences.events, n_items)
    assert counts[often] == pytest.approx(3 / 4)
    assert counts[once] == pytest.approx(1)
    assert assign_rows(recent, 3)[often] < 2  # of three rows one is shared
    assert assign_rows(later, 3)[often] == 2


def test_shared_rows_go_by_the_id_alone(data):
    """Also where the catalogue grows, and other items are admitted."""
    rows = assign_rows(data, ROWS)
    others = with_events(data, list(range(10)), [0] * 10)
    again = assign_rows(others, ROWS)
    shared = (rows >= ROWS - SHARED) & (again >= ROWS - SHARED)
    assert shared.any()
    assert torch.equal(rows[shared], again[shared])


def test_items_of_one_row_have_one_embedding_and_get_their_own_back_after_training(data):
    towers = make_towers(make_world(ORDERED), data)
    before = towers.item_tower.id_table.weight.detach().clone()
    bound_table(towers, data, ROWS)
    rows = towers.id_rows
    table = towers.item_tower.id_table.weight.detach().clone()
    assert len(table) == ROWS
    for row in range(ROWS):
        assert torch.allclose(table[row], before[rows == row].mean(dim=0), atol=1e-6)
    vectors = towers.item_vectors(towers.no_popularity)
    some = torch.tensor([3, 20, 8])
    assert torch.allclose(towers.some_item_vectors(some, towers.no_popularity), vectors[some])
    towers.unfold()
    assert torch.equal(towers.item_tower.id_table.weight, table[rows])
    assert torch.equal(towers.item_vectors(towers.no_popularity), vectors)
    assert "id_rows" not in towers.state_dict()


@pytest.mark.parametrize("n_rows", [None, 23, 1000])
def test_a_bound_that_all_items_fit_in_changes_nothing(data, n_rows):
    plain = build_towers(data, RECIPE, 0)
    bounded = build_towers(data, replace(RECIPE, table_rows=n_rows), 0)
    assert {name: weight.shape for name, weight in plain.state_dict().items()} == {
        name: weight.shape for name, weight in bounded.state_dict().items()
    }


def test_a_bound_below_two_rows_is_refused():
    with pytest.raises(SchemaError):
        ModelConfig(table_rows=1)


def test_later_trainings_take_rows_over_by_id_with_another_bound(data, tmp_path, monkeypatch):
    from models import initialise

    world = make_world(ORDERED)
    earlier = TwoTower(make_towers(world, data), RECIPE, None, 0)
    bound_table(earlier.towers, data, ROWS)
    rows = earlier.towers.id_rows.clone()
    table = earlier.towers.item_tower.id_table.weight.detach().clone()
    weights = {name: weight.clone() for name, weight in earlier.state_dict().items()}
    assert torch.equal(weights[ID_ROWS], rows)

    monkeypatch.setattr(initialise, "read_checkpoint", lambda path: {"state_dict": weights})
    monkeypatch.setattr(Path, "exists", lambda path: True)
    start = Start.read(bundle_of(world), tmp_path)
    later = TwoTower(make_towers(world, data, seed=9), RECIPE, None, 0)
    take_over(later, start, world.catalogue.item_ids.tolist(), world.schema)
    assert torch.equal(later.towers.item_tower.id_table.weight, table[rows])

    bound_table(later.towers, data, ROWS - 4)
    own = later.towers.id_rows < ROWS - 4 - 1
    assert own.sum() == ROWS - 5
    found = later.towers.item_tower.id_table.weight[later.towers.id_rows]
    assert torch.equal(found[own], table[rows][own])


def bundle_of(world):
    """Stand for a bundle of the whole catalogue."""
    from types import SimpleNamespace

    config = {"model": vars(RECIPE.to_config())}
    return SimpleNamespace(
        schema=world.schema,
        items=world.catalogue.to_arrow(),
        path="bundle",
        manifest=SimpleNamespace(facts=SimpleNamespace(config=config)),
    )
