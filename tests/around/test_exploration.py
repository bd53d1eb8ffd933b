"""Exploration: the probability of a place is that of all orders together, and draws follow it."""

from itertools import permutations

import numpy as np
import pytest
from serve.errors import SchemaError
from service.experiment import Policy
from service.exploration import draw, is_explored, probabilities


def enumerate_orders(logits, n_slots):
    """Sum the probability of each order of items, (M, S)."""
    weights = np.exp(np.maximum(logits - logits.max(), -20))
    found = np.zeros((len(logits), n_slots))
    for order in permutations(range(len(logits)), n_slots):
        probability, left = 1.0, list(range(len(logits)))
        for item in order:
            probability *= weights[item] / weights[left].sum()
            left.remove(item)
        found[list(order), range(n_slots)] += probability
    return found


def of_all(logits, n_slots):
    items, slots = np.divmod(np.arange(len(logits) * n_slots), n_slots)
    return probabilities(logits, items, slots).reshape(-1, n_slots)


@pytest.mark.parametrize("temperature", [10, 1, 0.3, 0.1, 0.03])
@pytest.mark.parametrize(("n_items", "n_slots"), [(2, 2), (3, 1), (6, 3), (7, 4)])
def test_propensities_are_those_of_all_orders(temperature, n_items, n_slots):
    logits = np.random.default_rng(n_items).normal(size=n_items) / temperature
    assert of_all(logits, n_slots) == pytest.approx(enumerate_orders(logits, n_slots), abs=1e-9)


def test_the_slots_of_an_item_and_the_items_of_a_slot_are_certain_together():
    found = of_all(np.random.default_rng(0).normal(size=9), 9)
    assert found.sum(axis=0) == pytest.approx(np.ones(9), abs=1e-9)
    assert found.sum(axis=1) == pytest.approx(np.ones(9), abs=1e-9)


def test_draws_are_as_frequent_as_their_propensities_say():
    logits, n_draws = np.array([1.0, 0.2, -0.5, 0.9, 0.0]), 20_000
    drawn = np.stack([draw(f"request {number}", logits, 3) for number in range(n_draws)])
    seen = np.stack([(drawn == item).mean(axis=0) for item in range(len(logits))])
    expected = of_all(logits, 3)
    assert (abs(seen - expected) < 4.5 * np.sqrt(expected * (1 - expected) / n_draws)).all()


def test_the_same_request_draws_the_same_and_no_item_twice():
    logits = np.random.default_rng(4).normal(size=30)
    first = draw("7f3a", logits, 10)
    assert (draw("7f3a", logits, 10) == first).all()
    assert len(set(first.tolist())) == 10
    assert (draw("7f3b", logits, 10) != first).any()


def test_the_share_of_lists_is_explored_whatever_is_drawn():
    explored = [is_explored(f"request {number}", 0.3) for number in range(20_000)]
    assert np.mean(explored) == pytest.approx(0.3, abs=0.015)
    assert not is_explored("7f3a", 0.0)
    assert is_explored("7f3a", 1.0)


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "random"},
        {"temperature": 0},
        {"slots": 0},
        {"slots": 1.5},
        {"share": True},
        {"new_items": -1},
    ],
)
def test_what_is_no_policy_is_refused(fault):
    with pytest.raises(SchemaError, match=f"policy.{next(iter(fault))}"):
        Policy(**fault)
