from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import serve.durable
from evaluation.report import page
from evaluation.report.__main__ import main
from evaluation.report.page import render_report, write_report
from serve.profiles import write_profiles
from serve.recommender import Recommender
from tests.linear_bundle import FILMS, SHOP
from tests.tiny_run import HOSTILE, make_tiny_run, user_ids
from tests.tiny_towers import one_thread

VOID = {"meta", "link", "br", "hr", "img", "input"}
DRAWN = {"circle", "line", "polyline", "path"}
FIGURE = re.compile(r"^[−+]?\d+\.\d{4}$")


class Page(HTMLParser):
    """A page as tags and texts; a tag that is not closed in order is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.data, self.where = [], [], [], [], {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.where |= {name: value for name, value in attributes.items() if name.startswith("data-")}
        if tag == "data":
            self.data.append([attributes["value"], "", dict(self.where)])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert tag in DRAWN, tag
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            self.where = {}

    def handle_data(self, text):
        self.texts.append(text)
        if self.open and self.open[-1] == "data":
            self.data[-1][1] += text

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_tiny_run(tmp_path_factory.mktemp("shop"), SHOP)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return make_tiny_run(tmp_path_factory.mktemp("films"), FILMS)


@pytest.fixture(params=["shop", "films"])
def run(request):
    return request.getfixturevalue(request.param)


def render(run, **changes):
    return render_report(run.folder, run.content | changes, run.recommender, run.holdout, None)


def test_the_catalogue_that_somebody_is_shown_is_that_of_ours(shop):
    beyond = {name: figures | {"coverage@10": 0.0625} for name, figures in shop.content["beyond_accuracy"].items()}
    beyond["bascule"]["coverage@10"] = 0.8125
    said = " ".join(" ".join(Page(render(shop, beyond_accuracy=beyond)).texts).split())
    assert "81.2 % of the catalogue is in somebody's first ten" in said


def test_the_page_is_whole_and_needs_nothing_beside_it(run):
    text = render(run)
    parsed = Page(text)
    assert text.startswith("<!doctype html>")
    assert parsed.named("html") == [{"lang": "en"}]
    assert not [tag for tag, _ in parsed.tags if tag in ("script", "link", "img", "iframe")]
    assert "@import" not in text
    assert "url(" not in text
    assert not re.search(r"https?:", text)
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"][1:] for attributes in parsed.named("a")} <= set(ids)
    charts = parsed.named("svg")
    assert len(charts) > 9
    assert all(chart["role"] == "img" and chart["aria-label"] and chart["viewbox"] for chart in charts)


def test_headings_go_down_one_level_at_a_time(run):
    levels = [int(tag[1]) for tag, _ in Page(render(run)).tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(lower - upper <= 1 for upper, lower in pairwise(levels))


def headline(run):
    return "NDCG@20" if run.recommender.bundle.schema.repeats == "allow" else "NDCG@10"


def test_figures_are_those_of_the_metrics(run):
    shown = {}
    for value, text, where in Page(render(run)).data:
        if "data-model" in where:
            shown.setdefault((where["data-model"], where["data-view"]), []).append((float(value), text))
    metric, expected = headline(run), {}
    for model, views in run.content["test"].items():
        for view, figures in views.items():
            differences = [run.content["paired"][model][view][metric]] if model != "bascule" else []
            others = [figures[name] for name in ("HR@10", "Recall@20", "MRR@10")]
            expected[model, view] = [figures[metric], *differences, *others]
    assert {key: [value for value, _ in figures] for key, figures in shown.items()} == expected
    for value, text in (pair for figures in shown.values() for pair in figures):
        assert FIGURE.match(text)
        assert float(text.replace("−", "-")) == pytest.approx(value, abs=5.1e-5)


def test_every_metric_of_ours_and_every_list_figure_is_there(run):
    shown = {"all-metrics": [], "beyond": [], "with-context": []}
    for value, _, where in Page(render(run)).data:
        if "data-table" in where:
            shown[where["data-table"]].append(float(value))
    ours = run.content["test"]["bascule"]
    names = [name for name in ours["novel"] if f"{name}_ci95" in ours["novel"]]
    assert shown["all-metrics"] == [ours[view][name] for name in names for view in ours]
    beyond = run.content["beyond_accuracy"].values()
    assert shown["beyond"] == [value for figures in beyond for value in figures.values()]
    if "with_context" in run.content:
        metric = headline(run)
        informed, plain = (run.content["with_context"][name] for name in ("bascule", "bascule without context"))
        gain = run.content["paired_with_context"]["bascule without context"]
        assert shown["with-context"] == [part[view][metric] for view in ours for part in (plain, informed, gain)]


def test_groups_of_fewer_than_20_users_are_hidden(run):
    parsed = Page(render(run))
    shown = [
        (where["data-slice"], where["data-view"], value) for value, _, where in parsed.data if "data-slice" in where
    ]
    metric = headline(run)
    expected = [
        (name, view, str(figures[metric]))
        for view, slices in run.content["slices"].items()
        for name, groups in slices.items()
        for figures in groups.values()
        if figures["users"] >= 20
    ]
    assert sorted(shown) == sorted(expected)
    small = [figures["users"] for figures in run.content["slices"]["novel"]["sex"].values() if figures["users"] < 20]
    assert small


def test_nothing_of_the_data_becomes_code_and_nobody_is_named(run):
    text = render(run)
    assert HOSTILE not in text
    assert "&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;" in text
    assert not any(str(user_id) in text for user_id in user_ids(run.recommender.bundle.schema))
    assert "a | strange &lt;reason&gt;" in text


def test_the_summary_comes_first_and_says_against_what(shop):
    text = "".join(Page(render(shop)).texts)
    assert text.index("In short") < text.index("Bascule learned from 1,792 events") < text.index("Accuracy against")
    assert "61 users and 23 items, with events from 5 April 2017 to 3 August 2017" in text
    assert "users would choose from 14 July 2017 on" in text
    assert "1 h 2 min" in text


def test_a_leak_is_said(shop, films):
    assert "context &#39;till&#39; tells &lt;the&gt; item" in render(shop)
    assert "No column gives the targets away" in render(films)
    assert "Leak check" not in render(
        films, data={name: films.content["data"][name] for name in films.content["data"] if name != "leaks"}
    )


def test_ids_without_a_row_are_said_where_they_were_counted(shop):
    assert '<th scope="row">Users with events but no row</th>' in render(shop)
    before = {name: value for name, value in shop.content["data"].items() if name != "unlisted"}
    assert "but no row" not in render(shop, data=before)


def test_a_table_that_was_not_given_is_not_said_to_have_rows(shop):
    given = '<th scope="row">Rows of the {} table</th><td>{}</td>'
    assert given.format("items", 29) in render(shop)
    alone = render(shop, data=shop.content["data"] | {"records": {"interactions": 1919, "users": 67}})
    assert given.format("users", 67) in alone
    assert given.format("items", "not given") in alone


def test_what_looks_wrong_in_the_tables_is_shown(shop):
    assert "Looks wrong" not in render(shop)
    found = {"headers": ["line 1 of <a>"], "spaced_ids": ["ids: 3"], "missing_marks": []}
    page = render(shop, data=shop.content["data"] | found)
    assert "Looks wrong" in page
    assert '<th scope="row">A header?</th><td>line 1 of &lt;a&gt;</td>' in page
    assert '<th scope="row">White space</th><td>ids: 3</td>' in page


def test_targets_are_counted_where_not_every_event_is_one(shop):
    assert "to be predicted" not in render(shop)
    page = render(shop, data=shop.content["data"] | {"targets": {"train": 1234, "validation": 0, "test": 7}})
    assert "1,234 of them to be predicted" in page
    assert "0 of them to be predicted" in page


def test_a_training_that_went_on_says_so(shop):
    assert "more on all but the test" not in render(shop)
    page = " ".join(render(shop, training={"epochs": 7, "continued_epochs": 2}).split())
    assert "Trained for 7 epochs, then for 2 more on all but the test." in page


def test_one_user_and_one_item_are_said_in_the_singular(films):
    content = copy.deepcopy(films.content)
    for models in content["test"].values():
        models["novel"] |= {"users": 1, "targets": 1, "targets_outside_catalogue": 1, "unreachable_targets": 0}
    one = films.holdout.head(1)
    text = " ".join(re.sub("<[^>]*>", " ", render_report(films.folder, content, films.recommender, one, None)).split())
    assert "1 user with 1 target; 1 is not in the catalogue and counts as a miss." in text
    assert "The most popular item has " in text
    assert "lists for 1 user of the test." in text
    assert "1 user, drawn by chance" in text
    many = " ".join(render(films).split())
    assert "users of the test." in many
    assert " most popular items have " in many


def test_a_skipped_baseline_and_an_empty_view_are_said(shop):
    content = copy.deepcopy(shop.content)
    for part in ("test", "paired", "beyond_accuracy"):
        del content[part]["ease"]
    content["baselines"]["ease"] = {"skipped": "too large <here>"}
    for models in (content["test"], content["paired"]):
        for views in models.values():
            views["repeat"] = {"users": 0, "targets": 0, "targets_outside_catalogue": 0, "unreachable_targets": 0}
    for groups in content["slices"]["repeat"].values():
        groups.clear()
    text = render_report(shop.folder, content, shop.recommender, shop.holdout, None)
    Page(text)
    assert "Not measured: EASE (too large &lt;here&gt;)" in text
    assert "No user has a target here" in text


def test_all_baselines_may_be_absent(films):
    content = copy.deepcopy(films.content)
    content["test"] = {"bascule": content["test"]["bascule"]}
    content["paired"], content["baselines"] = {}, {}
    text = render_report(films.folder, content, films.recommender, films.holdout, None)
    Page(text)
    assert "no baseline was measured" in text


def test_a_run_without_a_test_has_a_page(films, tmp_path):
    protocol = {"split": "none", "note": "everything trains"}
    content = {name: films.content[name] for name in ("version", "data", "timing", "training")} | {"protocol": protocol}
    text = render_report(tmp_path, content, films.recommender, films.holdout.iloc[:0], None)
    Page(text)
    assert "Nothing was held out" in text
    assert "Example 10" in text
    assert "✓" not in text
    assert "the figures of the data are in <code>metrics.json</code>" in text
    assert "all figures" not in text  # those of the map and of what is shown are on the page alone
    assert 'id="training"' not in text  # there are no logs
    assert all(f'id="{name}"' in text for name in ("catalogue", "map", "examples", "data", "method"))


def test_a_world_of_ids_alone_has_a_page(films, tmp_path):
    bundle, profiles = films.recommender.bundle, films.recommender.profiles
    schema = replace(bundle.schema, has_datetime=False)
    bare = replace(bundle, items=bundle.items.select(["item_id"]), schema=schema)
    history = replace(profiles.history, datetime=None)
    content = films.content | {"data": films.content["data"] | {"time": None}}
    recommender = Recommender(bare, replace(profiles, history=history, features={}))
    text = render_report(tmp_path, content, recommender, films.holdout, None)
    Page(text)
    assert "its events have an order and no times" in text
    assert re.search(r"<li( class=\"hit\")?>item 1\d\d", text)
    assert "Colours are the column" not in text


def test_nobody_known_is_no_error(films, tmp_path):
    nobody = Recommender(films.recommender.bundle)
    protocol = {"split": "none", "note": "everything trains"}
    content = {name: films.content[name] for name in ("version", "data")} | {"protocol": protocol}
    text = render_report(tmp_path, content, nobody, None, None)
    Page(text)
    assert "No user is known to ask for" in text


def test_the_same_run_gives_the_same_page(shop):
    assert render(shop) == render(shop)


def test_a_failing_disk_leaves_the_old_page(shop, tmp_path, monkeypatch):
    (tmp_path / "report.html").write_text("old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(serve.durable.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_report(tmp_path, shop.folder, shop.content, shop.recommender, shop.holdout)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "old"


def test_the_command_repeats_the_page_of_a_run(films, tmp_path, capsys):
    write_profiles(films.folder / "profiles", films.recommender.profiles)
    (films.folder / "metrics.json").write_text(json.dumps(films.content))
    (films.folder / "config.yaml").write_text("seed: 4\n")
    films.holdout.to_parquet(tmp_path / "test.parquet")
    assert main(["--run", str(films.folder), "--holdout", str(tmp_path / "test.parquet")]) == 0
    assert str(films.folder / "report.html") in capsys.readouterr().out
    text = (films.folder / "report.html").read_text(encoding="utf-8")
    assert f"python train.py --config {films.folder}/config.yaml" in text
    assert "✓" in text


def test_the_command_refuses_what_is_no_run_in_one_line(films, tmp_path, capsys):
    assert main(["--run", str(tmp_path)]) == 2
    for content in (b"{}", b"3", b'{"data":', b"\xff"):
        (tmp_path / "metrics.json").write_bytes(content)
        assert main(["--run", str(tmp_path)]) == 2
    first, *others = capsys.readouterr().err.splitlines()
    assert "metrics.json: no such file; give the folder of a finished run" in first
    said = ["metrics.json: no data report in it"] * 2 + ["metrics.json is damaged: "] * 2
    assert [part for part, line in zip(said, others, strict=True) if part not in line] == []


def test_the_command_refuses_figures_of_another_bundle(films, capsys):
    write_profiles(films.folder / "profiles", films.recommender.profiles)
    (films.folder / "metrics.json").write_text(json.dumps(films.content | {"version": "0123456789ab"}))
    assert main(["--run", str(films.folder)]) == 2
    there = films.recommender.bundle.manifest.version
    assert f"metrics.json is of version 0123456789ab, the bundle beside it of {there};" in capsys.readouterr().err


def test_the_page_may_be_written_beside_the_run(films, tmp_path):
    (tmp_path / "config.yaml").touch()
    write_report(tmp_path, Path("runs/my run"), films.content, films.recommender, films.holdout)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "python train.py --config &#39;runs/my run/config.yaml&#39;" in text


def test_popularity_is_counted_over_all_profiles(shop):
    ids = shop.recommender.bundle.items.column("item_id").to_pylist()
    items = list(shop.recommender.profiles.history.item_id)
    np.testing.assert_array_equal(page._count_events(shop.recommender), [items.count(item) for item in ids])
