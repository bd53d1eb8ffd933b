"""Which of many things that can be added to towers is chosen, by how each ranks what users took next."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.jury import Figures, find_judges, pick_least

NOISE = np.tile([1.0, -1.0], 200)


def rank(novel: np.ndarray, every: np.ndarray | None = None) -> Figures:
    return Figures({"novel": novel} if every is None else {"novel": novel, "all": every})


def test_of_what_gains_nearly_all_the_first_in_order_is_taken():
    gains = {0: 0.0, 1: 0.0948, 2: 0.0952, 3: 0.097, 4: 0.1}
    found = {one: rank(np.full(400, 0.1) + gain) for one, gain in gains.items()}
    assert pick_least(found, 0, 1.0, lambda one: one) == 2
    assert pick_least(found, 0, 1.0, lambda one: -one) == 4


@pytest.mark.parametrize(("errors", "chosen"), [(2.99, "none"), (3.01, "some")])
def test_a_gain_that_may_be_chance_is_left(errors, chosen):
    found = {"none": rank(np.zeros(400)), "some": rank(NOISE + errors / 400**0.5)}
    assert pick_least(found, "none", 3.0, lambda one: one) == chosen


def test_a_sure_gain_is_taken_where_a_larger_one_may_be_chance():
    small, large = rank(np.full(400, 0.03) + 0.1 * NOISE), rank(np.full(400, 0.04) + NOISE)
    assert pick_least({0: rank(np.zeros(400)), 1: large, 2: small}, 0, 1.0, lambda one: one) == 2


def test_one_user_does_not_tell_a_gain_from_chance():
    assert pick_least({"none": rank(np.zeros(1)), "some": rank(np.ones(1))}, "none", 1.0, lambda one: one) == "none"
    assert pick_least({"none": rank(np.zeros(2)), "some": rank(np.ones(2))}, "none", 1.0, lambda one: one) == "some"


def test_where_nothing_gains_none_is_taken():
    found = {"none": rank(np.full(400, 0.1)), "a": rank(np.full(400, 0.05)), "b": rank(np.full(400, 0.1))}
    assert pick_least(found, "none", 1.0, lambda one: one) == "none"


def test_views_count_alike_whoever_has_targets_in_them():
    before = rank(np.zeros(400), np.zeros(100))
    after = rank(np.full(400, 0.1) + NOISE, np.full(100, 0.3))
    assert after.novel == pytest.approx(0.1)
    assert after.mean == pytest.approx(0.2)
    assert after.error_of_gain(before) == pytest.approx((1 / 399**0.5 + 0) / 2)


def test_batches_are_put_together():
    joined = Figures.join(
        [{"novel": np.array([0.1, 0.2]), "all": np.array([0.5])}, {"novel": np.array([0.6]), "all": np.array([0.7])}]
    )
    assert joined.by_view["novel"].tolist() == [0.1, 0.2, 0.6]
    assert joined.mean == pytest.approx((0.3 + 0.6) / 2)


def test_judges_are_a_part_of_many_batches_unless_nothing_new_is_taken_in_it():
    old, new = (SimpleNamespace(target_owned=torch.tensor(owned)) for owned in ([0, 3], [2, -1]))
    assert find_judges([new, old, old, new, old], 2) == [new, new]
    assert find_judges([old, old, new], 3) == [old, old, new]
    assert not find_judges([old, new, old, new], 2)
    assert not find_judges([], 2)
