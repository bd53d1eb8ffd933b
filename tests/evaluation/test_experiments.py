"""Experiments: looking every day raises no false alarm, planted lifts are found, shares that are off are noticed."""

import numpy as np
import pytest
from evaluation.experiments import MIN_USERS, adjust, check_shares, compare, half_width
from scipy.stats import norm
from service.experiment import Experiment

N_DAYS, NEW_USERS, RATE = (
    28,
    100,
    0.5,
)  # days, users who come each day, events of an active user on a day


def experiment(rng, lift):
    """Return what is seen at the end of each day: users come day by day, differ, and return on some days."""
    arm = rng.random(N_DAYS * NEW_USERS) < 0.5
    first = np.repeat(np.arange(N_DAYS), NEW_USERS)
    rate = rng.gamma(2, RATE / 2, len(arm)) * np.where(arm, 1 + lift, 1)
    total = np.zeros(len(arm))
    for day in range(N_DAYS):
        is_here = first <= day
        total += np.where(is_here & (rng.random(len(arm)) < 0.4), rng.poisson(rate), 0)
        yield compare(total[is_here & ~arm], total[is_here & arm], day + 1)


def share_found(rng, lift, n_runs):
    return np.mean(
        [
            any(one and one.verdict != "undecided" for one in experiment(rng, lift))
            for _ in range(n_runs)
        ]
    )


def test_daily_looks_at_equal_arms_raise_at_most_five_false_alarms_in_a_hundred():
    assert share_found(np.random.default_rng(0), 0.0, 300) <= 0.05


@pytest.mark.slow
def test_daily_looks_at_two_thousand_experiments_of_equal_arms():
    assert share_found(np.random.default_rng(1), 0.0, 2000) <= 0.05


def test_a_planted_lift_is_found_at_least_as_often_as_by_the_last_look_alone():
    rng, lift = np.random.default_rng(2), 0.3
    last = [[*experiment(rng, lift)][-1] for _ in range(40)]
    errors = np.std([one.difference for one in last])
    half = np.mean([(one.high - one.low) / 2 for one in last])
    true = np.mean([one.difference for one in last])
    power = norm.sf((half - true) / errors)  # of one look with this interval
    assert 0.2 < power < 0.999  # else the test tells nothing
    assert share_found(rng, lift, 100) >= power - 3 * np.sqrt(power * (1 - power) / 100)


def test_the_interval_is_that_of_a_normal_mixture():
    """The likelihood ratio of the mixture, integrated by a sum, is 1 / level at the bounds of the interval."""
    variance, prior, level = 0.7, 0.3, 0.05
    bound = half_width(variance, prior, level)
    effects = np.linspace(-12, 12, 200_001)
    ratio = norm.pdf(bound - effects, scale=np.sqrt(variance)) / norm.pdf(
        bound, scale=np.sqrt(variance)
    )
    mixed = (ratio * norm.pdf(effects, scale=np.sqrt(prior))).sum() * (effects[1] - effects[0])
    assert mixed == pytest.approx(1 / level, rel=1e-6)


def test_few_users_are_not_compared():
    few, many = np.zeros(MIN_USERS - 1), np.ones(MIN_USERS)
    assert compare(few, many) is None
    assert compare(many, many).verdict == "undecided"


def test_shares_of_arms_are_checked_against_the_declared_ones():
    declared = {"a": 0.5, "b": 0.4, "c": 0.1, "off": 0.0}
    assert not check_shares({"a": 5050, "b": 3960, "c": 990}, declared)["is_mismatch"]
    assert check_shares({"a": 5300, "b": 3700, "c": 1000}, declared)["is_mismatch"]
    assert check_shares({"a": 500, "b": 400}, declared)["is_mismatch"]  # an arm that nobody is in


def read(shares, salt="spring"):
    arms = {name: {"share": share} for name, share in shares.items()}
    return Experiment.parse({"salt": salt, "arms": arms})


def deal(experiment, n_users=4000):
    return np.array([experiment.assign(f"user {number}").name for number in range(n_users)])


def test_a_ramp_moves_only_users_of_the_arm_that_shrinks():
    before = deal(read({"a": 0.8, "b": 0.1, "c": 0.1}))
    after = deal(read({"a": 0.6, "b": 0.2, "c": 0.2}))
    is_moved = before != after
    assert set(before[is_moved]) == {"a"}
    assert is_moved.mean() == pytest.approx(0.2, abs=0.025)
    for name, share in (("a", 0.6), ("b", 0.2), ("c", 0.2)):
        assert (after == name).mean() == pytest.approx(share, abs=0.025)


def test_an_arm_without_a_share_has_nobody_and_another_salt_deals_anew():
    shares = {"a": 0.5, "b": 0.5, "off": 0.0}
    first, second = deal(read(shares)), deal(read(shares, "autumn"))
    assert set(first) == {"a", "b"}
    assert (first == second).mean() == pytest.approx(0.5, abs=0.04)


def test_what_was_known_before_is_taken_out_and_the_mean_stays():
    rng = np.random.default_rng(5)
    known = rng.gamma(1, 3, (4000, 2))
    values = 2 * known[:, 0] - known[:, 1] + rng.normal(0, 1, 4000)
    adjusted = adjust(values, known)
    assert adjusted.mean() == pytest.approx(values.mean())
    assert adjusted.std() == pytest.approx(1, rel=0.05)
    assert adjust(values, np.zeros((4000, 2))) == pytest.approx(values)


def test_the_interval_is_narrowest_after_the_days_that_are_planned():
    rng = np.random.default_rng(6)
    control, arm = rng.gamma(2, 1, 500), rng.gamma(2, 1, 500)
    error = np.sqrt(control.var(ddof=1) / 500 + arm.var(ddof=1) / 500)
    widths = {}
    for days in (1, 7, 28, 200):
        found = compare(control, arm, days)
        widths[days] = (found.high - found.low) / 2 / error
    assert min(widths, key=widths.get) == 28
    assert widths[28] == pytest.approx(3.03, abs=0.01)
