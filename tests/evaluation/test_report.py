"""The report and the model card hold the facts of a run, escaped, and name nobody."""

import copy
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from evaluation.metrics import sign
from evaluation.model_card import environment, read_slices, read_views
from evaluation.report import find_limits, main, name_all, write_report
from serve.recommender import Recommender
from tests.evaluation.tiny_run import DATA, HOSTILE, make_tiny_run, user_ids
from tests.linear_bundle import FILMS, SHOP
from tests.linear_profiles import write_profiles

from evaluation import model_card

VOID = {"meta", "br", "path", "use", "rect"}
WORDS = environment().get_template("words.jinja").module


class Page(HTMLParser):
    """Tags and figures of a page; a tag that is not closed in order is an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.data, self.where = [], [], [], {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.where |= {
            name: value for name, value in attributes.items() if name.startswith("data-")
        }
        if tag == "data":
            self.data.append((float(attributes["value"]), dict(self.where)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag
        self.where = {} if tag == "table" else self.where

    def values(self, attribute):
        return [attributes[attribute] for _, attributes in self.tags if attribute in attributes]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return make_tiny_run(tmp_path_factory.mktemp("shop"), SHOP)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    return make_tiny_run(tmp_path_factory.mktemp("films"), FILMS)


@pytest.fixture(params=["shop", "films"])
def run(request):
    return request.getfixturevalue(request.param)


def render(run, folder, recommender=None, content=None, holdout="of the run"):
    holdout = run.holdout if holdout is not None else None
    write_report(
        folder,
        run.folder,
        content or run.content,
        recommender or run.recommender,
        holdout,
    )
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pages(shop, films, tmp_path_factory):
    return {id(run): render(run, tmp_path_factory.mktemp("page")) for run in (shop, films)}


def card(run, content=None, data=DATA, schema=None):
    facts = replace(
        run.recommender.bundle.manifest.facts, config={"seed": 11, "model": {"dim": 48}}
    )
    return model_card.render(
        "MODEL_CARD.md",
        content or run.content,
        data,
        schema or run.recommender.bundle.schema,
        facts=facts,
    )


def test_the_page_is_whole_and_needs_nothing_beside_it(run, pages):
    text = pages[id(run)]
    page = Page(text)
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert not re.search(r"@import|url\((?!#)|https?://(?!www\.w3\.org)", text)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert {href[1:] for tag, one in page.tags if tag == "a" for href in [one["href"]]} <= set(ids)
    scrolling = [one for tag, one in page.tags if tag == "pre" or one.get("class") == "scroll"]
    assert len(scrolling) > 2
    assert all(one["tabindex"] == "0" and one["aria-label"] for one in scrolling)
    charts = [one for tag, one in page.tags if tag == "svg"]
    assert len(charts) >= 5
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)


def test_figures_are_those_of_the_metrics(run, pages):
    metric = "NDCG@20" if run.recommender.bundle.schema.repeats == "allow" else "NDCG@10"
    shown: dict = {}
    for value, where in Page(pages[id(run)]).data:
        key = tuple(
            where[name]
            for name in ("data-model", "data-view", "data-table", "data-slice")
            if name in where
        )
        shown.setdefault(key, []).append(value)
    content = run.content
    for model, views in content["test"].items():
        for view, figures in views.items():
            difference = [content["paired"][model][view][metric]] if model != "bascule" else []
            others = [figures[name] for name in ("HR@10", "Recall@20", "MRR@10")]
            assert shown.pop((model, view)) == [figures[metric], *difference, *others]
    ours = content["test"]["bascule"]
    names = [name for name in ours["novel"] if f"{name}_ci95" in ours["novel"]]
    assert shown.pop(("all-metrics",)) == [ours[view][name] for name in names for view in ours]
    beyond = content["beyond_accuracy"].values()
    assert shown.pop(("beyond",)) == [value for figures in beyond for value in figures.values()]
    if "with_context" in content:
        parts = [
            content["with_context"][name]["novel"][metric]
            for name in ("bascule without context", "bascule")
        ]
        gain = content["paired_with_context"]["bascule without context"]["novel"][metric]
        assert shown.pop(("with-context",)) == [*parts, gain]
    groups = [
        (figures["users"], figures.get(metric))
        for of_view in content["slices"].values()
        for one in of_view.values()
        for figures in one.values()
    ]
    assert sorted(value for values in shown.values() for value in values) == sorted(
        v for n, v in groups if n >= 20
    )
    assert min(n for n, _ in groups) < 20  # of groups that are hidden


def test_nothing_of_the_data_becomes_code_and_nobody_is_named(run, pages):
    text, markdown = pages[id(run)], card(run)
    assert HOSTILE not in text + markdown
    assert "&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;" in text
    assert "A | strange &lt;reason&gt;" in text
    assert "A \\| strange \\<reason\\>" in markdown
    assert not any(
        str(user_id) in text + markdown for user_id in user_ids(run.recommender.bundle.schema)
    )


def test_the_facts_of_the_run_are_said(shop, pages):
    text = " ".join(pages[id(shop)].split())
    assert (
        text.index("In short")
        < text.index("Bascule learned from 1,792 events")
        < text.index("Accuracy against")
    )
    facts = (
        "61 users and 23 items",
        "5 April 2017 to 3 August 2017",
        "Trained for 2 epochs",
        "62.1 minutes",
        "✓",
        "↻",
    )
    assert all(fact in text for fact in (*facts, "context &#39;till&#39; tells &lt;the&gt; item"))
    assert text.count("<article>") == 10
    shown, folded = text[text.index('id="examples"') :].split("<details>")[:2]
    assert (shown.count("<article>"), folded.count("<article>")) == (3, 7)


def test_all_charts_of_groups_have_one_axis_that_holds_their_intervals(shop):
    slices = read_slices(shop.content)
    low, high = find_limits(slices)
    ends = [
        end
        for one in slices
        for group in one["charted"].values()
        for end in group[f"{one['metric']}_ci95"]
    ]
    assert (low <= min(ends), max(ends) <= high, high - low < 1.1) == (True, True, True)


def test_skipped_baselines_and_empty_views_are_said(shop, tmp_path):
    content = copy.deepcopy(shop.content)
    for part in ("test", "paired", "beyond_accuracy"):
        del content[part]["ease"]
    content["baselines"]["ease"] = {"skipped": "too large <here>"}
    for views in [*content["test"].values(), *content["paired"].values()]:
        views["repeat"] = {
            "users": 0,
            "targets": 0,
            "targets_outside_catalogue": 0,
            "unreachable_targets": 0,
        }
    for groups in content["slices"]["repeat"].values():
        groups.clear()
    text = render(shop, tmp_path, content=content)
    Page(text)
    assert "Not measured: EASE (too large &lt;here&gt;)" in text
    assert "No user has a target here" in text
    assert "EASE was not measured" in card(shop, content)
    content |= {
        "test": {"bascule": content["test"]["bascule"]},
        "paired": {},
        "baselines": {},
    }
    assert "no baseline was measured" in WORDS.verdict(read_views(content)[0])


def test_a_run_without_a_test_and_without_known_users_has_a_page_and_a_card(films, tmp_path):
    content = {name: films.content[name] for name in ("version", "data")} | {
        "protocol": {"split": "none"}
    }
    text = render(films, tmp_path, content=content, holdout=None)
    Page(text)
    assert "Nothing was held out" in text
    assert text.count("<article>") == 10
    assert "✓" not in text
    nobody = render(films, tmp_path, Recommender(films.recommender.bundle), content, holdout=None)
    assert "No user is known to ask for" in nobody
    markdown = card(films, content)
    assert all(
        said in markdown
        for said in (
            "Nothing was held out",
            "no group was measured",
            "Not measured at all",
        )
    )


def test_the_card_holds_the_figures_and_nothing_that_differs_between_two_runs(shop):
    text = card(shop)
    assert text == card(shop, copy.deepcopy(shop.content))
    assert not any(said in text for said in (str(shop.folder), "3725", "person-"))
    ours = shop.content["test"]["bascule"]["all"]
    low, high = ours["NDCG@20_ci95"]
    assert (
        f"| **Bascule** | {ours['NDCG@20']:.4f} | {low:.4f} to {high:.4f} | | | {ours['HR@10']:.4f} |"
        in text
    )
    assert all(row in text for row in ("| Seed | 11 |", "| `dim` | 48 |", "| Users: sex | 37.5"))
    assert all(feature.name in text for feature in SHOP.item_features + SHOP.user_features)


def view_of(users, low, high):
    ours = {
        "users": users,
        "targets": users,
        "targets_outside_catalogue": 1,
        "unreachable_targets": 0,
    }
    ours |= {"NDCG@10": 0.5, "NDCG@10_ci95": [0.25, 0.75]}
    theirs = ours | {"NDCG@10": 0.5 - (low + high) / 2}
    paired = {
        "ease": {
            "novel": {
                "users": users,
                "NDCG@10": (low + high) / 2,
                "NDCG@10_ci95": [low, high],
            }
        }
    }
    content = {
        "protocol": {"repeats": "exclude", "views": {"novel": ""}},
        "paired": paired,
    }
    return read_views(content | {"test": {"bascule": {"novel": ours}, "ease": {"novel": theirs}}})[
        0
    ]


@pytest.mark.parametrize(
    ("users", "low", "verdict"),
    [(1, 0.25, 0), (19, 0.125, 0), (20, 0.125, 1), (20, -0.125, 0)],
)
def test_nobody_is_called_better_by_a_few_users_or_without_proof(users, low, verdict):
    view = view_of(users, low, 0.25)
    assert sign(view["paired"]["ease"], "NDCG@10") == verdict
    assert ("better than" in WORDS.verdict(view)) == bool(verdict)
    assert ("confidence" in WORDS.verdict(view)) == (users >= 20)
    assert WORDS.scope(view).endswith("; 1 target outside the catalogue, each a miss.")
    assert "“EASE” has nothing right" in WORDS.verdict(view_of(20, 0.25, 0.75))


def test_items_go_by_their_text_their_categories_or_their_id(films):
    bundle, profiles = films.recommender.bundle, films.recommender.profiles
    assert name_all(films.recommender)[3].startswith(HOSTILE)
    bare = replace(bundle, items=bundle.items.select(["item_id"]))
    ids = bundle.items.column("item_id").to_pylist()
    assert name_all(Recommender(bare, profiles)) == [f"item {item_id}" for item_id in ids]
    same = bundle.items.set_column(
        bundle.items.column_names.index("title"), "title", [["same"] * len(ids)]
    )
    named = name_all(Recommender(replace(bundle, items=same), profiles))
    assert named == [f"same ({item_id})" for item_id in ids]


def test_a_name_of_ten_thousand_letters_is_cut(films):
    bundle, profiles = films.recommender.bundle, films.recommender.profiles
    texts = [["x" * 10_000] + ["y" * 100] * (bundle.items.num_rows - 1)]
    place = bundle.items.column_names.index("title")
    named = replace(bundle, items=bundle.items.set_column(place, "title", texts))
    recommender = Recommender(named, profiles)
    first, second = recommender.name(bundle.items.column("item_id").to_pylist()[:2])
    assert first == "x" * 99 + "…"
    assert second == "y" * 100


def test_the_command_writes_the_same_page_again_or_refuses_in_one_line(
    films, pages, tmp_path, capsys
):
    write_profiles(films.folder / "profiles", films.recommender.profiles)
    (films.folder / "metrics.json").write_text(json.dumps(films.content))
    (films.folder / "config.yaml").write_text("seed: 4\n")
    films.holdout.to_parquet(tmp_path / "test.parquet")
    assert main(["--run", str(films.folder), "--holdout", str(tmp_path / "test.parquet")]) == 0
    assert str(films.folder / "report.html") in capsys.readouterr().out
    text = (films.folder / "report.html").read_text(encoding="utf-8")
    assert f"bascule train --config {films.folder}/config.yaml" in text
    figures, *_ = text.split('id="examples"')  # the titles below are those of the bundle on disk
    assert pages[id(films)].startswith(figures)
    assert main(["--run", str(tmp_path)]) == 2
    for content in (b"{}", b"3", b'{"data":', b"\xff"):
        (tmp_path / "metrics.json").write_bytes(content)
        assert main(["--run", str(tmp_path)]) == 2
    (films.folder / "metrics.json").write_text(json.dumps(films.content | {"version": "other"}))
    assert main(["--run", str(films.folder)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("error: ") for line in lines)


def test_a_column_whose_name_is_markup_is_text_in_a_page_that_runs_no_script(run, pages):
    name = "<img src=x onerror=alert(1)>"
    page = environment(is_escaped=True).from_string(
        '{% import "words.jinja" as words with context %}{{ words.slice_title(one) }}'
    )
    text = page.render(one={"name": name}, schema=None)
    assert "<" not in text
    assert "&lt;img" in text.lower()
    policies = [one for tag, one in Page(pages[id(run)]).tags if "http-equiv" in one]
    assert [one["http-equiv"] for one in policies] == ["Content-Security-Policy"]
    assert policies[0]["content"].startswith("default-src 'none'; style-src")
