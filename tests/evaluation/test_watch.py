"""A version that does worse by its live figures is rolled back; an equal one stays, however often one looks."""

import json

import numpy as np
import pandas as pd
import pytest
from evaluation.experiments import MIN_USERS
from evaluation.gate import AUDIT, main
from evaluation.watch import compare_versions
from serve.bundle import STATE, STATE_FILE
from serve.clock import DAY
from service.event_log import Impressions, Observation
from service.registry import Registry, publish_version
from service.state import StateStore

START, TOLERANCE = 1_700_000_000, 0.05


def simulate(rng, lift, n_users=600, n_days=28, change=14):
    """Draw a list of some users each day, `old` before the day of the change and `new` after it.

    Users differ in how often they come and how likely they buy, and who comes often buys more.
    """
    activity = rng.beta(1, 6, n_users)
    chance = 0.1 + 0.4 * activity * rng.random(n_users)
    days, users = np.nonzero(rng.random((n_days, n_users)) < activity)
    is_new = days >= change
    bought = rng.random(len(days)) < chance[users] * np.where(is_new, lift, 1.0)
    slots = pd.DataFrame(
        {
            "list": np.arange(len(days)),
            "user_id": users.astype(str),
            "conversions": bought.astype(float),
            "arm": None,
        }
    )
    return slots.assign(datetime=START + days * DAY, version=np.where(is_new, "new", "old"))


def find_rollback(slots, n_days=28, change=14, step=2):
    """Return the day of the first look at which the new version is rolled back, None if it stays."""
    for day in range(change + 2, n_days, step):
        known = slots[slots["datetime"] <= START + day * DAY]
        found = compare_versions(known, "old", "new", "conversions")
        if found is not None and found.high < -TOLERANCE * found.control:
            return day
    return None


def test_an_equal_version_is_hardly_ever_rolled_back_and_a_worse_one_is():
    rng = np.random.default_rng(0)
    assert sum(find_rollback(simulate(rng, 1.0)) is not None for _ in range(20)) <= 1
    found = [find_rollback(simulate(rng, 0.5, n_users=3000)) for _ in range(5)]
    assert None not in found


@pytest.mark.slow
def test_false_alarms_over_many_shops_and_days():
    rng = np.random.default_rng(1)
    n_alarms = sum(
        find_rollback(simulate(rng, 1.0, n_days=70), n_days=70, step=7) is not None
        for _ in range(40)
    )
    assert n_alarms <= 2


def test_lists_of_the_last_day_do_not_count_yet():
    slots = simulate(np.random.default_rng(2), 1.0, n_users=3000)
    last = slots["datetime"].max()
    later = slots.assign(
        conversions=slots["conversions"].where(slots["datetime"] <= last - DAY, 0.0)
    )
    assert compare_versions(slots, "old", "new", "conversions") == compare_versions(
        later, "old", "new", "conversions"
    )


def test_lists_of_an_arm_are_left_to_the_experiment():
    slots = simulate(np.random.default_rng(2), 1.0, n_users=3000)
    trial = slots[slots["version"] == "old"].assign(version="new", arm="spring/new", conversions=0)
    both = pd.concat([slots, trial.assign(list=trial["list"] + len(slots))])
    assert compare_versions(both, "old", "new", "conversions") == compare_versions(
        slots, "old", "new", "conversions"
    )


def test_users_are_compared_with_themselves_each_by_the_lists_that_tell_something():
    slots = simulate(np.random.default_rng(3), 0.7)
    found = compare_versions(slots, "old", "new", "conversions")
    ripe = slots[slots["datetime"] <= slots["datetime"].max() - DAY]
    pairs = []
    for _, rows in ripe.groupby("user_id"):
        old, new = (rows["conversions"][rows["version"] == name] for name in ("old", "new"))
        if len(old) and len(new):
            pairs.append((old.mean(), new.mean(), 1 / (1 / len(old) + 1 / len(new))))
    old, new, weight = np.transpose(pairs)
    assert found.users == (len(pairs), len(pairs))
    assert found.control == pytest.approx(np.average(old, weights=weight))
    assert found.difference == pytest.approx(np.average(new - old, weights=weight))
    assert found.low < found.difference < found.high


def test_nothing_is_said_of_users_who_saw_one_version_only_nor_in_the_first_week():
    slots = simulate(np.random.default_rng(3), 0.5, n_users=3000)
    apart = slots.assign(user_id=slots["version"] + slots["user_id"])
    assert compare_versions(apart, "old", "new", "conversions") is None
    for day, is_judged in ((21, False), (22, True)):  # lists of the last day do not count
        known = slots[slots["datetime"] <= START + day * DAY]
        assert (compare_versions(known, "old", "new", "conversions") is not None) == is_judged


def test_an_equal_version_stays_where_those_who_come_often_convert_less():
    n_back = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        activity = rng.beta(1, 6, 3000)
        days, users = np.nonzero(rng.random((28, 3000)) < activity)
        bought = rng.random(len(days)) < 0.4 * (1 - activity[users]) ** 4
        facts = {
            "list": np.arange(len(days)),
            "user_id": users.astype(str),
            "conversions": bought,
            "arm": None,
        }
        version = np.where(days >= 14, "new", "old")
        slots = pd.DataFrame(facts).assign(datetime=START + days * DAY, version=version)
        n_back += find_rollback(slots) is not None
    assert n_back == 0


# ---- the command


def make_registry(folder, published, versions, chance):
    """Publish two versions, and log what followed the lists of 300 users of each."""
    registry, rng = Registry(folder / "registry"), np.random.default_rng(4)
    for seed in (1, 2):
        publish_version(registry, published[seed], is_activated=True)
    (registry.path / STATE).mkdir()
    store = StateStore(registry.path / STATE / STATE_FILE)
    shown, seen = [], []
    for number in range(1800):
        seed, user, at = (
            1 if number < 900 else 2,
            f"u{number % 300}",
            START + number * 1200,
        )
        shown.append(
            Impressions(f"r{number}", user, at, versions[seed], "greedy", ["i100"], [0.5], [1.0])
        )
        if rng.random() < chance[seed]:
            seen.append(Observation(user, "i100", "buy", at + 5, None, f"r{number}"))
    store.log_impressions(shown)
    store.log_impressions(Impressions.confirm(each.request_id, each.datetime) for each in shown)
    store.observe_many(seen)
    store.close()
    return registry


def ask(*words):
    try:
        return main(["watch", *map(str, words)])
    except SystemExit as end:
        return end.code


def test_a_version_that_halves_conversions_is_rolled_back(published, versions, tmp_path, capsys):
    registry = make_registry(tmp_path, published, versions, {1: 0.6, 2: 0.3})
    assert ask("--registry", registry.path, "--targets", "view") == 0  # of which there are none
    assert ask("--registry", registry.path, "--tolerance", "0.9") == 0
    assert registry.current() == versions[2]
    assert ask("--registry", registry.path, "--targets", "buy") == 3
    assert registry.current() == versions[1]
    text = (registry.path / AUDIT).read_text()
    (line,) = map(json.loads, text.splitlines())
    assert (line["step"], line["version"], line["left"]) == (
        "rolled back",
        versions[1],
        versions[2],
    )
    capsys.readouterr()
    assert ask("--registry", registry.path) == 0
    assert "no version before it" in capsys.readouterr().out
    assert ask("--registry", registry.path, "--tolerance", "2") == 2
    assert ask("--registry", tmp_path) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_an_equal_version_stays(published, versions, tmp_path):
    registry = make_registry(tmp_path, published, versions, {1: 0.5, 2: 0.5})
    assert ask("--registry", registry.path) == 0
    assert registry.current() == versions[2]
    assert not (registry.path / AUDIT).exists()


def test_a_log_without_lists_decides_nothing(published, versions, tmp_path, capsys):
    registry = Registry(tmp_path / "registry")
    for seed in (1, 2):
        publish_version(registry, published[seed], is_activated=True)
    StateStore(registry.path / STATE / STATE_FILE).close()
    assert ask("--registry", registry.path) == 0
    assert registry.current() == versions[2]
    said = capsys.readouterr().out
    assert f"{MIN_USERS}" in said
    assert "no version before it" not in said
