"""Items shrunk towards content, against sums item by item, and the strength that the validation finds."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.test_train import ORDERED as ORDERED_RUN
from tests.test_train import QUIET, SMALL, make_tables

import run_finishing
import train
from datamodules.config import SplitConfig
from models import shrinkage
from models.blending import Judged
from models.content_places import fit_places, place_all
from models.shrinkage import STRENGTHS, USUAL, Shrinkage, Shrunk, choose_strength, shrink_items
from models.towers import Towers
from models.trials import Blend
from serve.index import Neighbours
from tests.models.tiny_towers import make_towers, one_thread
from tests.tiny_data import ORDERED, D, N, hold_out, make_data, make_world

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


def test_of_very_many_contents_those_of_most_items_are_compared(towers, monkeypatch):
    """With each of a million titles all the others would be compared."""
    monkeypatch.setattr(shrinkage, "MOST_CONTENTS", 3)
    before = torch.from_numpy(vectors_of(towers)).float()
    known = torch.tensor([row for row in range(OUTSIDE) if N_EVENTS[row] > 0])
    few, all_of_them = (
        fit_places(towers, before, known, torch.Generator().manual_seed(SEED), most) for most in (3, None)
    )
    assert len(few.keys) == 3 < len(all_of_them.keys)
    shrink_items(towers, N_EVENTS, 1e9, SEED)  # an item goes where its content puts it, all the way
    columns = towers.item_codes[known], towers.item_values[known]
    wanted, other = (place_all(places, *columns)[:, : towers.item_tower.dim] for places in (few, all_of_them))
    got = torch.from_numpy(vectors_of(towers)).float()[known, : towers.item_tower.dim]
    if towers.item_tower.similarity == "cosine":
        wanted, other = (torch.nn.functional.normalize(one, dim=1) for one in (wanted, other))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    assert (got - other).abs().max() > 0.01


@pytest.mark.parametrize("strength", [1.0, 7.0])
def test_an_item_stands_between_its_own_place_and_that_of_its_content(towers, strength):
    before = torch.from_numpy(vectors_of(towers)).float()
    known = torch.tensor([row for row in range(OUTSIDE) if N_EVENTS[row] > 0])
    places = fit_places(towers, before, known, torch.Generator().manual_seed(SEED))
    placed = place_all(places, towers.item_codes, towers.item_values).double().numpy()
    shrink_items(towers, N_EVENTS, strength, SEED)
    own = before.double().numpy()
    for row, found in enumerate(vectors_of(towers)):
        n = int(N_EVENTS[row])
        wanted = (n * own[row] + strength * placed[row]) / (n + strength) if row in known else own[row]
        if towers.item_tower.similarity == "cosine":
            wanted = wanted / np.linalg.norm(wanted)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_items_without_events_or_content_stay_bit_for_bit(towers):
    before = copy.deepcopy(towers.state_dict())
    shrink_items(towers, N_EVENTS, 4.0, SEED)
    after = towers.state_dict()
    table = "item_tower.id_table.weight"
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name != table)
    is_kept = (N_EVENTS == 0) | ~towers.item_has_content
    assert torch.equal(before[table][is_kept], after[table][is_kept])
    assert (before[table] != after[table]).any(dim=1)[~is_kept].all()


def test_no_strength_and_a_strength_taken_back_change_nothing(towers):
    before = towers.item_tower.id_table.weight.detach().clone()
    shrink_items(towers, N_EVENTS, 0.0, SEED)
    assert torch.equal(towers.item_tower.id_table.weight, before)
    one = Shrinkage(towers, N_EVENTS, SEED)
    one.apply(8.0)
    one.apply(0.0)
    assert torch.equal(towers.item_tower.id_table.weight, before)


def judge_by(monkeypatch, ndcg: dict[float, float]) -> None:
    """Let strengths rank as well as is said, whatever the towers do."""
    strengths, apply = [], Shrinkage.apply

    def watch(self, strength):
        strengths.append(strength)
        apply(self, strength)

    monkeypatch.setattr(Shrinkage, "apply", watch)
    figures = SimpleNamespace(judge_alone=lambda: SimpleNamespace(mean=ndcg[strengths[-1]]))
    monkeypatch.setattr(shrinkage, "Jury", lambda towers, judges: figures)


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
    shrunk = choose_strength(towers, N_EVENTS, batches, SEED)
    assert shrunk == Shrunk(chosen, found[chosen], 0.1)
    shrink_items(expected, N_EVENTS, chosen, SEED)
    assert torch.equal(towers.item_tower.id_table.weight, expected.item_tower.id_table.weight)


def test_strengths_are_judged_by_what_the_towers_then_rank_with_what_is_blended_in(towers, monkeypatch):
    lifting = Neighbours(np.arange(N + 1), np.roll(np.arange(N), 1), np.full(N, 0.5, np.float32))
    towers.neighbours = lifting
    found = {}
    monkeypatch.setattr(shrinkage, "pick", lambda judged: found.update(judged) or 8.0)
    world, validation = hold_out(make_world(ORDERED))
    batches = make_data(world, validation=validation).validation_batches
    before = copy.deepcopy(towers)
    assert choose_strength(towers, N_EVENTS, batches, SEED) == Shrunk(8.0, found[8.0], found[0.0])
    assert len(set(found.values())) > 1
    for strength in (0.0, 2.0, 8.0):
        other = copy.deepcopy(before)
        shrink_items(other, N_EVENTS, strength, SEED)
        assert found[strength] == pytest.approx(rank_naively(other, batches))
    assert found[0.0] != pytest.approx(rank_naively(replace_neighbours(before), batches))


def replace_neighbours(towers: Towers) -> Towers:
    alone = copy.deepcopy(towers)
    alone.neighbours = Neighbours.none(N)
    return alone


def rank_naively(towers: Towers, batches) -> float:
    """Average NDCG@10 over users, of what they take and do not have yet, by sorting each user's scores."""
    figures = []
    for batch in batches:
        with torch.no_grad():
            items = towers.item_vectors(towers.no_popularity)
            users, _ = towers.request_vectors(batch, items)
            is_owned = batch.mark_owned(N)
            scores = towers.score_items(users, items, batch).masked_fill(is_owned, -np.inf)
        for user, row in enumerate(scores.numpy()):
            targets = {
                item for item in batch.target_rows[batch.target_users == user].tolist() if not is_owned[user, item]
            }
            gains = [1 / np.log2(place + 2) for place in range(10)]
            found = [
                gain for gain, item in zip(gains, np.argsort(-row, kind="stable"), strict=False) if item in targets
            ]
            if targets:
                figures.append(sum(found) / sum(gains[: len(targets)]))
    return float(np.mean(figures))


def test_without_a_validation_items_are_shrunk_as_is_usual(towers):
    expected = copy.deepcopy(towers)
    assert choose_strength(towers, N_EVENTS, (), SEED) == Shrunk(USUAL)
    shrink_items(expected, N_EVENTS, USUAL, SEED)
    assert torch.equal(towers.item_tower.id_table.weight, expected.item_tower.id_table.weight)


def test_correlations_in_the_vectors_stay_as_they_are(towers):
    factors = torch.randn(N, 5, generator=torch.Generator().manual_seed(1))
    towers.item_tower.correlations = factors
    before = vectors_of(towers)
    shrink_items(towers, N_EVENTS, 4.0, SEED)
    after = vectors_of(towers)
    assert np.array_equal(after[:, D:], before[:, D:])
    is_shrunk = ((N_EVENTS > 0) & towers.item_has_content).numpy()
    assert (np.abs(after - before)[is_shrunk].max(axis=1) > 1e-3).all()


IN_ORDER = (ORDERED_RUN, {"neighbours": 3})
SET = (
    replace(ORDERED_RUN, features=replace(ORDERED_RUN.features, context={}), split=SplitConfig("pairs")),
    {"neighbours": 3, "n_blocks": 0, "freeze_items": False},
)


@pytest.mark.parametrize(
    ("data", "how", "n_held"),
    [
        (*IN_ORDER, 60),  # an event of each user
        (replace(IN_ORDER[0], split=SplitConfig(strict=True)), IN_ORDER[1], None),  # the first training is the last
        (*SET, 60),
    ],
    ids=["in order", "strict", "set"],
)
def test_items_are_shrunk_once_correlations_are_blended_in_and_after_the_last_training_alike(
    tmp_path, monkeypatch, data, how, n_held
):
    judged, done = [], []
    choose, do = run_finishing.choose_strength, run_finishing.shrink_items

    def judge(towers, n_events, validation, seed):
        judged.append((int(n_events.sum()), len(towers.neighbours.rows) > 0))
        choose(towers, n_events, validation, seed)
        return Shrunk(2.5, 0.3, 0.2)

    def watch(towers, n_events, strength, seed):
        done.append((int(n_events.sum()), len(towers.neighbours.rows) > 0, strength, seed))
        do(towers, n_events, strength, seed)

    monkeypatch.setattr(run_finishing, "choose_strength", judge)
    monkeypatch.setattr(run_finishing, "shrink_items", watch)
    kind = "regressions" if data.split.kind == "pairs" else "transitions"
    blend = Judged(Blend(0.4, 0.3, 30.0, kind, 3), 0.3, 0.2)
    monkeypatch.setattr(run_finishing, "choose_blend", lambda *args: blend)
    interactions, users, items = make_tables(3, simultaneous=False)
    if data.split.kind == "pairs":
        interactions = interactions.drop(columns="datetime")
    model = replace(SMALL, shrink_items=True, correlations=None, **how)
    run = train.run(train.Config(data, model, QUIET, tmp_path / "run"), (interactions, users, items))
    ((n_events, is_blended),) = judged
    assert is_blended
    assert done == ([] if n_held is None else [(n_events + n_held, True, 2.5, 0)])
    metrics = json.loads((run.bundle.parent / "metrics.json").read_text())
    assert metrics["training"]["shrinkage"] == {"strength": 2.5, "ndcg": 0.3, "ndcg_alone": 0.2}


def test_what_was_found_is_said():
    assert "not at all" in run_finishing.describe_shrinkage(Shrunk(0.0, 0.2, 0.2))
    assert "nothing to validate" in run_finishing.describe_shrinkage(Shrunk(4.0))
    said = run_finishing.describe_shrinkage(Shrunk(2.0, 0.3, 0.2))
    assert said.startswith("items shrunk towards their content, worth 2 events: validation NDCG@10 0.2000 without")
