"""Runs with correlations blended in: judged by the validation, kept for the training after it, exported."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.test_train import BASKETS, ORDERED, QUIET, SMALL, make_tables

import run_finishing
import train
from datamodules.clean import TARGET_WEIGHT
from datamodules.config import SplitConfig
from datamodules.splits import split_interactions
from models import yardstick
from models.blending import MOST_CORRELATED_BESIDE_MEMORY, Judged, choose_blend
from models.config import ModelConfig
from models.item_correlations import MOST_CORRELATED
from models.trials import BESIDE_MEMORY, SETS, Blend, neighbours_of_events, neighbours_of_sets
from pipeline.stages import settle
from serve import Recommender
from tests.models.tiny_towers import one_thread
from tests.tiny_data import ORDERED as TINY
from tests.tiny_data import make_data, make_world

R = 6
BLENDED = replace(SMALL, correlations=R, low_pass=0, max_epochs=2, shrink_items=False)
WITH_THEM = Judged(Blend(0.4, 0.0, 30.0, "correlations"), 0.3, 0.2)
FOLLOWING = 4

SET = replace(ORDERED, features=replace(ORDERED.features, context={}), split=SplitConfig("pairs"))


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


def fit(data, folder, validates=True, low_pass=0) -> run_finishing.Trained:
    is_set, is_simultaneous = data.split.kind == "pairs", data.ties == "simultaneous"
    in_order = replace(BLENDED, correlations=0, neighbours=FOLLOWING)
    model = BLENDED if is_set or is_simultaneous else in_order
    config = train.Config(data, replace(model, low_pass=low_pass), QUIET, folder)
    folder.mkdir()
    interactions, *others = make_tables(3, is_simultaneous)
    told = interactions.drop(columns="datetime") if is_set else interactions
    tables, _ = train.read(config, (told, *others), folder)
    config, _ = train.settle(config, tables)
    split = split_interactions(tables.interactions, data, config.seed)
    return train.train(config, tables, split if validates else replace(split, validation=split.validation[:0]))[0]


def width_of(trained: run_finishing.Trained) -> int:
    return trained.towers.item_tower.history_dim - SMALL.dim


def test_what_the_validation_chose_is_reported_and_served(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_finishing, "choose_blend", lambda *args: WITH_THEM)
    interactions, *others = make_tables(3, simultaneous=False)
    tables = (interactions.drop(columns="datetime"), *others)
    run = train.run(train.Config(SET, BLENDED, QUIET, tmp_path / "run"), tables)
    metrics = json.loads((run.bundle.parent / "metrics.json").read_text())
    expected = {
        "blend": {"share": 0.4, "decay": 0.0, "ridge": 30.0, "kind": "correlations", "n_neighbours": 0},
        "ndcg": 0.3,
        "ndcg_alone": 0.2,
    }
    assert metrics["training"]["correlations"] == expected
    recommender = Recommender.load(run.bundle)
    assert recommender.taste_dim == SMALL.dim + R
    (users,) = recommender.encode_users([{"history": [{"item_id": 100}, {"item_id": 101}]}])
    parts = recommender.catalogue.vectors[:, SMALL.dim : SMALL.dim + R]
    places = recommender.item_rows([101, 100])
    summed = parts[places].sum(axis=0) / 2**0.5
    assert np.allclose(users[SMALL.dim : SMALL.dim + R], summed, atol=1e-5)
    printed = " ".join(capsys.readouterr().out.split())
    assert "blended in by 40%: validation NDCG@10 0.2000 without, 0.3000 with them" in printed


def test_correlations_are_left_out_where_the_validation_is_better_without(tmp_path, monkeypatch):
    none = Judged(Blend(0.0, 0.0, 30.0, "correlations"), 0.2, 0.2)
    monkeypatch.setattr(run_finishing, "choose_blend", lambda *args: none)
    assert width_of(fit(SET, tmp_path / "run")) == 0
    assert "none" in run_finishing.describe_blend(none)
    assert "covariances" in run_finishing.describe_blend(
        replace(WITH_THEM, blend=replace(WITH_THEM.blend, kind="covariances"))
    )


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("is_long", [False, True])
def test_the_validation_is_that_of_the_first_training_and_correlations_are_those_of_the_last(
    tmp_path, monkeypatch, strict, is_long
):
    trials = neighbours_of_events(FOLLOWING, is_long)
    judged = Judged(replace(trials.usual, share=0.4), 0.3, 0.2)
    asked, correlated, correlate_next = [], [], run_finishing.correlate_next

    def choose(towers, correlate, trials, requests, validation):
        asked.append((trials, sum(len(batch.target_rows) for batch in validation)))
        return judged

    def watch(user, *rest):
        correlated.append((len(user), *rest[-3:-1]))
        return correlate_next(user, *rest)

    monkeypatch.setattr(run_finishing, "LONG_HISTORY", 2 if is_long else 20)  # mean events of a user
    monkeypatch.setattr(run_finishing, "choose_blend", choose)
    monkeypatch.setattr(run_finishing, "correlate_next", watch)
    data = replace(ORDERED, split=replace(ORDERED.split, strict=strict))
    trained = fit(data, tmp_path / "run")
    assert asked == [(trials, 60)]  # the second-last item of each user
    n_events = (300,) if strict else (300, 360)  # of 420: all but the test and, first, the validation
    assert correlated == [(n, judged.blend.ridge, judged.blend.decay) for n in n_events]
    assert trained.towers.neighbours.decay == judged.blend.decay


@pytest.mark.parametrize(("data", "name"), [(ORDERED, "choose_popularity"), (SET, "choose_low_pass")])
def test_what_is_added_later_is_judged_with_correlations_in_place(tmp_path, monkeypatch, data, name):
    seen, choose = [], getattr(run_finishing, name)

    def watch(towers, *rest):
        seen.append(towers.item_tower.history_dim - SMALL.dim + len(towers.neighbours.rows) > 0)
        return choose(towers, *rest)

    following = Judged(Blend(0.4, 0.3, 30.0, "transitions", FOLLOWING), 0.3, 0.2)
    monkeypatch.setattr(run_finishing, "choose_blend", lambda *_: following if data is ORDERED else WITH_THEM)
    monkeypatch.setattr(run_finishing, name, watch)
    fit(data, tmp_path / "run", low_pass=3 if data is SET else 0)
    assert seen == [True]


def test_where_order_says_nothing_neighbours_are_those_of_a_set(tmp_path, monkeypatch):
    judged = Judged(Blend(0.4, 0.0, 30.0, "regressions", FOLLOWING), 0.3, 0.2)
    correlated, correlate_pairs = [], run_finishing.correlate_pairs

    def watch(user, *rest):
        correlated.append((len(user), rest[-2]))
        return correlate_pairs(user, *rest)

    monkeypatch.setattr(run_finishing, "choose_blend", lambda *_: judged)
    monkeypatch.setattr(run_finishing, "correlate_pairs", watch)
    trained = fit(ORDERED, tmp_path / "run")
    assert correlated == [(n, judged.blend.ridge) for n in (300, 360)]  # of 420: without the validation, and with it
    assert trained.towers.neighbours.decay == 0


def test_what_comes_next_is_told_of_targets_alone_by_all_that_came_before():
    """An item that is only viewed tells what is bought after it, and nothing tells it."""
    world = make_world(TINY)
    rows = world.tables.interactions
    viewed = int(rows["item_id"].value_counts().index[0])
    rows = rows.assign(**{TARGET_WEIGHT: np.where(rows["item_id"] == viewed, 0.0, 1.0)})
    world = replace(world, tables=replace(world.tables, interactions=rows))
    config, _ = settle(train.Config(TINY, ModelConfig(neighbours=FOLLOWING)), world.tables)
    trained = run_finishing.Trained(torch.nn.Module(), world.schema, world.catalogue, make_data(world), 1, 1.0, {})
    told = run_finishing.make_correlate(config, trained)(100.0, 1 / 3)
    (place,) = np.flatnonzero(world.catalogue.item_ids[told.rows] == viewed)
    assert not told.numbers[:, place].any()
    assert np.count_nonzero(told.numbers[place]) > 2


@pytest.mark.parametrize(("n_events", "is_long"), [(40, False), (41, True)])
def test_histories_are_long_by_those_who_have_any(n_events, is_long):
    """A table of users may list many who have no events."""
    config, _ = settle(train.Config(TINY, ModelConfig(neighbours=FOLLOWING)), make_world(TINY).tables)
    counts = np.repeat([0, n_events], [90, 10])
    data = SimpleNamespace(
        trains_on_windows=True, sequences=SimpleNamespace(events=SimpleNamespace(counts=counts)), schema=None
    )
    trained = run_finishing.Trained(torch.nn.Module(), None, None, data, 1, 1.0, {})
    assert run_finishing.make_trials(config, trained) == neighbours_of_events(FOLLOWING, is_long)


@pytest.mark.parametrize(("data", "most"), [(SET, MOST_CORRELATED), (BASKETS, MOST_CORRELATED_BESIDE_MEMORY)])
def test_fewer_items_are_correlated_where_repeats_are_recommended(tmp_path, monkeypatch, data, most):
    correlated, factorise = set(), run_finishing.factorise

    def watch(*arguments):
        correlated.add(arguments[-1])
        return factorise(*arguments)

    monkeypatch.setattr(run_finishing, "factorise", watch)
    fit(data, tmp_path / "run")
    assert correlated == {most}


@pytest.mark.parametrize(
    ("data", "usual"),
    [(ORDERED, neighbours_of_events(FOLLOWING, is_long=False)), (BASKETS, BESIDE_MEMORY), (SET, SETS)],
    ids=["ordered", "repeats", "set"],
)
def test_without_a_validation_correlations_count_as_much_as_is_usual(tmp_path, monkeypatch, data, usual):
    given = []
    monkeypatch.setattr(run_finishing, "blend_in", lambda towers, make, blend, requests: given.append(blend))
    trained = fit(data, tmp_path / "run", validates=False)
    assert given == [usual.usual]
    assert trained.judged == Judged(usual.usual)
    assert "nothing to validate" in run_finishing.describe_blend(trained.judged)


def test_where_repeats_are_recommended_owned_items_are_served_with_their_lead(tmp_path, monkeypatch):
    tables = make_tables(3, simultaneous=True)
    requests = [{"user_id": user} for user in tables[1]["user_id"][:20]]

    def serve(name, judged):
        monkeypatch.setattr(run_finishing, "choose_blend", lambda *args: judged)
        recommender = Recommender.load(train.run(train.Config(BASKETS, BLENDED, QUIET, tmp_path / name), tables).bundle)
        owned, novel = recommender.rank_owned(requests, k=5), recommender.recommend(requests, k=5, filter_viewed=True)
        return recommender, owned, novel

    monkeypatch.setattr(yardstick, "find_lead", lambda *args: 1.5)  # lists this short need none
    towers, plain, plain_novel = serve("plain", Judged(Blend(0.0, 0.0, 30.0, "correlations"), 0.2, 0.2))
    blended, owned, novel = serve("blended", Judged(Blend(0.4, 0.0, 30.0, "correlations"), 0.3, 0.2))
    assert blended.taste_dim == towers.taste_dim + R
    assert owned.item_row.tolist() == plain.item_row.tolist()
    lead = (owned.score - plain.score).reshape(len(requests), -1)
    assert np.allclose(lead, lead[:, :1], atol=1e-4)
    lengths = np.linalg.norm(blended.encode_users(requests)[:, towers.taste_dim : blended.taste_dim], axis=1)
    assert np.ptp(lengths) > 0.05 * lengths.mean()  # another one for each user
    assert np.allclose(lead[:, 0] / lengths, (lead[:, 0] / lengths).mean(), rtol=1e-3)
    assert lead.min() > 0
    assert novel.score.tolist() != plain_novel.score.tolist()


def test_the_same_seed_blends_the_same(tmp_path, monkeypatch):
    judged = []

    def choose(*arguments):
        judged.append(choose_blend(*arguments))
        return WITH_THEM

    monkeypatch.setattr(run_finishing, "choose_blend", choose)
    parts = [fit(SET, tmp_path / name).towers.item_tower.correlations.numpy() for name in ("one", "other")]
    assert judged[0] == judged[1]
    assert parts[0].shape[1] == R
    assert np.array_equal(*parts)


def watch(made, name, correlate, *arguments):
    made.add(name)
    return correlate(*arguments)


@pytest.mark.parametrize(
    ("data", "trials", "decay", "most"),
    [
        (SET, neighbours_of_sets(4), 0.0, MOST_CORRELATED),
        (SET, neighbours_of_sets(4), 0.0, 5),
        (ORDERED, neighbours_of_events(4, is_long=False), 0.5, MOST_CORRELATED),
    ],
    ids=["set", "set with items outside", "in order"],
)
def test_neighbours_are_exported_and_served(tmp_path, monkeypatch, capsys, data, trials, decay, most):
    monkeypatch.setattr(run_finishing, "MOST_CORRELATED", most)
    said = "transitions" if decay else "regressions"
    judged = Judged(Blend(0.5, decay, 30.0, said, 3), 0.3, 0.2)
    asked = []

    def choose(towers, correlate, trials, requests, validation):
        correlate(30.0, decay)
        asked.append(trials)
        return judged

    monkeypatch.setattr(run_finishing, "choose_blend", choose)
    made = set()
    for name in ("correlate_next", "correlate_pairs"):
        correlate = getattr(run_finishing, name)
        monkeypatch.setattr(run_finishing, name, partial(watch, made, name, correlate))
    interactions, users, items = make_tables(3, simultaneous=False)
    model = replace(SMALL, n_blocks=0, similarity="cosine", neighbours=4, freeze_items=False, max_epochs=2)
    tables = (interactions if decay else interactions.drop(columns="datetime"), users, items)
    run, again = (train.run(train.Config(data, model, QUIET, tmp_path / name), tables) for name in ("run", "again"))
    assert asked == [trials] * 2
    assert made == {"correlate_next" if decay else "correlate_pairs"}
    names = ("item_neighbour_offsets.npy", "item_neighbours.npy")
    written = [[(one.bundle / name).read_bytes() for name in names] for one in (run, again)]
    assert written[0] == written[1]
    assert json.loads((run.bundle.parent / "metrics.json").read_text())["training"]["correlations"]["ndcg"] == 0.3
    assert f"{said} of items, of 3 neighbours each, blended in by 50%" in " ".join(capsys.readouterr().out.split())
    recommender = Recommender.load(run.bundle)
    neighbours, vectors = recommender.bundle.neighbours, recommender.catalogue.vectors
    assert neighbours.decay == decay
    sizes = np.diff(neighbours.offsets)
    if most < len(vectors):
        assert sizes.max() <= 6  # as many of the items outside as of the others
        assert (sizes > 0).sum() > most
    else:
        assert sizes.tolist() == [3] * len(vectors)
    request = {"history": [{"item_id": 100}, {"item_id": 101}]}
    answers = recommender.recommend([request], k=len(vectors))
    told = vectors.astype(np.float64) @ recommender.encode_users([request])[0]
    counts = np.exp([-decay, 0])  # of the event before and the last
    for count, row in zip(counts, recommender.item_rows([100, 101]), strict=True):
        part = slice(neighbours.offsets[row], neighbours.offsets[row + 1])
        told[neighbours.rows[part]] += count / counts.sum() ** 0.5 * neighbours.weights[part]
    np.testing.assert_allclose(answers.score, told[answers.item_row], rtol=1e-4, atol=1e-5)
    plain = vectors @ recommender.encode_users([request])[0]
    assert np.abs(told - plain).max() > 0.01 * np.abs(plain).max()  # they say something
