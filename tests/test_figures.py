"""Each figure of `metrics.json` is laid out under its own name."""

from __future__ import annotations

import numpy as np
import pytest

from evaluation.report.figures import Figure, find_skipped, read_all_metrics, read_contextual, read_figure, read_views
from evaluation.report.plain_words import make_tiles

METRICS = [f"{name}@{k}" for k in (10, 20) for name in ("HR", "Recall", "NDCG", "MRR", "MAP")]
COUNTS = {"users": 41, "targets": 97, "targets_outside_catalogue": 13, "unreachable_targets": 7}
NOBODY = {"users": 0, "targets": 0, "targets_outside_catalogue": 0, "unreachable_targets": 0}
VIEWS = {"all": "of all", "repeat": "of owned", "novel": "of the others"}


def summary(seed: int, **known: float) -> dict:
    """Draw a summary without two equal figures, some of which are known."""
    figures = dict(zip(METRICS, np.random.default_rng(seed).random(len(METRICS)).tolist(), strict=True)) | known
    intervals = {f"{name}_ci95": [value - 0.125, value + 0.25] for name, value in figures.items()}
    return COUNTS | figures | intervals


def content_of(**headlines: float) -> dict:
    """Return the content of a run with these models, whose NDCG@20 among all items is known."""
    test = {
        name: {"all": summary(seed, **{"NDCG@20": value}), "repeat": NOBODY, "novel": summary(seed + 50)}
        for seed, (name, value) in enumerate(headlines.items())
    }
    paired = {name: {"all": summary(seed + 80), "repeat": {"users": 0}} for seed, name in enumerate([*test][1:])}
    return {"protocol": {"repeats": "allow", "views": VIEWS}, "test": test, "paired": paired}


CONTENT = content_of(bascule=0.5, popularity=0.25, ease=0.75, itemknn=0.375)


def test_models_are_in_the_order_of_the_headline_metric_with_their_own_figures():
    view, *_ = read_views(CONTENT)
    assert [row.name for row in view.rows] == ["ease", "bascule", "itemknn", "popularity"]
    assert [row.label for row in view.rows] == ["EASE", "Bascule", "ItemKNN", "Most popular"]
    assert (view.rival.name, view.ours.name) == ("ease", "bascule")
    for row in view.rows:
        figures = CONTENT["test"][row.name]["all"]
        for name, got in {"NDCG@20": row.headline, **row.others}.items():
            assert got == Figure(figures[name], *figures[f"{name}_ci95"], 41)
        assert list(row.others) == ["HR@10", "Recall@20", "MRR@10"]
        paired = CONTENT["paired"].get(row.name)
        assert row.difference == (None if paired is None else read_figure(paired["all"], "NDCG@20"))
        assert row.is_ours == (row.name == "bascule")


def test_a_view_says_what_it_is_counted_over():
    (everything, repeat, novel) = read_views(CONTENT)
    assert [view.name for view in (everything, repeat, novel)] == list(VIEWS)
    assert [view.meaning for view in (everything, repeat, novel)] == list(VIEWS.values())
    assert everything.title == "All items"
    assert novel.metric == "NDCG@20"
    counts = (everything.users, everything.targets, everything.outside_catalogue, everything.unreachable)
    assert counts == (41, 97, 13, 7)
    assert (repeat.rows, repeat.rival) == ((), None)
    assert read_views({}) == []


@pytest.mark.parametrize(
    ("users", "low", "high", "verdict"),
    [
        (20, 0.125, 0.25, "better"),
        (20, -0.25, -0.125, "worse"),
        (20, 0.0, 0.25, "no clear difference"),
        (20, -0.25, 0.0, "no clear difference"),
        (19, 0.125, 0.25, "no clear difference"),
    ],
)
def test_ours_is_better_or_worse_where_the_interval_is_on_one_side(users, low, high, verdict):
    content = content_of(bascule=0.5, ease=0.25)
    content["paired"]["ease"]["all"] |= {"users": users, "NDCG@20_ci95": [low, high]}
    view, *_ = read_views(content)
    assert [row.verdict for row in view.rows] == ["", verdict]


def test_context_is_what_it_adds_to_the_same_requests():
    views = {name: {"all": summary(seed), "repeat": NOBODY} for seed, name in enumerate(("with", "without", "gain"))}
    asked = {"bascule": views["with"], "bascule without context": views["without"]}
    paired = {"bascule without context": views["gain"]}
    both = content_of(bascule=0.5) | {"with_context": asked, "paired_with_context": paired}
    del both["test"]["bascule"]["novel"]
    (found,) = read_contextual(both)
    assert found.title == "All items"
    got = {"without": found.without, "with": found.informed, "gain": found.gain}
    assert got == {name: read_figure(views[name]["all"], "NDCG@20") for name in got}
    assert read_contextual(CONTENT) == []


def test_all_metrics_are_ours():
    figures = CONTENT["test"]["bascule"]["novel"]
    assert read_all_metrics(CONTENT, "novel") == {name: read_figure(figures, name) for name in METRICS}


def test_baselines_that_were_skipped_are_named_with_the_reason():
    records = {"ease": {"skipped": "too large"}, "itemknn": {"parameter": {}, "validation": {}, "seconds": 1.0}}
    assert find_skipped({"baselines": records}) == {"EASE": "too large"}
    assert find_skipped({}) == {}


def test_tiles_are_hits_of_the_first_view_the_headline_of_each_and_coverage():
    tiles = make_tiles(read_views(CONTENT), 0.375)
    ours = CONTENT["test"]["bascule"]
    expected = [ours["all"]["HR@10"], ours["all"]["NDCG@20"], ours["novel"]["NDCG@20"], 0.375]
    assert [tile.value for tile in tiles] == expected
    assert tiles[2].label.startswith("NDCG@20, items new to the user")
    assert len(make_tiles(read_views(CONTENT), None)) == 3
