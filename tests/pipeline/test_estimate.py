"""The estimate of a run: what it adds up, and when it is printed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pipeline.estimate import FIXED_MINUTES, MINUTES_A_PAIR, Estimate


def make_trainer(**values) -> SimpleNamespace:
    known = {"num_training_batches": 40, "num_val_batches": [10], "max_epochs": 6}
    return SimpleNamespace(**known, **{"current_epoch": 0, "is_last_batch": False, **values})


def test_both_trainings_count_by_their_steps_and_validations():
    low, high = Estimate(2, 15).bound(make_trainer(), step=0.5)
    rest = FIXED_MINUTES + MINUTES_A_PAIR * 15
    trainings = 2 * 6 * 0.5 * (40 + 0.3 * 10)
    assert (low, high) == pytest.approx((trainings / 2 + rest, trainings + rest))

    _, once = Estimate(1, 15).bound(make_trainer(), step=0.5)
    assert once == pytest.approx(trainings / 2 + rest)
    _, resumed = Estimate(2, 15).bound(make_trainer(current_epoch=4), step=0.5)
    assert resumed == pytest.approx(trainings / 3 + rest)


def test_it_is_printed_once_even_of_few_steps(capsys):
    estimate = Estimate(2, 15)
    for number in range(20):
        estimate.on_train_batch_end(make_trainer(is_last_batch=number % 5 == 4))
    assert capsys.readouterr().out.count("about") == 1
