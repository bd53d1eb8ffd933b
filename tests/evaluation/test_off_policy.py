"""Off-policy estimates against worlds in which the value of the other policy is known."""

from dataclasses import replace

import numpy as np
import pytest
from evaluation.off_policy import MAX_WEIGHT, Logged, estimate, fit_reward
from service.exploration import probabilities

N_CONTEXTS, N_ITEMS, N_SLOTS, N_LISTS, N_USERS = 10, 12, 3, 3000, 1000
SEEN = np.array([1.0, 0.7, 0.5])  # how many look at each slot


class World:
    """Contexts with scores of two policies, and rewards that follow those of the second one a little."""

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.scores = rng.normal(size=(N_CONTEXTS, N_ITEMS))
        other = 0.5 * self.scores + 0.9 * rng.normal(size=self.scores.shape)
        self.reward = 1 / (1 + np.exp(2 - 0.6 * other - 0.8 * rng.normal(size=other.shape)))
        self.logits, target = self.scores / 0.7, other / 0.3
        items, slots = np.divmod(np.arange(N_ITEMS * N_SLOTS), N_SLOTS)
        shape = N_CONTEXTS, N_ITEMS, N_SLOTS
        self.logging = np.stack([probabilities(one, items, slots) for one in self.logits]).reshape(
            shape
        )
        self.target = np.stack([probabilities(one, items, slots) for one in target]).reshape(shape)
        self.value = (self.target * self.reward[:, :, None] * SEEN).sum(axis=1).mean()

    def log(self, rng):
        context, user = (
            rng.integers(N_CONTEXTS, size=N_LISTS),
            rng.integers(N_USERS, size=N_LISTS),
        )
        drawn = self.logits[context] + rng.gumbel(size=(N_LISTS, N_ITEMS))
        item, slot = np.argsort(-drawn, axis=1)[:, :N_SLOTS], np.arange(N_SLOTS)
        where = context[:, None], item
        reward = (rng.random(item.shape) < self.reward[where] * SEEN).astype(float).ravel()
        user, position = np.repeat(user, N_SLOTS), np.tile(slot + 1, N_LISTS)
        score, fold = self.scores[where].ravel(), user % 2
        predicted, expected = np.empty(len(reward)), np.empty(len(reward))
        for one in (0, 1):
            predict, mine = (
                fit_reward(*(values[fold != one] for values in (score, position, reward))),
                fold == one,
            )
            predicted[mine] = predict(score[mine], position[mine])
            of_slots = (predict(self.scores[:, :, None], slot[None, None] + 1) * self.target).sum(
                axis=1
            )
            expected[mine] = of_slots[np.repeat(context, N_SLOTS), position - 1][mine]
        logged, judged = (each[(*where, slot)].ravel() for each in (self.logging, self.target))
        return Logged(user, reward, logged, judged, predicted, expected)


def count_hits(n_worlds, n_logs):
    hits, n_found = dict.fromkeys(("ips", "snips", "dr"), 0), 0
    for seed in range(n_worlds):
        world, rng = World(seed), np.random.default_rng(100 + seed)
        for _ in range(n_logs):
            found = estimate(world.log(rng))
            if found.ips is None:  # such a log is not covered
                continue
            n_found += 1
            for name in hits:
                hits[name] += getattr(found, name).low <= world.value <= getattr(found, name).high
    return min(hits.values()), n_found


@pytest.mark.slow
def test_the_intervals_of_three_hundred_logs_hold_the_truth():
    n_held, n_found = count_hits(10, 30)
    assert n_found >= 240
    assert n_held >= 0.93 * n_found


def test_most_intervals_hold_the_truth():
    n_held, n_found = count_hits(2, 8)
    assert n_found >= 12
    assert n_held >= n_found - 3  # fewer come once in two hundred times where 95 % hold


def test_a_model_of_the_reward_narrows_the_interval():
    world, rng = World(3), np.random.default_rng(3)
    widths = [
        (found.dr.high - found.dr.low, found.ips.high - found.ips.low)
        for found in (estimate(world.log(rng)),)
    ]
    assert widths[0][0] < widths[0][1]


def test_values_are_those_of_the_formulas():
    log = World(1).log(np.random.default_rng(1))
    weight = np.minimum(log.target / log.propensity, MAX_WEIGHT)
    found = estimate(log)
    assert found.ips.value == pytest.approx((weight * log.reward).mean())
    assert found.snips.value == pytest.approx((weight * log.reward).sum() / weight.sum())
    assert found.dr.value == pytest.approx(
        (log.expected + weight * (log.reward - log.predicted)).mean()
    )
    assert found.effective == pytest.approx(weight.sum() ** 2 / (weight**2).sum())


def test_a_policy_that_the_log_does_not_cover_has_no_estimate():
    log = World(1).log(np.random.default_rng(1))
    nowhere = Logged(
        log.user,
        log.reward,
        log.propensity,
        np.where(np.arange(len(log.user)) < 50, 1.0, 0.0),
        *[log.reward] * 2,
    )
    assert estimate(nowhere).ips is None


def test_a_log_that_lacks_a_part_of_the_other_policy_gives_no_estimate():
    log = World(1).log(np.random.default_rng(1))
    kept = estimate(log)
    assert kept.mean_weight == pytest.approx(1, abs=0.1)
    lost = estimate(replace(log, target=0.8 * log.target))
    assert lost.effective == pytest.approx(kept.effective)
    assert (lost.ips, lost.mean_weight) == (None, pytest.approx(0.8 * kept.mean_weight))


@pytest.mark.parametrize("of", ["rewards", "users"])
def test_few_rewards_or_few_users_with_them_give_no_estimate(of):
    log = World(1).log(np.random.default_rng(1))
    if of == "rewards":
        last = np.flatnonzero(log.reward)[25]
        log = replace(log, reward=np.where(np.arange(len(log.reward)) < last, log.reward, 0.0))
    else:
        log = replace(log, user=log.user % 25)
    found = estimate(log)
    assert found.effective > 1000
    assert found.rewarded <= 25
    assert found.ips is None
