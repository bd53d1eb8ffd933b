"""The benchmark of parts: each variant takes out what its name says, and the test is ranked as evaluation ranks it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import pad

import tests.benchmarks.ablations as ablations
from datamodules import datamodule as interactions
from datamodules.clean import only_targets, weigh_targets
from datamodules.config import TargetsConfig
from datamodules.datamodule import InteractionsDataModule
from datamodules.splits import Split
from models.towers import Towers
from models.two_tower import warm_cosine
from pipeline.config import Config
from pipeline.stages import settle
from tests.benchmarks.board_fit import GIVEN_THE_TIME, FullRanking, Prepared, tell_moments
from tests.benchmarks.board_list import BOARDS
from tests.benchmarks.variants import ID_SHARE, VARIANTS
from tests.tiny_data import BASKETS, DAY, ORDERED, N, batches, hold_out, make_data, make_world
from tests.tiny_towers import make_module, make_towers, one_thread

BY_NAME = {variant.name: variant for variant in VARIANTS}
OF_LIKED = {"every-event-a-target", "no-weights", "weights-as-events", "no-event-that-is-no-target"}


@pytest.fixture(autouse=True)
def _alone():
    with one_thread():
        yield


def make_prepared(data_config) -> tuple[Prepared, Towers, InteractionsDataModule]:
    """Hold out each user's last event, and return what is left with towers that were never trained."""
    world = make_world(data_config)
    events = world.tables.interactions.sort_values(["user_id", "datetime"], kind="stable")
    is_last = ~events.duplicated("user_id", keep="last")
    config, _ = settle(Config(data=data_config), world.tables)
    split = Split(events[~is_last], events[:0], events[is_last], "leave_one_out")
    world = replace(world, tables=replace(world.tables, interactions=events[~is_last]))
    data = make_data(world, validation=events[:0])
    return Prepared(config, world.tables, split), make_towers(world, data), data


def altered(name: str, config) -> tuple:
    """Return a module as it is and another one altered, with a batch."""
    world, validation = hold_out(make_world(config))
    data = make_data(world, validation=validation)
    modules = [make_module(make_towers(world, data)) for _ in range(2)]
    BY_NAME[name].alter(modules[1])
    return *modules, data


@pytest.mark.parametrize("config", [ORDERED, BASKETS], ids=["ordered", "baskets"])
def test_every_variant_changes_what_it_says(config):
    prepared, _, _ = make_prepared(config)
    whole = prepared.config
    assert BY_NAME["all"].configure(whole) == whole
    assert BY_NAME["no-attributes"].configure(whole).data.features.item == {}
    assert BY_NAME["no-request-context"].configure(whole).data.features.context == {}
    assert BY_NAME["no-dropout"].configure(whole).model.dropout == 0
    assert not BY_NAME["no-shrinkage"].configure(whole).model.shrink_items
    assert {BY_NAME["other-similarity"].configure(whole).model.similarity, whole.model.similarity} == {"dot", "cosine"}
    other = BY_NAME["other-id-dropout"]
    assert {other.configure(whole).model.id_dropout, whole.model.id_dropout} == {0, 0.1}
    assert other.tell(other.configure(whole)) in ("id dropout 0", "id dropout 0.1")
    applying = {variant.name for variant in VARIANTS if variant.applies(prepared)}
    not_here = {"bounded-ids", "no-shrinkage"} if config.repeats == "allow" else {"no-memory-term"}
    assert BY_NAME.keys() - applying == OF_LIKED | not_here


def test_correlations_are_left_out_where_there_are_some():
    prepared, _, _ = make_prepared(ORDERED)
    blended = replace(prepared.config, model=replace(prepared.config.model, correlations=5, neighbours=0))
    variant = BY_NAME["no-correlations"]
    assert variant.applies(replace(prepared, config=blended))
    assert variant.configure(blended).model.correlations == 0
    without_context = BY_NAME["no-request-context"]
    assert without_context.configure(blended).model.correlations == 5
    a_set = replace(blended, model=replace(blended.model, n_blocks=0))
    assert without_context.configure(a_set).model.correlations == 0
    told = prepared.config  # of few ordered events a user: pair by pair
    assert told.model.neighbours
    assert variant.configure(told).model.neighbours == 0
    assert without_context.configure(told).model.neighbours == told.model.neighbours


def test_what_is_not_there_is_not_taken_out():
    prepared, _, _ = make_prepared(ORDERED)
    bare = replace(prepared.config.data, features=type(prepared.config.data.features)())
    without_times = prepared.tables.interactions.drop(columns="datetime")
    tables = replace(prepared.tables, interactions=without_times)
    model = replace(prepared.config.model, neighbours=0, shrink_items=False)
    prepared = Prepared(replace(prepared.config, data=bare, model=model), tables, prepared.split)
    left = {"all", "other-similarity", "no-dropout", "constant-rate"}
    assert {variant.name for variant in VARIANTS if variant.applies(prepared)} == left


def test_what_is_liked_is_told_in_other_ways():
    liked = replace(ORDERED, targets=TargetsConfig(min_weight=4))
    prepared, _, _ = make_prepared(ORDERED)
    prepared = replace(prepared, config=replace(prepared.config, data=liked))
    assert {variant.name for variant in VARIANTS if variant.applies(prepared)} >= OF_LIKED
    stars = pd.Series([5.0, 2.0, 4.0])
    rows = weigh_targets(pd.DataFrame({"user_id": 1, "item_id": [7, 8, 9], "weight": stars}), liked)
    told = {name: BY_NAME[name].rows(rows) for name in OF_LIKED}
    for name, changed in told.items():
        is_shorter = name == "no-event-that-is-no-target"
        assert changed["item_id"].tolist() == ([7, 9] if is_shorter else [7, 8, 9])
        assert len(only_targets(changed)) == (3 if name == "every-event-a-target" else 2)
        assert ("weight" in changed) == (name in ("every-event-a-target", "no-event-that-is-no-target"))
    assert told["weights-as-events"]["event"].tolist() == ["5", "2", "4"]


def test_the_id_part_is_no_longer_than_its_share_of_the_content():
    module, bounded, _ = altered("bounded-ids", ORDERED)
    rows = torch.arange(N)
    for one in (module, bounded):
        tower = one.towers.item_tower.eval()
        with torch.no_grad():
            next(tower.id_table.parameters()).mul_(100)
        ids, content = tower.id_table(rows), tower.content(one.towers.item_codes, one.towers.item_values)
        has_content = one.towers.item_has_content
        assert has_content.any()
        is_short = ids.norm(dim=1) <= ID_SHARE * content.norm(dim=1) + 1e-6
        assert is_short[has_content].all() == (one is bounded)
        assert not is_short[~has_content].any()


def test_the_rate_stays_at_its_peak():
    _, module, _ = altered("constant-rate", ORDERED)
    rates = [warm_cosine(step, module.warmup_steps, module.max_epochs * 7) for step in (0, 1, 500, 100_000)]
    assert rates == pytest.approx([1.0] * 4, abs=1e-6)


def test_attention_no_longer_depends_on_gaps():
    module, silent, data = altered("no-time-in-attention", ORDERED)
    batch = batches(data)[0]
    times, groups = (pad(batch.arrays[f"history_{name}"], (1, 0)) for name in ("times", "groups"))
    tokens = torch.randn(*times.shape, 6)
    stretched = times * 3 - times.min()
    for one, changes in ((module, True), (silent, False)):
        blocks = one.towers.user_tower.blocks
        before, after = (blocks(tokens, moments, groups) for moments in (times, stretched))
        assert torch.equal(before, after) != changes


def test_the_request_no_longer_depends_on_its_moment():
    module, silent, data = altered("no-request-context", ORDERED)
    now = data.validation_batches
    later = tell_moments(now, torch.cat([batch.arrays["request_times"] for batch in now]) + 9 * DAY)
    for one, changes in ((module, True), (silent, False)):
        items = one.towers.item_vectors(torch.zeros(N, 0))
        before, after = (one.towers.request_vectors(some[0], items)[0] for some in (now, later))
        assert torch.equal(before, after) != changes


def test_owned_items_score_by_the_product_alone():
    module, silent, data = altered("no-memory-term", BASKETS)
    for one, is_zero in ((module, False), (silent, True)):
        items = one.towers.item_vectors(torch.from_numpy(data.trends.popularity[-1]))
        bonus = one.towers.request_vectors(data.validation_batches[0], items)[1]
        assert (bonus == 0).all() == is_zero
        loss = one.request_step(batches(data)[0])
        loss.backward()
        assert torch.isfinite(loss)


def test_the_test_is_ranked_as_a_loop_ranks_it(monkeypatch):
    monkeypatch.setattr(interactions, "REQUESTS_PER_BATCH", 2)
    prepared, towers, data = make_prepared(ORDERED)
    ranking = FullRanking.make(prepared, data)
    measured = ranking.measure(towers.train())
    assert towers.training
    towers.eval()
    items = towers.item_vectors(torch.zeros(N, 0)).detach()
    test, train = prepared.test.sort_values("user_id"), prepared.split.train
    all_ids = data.catalogue.item_ids
    assert measured["novel"].shape == measured[f"novel {GIVEN_THE_TIME}"].shape == (len(test),)
    for how, values in measured.items():
        asked = ranking.batches[GIVEN_THE_TIME if GIVEN_THE_TIME in how else ""]
        assert len(asked) > 1
        by_owned = {}
        for batch in asked:
            vectors = towers.request_vectors(batch, items)[0].detach().numpy()
            for row, vector in enumerate(vectors):
                owned = frozenset(all_ids[batch.owned_rows[batch.owned_users == row]])
                by_owned[owned] = vector, int(batch.arrays["request_times"][row])
        assert len(by_owned) == len(test)
        expected, moments = [], []
        for user, item in zip(test["user_id"], test["item_id"], strict=True):
            owned = frozenset(train.loc[train["user_id"] == user, "item_id"])
            vector, moment = by_owned[owned]
            ids = [wanted for wanted in all_ids.tolist() if wanted not in owned]
            scores = dict(zip(all_ids.tolist(), items.numpy() @ vector, strict=True))
            place = sorted(ids, key=lambda wanted: -scores[wanted]).index(item)
            expected.append(1 / np.log2(place + 2) if place < 10 else 0)
            moments.append(moment)
        assert values == pytest.approx(expected)
        assert (moments == test["datetime"].tolist()) == (GIVEN_THE_TIME in how)


@pytest.mark.parametrize("config", [ORDERED, BASKETS], ids=["ordered", "baskets"])
def test_many_users_are_ranked_as_each_alone(config, monkeypatch):
    monkeypatch.setattr(interactions, "REQUESTS_PER_BATCH", 2)
    prepared, towers, data = make_prepared(config)
    together = FullRanking.make(prepared, data).measure(towers)
    test = prepared.split.test.sort_values("user_id")
    alone: dict[str, list[float]] = {view: [] for view in together}
    for user in test["user_id"]:
        of_her = replace(prepared, split=replace(prepared.split, test=test[test["user_id"] == user]))
        for view, values in FullRanking.make(of_her, data).measure(towers).items():
            alone[view] += values.tolist()
    assert ("all" in together) == (config is BASKETS)
    for view, values in together.items():
        assert values.tolist() == pytest.approx(alone[view])
        assert len(set(alone[view])) > 2


def test_results_are_kept_and_only_what_is_missing_is_fitted(tmp_path, monkeypatch):
    fitted = []

    def fit(prepared, variant):
        fitted.append(variant.name)
        return {"novel": np.array([0.0, 0.5]), "seconds": np.array([2.0, 1.0]), "told": np.array(variant.name)}

    prepared, _, _ = make_prepared(ORDERED)
    monkeypatch.setattr(ablations, "fit_variant", fit)
    monkeypatch.setattr(ablations, "prepare", lambda *_: prepared)
    some = [BY_NAME[name] for name in ("all", "no-memory-term", "no-dropout")]
    for variants in (some[:2], some):
        kept = ablations.run_seed(BOARDS[0], tmp_path, variants, tmp_path, 0, [])
    assert fitted == ["all", "no-dropout"]
    assert list(kept) == ["all", "no-dropout"]
    by_seed = {0: kept["no-dropout"], 1: kept["no-dropout"] | {"novel": np.array([0.5, 0.5])}}
    (row,) = ablations.describe(BOARDS[0], "no-dropout", by_seed, {0: kept["all"], 1: kept["all"]})
    assert row[1:] == ("no-dropout", "novel", "0.3750 ± 0.1768", "+0.1250 (+0.0000, +0.2500)", "2", "1")
