"""What followed the lists: each event counts once, for the list that it followed; figures against plain loops."""

import json
import shutil
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation.feedback import EVENTS, PAGE, SHOWN, main
from evaluation.online import WINDOW, estimate_mean, join, keep_shown, measure, measure_rates
from serve.bundle import (
    DRIFT,
    FEEDBACK,
    FIGURES,
    ITEMS,
    SEGMENTS,
    STATE,
    STATE_FILE,
    write_items,
)
from serve.clock import DAY
from serve.recommendations import Segment, Segments
from service.event_log import Impressions, Observation
from service.forget import forget_users
from service.publish import Stage, publish
from service.registry import Registry, publish_version
from service.state import StateStore
from tests.http.services import asking
from tests.linear_bundle import SHOP, N, W, item_ids, write_linear
from tests.linear_profiles import known_users, make_profiles, write_profiles
from tests.served import ask

N_LISTS, N_ITEMS, K, START = 400, 30, 4, 1_700_000_000
ITEM_IDS = [f"i{number}" for number in range(N_ITEMS)]


def draw_log(rng):
    """Return lists, slots and events: of named requests, of no list, and of lists that came too early."""
    user = np.array([f"u{number}" for number in rng.integers(40, size=N_LISTS)], object)
    user[::19] = None
    lists = pd.DataFrame(
        {
            "list": np.arange(N_LISTS),
            "user_id": pd.array(user, "str"),
            "version": "v1",
            "policy": "greedy",
        }
    )
    lists["request_id"] = [f"r{number // 2}" for number in range(N_LISTS)]  # two lists of a request
    lists["datetime"] = START + np.sort(rng.integers(30 * DAY, size=N_LISTS))
    lists["arm"] = rng.choice(["a", "b"], N_LISTS)
    items = np.stack([rng.permutation(N_ITEMS)[:K] for _ in range(N_LISTS)])
    slots = pd.DataFrame(
        {
            "list": np.repeat(np.arange(N_LISTS), K),
            "position": np.tile(np.arange(1, K + 1), N_LISTS),
        }
    )
    slots = slots.assign(item_id=[f"i{item}" for item in items.ravel()], score=0.5, propensity=1.0)
    events = []
    for _ in range(500):
        one = lists.iloc[rng.integers(N_LISTS)]
        names_list = rng.random() < 0.3
        events.append(
            {
                "user_id": one["user_id"] if isinstance(one["user_id"], str) else "u0",
                "item_id": f"i{items[one['list'], rng.integers(K)]}"
                if rng.random() < 0.8
                else "i99",
                "event": str(rng.choice(["view", "buy", "dismiss"])),
                "datetime": int(one["datetime"] + rng.integers(2 * DAY)),
                "weight": float(rng.integers(1, 5)) if rng.random() < 0.5 else None,
                "request_id": one["request_id"] if names_list else None,
            }
        )
    return lists, slots, pd.DataFrame(events)


def find_slots(lists, slots, event):
    """Return the slots that an event may belong to, the latest first."""
    of_user = lists[lists["user_id"] == event["user_id"]]
    if isinstance(event["request_id"], str):
        of_user = of_user[of_user["request_id"] == event["request_id"]]
    else:
        of_user = of_user[
            (of_user["datetime"] <= event["datetime"])
            & (of_user["datetime"] >= event["datetime"] - WINDOW)
        ]
    found = slots[slots["list"].isin(of_user["list"]) & (slots["item_id"] == event["item_id"])]
    times = lists.set_index("list")["datetime"][found["list"]].to_numpy()
    return [found.index[place] for place in np.argsort(-times, kind="stable")], times.max(initial=0)


def log_of_two_arms(rng, n_users=300, n_lists=4):
    """Return a shop's log of two equal arms: users are shown lists, which are confirmed, and buy from some."""
    rows = []
    events = []
    for number in range(n_users * n_lists):
        user = f"u{number % n_users}"
        at = START + number * 700
        rows.append((number, f"r{number}", user, at, "v1", "greedy", "ab"[number % n_users % 2]))
        if rng.random() < 0.2:
            events.append((user, "i0", "buy", at + 60, float(rng.integers(1, 9)), f"r{number}"))
    names = ["list", "request_id", "user_id", "datetime", "version", "policy", "arm"]
    lists = pd.DataFrame(rows, columns=names)
    shown = lists.assign(list=lists["list"] + 10**6, policy="shown", user_id=None)
    columns = ["user_id", "item_id", "event", "datetime", "weight", "request_id"]
    return pd.concat([lists, shown]), pd.DataFrame(events, columns=columns)


def measure_arm(lists, events, arm):
    kept = keep_shown(lists.astype({"user_id": "str"}), events)
    slots = pd.DataFrame({"list": kept["list"], "position": 1, "item_id": "i0", "score": 0.5})
    slots = slots.assign(propensity=1.0)
    feedback = join(kept, slots, events, targets=["buy"])
    return measure_rates(feedback.slots[feedback.slots["arm"] == arm])


POISONS = ["asks", "confirms", "weighs", "clicks", "names others", "names old lists"]


@pytest.mark.parametrize("poison", POISONS)
def test_one_caller_moves_no_figure_by_more_than_its_interval(poison):
    lists, events = log_of_two_arms(np.random.default_rng(3))
    honest = measure_arm(lists, events, "a")
    first = lists.iloc[0]
    added = [first.to_dict() | {"list": 10**7 + n, "request_id": f"x{n}"} for n in range(3000)]
    more = pd.DataFrame(added)
    bought = events[events["request_id"] == events["request_id"].iloc[0]].iloc[0].to_dict()
    if poison == "asks":  # with a key that asks, for lists that nobody sees
        lists = pd.concat([lists, more])
    elif poison == "confirms":  # lists of one user
        confirmed = more.assign(list=more["list"] + 10**6, policy="shown", user_id=None)
        lists = pd.concat([lists, more, confirmed])
    else:
        old = lists.iloc[299].to_dict()
        event = {
            "weighs": bought | {"user_id": "u0", "request_id": "r0", "weight": 1e30},
            "clicks": bought | {"user_id": "u0", "request_id": "r0"},
            "names others": bought | {"user_id": "u0", "request_id": "r1"},
            "names old lists": bought
            | {"user_id": old["user_id"], "request_id": "r299", "datetime": START + 90 * DAY},
        }[poison]
        events = pd.concat([events, pd.DataFrame([event] * (1 if poison == "weighs" else 1000))])
    poisoned = measure_arm(lists, events, "a")
    for name in ("click_through", "lists_with_event", "conversion", "value_per_list"):
        figure = honest[name]
        assert figure["low"] <= poisoned[name]["value"] <= figure["high"], name
        assert poisoned[name]["low"] <= figure["value"] <= poisoned[name]["high"], name


def test_each_event_belongs_to_the_list_that_it_followed():
    lists, slots, events = draw_log(np.random.default_rng(0))
    feedback = join(lists, slots, events, targets=["buy"])
    n_apart = 0
    for _, event in feedback.events.iterrows():
        allowed, latest = find_slots(lists, slots, event)
        if not allowed:
            n_apart += 1
            assert event["slot"] == -1
        else:
            assert event["slot"] in allowed
            if not isinstance(event["request_id"], str):
                assert feedback.slots.loc[event["slot"], "datetime"] == latest
    assert 50 < n_apart < 400
    figures = measure(feedback, ITEM_IDS)
    assert figures["events_without_list"] == n_apart
    assert figures["unknown_item_share"]["value"] == pytest.approx(
        np.mean([one == "i99" for one in events["item_id"]])
    )
    assert measure(feedback, ["never shown", *ITEM_IDS[:9]])["coverage"] == pytest.approx(0.9)
    taken = feedback.events[
        (feedback.events["slot"] >= 0) & (feedback.events["event"] != "dismiss")
    ]
    n_once = len(taken.drop_duplicates(["slot", "event"]))
    assert feedback.slots["clicks"].sum() == n_once < len(taken)


def test_rates_and_values_are_those_of_plain_loops():
    feedback = join(*draw_log(np.random.default_rng(1)), targets=["buy"])
    taken = feedback.events[feedback.events["slot"] >= 0]
    taken = taken.drop_duplicates(["slot", "event"])
    list_of = feedback.slots["list"].to_numpy()[taken["slot"]]
    bought = taken["event"].to_numpy() == "buy"
    rates = measure_rates(feedback.slots)
    assert rates["conversion"]["value"] == pytest.approx(len(set(list_of[bought])) / N_LISTS)
    assert rates["lists_with_event"]["value"] == pytest.approx(
        len(set(list_of[taken["event"].to_numpy() != "dismiss"])) / N_LISTS
    )
    weights = np.where(taken["weight"].isna(), 1.0, taken["weight"])[bought]
    assert rates["value_per_list"]["value"] == pytest.approx(weights.sum() / N_LISTS)
    assert rates["conversion"]["low"] < rates["conversion"]["value"] < rates["conversion"]["high"]


def test_users_who_came_back_are_counted_where_enough_time_has_passed():
    lists, slots, events = draw_log(np.random.default_rng(2))
    figures = measure(join(lists, slots, events, targets=[]), ITEM_IDS)
    for n_days in (1, 7, 28):
        days = {}
        for table in (lists, events):
            for user, moment in zip(table["user_id"], table["datetime"], strict=True):
                if isinstance(user, str):
                    days.setdefault(user, set()).add(moment // DAY)
        last = max(max(each) for each in days.values())
        old = [each for each in days.values() if min(each) + n_days <= last]
        back = [any(min(each) < day <= min(each) + n_days for day in each) for each in old]
        assert figures[f"back_within_{n_days}"]["value"] == pytest.approx(np.mean(back))


def test_the_interval_of_independent_rows_is_that_of_the_standard_error():
    values = np.random.default_rng(4).random(7)
    found = estimate_mean(values, np.arange(7))
    half = 1.959964 * values.std(ddof=1) / np.sqrt(7)
    assert [found.low, found.high] == pytest.approx([values.mean() - half, values.mean() + half])


def test_no_interval_holds_a_share_that_cannot_be():
    lists = np.arange(40)
    slots = pd.DataFrame(
        {"list": lists, "user_id": lists.astype("str"), "value": -1.0 * (lists == 3)}
    )
    rare, common = lists == 3, lists != 3
    figures = measure_rates(slots.assign(clicks=rare, conversions=common, dismissals=3 * rare))
    plain = {
        name: estimate_mean(column, lists) for name, column in (("rare", rare), ("common", common))
    }
    assert plain["rare"].low < 0
    assert plain["common"].high > 1
    assert figures["click_through"] == vars(plain["rare"]) | {"low": 0.0}
    assert figures["conversion"] == vars(plain["common"]) | {"high": 1.0}
    assert figures["dismissals_per_list"]["low"] == 0
    assert figures["value_per_list"]["low"] < figures["value_per_list"]["value"] < 0


def test_an_interval_over_users_holds_the_truth_as_often_as_it_says():
    """Users differ, and what one does is not independent: an interval over lists would be too narrow."""
    rng, held = np.random.default_rng(3), 0
    for _ in range(200):
        user = np.repeat(np.arange(80), 10)
        chance = np.repeat(rng.choice([0.1, 0.7], 80), 10)
        clicks = (rng.random(800) < chance).astype(float)
        slots = pd.DataFrame(
            {"list": np.arange(800), "user_id": user.astype("str"), "clicks": clicks}
        )
        rate = measure_rates(slots.assign(conversions=clicks, dismissals=0.0, value=0.0))[
            "click_through"
        ]
        held += rate["low"] <= 0.4 <= rate["high"]
    assert 180 <= held <= 199


@pytest.fixture
def run(tmp_path):
    """A run with a state: users u0 to u59 in two arms, of which one buys more."""
    (tmp_path / "state").mkdir()
    store = StateStore(tmp_path / STATE / STATE_FILE)
    for number in range(240):
        user, arm = f"u{number % 120}", "ab"[number % 2]
        ids = [f"i{(number + place) % N_ITEMS}" for place in range(K)]
        at = START + number * 3600
        head = Impressions(
            f"r{number}", user, at, "v1", "greedy", ids, [0.5] * K, [1.0] * K, f"s/{arm}"
        )
        store.log_impressions([head, Impressions.confirm(f"r{number}", at)])
        if arm == "b" or number % 10 == 0:
            store.observe_many([Observation(user, ids[1], "buy", at + 5, 2.0, f"r{number}")])
    store.close()
    (tmp_path / "experiment.json").write_text(
        json.dumps({"salt": "s", "arms": {"a": {"share": 0.5}, "b": {"share": 0.5}}})
    )
    return tmp_path


def test_the_command_writes_tables_figures_and_a_page(run, capsys):
    assert (
        main(
            [
                "--run",
                str(run),
                "--targets",
                "buy",
                "--experiment",
                str(run / "experiment.json"),
            ]
        )
        == 0
    )
    figures = json.loads((run / FEEDBACK / FIGURES).read_text())
    assert figures["groups"]["arm"]["s/b"]["conversion"]["value"] == 1
    assert figures["arms"]["b"]["conversions"]["verdict"] == "better"
    assert not figures["arms"]["shares"]["is_mismatch"]
    assert figures["groups"]["position"]["2"]["click_through"]["value"] == pytest.approx(
        figures["all"]["conversion"]["value"]
    )
    assert len(pd.read_parquet(run / FEEDBACK / SHOWN)) == 240 * K
    assert "better" in (run / FEEDBACK / PAGE).read_text()
    assert main(["--run", str(run / "nowhere")]) == 2
    assert main(["--run", str(run), "--window-days", "0"]) == 2


def test_where_nobody_did_something_arms_are_not_compared_by_it(run):
    assert (
        main(
            [
                "--run",
                str(run),
                "--targets",
                "sell",
                "--experiment",
                str(run / "experiment.json"),
            ]
        )
        == 0
    )
    compared = json.loads((run / FEEDBACK / FIGURES).read_text())["arms"]["b"]
    assert (compared["conversions"], compared["clicks"]["verdict"]) == (None, "better")


@pytest.mark.parametrize(("salt", "status"), [("s", 0), ("another", 2)])
def test_an_experiment_of_another_salt_has_no_lists_here(run, salt, status):
    content = {"salt": salt, "arms": {"a": {"share": 0.5}, "b": {"share": 0.5}}}
    (run / "experiment.json").write_text(json.dumps(content))
    assert main(["--run", str(run), "--experiment", str(run / "experiment.json")]) == status


def test_only_lists_since_a_moment_count(run):
    moment = datetime.fromtimestamp(START + 200 * 3600, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    assert main(["--run", str(run), "--since", moment]) == 0
    figures = json.loads((run / FEEDBACK / FIGURES).read_text())
    assert figures["all"]["lists"] == 40
    assert len(pd.read_parquet(run / FEEDBACK / SHOWN)) == 40 * K


def test_what_an_arm_caused_is_not_from_before_it_where_lists_only_since_a_moment_count(
    run, monkeypatch
):
    """From list 120 on each user has their second list; what followed the first is of the arms."""
    found = []

    def adjust(total, before):
        found.append(before)
        return total

    monkeypatch.setattr("evaluation.feedback.adjust", adjust)
    monkeypatch.setattr("evaluation.feedback.NEW_DAYS", 0)
    with closing(StateStore(run / STATE / STATE_FILE)) as store:
        store.observe_many([Observation("u5", "i1", "buy", START - 1, 2.0, None)])
    moment = datetime.fromtimestamp(START + 120 * 3600, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    experiment = ["--experiment", str(run / "experiment.json")]
    assert main(["--run", str(run), "--since", moment, *experiment]) == 0
    days, before = found[0].T
    assert (before.sum(), days.max()) == (1, pytest.approx(119 / 24))


def test_whoever_is_forgotten_is_in_none_of_its_files(run):
    assert main(["--run", str(run)]) == 0
    assert {name for name, texts in read_all(run).items() if "u17" in texts} == {
        SHOWN,
        EVENTS,
    }
    n_events = len(pd.read_parquet(run / FEEDBACK / EVENTS))
    forget_users(run, ["u17"])
    assert not [name for name, texts in read_all(run).items() if "u17" in texts]
    assert len(pd.read_parquet(run / FEEDBACK / EVENTS)) == n_events - 2


def read_all(run):
    """Return file -> the text of all of it."""
    tables = {
        path.name: pd.read_parquet(path).to_csv() for path in (run / FEEDBACK).glob("*.parquet")
    }
    return {
        path.name: tables.get(path.name) or path.read_text() for path in (run / FEEDBACK).iterdir()
    }


# ---- what a bundle knows

NEW_ROWS, LIVE = (4, 9, 20), "live"
OLD, ACTIVE, QUIET = (
    list(known_users(SHOP)),
    [f"a{number}" for number in range(12)],
    [f"q{n}" for n in range(9)],
)


def publish_marked(folder):
    """Publish a bundle with two segments and three new items, and profiles of some users beside it."""
    with Stage.open(folder) as stage:
        facts = write_linear(stage, SHOP, seed=3)
        flags = pa.array([row in NEW_ROWS for row in range(N)])
        write_items(
            pq.read_table(stage.path / ITEMS).append_column("is_new", flags),
            stage.path / ITEMS,
        )
        kinds = tuple(Segment(number, 20, 0.5, "much like all others", ()) for number in (1, 2))
        centroids = tuple(tuple(side * float(place == 0) for place in range(W)) for side in (1, -1))
        segments = Segments(40, {"2": 0.9}, (0.0,) * W, centroids, kinds)
        (stage.path / SEGMENTS).write_bytes(segments.to_bytes())
        path = publish(stage.prepare(facts, {})).path
    write_profiles(folder / "profiles", make_profiles(SHOP, known_users(SHOP)))
    return path


def serve_lists(app):
    """Serve users of profiles, of live events and of nothing, and nobody; return the answers by user."""
    ids, then = item_ids(SHOP), int(time.time()) - 1000
    ask(app, "PUT", f"/v1/items/{LIVE}", {"columns": {"brand": "x", "price": 0.1}})
    events = [
        (user, ids[2 * number % N] if number % 4 else "gone") for number, user in enumerate(ACTIVE)
    ]
    for user, item in events:
        ask(
            app,
            "POST",
            "/v1/events",
            {"user_id": user, "item_id": item, "event": "buy", "datetime": then},
        )
    asked = [{"user_id": user} for user in (*OLD, *ACTIVE, *QUIET)] + [{}] * 3
    replies = [ask(app, "POST", "/v1/recommend", one | {"k": 8, "explain": True}) for one in asked]
    for reply in replies:
        seen = {"request_id": reply.json["request_id"]}
        assert ask(app, "POST", "/v1/shown", seen).status == 200
    for user in QUIET:  # what is done after a list makes nobody known before it
        ask(
            app,
            "POST",
            "/v1/events",
            {"user_id": user, "item_id": ids[3], "datetime": then + 2000},
        )
    return [
        (one.get("user_id"), reply.json["answers"][0])
        for one, reply in zip(asked, replies, strict=True)
    ]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A run that was served, and what the service said of each list."""
    folder = tmp_path_factory.mktemp("served")
    with asking(publish_marked(folder)) as app:
        answers = serve_lists(app)
    return folder, answers


def read_figures_of(folder):
    assert main(["--run", str(folder)]) == 0
    return json.loads((folder / FEEDBACK / FIGURES).read_text())


def test_segments_and_unknown_users_are_those_that_the_service_told(served):
    folder, answers = served
    figures = read_figures_of(folder)
    assert figures["all"]["unknown_user_share"]["value"] == pytest.approx(
        np.mean([answer.get("user_known") is False for _, answer in answers])
    )
    assert figures["all"]["unknown_item_share"]["value"] == pytest.approx(3 / 21)
    by_segment = {}
    for user, answer in answers:
        if (
            user
            in (
                *OLD,
                *ACTIVE,
            )
            and "segment" in answer
        ):  # those of the others moved with what they did later
            by_segment.setdefault(str(answer["segment"]["id"]), set()).add(user)
    found = pd.read_parquet(folder / FEEDBACK / SHOWN).dropna(subset="segment")
    # Whose list is everybody's is told no segment.
    told = set().union(*by_segment.values())
    assert len(told) > len([*OLD, *ACTIVE]) / 2
    found = found[found["user_id"].isin(told)]
    assert {
        str(name): set(rows["user_id"]) for name, rows in found.groupby("segment")
    } == by_segment
    assert len(by_segment) == 2
    assert set(figures["groups"]["segment"]) <= {"1", "2"}
    assert all(one["users"] >= 5 for one in figures["groups"]["segment"].values())


def test_new_items_are_those_of_the_last_days_and_those_put_live(served):
    folder, answers = served
    figures, new = (
        read_figures_of(folder),
        {item_ids(SHOP)[row] for row in NEW_ROWS} | {LIVE},
    )
    listed = [item["item_id"] for _, answer in answers for item in answer["items"]]
    share = figures["all"]["new_item_share"]
    assert share["value"] == pytest.approx(np.mean([one in new for one in listed]))
    assert share["low"] < share["value"] < share["high"]
    assert figures["all"]["coverage"] == pytest.approx(len(set(listed)) / (N + 1))
    of_first = [answer["items"][0]["item_id"] in new for _, answer in answers]
    assert figures["groups"]["position"]["1"]["new_item_share"]["value"] == pytest.approx(
        np.mean(of_first)
    )


def test_lists_that_are_only_asked_for_move_no_figure(served, tmp_path):
    shutil.copytree(served[0], tmp_path / "run")
    expected = read_figures_of(tmp_path / "run")
    asked = int(time.time())
    lists = [
        Impressions(f"x{n}", user, asked, "v1", "greedy", [item_ids(SHOP)[0]], [1.0], [1.0])
        for n, user in enumerate(OLD[:5] * 30)
    ]
    with closing(StateStore(tmp_path / "run" / STATE / STATE_FILE)) as store:
        store.log_impressions(lists)
        assert read_figures_of(tmp_path / "run") == expected
        store.observe_many([Observation(OLD[0], "none", "buy", asked, None, "x0")])
        store.observe_many([Observation(OLD[1], "none", "buy", asked, None, "x0")])  # not theirs
        store.log_impressions([Impressions.confirm("x1", asked)])
    found = read_figures_of(tmp_path / "run")
    assert found["all"]["lists"] == expected["all"]["lists"] + 2


def test_a_segment_of_few_users_is_not_told(served, tmp_path):
    folder, answers = served
    shutil.copytree(folder, tmp_path / "run")
    kept = {}
    for user, answer in answers:
        if user in OLD + ACTIVE and "segment" in answer:
            kept.setdefault(answer["segment"]["id"], []).append(user)
    few = min(kept, key=lambda name: len(kept[name]))
    forget_users(tmp_path / "run", [*kept[few][4:], *QUIET])
    assert str(few) not in read_figures_of(tmp_path / "run")["groups"]["segment"]


def test_a_registry_has_the_bundle_of_its_current_version(served, tmp_path):
    folder, _ = served
    publish_version(Registry(tmp_path), folder / "bundle", is_activated=True)
    for name in ("state", "profiles"):
        shutil.copytree(folder / name, tmp_path / name)
    assert read_figures_of(tmp_path) == read_figures_of(folder)


def test_profiles_that_lie_elsewhere_are_named_and_without_them_nothing_is_said_of_users(
    served, tmp_path, capsys
):
    folder, _ = served
    publish_version(Registry(tmp_path), folder / "bundle", is_activated=True)
    shutil.copytree(folder / "state", tmp_path / "state")
    figures = read_figures_of(tmp_path)
    assert figures["all"]["unknown_user_share"] is None
    assert "segment" not in figures["groups"]
    assert "--profiles" in capsys.readouterr().err
    expected = read_figures_of(folder)
    assert figures["all"] | {"unknown_user_share": 0} == expected["all"] | {"unknown_user_share": 0}
    assert main(["--run", str(tmp_path), "--profiles", str(folder / "profiles")]) == 0
    assert json.loads((tmp_path / FEEDBACK / FIGURES).read_text()) == expected
    assert capsys.readouterr().err == ""


def test_without_a_bundle_nothing_is_said_of_what_it_would_know(run):
    figures = read_figures_of(run)
    assert "segment" not in figures["groups"]
    names = ("coverage", "new_item_share", "unknown_user_share", "unknown_item_share")
    assert {figures["all"][name] for name in names} == {None}


DRIFTED = {
    "name": "item <price>",
    "status": "red",
    "index": 0.31,
    "users": 90,
    "moved": "cheap: 0.1 to 0.4",
}


@pytest.mark.parametrize("is_shown", [False, True])
def test_the_page_shows_drift_if_it_was_measured(run, is_shown):
    if is_shown:
        (run / DRIFT).write_text(json.dumps({"version": "v", "rows": [DRIFTED]}))
    assert main(["--run", str(run)]) == 0
    page = (run / FEEDBACK / PAGE).read_text()
    assert ("item &lt;price&gt;" in page, ">red<" in page) == (is_shown, is_shown)


@pytest.mark.parametrize("kind", ["another mark", "no database"])
def test_a_state_of_another_kind_is_refused_with_one_line(tmp_path, kind, capsys):
    path = tmp_path / STATE / STATE_FILE
    StateStore(path, retention_days=36_000).close()
    if kind == "another mark":
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA application_id = 1112735746")
    else:
        path.write_bytes(b"user_id,item_id\n" * 300)
    assert main(["--run", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / FEEDBACK).exists()


def test_a_log_of_events_without_a_list_is_one_line(tmp_path, capsys):
    with closing(StateStore(tmp_path / STATE / STATE_FILE)) as store:
        for second in range(3):
            store.observe("u1", "i1", "view", START + second)
    assert main(["--run", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert STATE_FILE in line
