"""Estimate, from the first steps of a training, how long the rest of the run takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from pipeline.run_folder import Work

FIRST_STEPS = 3  # they allocate, and take longer
MIN_SECONDS = 2.0  # of timed steps
VALIDATION_SHARE = 0.3  # of the seconds of a step that a validation batch takes
SHORTEST = 0.5  # share of the epochs after which the validation may stop both trainings
FIXED_SECONDS = 15.0  # export, report and the answers that are timed
SECONDS_A_PAIR = 2e-6  # of a user of the test and an item, with all baselines
QUICK = "--quick gives lists within seconds"


class Estimate(Callback):
    """Time the first steps, and say once how long the run may take.

    Args:
        work: what is trained on, and tested.
        say: takes the sentence.
    """

    def __init__(self, work: Work, say: Callable[[str], None]) -> None:
        n_tested = work.split.test["user_id"].nunique()
        n_pairs = n_tested * work.tables.interactions["item_id"].nunique()
        self.evaluation = FIXED_SECONDS + SECONDS_A_PAIR * n_pairs
        self.n_trainings = 1 if work.config.data.split.strict else 2
        self.say = say
        self.n_steps = 0
        self.begun = 0.0
        self.is_said = False

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Say it after some seconds, or at the end of the first epoch."""
        if self.is_said:
            return
        self.n_steps += 1
        if self.n_steps <= FIRST_STEPS:
            self.begun = time.perf_counter()
            return

        seconds = time.perf_counter() - self.begun
        if seconds >= MIN_SECONDS or trainer.is_last_batch:
            self.is_said = True
            step = seconds / (self.n_steps - FIRST_STEPS)
            self.say(f"{say_time(*self.bound(trainer, step))} on this machine; {QUICK}")

    def bound(self, trainer: pl.Trainer, step: float) -> tuple[float, float]:
        """Return the fewest and the most seconds of the run, by those of a step."""
        n_batches = trainer.num_training_batches
        for n_validation in trainer.num_val_batches:
            n_batches += VALIDATION_SHARE * n_validation

        n_epochs = (trainer.max_epochs or 1) - trainer.current_epoch
        longest = step * n_batches * n_epochs * self.n_trainings
        return SHORTEST * longest + self.evaluation, longest + self.evaluation


def say_time(low: float, high: float) -> str:
    """Say a range of seconds, in minutes from two minutes on."""
    unit = "seconds"
    if high >= 120:
        unit = "minutes"
        low /= 60
        high /= 60

    shortest = max(1, round(low))
    longest = math.ceil(high)
    if shortest == longest:
        return f"about {longest} {unit}"
    return f"about {shortest} to {longest} {unit}"
