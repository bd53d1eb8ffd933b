"""Words fit the data: nothing comes before or next where nothing has an order."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from evaluation.report.data_facts import describe_data, say_split
from evaluation.report.figures import read_views
from evaluation.report.model_card import render_card
from evaluation.report.page import render_report
from evaluation.report.plain_words import make_tiles, say_comparison, say_order, say_test, say_training
from serve.recommender import Recommender
from tests.linear_bundle import FILMS
from tests.tiny_run import DATA, make_tiny_run
from tests.tiny_towers import one_thread

SET = replace(FILMS, has_datetime=False, ties="simultaneous", context_features=())
RANKED = replace(SET, ties="ordered")
OF_TIME = re.compile(r"\b(before|next|last events?|so far|not yet|datetime|times of)\b", re.IGNORECASE)


class View:
    users = 3


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    with one_thread():
        return make_tiny_run(tmp_path_factory.mktemp("films"), FILMS)


def data_of(kind):
    split = {"kind": kind, "validation_at": None, "test_at": None}
    return DATA | {"time": None, "repeats": "exclude", "split": split, "leaks": []}


def make_unordered(films, kind):
    """Return the run as if its data had neither times nor positions."""
    recommender = films.recommender
    history = replace(recommender.profiles.history, datetime=None)
    bundle = replace(recommender.bundle, schema=replace(SET, context_features=FILMS.context_features))
    unordered = Recommender(bundle, replace(recommender.profiles, history=history))
    protocol = films.content["protocol"] | {"requests": "one per user of the holdout, without context"}
    kept = {name: films.content[name] for name in films.content if "with_context" not in name}
    return unordered, kept | {"data": data_of(kind), "protocol": protocol}


@pytest.mark.parametrize("kind", ["pairs", "files", "leave_one_out", "none"])
def test_the_page_of_a_set_speaks_of_no_order(films, kind):
    recommender, content = make_unordered(films, kind)
    page = render_report(films.folder, content, recommender, films.holdout.drop(columns="datetime"), None)
    assert OF_TIME.findall(re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)) == []
    assert "Some of the events" in page
    assert "neither times nor an order" in page


@pytest.mark.parametrize("kind", ["pairs", "files", "leave_one_out", "none"])
def test_the_card_of_a_set_speaks_of_no_order(films, kind):
    recommender, content = make_unordered(films, kind)
    metrics = {name: content[name] for name in content if name not in ("data", "timing", "version", "training")}
    card = render_card(metrics, content["data"], {}, SET, recommender.bundle.manifest.facts)
    assert OF_TIME.findall(card) == []
    assert "only what they are on" in card


@pytest.mark.parametrize(
    ("schema", "kind", "said"),
    [
        (SET, "pairs", "else 3 users chose: the test is a random share of each user's items."),
        (FILMS, "pairs", "else 3 users chose: the test is a random share of each user's items."),
        (SET, "files", "else 3 users chose: the test is a given file."),
        (SET, "leave_one_out", "else 3 users chose: the test is one item of each user, drawn by chance."),
        (RANKED, "leave_one_out", "3 users would choose next: the test is the last event of each user."),
    ],
)
def test_the_question_is_of_the_future_where_the_test_is(schema, kind, said):
    assert f"It was asked what {said} " in say_test(data_of(kind), [View()], schema)


def test_what_is_known_of_the_order_is_said():
    assert say_training(data_of("pairs"), SET).endswith("; its events have neither times nor an order.")
    assert say_training(data_of("pairs"), RANKED).endswith("; its events have an order and no times.")
    assert say_order(RANKED) == "the order of a user's events"
    assert say_order(FILMS) == "the order and times of a user's events"


def test_days_are_those_of_the_time_zone():
    """A test from midnight in Tokyo on begins the day before in London."""
    split = {"kind": "time", "validation_at": None, "test_at": "2017-11-30T15:00:00Z"}
    time = {"first": "2017-10-31T23:30:00Z", "last": "2017-12-31T01:00:00Z", "days": 60.0}
    data, tokyo = DATA | {"split": split, "time": time}, replace(FILMS, timezone="Asia/Tokyo")
    assert "choose from 1 December 2017 on" in say_test(data, [View()], tokyo)
    assert "events from 1 November 2017 to 31 December 2017" in say_training(data, tokyo)
    assert "choose from 30 November 2017 on" in say_test(data, [View()], FILMS)


@pytest.mark.parametrize(("strict", "learnt"), [(False, 1907 - 115), (True, 1907 - 115 - 83)])
def test_what_is_never_trained_on_was_not_learnt_from(strict, learnt):
    data = DATA | {"split": {"kind": "leave_one_out", "strict": strict}}
    assert f"Bascule learned from {learnt:,} events." in say_training(data, FILMS)


def test_what_was_held_out_is_said_as_it_was_told():
    baskets, data = replace(FILMS, ties="simultaneous"), data_of("leave_one_out")
    targets = data | {"targets": {"train": 9, "validation": 2, "test": 3}}
    assert say_split(data, baskets) == "the last events of each user, which came at one time"
    assert say_split(targets, RANKED) == "the last event of each user, of those to be predicted, and what came after"
    drawn = "one item of each user, drawn by chance, of those to be predicted, and some of the others"
    assert say_split(targets, SET) == drawn


def test_the_median_of_an_even_number_of_users_is_exact():
    """Half of them had 2 events at most, and half 3: it was said to be 2, and of 3 and 4 to be 4."""
    lengths = {"history_length": {"p0": 1.0, "p50": 2.5, "p95": 1043.0, "p100": 1051.0}}
    rows = {label: value for facts in describe_data(DATA | lengths, FILMS) for label, value in facts.rows}
    assert rows["Events of a user, median"] == "2.5"
    assert rows["Events of a user, 95th percentile"] == "1,043"


HINTS = {
    "headers": "A header?",
    "spaced_ids": "White space",
    "odd_ids": "Texts among integers",
    "far_values": "Far from all others",
    "far_times": "Long before or after all others",
    "missing_marks": "A mark of what is missing?",
    "crowds": "One user",
    "ties_in_time": "Ties in time",
    "out_of_reach": "Out of reach",
}


@pytest.mark.parametrize(("name", "title"), HINTS.items())
def test_all_that_looks_wrong_is_on_the_page(name, title):
    (facts,) = [facts for facts in describe_data(DATA | {name: ["1 of 9", "2 of 9"]}, FILMS) if "wrong" in facts.title]
    assert facts.rows == [(title, "1 of 9"), (title, "2 of 9")]


def test_each_fact_of_the_data_has_its_own_number():
    targets = {"train": 901, "validation": 31, "test": 53}
    tables = {facts.title: dict(facts.rows) for facts in describe_data(DATA | {"targets": targets}, FILMS)}
    for rows in tables.values():
        rows.update({name: said.replace("\N{NO-BREAK SPACE}", " ") for name, said in rows.items()})
    assert tables == {
        "Size and time": {
            "Events": "1,907",
            "Users with events": "61",
            "Items with events": "23",
            "Rows of the users table": "67",
            "Rows of the items table": "29",
            "Users with events but no row": "1.6 %",
            "Items with events but no row": "0.0 %",
            "First event": "2017-04-05 02:40:00 UTC",
            "Last event": "2017-08-03 02:40:00 UTC",
            "Days": "120",
            "Time zone": "times as given",
        },
        "Split": {
            "Held out for the test": "everything from one moment on, 2017-07-14 02:40:00 UTC",
            "Train": "1,709 events, 901 of them to be predicted",
            "Validation": "83 events, 31 of them to be predicted",
            "Test": "115 events, 53 of them to be predicted",
        },
        "Rejected and cleaned": {
            "Records rejected": "12 of 2,015",
            "– null id": "7",
            "– a | strange <reason>": "5",
            "Duplicate events": "13",
        },
        "Columns that were not read": {"Interactions": "secret|column"},
        "Missing values": {"users: sex": "37.5 %"},
        "What is new in the test": {
            "Test users without any event in training": "3.1 %",
            "Test items without any event in training": "0.0 %",
        },
        "Habits": {
            "Events that repeat a pair of user and item": "43.8 %",
            "Events of a user, median": "27",
            "Events of a user, 95th percentile": "43",
            "Events on the top 1 % of items": "6.2 %",
            "Gini of items": "0.547",
        },
    }


def test_a_table_that_was_not_given_and_a_test_of_nothing_are_said_so():
    counts = DATA["counts"] | {"test": 0}
    data = DATA | {"counts": counts, "records": {"interactions": 1919, "items": 29}, "time": None}
    rows = dict(row for facts in describe_data(data, RANKED) for row in facts.rows)
    assert (rows["Rows of the users table"], rows["Rows of the items table"]) == ("not given", "29")
    assert rows["Held out for the test"].startswith("nothing; it would be everything from one moment on")
    assert rows["Times"] == "none in the data"
    sizes, *_ = describe_data(DATA, replace(FILMS, timezone="Asia/Tokyo"))
    assert ("Time zone", "Asia/Tokyo") in sizes.rows


def view_of(users, low, high):
    middle = (low + high) / 2
    ours = {"users": users, "targets": users, "targets_outside_catalogue": 0, "unreachable_targets": 0}
    names = ("NDCG@10", "HR@10", "Recall@20", "MRR@10")
    ours |= {name: 0.5 for name in names} | {f"{name}_ci95": [0.25, 0.75] for name in names}
    theirs = ours | {"NDCG@10": 0.5 - middle}
    difference = {"users": users, "NDCG@10": middle, "NDCG@10_ci95": [low, high]}
    content = {"protocol": {"repeats": "exclude", "views": {"novel": ""}}, "paired": {"ease": {"novel": difference}}}
    return read_views(content | {"test": {"bascule": {"novel": ours}, "ease": {"novel": theirs}}})[0]


@pytest.mark.parametrize(("users", "low", "verdict"), [(1, 0.25, 0), (19, 0.125, 0), (20, 0.125, 1), (20, -0.125, 0)])
def test_nobody_is_called_better_by_a_few_users_or_as_good_without_proof(users, low, verdict):
    """Of one user the interval is a point: whoever is ahead there would be better with 95 % confidence."""
    view = view_of(users, low, 0.25)
    said, (_, tile) = say_comparison(view), make_tiles([view], None)
    assert view.rival.difference.sign == verdict
    assert ("better than" in said) == bool(verdict)
    assert ("confidence" in said) == (users >= 20)
    assert (f"of {users} user" in said) == (users < 20)
    assert ("not clearly different from “EASE”" in tile.label) != bool(verdict)
    assert "as good as" not in tile.label


def test_a_baseline_that_has_nothing_right_is_not_taken_for_ours():
    """As where all that is held out is new: the tile said of ours that it has nothing right."""
    view = view_of(20, 0.25, 0.75)
    (_, tile) = make_tiles([view], None)
    assert tile.label == "NDCG@10, items new to the user; “EASE”, the best simple method, has nothing right"
    assert "The difference is +0.5000 (“EASE” has nothing right), +0.2500 to +0.7500 with" in say_comparison(view)
