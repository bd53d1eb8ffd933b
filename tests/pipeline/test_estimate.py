"""The estimate of a run: what it adds up, and how it says a range."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest
from pipeline.estimate import FIXED_SECONDS, SECONDS_A_PAIR, Estimate, say_time


def make_work(is_strict: bool) -> SimpleNamespace:
    """Make what an estimate reads of a run: 3 users of the test, 5 items."""
    test = pd.DataFrame({"user_id": [1, 2, 2, 3]})
    events = pd.DataFrame({"item_id": [7, 8, 9, 7, 10, 11]})
    config = SimpleNamespace(data=SimpleNamespace(split=SimpleNamespace(strict=is_strict)))
    tables = SimpleNamespace(interactions=events)
    return SimpleNamespace(config=config, split=SimpleNamespace(test=test), tables=tables)


def make_trainer(**values) -> SimpleNamespace:
    known = {"num_training_batches": 40, "num_val_batches": [10], "max_epochs": 6}
    return SimpleNamespace(**known, **{"current_epoch": 0, "is_last_batch": False, **values})


def test_both_trainings_count_by_their_steps_and_validations():
    work = make_work(is_strict=False)
    low, high = Estimate(work, print).bound(make_trainer(), step=0.5)
    rest = FIXED_SECONDS + SECONDS_A_PAIR * 3 * 5
    trainings = 2 * 6 * 0.5 * (40 + 0.3 * 10)
    assert (low, high) == pytest.approx((trainings / 2 + rest, trainings + rest))

    _, once = Estimate(make_work(is_strict=True), print).bound(make_trainer(), step=0.5)
    assert once == pytest.approx(trainings / 2 + rest)
    _, resumed = Estimate(work, print).bound(make_trainer(current_epoch=4), step=0.5)
    assert resumed == pytest.approx(trainings / 3 + rest)


def test_it_is_said_once_even_of_few_steps():
    said = []
    estimate = Estimate(make_work(is_strict=False), said.append)
    for number in range(20):
        estimate.on_train_batch_end(make_trainer(is_last_batch=number % 5 == 4))
    assert len(said) == 1


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (20.2, 41.0, "about 20 to 41 seconds"),
        (95.0, 119.0, "about 95 to 119 seconds"),
        (100.0, 190.0, "about 2 to 4 minutes"),
        (3000.0, 3600.0, "about 50 to 60 minutes"),
    ],
)
def test_a_range_is_said_in_seconds_or_minutes(low, high, words):
    assert say_time(low, high) == words
