"""Experiments over HTTP: users stay in their arms, an arm has its version and policy, the log says what was shown."""

import json
import sqlite3
import time
from collections import Counter
from contextlib import closing

import pytest
from serve.errors import SchemaError
from serve.recommender import Recommender
from service.experiment import Experiment
from service.http.app import make_app
from service.registry import Registry, publish_version
from service.service import Service
from service.sources import BundleSource, RegistrySource
from tests.http.services import EVER, NOW, publish_served
from tests.linear_bundle import SHOP, item_ids, publish_linear
from tests.served import ask

IDS, K = item_ids(SHOP), 6
HISTORY = [{"item_id": IDS[3]}, {"item_id": IDS[8]}]
EXPLORE = {"kind": "explore", "temperature": 1.0, "slots": 2, "lists_per_day": 3}
EXPERIMENT = {
    "salt": "s",
    "arms": {
        "old": {"share": 0.5},
        "new": {"share": 0.5, "version": None, "policy": EXPLORE},
    },
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return [
        publish_served(folder / "a", SHOP),
        publish_linear(folder / "b", SHOP, seed=8),
    ]


@pytest.fixture
def registry(tmp_path, bundles):
    registry = Registry(tmp_path / "registry")
    versions = [
        publish_version(registry, one, is_activated=place == 0).version
        for place, one in enumerate(bundles)
    ]
    return registry, versions


def serve(registry, content):
    experiment = Experiment.parse(content)
    app = make_app(
        Service(
            RegistrySource(registry),
            registry.path,
            None,
            None,
            EVER,
            "data",
            experiment,
        )
    )
    app.state.shared.answers._deadline = 60  # tests share processors
    return app


def lists_of(app, users):
    body = {
        "requests": [NOW | {"history": HISTORY, "user_id": user} for user in users],
        "k": K,
    }
    reply = ask(app, "POST", "/v1/recommend", body)
    assert reply.status == 200, reply
    return reply.json


def read_log(registry):
    with closing(sqlite3.connect(registry.path / "state" / "state.db")) as database:
        names = "user_id, bundle_version, arm, policy, position, item_id, score, propensity"
        return database.execute(
            f"SELECT {names} FROM feedback ORDER BY user_id, position"
        ).fetchall()


def test_users_stay_in_arms_that_have_their_versions_and_policies(registry, bundles):
    registry, versions = registry
    content = json.loads(json.dumps(EXPERIMENT))
    content["arms"]["new"]["version"] = versions[1]
    users = [f"w{number}" for number in range(60)]
    with closing((app := serve(registry, content)).state.shared):
        first, again = (lists_of(app, users)["answers"] for _ in range(2))
    with closing((app := serve(registry, content)).state.shared):
        later = lists_of(app, users)["answers"]
    arms = [one["arm"] for one in first]
    assert arms == [one["arm"] for one in again] == [one["arm"] for one in later]
    assert min(Counter(arms).values()) > 15
    plain = [
        Recommender.load(one).recommend([NOW | {"history": HISTORY}], K).item_id.tolist()
        for one in bundles
    ]
    for one in first:
        place = ("old", "new").index(one["arm"])
        assert one["version"] == versions[place]
        n_fixed = K - (EXPLORE["slots"] if place else 0)
        assert [item["item_id"] for item in one["items"]][:n_fixed] == plain[place][:n_fixed]
    drawn = [
        [item["item_id"] for item in one["items"]][-2:] for one in first if one["arm"] == "new"
    ]
    assert len(set(map(tuple, drawn))) > 5


def test_what_a_basket_holds_is_drawn_by_no_arm(registry, bundles):
    app = serve(registry[0], EXPERIMENT)
    with closing(app.state.shared):
        lists = lists_of(app, [f"user {number}" for number in range(20)])["answers"]
    assert {one["arm"] for one in lists} == {"old", "new"}
    for one in lists:
        assert one["held_back"] == len(HISTORY)
        items = {item["item_id"] for item in one["items"]}
        assert len(items) == K
        assert not items & {event["item_id"] for event in HISTORY}


def test_a_request_alone_is_answered_and_logged_as_its_arm_says(registry, bundles):
    registry, versions = registry
    arms = {
        "old": {"share": 0.4},
        "new": {"share": 0.3, "version": versions[1]},
        "drawn": EXPERIMENT["arms"]["new"],
    }
    content = {"salt": "s", "arms": arms | {"drawn": arms["drawn"] | {"share": 0.3}}}
    users, experiment = (
        [f"w{number}" for number in range(30)],
        Experiment.parse(content),
    )
    with closing((app := serve(registry, content)).state.shared):
        bodies = [NOW | {"history": HISTORY, "user_id": user, "k": K} for user in users]
        replies = [ask(app, "POST", "/v1/recommend", body).json["answers"][0] for body in bodies]
    plain = [
        Recommender.load(one).recommend([NOW | {"history": HISTORY}], K).item_id.tolist()
        for one in bundles
    ]
    shown = {
        (user, items["item_id"])
        for user, reply in zip(users, replies, strict=True)
        for items in reply["items"]
    }
    for user, reply in zip(users, replies, strict=True):
        arm = experiment.assign(user).name
        of_new = arm == "new"
        assert (reply["arm"], reply["version"]) == (arm, versions[of_new])
        n_fixed = K - EXPLORE["slots"] if arm == "drawn" else K
        assert [item["item_id"] for item in reply["items"]][:n_fixed] == plain[of_new][:n_fixed]
    assert {experiment.assign(user).name for user in users} == set(arms)
    rows = read_log(registry)
    assert {(row[0], row[5]) for row in rows} == shown
    for user, version, arm, *_ in rows:
        assert (arm, version) == (experiment.assign(user).label, versions[arm == "s/new"])


def test_the_log_has_what_was_shown_with_its_propensities_and_users_are_explored_so_often_a_day(
    registry,
):
    registry, versions = registry
    users = [f"w{number}" for number in range(8)]
    with closing((app := serve(registry, EXPERIMENT)).state.shared):
        for _ in range(3):
            lists_of(app, users)
            until = time.monotonic() + 30
            while app.state.shared.service.impressions.n_waiting and time.monotonic() < until:
                time.sleep(0.05)  # what was shown is counted when it is on disk
            time.sleep(0.3)
        lists_of(app, users)
    rows = read_log(registry)
    assert {row[1] for row in rows} == {versions[0]}
    of_new = [row for row in rows if row[2] == "s/new"]
    assert {row[2] for row in rows} == {"s/old", "s/new"}
    assert {row[3].split()[0] for row in of_new} == {"explore", "greedy"}
    for *_, policy, position, _, _, propensity in rows:
        is_drawn = policy != "greedy" and position > K - 2
        assert (0 < propensity < 1) if is_drawn else propensity == 1
    n_explored = Counter(row[0] for row in of_new if row[3] != "greedy" and row[4] == 1)
    assert set(n_explored.values()) == {3}


@pytest.mark.parametrize(
    "fault",
    [
        {"salt": ""},
        {"arms": {}},
        {"arms": {"a": {"share": 0.5}}},
        {"arms": {"a": {"share": 1, "sort": 1}}},
        {"arms": {"a": {"share": 1, "policy": {"kind": "random"}}}},
        {"arms": {"a": {"share": True}}},
        {"arm": 1},
    ],
)
def test_what_is_no_experiment_is_refused(fault):
    with pytest.raises(SchemaError):
        Experiment.parse(EXPERIMENT | fault)


def test_an_arm_with_a_version_needs_a_registry(bundles, tmp_path):
    arms = {"a": {"share": 1, "version": "123456789012"}}
    with pytest.raises(SchemaError):
        Service(
            BundleSource(bundles[0]),
            tmp_path,
            None,
            None,
            EVER,
            "data",
            Experiment.parse({"salt": "s", "arms": arms}),
        )
