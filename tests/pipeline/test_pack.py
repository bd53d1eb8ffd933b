"""The stage of a run holds the segments of its users, as of their last events, and says which items are new."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from pipeline.config import Config, EvaluationConfig, IndexConfig
from pipeline.pack import find_new_items, write_segments
from pipeline.run import run
from serve.bundle import SEGMENTS
from serve.events import Events
from serve.reasons import assign_segments
from serve.recommender import Recommender
from serve.requests import Request
from tests.linear_bundle import SHOP, UNTIL, publish_linear
from tests.linear_profiles import known_users, make_profiles
from tests.pipeline.small_runs import N_ITEMS, ORDERED, QUIET, SMALL, make_tables


def test_users_with_the_same_past_are_of_one_segment_whenever_they_are_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("models.segments.MAX_SEGMENTS", 5)  # of 5 different users
    known = {
        f"{name}-{copy}": user for copy in range(60) for name, user in known_users(SHOP).items()
    }
    plain = Recommender(
        Recommender.load(publish_linear(tmp_path, SHOP, 3)).bundle,
        make_profiles(SHOP, known),
    )
    recommender = write_segments(plain, SimpleNamespace(path=tmp_path), 0)
    segments = recommender.bundle.segments
    assert (tmp_path / SEGMENTS).read_bytes() == segments.to_bytes()
    assert sum(one.size for one in segments.segments) == segments.users == 300
    segments_of_users = assign_segments(recommender, [Request(user) for user in known])
    told = {
        user: None if one is None else one.id  # nothing is known of some
        for user, one in zip(known, segments_of_users, strict=True)
    }
    assert len(set(told.values()) - {None}) > 1
    for name in known_users(SHOP):
        assert len({told[f"{name}-{copy}"] for copy in range(60)}) == 1
    later = Request("u1-0", datetime=UNTIL + 10**7, context={"device": "web"})
    assert assign_segments(recommender, [later])[0].id == told["u1-0"]
    assert assign_segments(plain, [later]) == [None]


def test_of_very_many_users_some_are_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.pack.MAX_USERS", 200)
    monkeypatch.setattr("models.segments.MAX_SEGMENTS", 5)
    known = {
        f"{name}-{copy}": user for copy in range(60) for name, user in known_users(SHOP).items()
    }
    plain = Recommender(
        Recommender.load(publish_linear(tmp_path, SHOP, 3)).bundle,
        make_profiles(SHOP, known),
    )
    first, again = (
        write_segments(plain, SimpleNamespace(path=tmp_path), 0).bundle.segments for _ in range(2)
    )
    assert first == again
    assert first.users == 200
    assert np.isclose(sum(one.share for one in first.segments), 1, atol=1e-3)


def test_items_first_seen_in_the_last_days_are_new():
    until, rows, days = (
        10**9,
        np.array([0, 0, 1, 2, 2, 3]),
        np.array([90, 1, 28, 29, 2, 0.5]),
    )
    events = Events(
        rows,
        (until - days * 86_400).astype(np.int64),
        rows,
        np.ones(6, np.float32),
        np.array([0, 6]),
    )
    assert find_new_items(events, 5, until).tolist() == [
        False,
        True,
        False,
        True,
        False,
    ]


@pytest.mark.slow
def test_a_run_of_many_items_publishes_a_coarse_index(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.coarse_index.MIN_ITEMS", N_ITEMS)
    config = Config(ORDERED, SMALL, QUIET, tmp_path, quick=True, index=IndexConfig(0.9))
    done = run(replace(config, evaluation=EvaluationConfig([])), make_tables(ORDERED))
    bundle = Recommender.load(done.bundle).bundle
    assert (done.bundle / "coarse.faiss").exists()
    assert len(bundle.index.coarse) == len(bundle.index)
    facts = bundle.manifest.facts
    assert (facts.index.target, facts.index.recall) == (0.9, 1)  # all of few items are fetched
    assert facts.config["index"] == {"recall": 0.9}
