"""What is broken, worse, or bad for some is stopped; what is equal or better takes over, step by step."""

import json
import shutil
from contextlib import closing
from dataclasses import replace
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from evaluation.evaluate import Parts
from evaluation.gate import AUDIT, main
from evaluation.guardrails import Change, Limits, check_slices, check_unprompted, compare
from evaluation.online import find_unprompted
from serve.bundle import STATE, STATE_FILE, Bundle
from serve.recommender import Recommender
from service.event_log import Impressions
from service.registry import Registry, publish_version
from service.state import StateStore
from tests import linear_bundle
from tests.evaluation.fake_recommender import FakeRecommender
from tests.linear_bundle import DAY, SHOP, UNTIL, publish_linear

U, ITEMS, RARE = 600, [f"i{number:02d}" for number in range(60)], 40
USERS = [f"u{number:03d}" for number in range(U)]


class Shop(FakeRecommender):
    """Users have targets; a list holds a user's target with a chance of its own."""

    def __init__(self, targets, chances, seed, items=ITEMS, repeats="exclude"):
        super().__init__(items, USERS, {}, seed, repeats=repeats, user_id_type="string")
        rng, place = (
            np.random.default_rng(seed + 50),
            {item: number for number, item in enumerate(items)},
        )
        for user, chance in zip(USERS, chances, strict=True):
            if rng.random() < chance and targets[user] in place:
                self.scores[user][place[targets[user]]] = 1 - rng.random() / 10
        self.catalogue = SimpleNamespace(item_ids=SimpleNamespace(ids=np.array(items, object)))


@pytest.fixture(scope="module")
def shop():
    """Return who should get what, and the tables: of 40 of 600 users the sex is known to be `m`."""
    rng = np.random.default_rng(0)
    targets = dict(zip(USERS, rng.choice(ITEMS, U), strict=True))
    test = pd.DataFrame({"user_id": USERS, "item_id": list(targets.values())})
    train = pd.DataFrame({"user_id": np.repeat(USERS, 6), "item_id": rng.choice(ITEMS, 6 * U)})
    users = pd.DataFrame({"user_id": USERS, "sex": ["m"] * RARE + ["f"] * (U - RARE)})
    return targets, Parts(test, train, train[:0], users, ["sex"])


def find_stops(shop, chances, items=ITEMS, limits=None, was=0.5):
    targets, parts = shop
    current, candidate = (
        Shop(targets, np.broadcast_to(was, U), 1),
        Shop(targets, np.broadcast_to(chances, U), 1, items),
    )
    return [
        check.name
        for check in compare([current, candidate], parts, limits or Limits())
        if not check.is_passed
    ]


def test_an_equal_or_better_candidate_passes(shop):
    assert find_stops(shop, 0.5) == []
    assert find_stops(shop, 0.8) == []


def test_a_worse_candidate_is_stopped_by_as_much_as_the_limit_says(shop):
    assert "NDCG@10, lower bound" in find_stops(shop, 0.2)
    assert "NDCG@10, lower bound" in find_stops(shop, 0.45)
    assert find_stops(shop, 0.45, limits=Limits(loss=0.4, slice_loss=0.4)) == []


def test_a_candidate_without_half_of_the_items_is_stopped(shop):
    stops = find_stops(shop, 0.5, ITEMS[::2])
    assert {"NDCG@10, lower bound", "coverage@10"} <= set(stops)


def test_a_candidate_that_is_fine_but_for_one_slice_is_stopped_for_it(shop):
    chances = np.where(np.arange(U) < RARE, 0.0, 0.6)
    assert find_stops(shop, chances) == ["sex m"]


def test_a_candidate_that_serves_a_group_badly_is_stopped_by_its_audit_if_that_has_a_limit(shop):
    """The candidate serves 40 people as badly as the current version does: no slice has lost."""
    chances = np.where(np.arange(U) < RARE, 0.0, 0.6)
    assert find_stops(shop, chances, was=chances) == []
    assert find_stops(shop, chances, limits=Limits(audit_users=0.8), was=chances) == ["audit"]
    assert find_stops(shop, 0.5, limits=Limits(audit_users=0.8)) == []


def test_a_candidate_that_finds_only_what_users_have_is_stopped(shop):
    """Half of what users choose again both versions find; of what is new to them the candidate finds nothing."""
    targets, parts = shop
    again = parts.train.groupby("user_id", as_index=False).first()
    is_new = ~pd.MultiIndex.from_frame(parts.test).isin(pd.MultiIndex.from_frame(parts.train))
    parts = replace(parts, test=pd.concat([again, parts.test[is_new]]))
    stops = []
    for chance in (0.5, 0.0):
        versions = [Shop(targets, np.full(U, one), 1, repeats="allow") for one in (0.5, chance)]
        for version in versions:
            version.owned = parts.train.groupby("user_id")["item_id"].agg(set).to_dict()
            for user, item in again.itertuples(index=False):
                version.scores[user][ITEMS.index(item)] = 2.0
        stops.append(
            [
                check.name
                for check in compare(versions, parts, Limits(0.5, 0.5))
                if not check.is_passed
            ]
        )
    assert stops == [[], ["view novel"]]


def test_equal_candidates_that_answer_otherwise_are_seldom_stopped_for_a_slice(shop):
    targets, parts = shop
    n_stopped = 0
    for seed in range(2, 27):
        current, candidate = (Shop(targets, np.full(U, 0.5), one) for one in (seed, seed + 100))
        checks = compare([current, candidate], parts, Limits())[2:]
        assert len(checks) >= 5
        n_stopped += any(not check.is_passed for check in checks)
    assert n_stopped <= 4


@pytest.mark.parametrize("n_slices", [1, 3, 4, 40])
def test_the_level_of_a_slice_is_divided_by_their_number(n_slices):
    """Each slice has fallen by 2.2 standard errors."""
    noise = np.random.default_rng(0).normal(size=100)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    change = Change(np.full(100, 0.5), -0.2 + noise * 0.2 / 2.2 * np.sqrt(100))
    checks = check_slices({f"slice {number}": change for number in range(n_slices)}, 0.1)
    is_chance = NormalDist().inv_cdf(1 - 0.05 / n_slices) > 2.2
    assert [check.is_passed for check in checks] == [is_chance] * n_slices


def test_what_equals_the_current_version_is_stopped_where_an_earlier_one_was_better(shop):
    targets, parts = shop
    chances = {"old": 0.7, "current": 0.5, "candidate": 0.5}
    versions = {name: Shop(targets, np.full(U, chance), 1) for name, chance in chances.items()}
    for name, version in versions.items():
        version.version = name
    last = versions["current"], versions["candidate"]
    assert all(check.is_passed for check in compare(last, parts, Limits()))
    stops = [
        check for check in compare([*last, versions["old"]], parts, Limits()) if not check.is_passed
    ]
    assert [check.name for check in stops] == ["earlier version old"]
    assert stops[0].value < -0.05


def test_what_came_after_a_list_does_not_decide():
    rng = np.random.default_rng(0)
    users, since = rng.integers(0, 40, 300), 1000
    test = pd.DataFrame({"user_id": users, "datetime": rng.integers(since, since + 500, 300)})
    shown = pd.DataFrame(
        {
            "user_id": [*map(str, rng.integers(0, 30, 60)), None],  # ids of the log are texts
            "datetime": rng.integers(since - 400, since + 500, 61) - rng.choice([0, DAY], 61),
        }
    )
    found = find_unprompted(test, shown, since).tolist()
    expected = []
    for user, seconds in test.itertuples(index=False):
        lists = shown["datetime"][shown["user_id"] == str(user)]
        expected.append(not any(since - DAY <= at <= seconds for at in lists))
    assert found == expected
    assert {True, False} == set(found)


@pytest.mark.parametrize(("timezone", "hours"), [(None, 0), ("Asia/Kolkata", 5.5)])
def test_an_event_of_a_day_may_be_as_late_as_its_end(timezone, hours):
    """The list is shown on the afternoon of day 7, after a day that was all before it."""
    midnight = -round(hours * 3600)
    test = pd.DataFrame({"user_id": "u", "datetime": midnight + DAY * np.arange(5, 10)})
    shown = pd.DataFrame({"user_id": ["u"], "datetime": [midnight + 7 * DAY + 50_000]})
    found = find_unprompted(test, shown, midnight + 5 * DAY, timezone).tolist()
    assert found == [True, True, False, False, False]
    test.loc[0, "datetime"] += 1  # times of day are known
    found = find_unprompted(test, shown, midnight + 5 * DAY, timezone).tolist()
    assert found == [True, True, True, False, False]


@pytest.mark.parametrize(("n_unprompted", "is_passed"), [(0, False), (4, False), (5, True)])
def test_too_few_events_before_a_list_pass_nothing(n_unprompted, is_passed):
    check = check_unprompted(np.arange(100) < n_unprompted)
    assert (check.value, check.is_passed) == (n_unprompted / 100, is_passed)


def test_nothing_passes_where_nothing_can_be_told(shop):
    targets, parts = shop
    same = Shop(targets, np.full(U, 0.5), 1)
    few = replace(parts, test=parts.test[:12])
    assert [check.is_passed for check in compare([same, same], few, Limits())] == [
        False,
        True,
    ]
    lost = replace(parts, test=parts.test.assign(item_id="of another shop"))
    assert not compare([same, same], lost, Limits())[0].is_passed


# ---- the command, on bundles

PEOPLE = [f"p{number}" for number in range(120)]


def permuted(seed):
    return np.ascontiguousarray(
        np.roll(np.random.default_rng(seed).standard_normal((23, 10), np.float32), 7, axis=0)
    )


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Return a bundle, one whose item vectors are in another order, and one that lacks half of the items."""
    folder, ids = tmp_path_factory.mktemp("bundles"), linear_bundle.item_ids
    paths = {"whole": publish_linear(folder / "whole", SHOP, 4)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_bundle, "vectors_of", permuted)
        paths["permuted"] = publish_linear(folder / "permuted", SHOP, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_bundle, "item_ids", lambda schema: ids(schema)[:11])
        patch.setattr(linear_bundle, "REPEAT_RATES", linear_bundle.REPEAT_RATES[:11])
        patch.setattr(linear_bundle, "N", 11)
        paths["half"] = publish_linear(folder / "half", SHOP, 4)
    return paths


@pytest.fixture(scope="module")
def options(bundles, tmp_path_factory):
    """Write histories, and a holdout of what the whole bundle would list."""
    folder, rng = tmp_path_factory.mktemp("tables"), np.random.default_rng(1)
    train = pd.DataFrame(
        {
            "user_id": np.repeat(PEOPLE, 4),
            "item_id": rng.choice(linear_bundle.item_ids(SHOP), 480),
        }
    )
    train["datetime"] = UNTIL - rng.integers(1, 60 * DAY, len(train))
    train.to_parquet(folder / "train.parquet")
    histories = {
        user: rows[["item_id", "datetime"]].to_dict("records")
        for user, rows in train.sort_values("datetime").groupby("user_id")
    }
    answers = Recommender(Bundle.load(bundles["whole"])).recommend(
        [{"history": histories[user]} for user in PEOPLE]
    )
    chosen = [answers.of(number).item_id[rng.integers(3)] for number in range(len(PEOPLE))]
    pd.DataFrame({"user_id": PEOPLE, "item_id": chosen, "datetime": UNTIL + DAY}).to_parquet(
        folder / "holdout.parquet"
    )
    return [
        "--holdout",
        str(folder / "holdout.parquet"),
        "--train",
        str(folder / "train.parquet"),
    ]


def ask(words):
    """Return the exit status."""
    try:
        return main([str(word) for word in words])
    except SystemExit as end:
        return end.code


def read_audit(registry):
    return [json.loads(line) for line in (registry / AUDIT).read_text().splitlines()]


@pytest.mark.parametrize(("current", "candidate", "status"), [
    ("whole", "whole", 0), ("whole", "permuted", 3), ("whole", "half", 3), ("permuted", "whole", 0),
])  # fmt: skip
def test_the_verdict_is_a_file_and_an_exit_status(
    bundles, options, tmp_path, current, candidate, status
):
    out = tmp_path / "verdict.json"
    at = ["--at", "2017-07-14T02:40:00"]
    assert (
        ask(
            [
                "--current",
                bundles[current],
                "--candidate",
                bundles[candidate],
                *options,
                *at,
                "--out",
                out,
            ]
        )
        == status
    )
    verdict = json.loads(out.read_text())
    assert verdict["verdict"] == ("stopped" if status else "passed")
    assert all(
        {"name", "value", "limit", "is_passed"} <= check.keys() for check in verdict["checks"]
    )
    assert all(check["is_passed"] for check in verdict["checks"]) == (status == 0)


def test_what_passes_is_published_and_activated_and_what_does_not_leaves_all_as_it_was(
    bundles, options, tmp_path
):
    registry, out = Registry(tmp_path / "registry"), tmp_path / "verdict.json"
    publish_version(registry, bundles["permuted"], is_activated=True)
    first = registry.current()
    words = ["--registry", registry.path, *options, "--out", out, "--candidate"]
    assert ask([*words, bundles["half"]]) == 3
    assert (registry.current(), registry.versions()) == (first, [first])
    assert ask([*words, bundles["whole"]]) == 0
    assert registry.current() == Bundle.load(bundles["whole"]).manifest.version
    assert registry.past() == [first]
    steps = read_audit(registry.path)
    assert [step["step"] for step in steps] == [
        "judged",
        "judged",
        "published",
        "activated",
    ]
    assert [step["verdict"] for step in steps[:2]] == ["stopped", "passed"]
    assert steps[3]["left"] == first
    assert not any(person in (registry.path / AUDIT).read_text() for person in PEOPLE)


def test_a_gate_that_runs_again_logs_the_activation_that_a_kill_left_out(
    bundles, options, tmp_path
):
    registry = Registry(tmp_path / "registry")
    first = publish_version(registry, bundles["permuted"], is_activated=True).version
    words = ["--registry", registry.path, *options, "--out", tmp_path / "verdict.json"]
    words += ["--candidate", bundles["whole"]]
    assert ask(words) == 0
    log = registry.path / AUDIT
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:-1]))  # killed before the line of the activation

    for _ in range(2):  # it is written once
        assert ask(words) == 0
        steps = read_audit(registry.path)
        assert [step["step"] for step in steps] == ["judged", "published", "activated"]
        assert (steps[2]["version"], steps[2]["left"]) == (registry.current(), first)


def test_a_candidate_whose_files_were_altered_is_stopped(bundles, options, tmp_path):
    broken = shutil.copytree(bundles["whole"], tmp_path / "broken")
    (broken / "item_tower.onnx").write_bytes((bundles["permuted"] / "item_tower.onnx").read_bytes())
    out = tmp_path / "verdict.json"
    assert (
        ask(
            [
                "--current",
                bundles["whole"],
                "--candidate",
                broken,
                *options,
                "--out",
                out,
            ]
        )
        == 3
    )
    assert [check["is_passed"] for check in json.loads(out.read_text())["checks"]] == [False]


def log_lists(state, seconds, confirmed):
    """Log that everybody asked for a list, and confirm those of some."""
    asked = [
        Impressions(f"r-{user}", user, seconds, "v", "greedy", ["i1"], [0.5], [1.0])
        for user in PEOPLE
    ]
    shown = [Impressions.confirm(f"r-{user}", seconds) for user in confirmed]
    with closing(StateStore(state / STATE_FILE)) as store:
        store.log_impressions([*asked, *shown])


AT = ("--at", "2017-07-14T02:40:00")  # UNTIL


@pytest.mark.parametrize(("confirmed", "at", "status", "value"), [
    (PEOPLE[:40], AT, 0, 2 / 3),
    (PEOPLE, AT, 3, 0),  # nothing is left to ask
    ([], AT, 3, 0),
    (PEOPLE[:40], (), 3, 0),
])  # fmt: skip
def test_it_is_judged_by_what_is_known_to_have_come_before_a_list(
    bundles, options, tmp_path, confirmed, at, status, value
):
    registry, out = Registry(tmp_path / "registry"), tmp_path / "verdict.json"
    publish_version(registry, bundles["permuted"], is_activated=True)
    log_lists(registry.path / STATE, UNTIL + 5, confirmed)
    words = ["--registry", registry.path, "--candidate", bundles["whole"], "--out", out]
    assert ask([*words, *options, *at]) == status
    checks = json.loads(out.read_text())["checks"]
    assert checks[1]["value"] == pytest.approx(value)
    assert len(checks) == 2 or status == 0
    assert read_audit(registry.path)[0]["step"] == "judged"


def test_an_earlier_version_that_cannot_be_asked_is_left_out_and_stays(
    bundles, options, tmp_path, monkeypatch
):
    registry, out = Registry(tmp_path / "registry"), tmp_path / "verdict.json"
    with monkeypatch.context() as patch:
        patch.setattr(linear_bundle, "UNTIL", UNTIL + DAY)
        later = publish_linear(tmp_path / "later", replace(SHOP, data_until=UNTIL + DAY), 4)
    for path in (later, bundles["half"], bundles["permuted"]):
        publish_version(registry, path, is_activated=True)
    past = {registry.current(), *registry.past()}
    words = ["--registry", registry.path, "--candidate", bundles["whole"], "--out", out]
    assert ask([*words, *options, *AT]) == 0
    names = [check["name"] for check in json.loads(out.read_text())["checks"]]
    half = Bundle.load(bundles["half"]).manifest.version
    assert [name for name in names if "earlier" in name] == [f"earlier version {half}"]
    assert past < set(registry.versions())


def test_mistakes_of_the_call_are_not_verdicts(bundles, options, tmp_path, capsys):
    words = [
        "--current",
        bundles["whole"],
        "--candidate",
        bundles["whole"],
        *options,
        "--out",
        tmp_path / "verdict.json",
    ]
    assert ask(["--candidate", bundles["whole"], *options]) == 2
    assert ask([*words, "--loss", "5"]) == 2
    assert ask([*words, "--users", tmp_path / "none.csv"]) == 2
    assert ask([*words, "--at", "2017-01-01"]) == 2  # the bundles have seen what came then
    assert ask([*words, "--candidate", tmp_path]) == 2
    assert not (tmp_path / "verdict.json").exists()
    assert len(capsys.readouterr().err.splitlines()) == 5
