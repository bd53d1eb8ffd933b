"""What is published learns from the test, too, after the figures were made without it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from datamodules.clean import only_targets
from evaluation.holdout import profiles_from_frame, to_moment
from evaluation.seen import refuse_learned
from pipeline.run import measure, run
from pipeline.stages import Trained, refits
from pipeline.tables import prepare
from serve.bundle import Bundle
from serve.errors import SchemaError
from serve.recommender import Recommender
from tests.models.tiny_towers import one_thread
from tests.pipeline.small_runs import (
    BASKETS,
    ORDERED,
    SETS,
    config_of,
    make_tables,
    trace_exports,
)

import bascule

DATA = {"baskets": BASKETS, "ordered": ORDERED, "sets": SETS}


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    trace_exports(monkeypatch)
    with one_thread():
        yield


@pytest.mark.parametrize("name", ["baskets", "ordered", "sets"])
def test_figures_are_those_of_a_bundle_that_never_met_the_test(tmp_path, name):
    tables = make_tables(DATA[name])
    events = tables[0]
    done = {}
    for refit in ("all", "profiles"):
        (tmp_path / refit).mkdir()
        done[refit] = run(config_of(tmp_path / refit, DATA[name], refit=refit), tables)
    figures = done["all"].metrics
    assert figures == done["profiles"].metrics

    work = done["profiles"].work
    bundle = Bundle.load(done["profiles"].bundle)
    profiles = profiles_from_frame(work.split.refit, work.tables.users, bundle.schema)
    again = measure(Recommender(bundle, profiles), work, {})
    assert again["test"] == figures["test"]

    seen = {
        refit: json.loads((tmp_path / refit / "metrics.json").read_bytes())["seen"]
        for refit in done
    }
    n_before = len(work.split.refit)
    assert 0 < n_before < len(events)
    for refit, n_learned in {"all": len(events), "profiles": n_before}.items():
        counts = {part: told["events"] for part, told in seen[refit].items()}
        assert counts == {"figures": n_before, "weights": n_learned, "profiles": len(events)}

    refitted = Bundle.load(done["all"].bundle)
    assert refitted.manifest.version != bundle.manifest.version
    assert not np.array_equal(refitted.vectors, bundle.vectors)
    for facts in (refitted.manifest.facts, bundle.manifest.facts):
        assert facts.config["seen"]["profiles"]["events"] == len(events)


def test_an_item_that_only_the_test_has_joins_what_is_published(tmp_path):
    events, users, items = make_tables(ORDERED)
    is_last = ~events.duplicated("user_id", keep="last")
    news = events[is_last].index[:5]
    events.loc[news, "item_id"] = 999
    items = pd.concat([items, items.head(1).assign(item_id=999)], ignore_index=True)
    config = config_of(tmp_path, ORDERED, refit="all")
    recommender = Recommender.load(run(config, (events, users, items)).bundle)
    similar, _ = recommender.similar_items(999, 3)
    assert len(similar) == 3
    n_counts = recommender.bundle.manifest.facts.counts
    assert n_counts["items"] == events["item_id"].nunique()


def test_a_refit_by_default_must_cost_little_beside_the_training(tmp_path):
    work = prepare(config_of(tmp_path, ORDERED), make_tables(ORDERED), tmp_path)
    trained = Trained(None, None, epochs=3, temperature=1.0, pace={})
    assert not refits(work, trained)  # an export alone costs more than that training
    many = replace(trained, epochs=10**6)
    assert refits(work, many)
    assert not refits(replace(work, config=replace(work.config, refit="profiles")), many)
    assert not refits(replace(work, config=replace(work.config, quick=True)), many)
    assert refits(replace(work, config=replace(work.config, refit="all")), trained)
    nothing = work.with_test()
    assert not refits(replace(nothing, config=replace(nothing.config, refit="all")), many)


@pytest.mark.parametrize("name", ["baskets", "ordered", "sets"])
def test_what_has_seen_the_test_is_not_measured_by_it(tmp_path, name):
    tables = make_tables(DATA[name])
    out = tmp_path / "run"
    out.mkdir()
    done = run(config_of(out, DATA[name], refit="all"), tables)
    work = done.work
    test = only_targets(work.split.test)
    past = work.split.refit
    moment = None if work.split.test_at is None else to_moment(work.split.test_at).isoformat()
    measured = bascule.load(out / "measured")
    again = measured.evaluate(test, past, work.tables.users, at=moment)
    expected = done.metrics["test"]["bascule"]
    for view, figures in again["test"]["bascule"].items():
        assert figures["users"] == expected[view]["users"] > 0
        assert figures["NDCG@10"] == pytest.approx(expected[view]["NDCG@10"], abs=1e-9)

    published = bascule.load(out)
    with pytest.raises(SchemaError, match=r"weights .* learned .*measured/bundle"):
        published.evaluate(test, past)
    refuse_learned(published.served.bundle, test.assign(user_id=test["user_id"] + "x"))
    full = Recommender(measured.served.bundle, published.served.profiles)
    with pytest.raises(SchemaError, match=r"profiles hold"):
        measure(full, work, {})


def test_a_run_without_a_refit_leaves_no_measured_bundle_of_the_run_before(tmp_path):
    tables = make_tables(ORDERED)
    for refit, is_there in {"all": True, "profiles": False}.items():
        config = config_of(tmp_path, ORDERED, refit=refit, overwrite=True)
        done = run(config, tables)
        assert (tmp_path / "measured").exists() == is_there
        if is_there:
            kept = Bundle.load(tmp_path / "measured" / "bundle")
            assert kept.manifest.version != Bundle.load(done.bundle).manifest.version


def test_what_was_bought_on_the_last_day_is_not_offered_and_counts_in_the_figures(tmp_path):
    done = run(config_of(tmp_path, BASKETS), make_tables(BASKETS))
    served = Recommender.load(done.bundle)
    events = done.work.with_test().split.refit
    n_held = 0
    for user_id, of_user in events.groupby("user_id"):
        moment = int(of_user["datetime"].max())
        bag = {*of_user["item_id"][of_user["datetime"] == moment]}
        request = {"user_id": user_id, "datetime": moment}
        listed, whole = (
            {*served.recommend([{**request, "again": again}], 20).item_id}
            for again in ("due", "any")
        )
        assert listed & bag == set()
        n_held += len(whole & bag)
    assert n_held > 0
