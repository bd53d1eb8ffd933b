from __future__ import annotations

import pytest
import torch

from models import fit as stopwatch
from models.fit import PARTS, Stopwatch, count_targets
from tests.tiny_data import BASKETS, ORDERED, batches, make_data, make_world


class Clock:
    """A clock that is told what time it is."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Told:
    """A trainer that knows one validation figure."""

    def __init__(self) -> None:
        self.callback_metrics: dict[str, float] = {}


def test_each_part_gets_its_time_and_the_best_validation_its_moment(monkeypatch):
    clock, trainer = Clock(), Told()
    monkeypatch.setattr(stopwatch, "time", clock)
    watch = Stopwatch()
    (batch, *_) = batches(make_data(make_world(ORDERED)))
    watch.on_train_start(trainer, None)
    for value in (0.2, 0.3, 0.1):
        clock.now += 100  # between epochs: nobody's
        watch.on_train_epoch_start(trainer, None)
        steps = [
            (1, lambda: watch.on_train_batch_start(trainer, None, batch, 0)),
            (2, lambda: watch.on_before_backward(trainer, None, torch.zeros(()))),
            (4, lambda: watch.on_after_backward(trainer, None)),
            (8, lambda: watch.on_train_batch_end(trainer, None, None, batch, 0)),
            (0, lambda: watch.on_validation_start(trainer, None)),
            (16, lambda: watch.on_validation_end(trainer, None)),
        ]
        trainer.callback_metrics["val_ndcg_recent"] = value
        for seconds, step in steps:
            clock.now += seconds
            step()
    found = watch.summary()
    assert [found[f"share_{name}"] for name in PARTS] == pytest.approx(
        [1 / 31, 2 / 31, 4 / 31, 8 / 31, 16 / 31], abs=1e-3
    )
    assert found["targets_per_second"] == pytest.approx(3 * int(batch.is_target.sum()) / 45, abs=0.1)
    assert found["seconds_to_best"] == 262  # the end of the second validation


def test_targets_of_both_kinds_of_batch_are_counted():
    for config, count in (
        (ORDERED, lambda batch: int(batch.is_target.sum())),
        (BASKETS, lambda batch: len(batch.target_rows)),
    ):
        batch = batches(make_data(make_world(config)))[0]
        assert count_targets(batch) == count(batch) > 0


def test_without_a_step_nothing_is_divided_by_zero():
    assert set(Stopwatch().summary().values()) == {0.0}
