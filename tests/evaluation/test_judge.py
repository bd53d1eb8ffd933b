"""What another version would have had: the estimates hold what it has where it is served for real."""

import json
from contextlib import closing

import numpy as np
import pytest
from evaluation.off_policy import main
from serve.bundle import STATE, STATE_FILE
from serve.recommender import Recommender
from serve.requests import Request
from service.event_log import Impressions, Observation
from service.experiment import Policy
from service.exploration import explore
from service.known_users import complete
from service.state import StateStore
from tests.http.services import publish_served
from tests.linear_bundle import SHOP, UNTIL, item_ids, publish_linear
from tests.linear_profiles import known_users, make_profiles, write_profiles

K, N_LISTS = 4, 500
POLICY = Policy(kind="explore", temperature=1.5, slots=K)
SEEN = (1.0, 0.8, 0.6, 0.5)  # how many look at each slot


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("versions")
    first, other = (
        publish_served(folder / "a", SHOP),
        publish_linear(folder / "b", SHOP, seed=8),
    )
    write_profiles(folder / "b" / "profiles", make_profiles(SHOP, known_users(SHOP)))
    return first, other


def like(recommender):
    """Return how much everybody likes each item: as the version says of a user without a history."""
    answer = recommender.recommend([{"datetime": UNTIL}], len(item_ids(SHOP))).of(0)
    scaled = (answer.score - answer.score.mean()) / answer.score.std()
    return dict(zip(map(str, answer.item_id), 1 / (1 + np.exp(1 - 1.5 * scaled)), strict=True))


def serve(recommender, run, n_lists, policy, seed, liked):
    """Show a list an hour to users in turn; return the mean reward of a slot, but for the last day's."""
    rng = np.random.default_rng(seed)
    users = [*known_users(SHOP), *(f"stranger {number}" for number in range(60))]
    rewards = []
    with closing(StateStore(run / STATE / STATE_FILE)) as store:
        for number in range(n_lists):
            moment, user = UNTIL + 3600 * (number + 1), users[number % len(users)]
            request = complete(Request(user, datetime=moment), recommender.profiles, store)
            answer = explore(recommender, request, K, None, policy, f"{seed} {number}")
            ids, scores = answer.item_id.tolist(), answer.score.tolist()
            head = (f"r{number}", user, moment, recommender.version, str(policy))
            shown = Impressions(*head, ids, scores, answer.propensity.tolist())
            store.log_impressions([shown, Impressions.confirm(shown.request_id, moment)])
            taken = [
                item
                for item, seen in zip(ids, SEEN, strict=True)
                if rng.random() < liked[str(item)] * seen
            ]
            store.observe_many(
                [Observation(user, item, "like", moment + 1, None, f"r{number}") for item in taken]
            )
            rewards.append(len(taken) / K)
    return np.mean(rewards[:-24])


@pytest.mark.slow
def test_the_estimates_hold_what_the_version_has_where_it_is_served(versions, tmp_path, capsys):
    first, other = map(Recommender.load, versions)
    for name in ("log", "truth"):
        (tmp_path / name / STATE).mkdir(parents=True)
    logged = serve(first, tmp_path / "log", N_LISTS, POLICY, 0, like(other))
    truth = serve(other, tmp_path / "truth", N_LISTS, POLICY, 1, like(other))
    assert (
        main(
            [
                "--run",
                str(tmp_path / "log"),
                "--bundle",
                str(versions[1]),
                "--targets",
                "like",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["log"]["value"] == pytest.approx(logged, abs=1e-9)
    error = 0.5 / np.sqrt(N_LISTS * K)  # of the truth itself, at most
    for name in ("ips", "snips", "dr"):
        assert found[name]["low"] - 2 * error <= truth <= found[name]["high"] + 2 * error
    assert truth > logged + 4 * error  # else the log's own value would do
    assert abs(found["dr"]["value"] - truth) < abs(logged - truth)


def test_a_version_is_worth_on_its_own_log_what_the_log_says(versions, tmp_path, capsys):
    (tmp_path / STATE).mkdir()
    recommender = Recommender.load(versions[0])
    logged = serve(recommender, tmp_path, 144, POLICY, 2, like(recommender))
    assert main(["--run", str(tmp_path), "--bundle", str(versions[0])]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ips"]["value"] == pytest.approx(logged, rel=1e-6)
    assert found["effective"] == pytest.approx(120 * K, rel=1e-6)
    assert found["mean_weight"] == pytest.approx(1, rel=1e-6)


def test_lists_that_were_not_drawn_as_a_whole_say_nothing(versions, tmp_path):
    (tmp_path / STATE).mkdir()
    recommender = Recommender.load(versions[0])
    policy = Policy(kind="explore", slots=K - 1)
    serve(recommender, tmp_path, 144, policy, 2, like(recommender))
    assert main(["--run", str(tmp_path), "--bundle", str(versions[0])]) == 2


def test_lists_of_which_something_may_still_follow_do_not_count(versions, tmp_path):
    (tmp_path / STATE).mkdir()
    recommender = Recommender.load(versions[0])
    serve(recommender, tmp_path, 144, POLICY, 2, like(recommender))
    asked = ["--run", str(tmp_path), "--bundle", str(versions[0])]
    assert main([*asked, "--window-days", "1"]) == 0
    assert main([*asked, "--window-days", "3"]) == 2  # 72 lists are left


def test_a_log_without_exploration_says_nothing(versions, tmp_path):
    (tmp_path / STATE).mkdir()
    recommender = Recommender.load(versions[0])
    serve(recommender, tmp_path, 110, Policy(kind="greedy"), 3, like(recommender))
    assert main(["--run", str(tmp_path), "--bundle", str(versions[1])]) == 2
