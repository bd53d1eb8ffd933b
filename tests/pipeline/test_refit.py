"""What is published learns from the test, too, after the figures were made without it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from evaluation.holdout import profiles_from_frame
from pipeline.run import measure, run
from pipeline.stages import Trained, refits
from pipeline.tables import prepare
from serve.bundle import Bundle
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
