"""What moved is found and the rest is not; figures against plain loops; nobody can be told from the snapshot."""

import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from evaluation.drift import (
    LATENCY,
    LEAST,
    N_LISTS,
    SNAPSHOT,
    K,
    compare,
    describe,
    judge,
    main,
    measure_fit,
    take_snapshot,
    time_answers,
)
from evaluation.holdout import profiles_from_frame
from serve.bundle import DRIFT, METRICS, PROFILES, STATE, STATE_FILE, Bundle
from serve.recommender import Recommender
from service.event_log import Impressions, Observation
from service.live_items import LiveItems
from service.state import StateStore
from tests.linear_bundle import DAY, SHOP, UNTIL, N, item_ids, publish_linear
from tests.linear_profiles import write_profiles

U, RARE = 2000, ["secret one", "secret two"]
IDS = item_ids(SHOP)
LIKED = np.linspace(1, 3, N) / np.linspace(1, 3, N).sum()


def draw_events(rng, users, n, end, days):
    """Draw events of users, each as likely, who like the last items most and come in the evening."""
    events = pd.DataFrame({"user_id": rng.choice(users, n), "item_id": rng.choice(IDS, n, p=LIKED)})
    hours = rng.choice([9, 18, 19, 20], n, p=[0.1, 0.3, 0.3, 0.3])
    events["datetime"] = (
        end - rng.integers(1, days + 1, n) * DAY + hours * 3600 + (DAY - end % DAY) % DAY
    )
    return events.assign(event=rng.choice(["view", "buy"], n, p=[0.8, 0.2]))


@pytest.fixture(scope="module")
def people():
    rng = np.random.default_rng(0)
    users = pd.DataFrame({"user_id": [f"u{number:04d}" for number in range(U)]})
    sex = rng.choice(["f", "m", None], U, p=[0.5, 0.4, 0.1]).astype(object)
    sex[:2], sex[2:5] = RARE, "secret three"
    return users.assign(sex=sex, income=rng.gamma(3, 1, U))


@pytest.fixture(scope="module")
def recommender(people, tmp_path_factory):
    path = publish_linear(tmp_path_factory.mktemp("drift"), SHOP, 4)
    past = draw_events(
        np.random.default_rng(1), people["user_id"].to_numpy(), 12_000, UNTIL - DAY, 90
    )
    return Recommender(Bundle.load(path), profiles_from_frame(past, people, SHOP))


@pytest.fixture(scope="module")
def snapshot(recommender):
    return take_snapshot(recommender)


@pytest.fixture(scope="module")
def shown(recommender):
    """Return item ids and scores of a list for each user who came in the last weeks."""
    moment, profiles = {"datetime": "2017-07-14T02:40:00Z"}, recommender.profiles
    late = np.repeat(profiles.user_ids, np.diff(profiles.offsets))[
        profiles.history.datetime >= UNTIL - 28 * DAY
    ]
    answers = recommender.recommend([{"user_id": user, **moment} for user in np.unique(late)], K)
    return {answer.user_id: (answer.item_id, answer.score) for answer in answers}


def draw_log(rng, users, shown, version, n_lists=1200, n=3733):
    """Return lists of those who came lately, slots, and events of four weeks."""
    asked = rng.choice(list(shown), n_lists)
    lists = pd.DataFrame({"list": np.arange(n_lists), "user_id": asked, "version": version})
    slots = pd.DataFrame(
        {
            "list": np.repeat(lists["list"], K),
            "position": np.tile(np.arange(1, K + 1), n_lists),
        }
    )
    slots["item_id"] = np.concatenate([shown[user][0] for user in asked]).astype(str)
    slots["score"] = np.concatenate([shown[user][1] for user in asked]).astype(float)
    return (
        lists,
        slots,
        draw_events(rng, users, n, UNTIL + 40 * DAY, 28).astype(
            {"user_id": "str", "item_id": "str"}
        ),
    )


def ask(recommender, snapshot, log):
    """Return the status of each row but `fit`: here all like the same, so that none can be lost."""
    rows = compare(snapshot, recommender, *log)
    return {row["name"]: row["status"] for row in rows if row["name"] != "fit"}


@pytest.mark.parametrize("n_draws", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_without_a_shift_all_is_ok(recommender, snapshot, people, shown, n_draws):
    rng, n_quiet = np.random.default_rng(2), 0
    for _ in range(n_draws):
        log = draw_log(rng, people["user_id"].to_numpy(), shown, recommender.version)
        n_quiet += set(ask(recommender, snapshot, log).values()) == {"ok"}
    assert n_quiet >= 0.95 * n_draws


def test_a_shift_of_one_feature_is_red_and_the_others_are_ok(recommender, snapshot, people, shown):
    rng, everybody = np.random.default_rng(3), people["user_id"].to_numpy()
    rich = rng.choice(everybody, 1500, p=people["income"] ** 2 / (people["income"] ** 2).sum())
    lists, slots, _ = draw_log(rng, everybody, shown, recommender.version)
    *_, events = draw_log(rng, rich, shown, recommender.version)
    found = ask(recommender, snapshot, (lists, slots, events))
    assert found.pop("user income") == "red"
    found.pop("events of a user")  # as many events of fewer users
    assert set(found.values()) == {"ok"}


def move(name, lists, slots, events):
    """Let one thing move."""
    if name == "new user":
        is_known = events["user_id"].str[1:].astype(int) % 3 > 0
        events["user_id"] = events["user_id"].where(is_known, "new " + events["user_id"])
    elif name == "new item":
        events["item_id"] = events["item_id"].where(events.index % 5 > 0, "nothing before")
    elif name == "context hour":
        events["datetime"] += 11 * 3600
    elif name == "score of the first item":
        slots["score"] *= 1.6
    else:
        slots["item_id"] = IDS[0]


@pytest.mark.parametrize(
    "name",
    [
        "new user",
        "new item",
        "context hour",
        "score of the first item",
        "items in a list",
    ],
)
def test_each_thing_that_moves_is_found(recommender, snapshot, people, shown, name):
    log = draw_log(
        np.random.default_rng(4),
        people["user_id"].to_numpy(),
        shown,
        recommender.version,
    )
    move(name, *log)
    found = ask(recommender, snapshot, log)
    assert found.pop(name) == "red"
    assert set(found.values()) == {"ok"}


def test_a_taste_for_other_items_shows_in_their_popularity_and_features(
    recommender, snapshot, people, shown
):
    lists, slots, events = draw_log(
        np.random.default_rng(5),
        people["user_id"].to_numpy(),
        shown,
        recommender.version,
    )
    events["item_id"] = np.random.default_rng(6).choice(IDS[:6], len(events))
    found = ask(recommender, snapshot, (lists, slots, events))
    assert {found["popularity"], found["item price"]} == {"red"}
    assert {found["user income"], found["user gender"], found["context hour"]} == {"ok"}


def test_events_that_fall_to_a_fifth_are_found(recommender, snapshot, people, shown):
    users = people["user_id"].to_numpy()
    before = snapshot["columns"]["events of a user"]
    counts = np.random.default_rng(10).poisson(10, 1000)
    heavy = describe(pd.Series(counts, dtype=float), pd.Series(np.arange(1000)))
    assert before["users"] > 0
    moved = snapshot | {"columns": snapshot["columns"] | {"events of a user": heavy}}
    log = draw_log(np.random.default_rng(11), users, shown, recommender.version)
    found = ask(recommender, moved, log)
    assert found.pop("events of a user") == "red"
    assert set(found.values()) == {"ok"}
    lists, slots, events = draw_log(np.random.default_rng(11), users, shown, recommender.version)
    late = events[events["datetime"] > events["datetime"].max() - 14 * DAY].copy()
    assert "events of a user" not in ask(recommender, moved, (lists, slots, late))


def test_tastes_that_are_shuffled_are_found(recommender, snapshot, people, shown):
    """People take what scores highest for them, then what scores highest for another one."""
    users = np.unique(recommender.profiles.user_ids)[:200]
    scores = recommender.score([{"user_id": user} for user in users], IDS)
    own = scores - scores.mean(axis=0)  # what is theirs, not everybody's
    events = pd.DataFrame({"user_id": users, "item_id": np.array(IDS)[own.argmax(axis=1)]})
    events["new user"] = events["new item"] = False
    fit = measure_fit(recommender, events)
    taken = events["item_id"].to_numpy()
    shuffled = events.assign(item_id=np.random.default_rng(0).permutation(taken))
    naive = np.mean(
        [
            scores[row, IDS.index(item)] > scores[row, IDS.index(other)]
            for row, item in enumerate(taken)
            for other in taken
        ]
    )
    assert fit == pytest.approx(naive, abs=0.001)
    assert fit > 0.55 > measure_fit(recommender, shuffled) > 0.4
    assert measure_fit(recommender, events[:40]) is None
    events["datetime"] = UNTIL + np.arange(200) % 14 * DAY
    rng, version = np.random.default_rng(12), recommender.version
    log = draw_log(rng, people["user_id"].to_numpy(), shown, version)[:2]
    for one, status in ((events, "ok"), (shuffled.assign(datetime=events["datetime"]), "red")):
        rows = compare(snapshot | {"fit": 0.65}, recommender, *log, one.assign(event="buy"))
        assert {row["name"]: row["status"] for row in rows}["fit"] == status


@pytest.mark.parametrize("heavy", [1, 40])
def test_what_one_user_does_often_counts_as_one_user(heavy):
    owner = pd.Series(np.repeat(np.arange(300), np.where(np.arange(300) < 5, heavy, 1)))
    kinds = pd.Series(np.where(owner < 5, "rare", "usual"))
    spec = describe(kinds, owner)
    assert dict(zip(spec["names"], spec["shares"], strict=False)) == pytest.approx(
        {"usual": 295 / 300, "rare": 5 / 300}
    )


def test_few_users_few_lists_and_other_versions_tell_nothing(recommender, snapshot, people, shown):
    users = people["user_id"].to_numpy()
    found = ask(
        recommender,
        snapshot,
        draw_log(np.random.default_rng(7), users[:40], shown, "of another version"),
    )
    assert found.pop("catalogue") == "ok"
    assert set(found.values()) == {"few"}
    nothing = tuple(
        part[:0] for part in draw_log(np.random.default_rng(7), users, shown, recommender.version)
    )
    assert set(ask(recommender, snapshot, nothing).values()) == {"few", "ok"}
    said = {row["name"]: row["moved"] for row in compare(snapshot, recommender, *nothing)}
    assert said["items in a list"].endswith("has 0; a list counts once POST /v1/shown confirms it")


def test_few_says_how_many_are_needed_and_so_many_are_enough():
    counts = np.random.default_rng(1).permutation(np.repeat(["a", "b", "c"], [700, 500, 300]))
    values = pd.Series(counts)
    spec = describe(values, pd.Series(np.arange(len(values))))
    few = judge("x", spec, values[:10], pd.Series(np.arange(10)))
    assert few["status"] == "few"
    needed = int(few["moved"].removeprefix("needs ").removesuffix(" users").replace(",", ""))
    for n, is_enough in ((needed - 1, False), (needed, True)):
        row = judge("x", spec, values[:n], pd.Series(np.arange(n)))
        assert (row["status"] != "few") is is_enough
    nobody = judge("x", spec | {"users": 3}, values, pd.Series(np.arange(len(values))))
    assert nobody["status"] == "few"
    assert "needs" not in nobody["moved"]


def test_the_index_is_that_of_a_plain_loop():
    rng = np.random.default_rng(8)
    before, now = (
        rng.choice(["a", "b", "c", "d"], 900).tolist(),
        rng.choice(["a", "b", "e", None], 700).tolist(),
    )
    spec = describe(pd.Series(before, dtype=object), pd.Series(np.arange(900)))
    found = judge("letters", spec, pd.Series(now, dtype=object), pd.Series(np.arange(700)))
    expected, bins = 0.0, [*"abcd", "e", None]  # of which e is all other values
    for name in bins:
        p, q = (max(cells.count(name) / len(cells), LEAST) for cells in (before, now))
        expected += (q - p) * math.log(q / p)
    assert found["index"] == pytest.approx(expected)
    assert found["status"] == "red"


def test_numbers_are_counted_between_deciles_and_several_values_of_a_cell_apart():
    numbers = pd.Series(np.append(np.arange(100.0), np.nan))
    spec = describe(numbers, pd.Series(np.arange(101)))
    counts = [0] * (len(spec["edges"]) + 1)
    for number in range(100):
        counts[sum(number >= edge for edge in spec["edges"])] += 1
    assert sorted(spec["shares"]) == pytest.approx(
        sorted([*(count / 101 for count in counts), 0, 1 / 101])
    )
    assert max(counts) <= 11
    cells = pd.Series([["x", "y"], ["x"], []] * 10, dtype=object)
    assert describe(cells, pd.Series(np.arange(30)))["shares"] == pytest.approx(
        [0.5, 0.25, 0.0, 0.25]
    )


# ---- the command


@pytest.fixture
def run(recommender, snapshot, people, shown, tmp_path):
    """A run that a service has served for four weeks."""
    bundle = shutil.copytree(recommender.bundle.path, tmp_path / "bundle")
    write_profiles(bundle.parent / PROFILES, recommender.profiles)
    (tmp_path / METRICS).write_text(
        json.dumps({"version": recommender.version, SNAPSHOT: snapshot, "timing": {LATENCY: 1e9}})
    )
    users = people["user_id"].to_numpy()
    lists, _, events = draw_log(
        np.random.default_rng(9), users, shown, recommender.version, n_lists=N_LISTS
    )
    (tmp_path / STATE).mkdir()
    store = StateStore(tmp_path / STATE / STATE_FILE)
    head = UNTIL, recommender.version, "greedy"
    answers = [
        (user, *head, *(np.asarray(part).tolist() for part in shown[user]), [1.0] * K)
        for user in lists["user_id"]
    ]
    store.log_impressions(
        Impressions(f"r{number}", *answer) for number, answer in enumerate(answers)
    )
    store.log_impressions(
        Impressions.confirm(f"r{number}", UNTIL) for number in range(len(answers))
    )
    columns = ["user_id", "item_id", "event", "datetime"]
    store.observe_many(Observation(*row) for row in events[columns].itertuples(index=False))
    store.close()
    return tmp_path


def test_the_command_prints_a_table_and_writes_figures(run, capsys):
    assert main(["--run", str(run)]) == 0
    found = json.loads((run / DRIFT).read_text())
    assert found["status"] == "ok"
    names, said = [row["name"] for row in found["rows"]], capsys.readouterr().out
    assert {
        "user income",
        "item price",
        "context hour",
        "popularity",
        "catalogue",
        "items in a list",
    } <= set(names)
    assert all(name in said for name in names)


def test_a_catalogue_that_grows_is_seen(run, recommender):
    items = LiveItems(run / STATE / "items.db", recommender)
    items.put_many({f"new{number}": {"brand": "x"} for number in range(4)})
    items.close()
    assert main(["--run", str(run)]) == 0
    (row,) = [
        row for row in json.loads((run / DRIFT).read_text())["rows"] if row["name"] == "catalogue"
    ]
    assert (row["status"], row["index"]) == ("watch", pytest.approx(4 / N))


@pytest.mark.parametrize(("was", "status"), [(1e9, "ok"), (1e-9, "red")])
def test_answers_that_are_slower_than_after_training_are_a_row(run, was, status):
    metrics = json.loads((run / METRICS).read_text())
    (run / METRICS).write_text(json.dumps(metrics | {"timing": {LATENCY: was}}))
    assert main(["--run", str(run)]) == 0
    rows = [
        row for row in json.loads((run / DRIFT).read_text())["rows"] if row["name"] == "latency"
    ]
    assert [row["status"] for row in rows] == [status]


@pytest.mark.parametrize("n_users", [0, 7, 900])
def test_the_time_of_an_answer_is_the_median_over_users(monkeypatch, n_users):
    users, clock, asked = (
        np.array([f"u{number}" for number in range(n_users)], object),
        [0.0],
        [],
    )

    def recommend(requests, k):
        asked.append(requests)
        clock[0] += 0.004 if len(asked) % 3 else 2.0  # every third is late

    monkeypatch.setattr("evaluation.drift.time.thread_time", lambda: clock[0])
    assert (
        time_answers(SimpleNamespace(profiles=SimpleNamespace(user_ids=users), recommend=recommend))
        == 4
    )
    assert len(asked) == {0: 1, 7: 7, 900: 300}[n_users]
    assert all(len(requests) == 1 for requests in asked)
    assert len({one["user_id"] for (one,) in asked if one}) == (len(asked) if n_users else 0)


def test_figures_lie_beside_the_state_where_its_service_looks(run, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(run / STATE, other / STATE)
    assert main(["--run", str(run), "--state", str(other / STATE)]) == 0
    assert ((other / DRIFT).exists(), (run / DRIFT).exists()) == (True, False)


def test_nobody_can_be_told_from_the_files(run, people):
    assert main(["--run", str(run)]) == 0
    for name in (METRICS, DRIFT):
        text = (run / name).read_text()
        assert not any(value in text for value in ("secret", *people["user_id"]))


def test_mistakes_are_one_line(run, tmp_path, capsys):
    assert main(["--run", str(run / "nowhere")]) == 2
    assert main(["--run", str(run), "--state", str(run)]) == 2
    (run / METRICS).write_text(json.dumps({"version": "1"}))
    assert main(["--run", str(run)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_data_without_times_leaves_no_snapshot(recommender):
    timeless = replace(
        recommender.profiles,
        history=replace(recommender.profiles.history, datetime=None),
    )
    assert take_snapshot(Recommender(recommender.bundle, timeless)) == {}
