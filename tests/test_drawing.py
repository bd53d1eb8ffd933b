"""Items drawn to content, against sums item by item, and the strength that the validation finds."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import run_finishing
import train
from models import drawing
from models.blending import Figures
from models.content_places import fit_places, place_all
from models.drawing import STRENGTHS, USUAL, Drawing, Drawn, choose_strength, draw_items
from models.towers import Towers
from tests.test_train import ORDERED as ORDERED_RUN
from tests.test_train import QUIET, SMALL, make_tables
from tests.tiny_data import ORDERED, N, hold_out, make_data, make_world
from tests.tiny_towers import make_towers, one_thread

OUTSIDE = N - 2  # items from here on have no content
N_EVENTS = torch.arange(N) % 5  # items 0, 5, ... have none
SEED = 3


@pytest.fixture(scope="module", autouse=True)
def _alone():
    with one_thread():
        yield


@pytest.fixture(params=["cosine", "dot"])
def towers(request) -> Towers:
    world = make_world(ORDERED)
    return make_towers(world, make_data(world), request.param).eval()


def vectors_of(towers: Towers) -> np.ndarray:
    with torch.no_grad():
        return towers.item_vectors(towers.no_popularity).double().numpy()


@pytest.mark.parametrize("strength", [1.0, 7.0])
def test_an_item_stands_between_its_own_place_and_that_of_its_content(towers, strength):
    before = torch.from_numpy(vectors_of(towers)).float()
    known = torch.tensor([row for row in range(OUTSIDE) if N_EVENTS[row] > 0])
    places = fit_places(towers, before, known, torch.Generator().manual_seed(SEED))
    placed = place_all(places, towers.item_codes, towers.item_values).double().numpy()
    draw_items(towers, N_EVENTS, strength, SEED)
    own = before.double().numpy()
    for row, found in enumerate(vectors_of(towers)):
        n = int(N_EVENTS[row])
        wanted = (n * own[row] + strength * placed[row]) / (n + strength) if row in known else own[row]
        if towers.item_tower.similarity == "cosine":
            wanted = wanted / np.linalg.norm(wanted)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_items_without_events_or_content_stay_bit_for_bit(towers):
    before = copy.deepcopy(towers.state_dict())
    draw_items(towers, N_EVENTS, 4.0, SEED)
    after = towers.state_dict()
    table = "item_tower.id_table.weight"
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name != table)
    is_kept = (N_EVENTS == 0) | ~towers.item_has_content
    assert torch.equal(before[table][is_kept], after[table][is_kept])
    assert (before[table] != after[table]).any(dim=1)[~is_kept].all()


def test_no_strength_and_a_strength_taken_back_change_nothing(towers):
    before = towers.item_tower.id_table.weight.detach().clone()
    draw_items(towers, N_EVENTS, 0.0, SEED)
    assert torch.equal(towers.item_tower.id_table.weight, before)
    one = Drawing(towers, N_EVENTS, SEED)
    one.draw(8.0)
    one.draw(0.0)
    assert torch.equal(towers.item_tower.id_table.weight, before)


def judge_by(monkeypatch, ndcg: dict[float, float]) -> None:
    """Let strengths rank as well as is said, whatever the towers do."""
    strengths, draw = [], Drawing.draw

    def watch(self, strength):
        strengths.append(strength)
        draw(self, strength)

    monkeypatch.setattr(Drawing, "draw", watch)
    figures = SimpleNamespace(judge_alone=lambda: Figures(ndcg[strengths[-1]], None))
    monkeypatch.setattr(drawing, "Jury", lambda towers, judges: figures)


@pytest.mark.parametrize(
    ("ndcg", "chosen"),
    [
        ((0.10, 0.11, 0.2, 0.3, 0.3), 4.0),
        ((0.10, 0.12, 0.1952, 0.2, 0.15), 2.0),  # 95 % of the gain
        ((0.10, 0.12, 0.1948, 0.2, 0.15), 4.0),
        ((0.10, 0.09, 0.08, 0.1, 0.0), 0.0),
        ((0.10, 0.09, 0.08, 0.1009, 0.0), 0.0),  # less than 1 % of what is there
        ((0.10, 0.09, 0.08, 0.1011, 0.0), 4.0),
    ],
)
def test_of_strengths_that_gain_nearly_all_the_least_is_taken(towers, monkeypatch, ndcg, chosen):
    found = dict(zip((0.0, *STRENGTHS), ndcg, strict=True))
    judge_by(monkeypatch, found)
    world, validation = hold_out(make_world(ORDERED))
    batches = make_data(world, validation=validation).validation_batches
    expected = copy.deepcopy(towers)
    drawn = choose_strength(towers, N_EVENTS, batches, SEED)
    assert drawn == Drawn(chosen, found[chosen], 0.1)
    draw_items(expected, N_EVENTS, chosen, SEED)
    assert torch.equal(towers.item_tower.id_table.weight, expected.item_tower.id_table.weight)


def test_strengths_are_judged_by_what_the_drawn_towers_rank(towers):
    world, validation = hold_out(make_world(ORDERED))
    batches = make_data(world, validation=validation).validation_batches
    drawn = choose_strength(towers, N_EVENTS, batches, SEED)
    judged = drawing.Jury(towers, batches).judge_alone().mean
    assert judged == drawn.ndcg >= drawn.ndcg_alone


def test_without_a_validation_items_are_drawn_as_is_usual(towers):
    expected = copy.deepcopy(towers)
    assert choose_strength(towers, N_EVENTS, (), SEED) == Drawn(USUAL)
    draw_items(expected, N_EVENTS, USUAL, SEED)
    assert torch.equal(towers.item_tower.id_table.weight, expected.item_tower.id_table.weight)


@pytest.mark.parametrize("strict", [False, True])
def test_the_strength_of_the_first_training_is_that_of_the_last(tmp_path, monkeypatch, strict):
    judged, done = [], []
    choose, do = run_finishing.choose_strength, run_finishing.draw_items

    def judge(towers, n_events, validation, seed):
        judged.append(int(n_events.sum()))
        choose(towers, n_events, validation, seed)
        return Drawn(2.5, 0.3, 0.2)

    monkeypatch.setattr(run_finishing, "choose_strength", judge)
    monkeypatch.setattr(run_finishing, "draw_items", lambda *args: done.append(args[1:]) or do(*args))
    data = replace(ORDERED_RUN, split=replace(ORDERED_RUN.split, strict=strict))
    config = train.Config(data, replace(SMALL, draw_items=True), QUIET, tmp_path / "run")
    run = train.run(config, make_tables(3, simultaneous=False))
    assert len(judged) == 1
    assert [(strength, seed) for _, strength, seed in done] == ([] if strict else [(2.5, 0)])
    assert all(int(n_events.sum()) > judged[0] for n_events, _, _ in done)  # the validation's events too
    metrics = json.loads((run.bundle.parent / "metrics.json").read_text())
    assert metrics["training"]["drawn"] == {"strength": 2.5, "ndcg": 0.3, "ndcg_alone": 0.2}


def test_what_was_found_is_said():
    assert "not at all" in run_finishing.describe_drawn(Drawn(0.0, 0.2, 0.2))
    assert "nothing to validate" in run_finishing.describe_drawn(Drawn(4.0))
    said = run_finishing.describe_drawn(Drawn(2.0, 0.3, 0.2))
    assert (
        said == "items drawn to content, worth 2 events of an item: validation NDCG@10 0.2000 without, 0.3000 with it"
    )
