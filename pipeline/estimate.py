"""Estimate, from the first steps of a training, how long the rest of the run takes."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich import get_console

FIRST_STEPS = 3  # they allocate, and take longer
MIN_SECONDS = 2.0  # of timed steps
VALIDATION_SHARE = 0.3  # of the seconds of a step that a validation batch takes
SHORTEST = 0.5  # share of the epochs after which the validation may stop both trainings
FIXED_MINUTES = 0.25  # export, report and the answers that are timed
MINUTES_A_PAIR = 3e-8  # to rank an item for a user, with all baselines
QUICK = "--quick gives lists within seconds"


class Estimate(Callback):
    """Time the first steps, and print once how long the run may take.

    Args:
        n_trainings: of about the same length.
        n_pairs: of a user of the test and an item.
    """

    def __init__(self, n_trainings: int, n_pairs: int) -> None:
        self.n_trainings = n_trainings
        self.evaluation = FIXED_MINUTES + MINUTES_A_PAIR * n_pairs
        self.n_steps = 0
        self.begun = 0.0
        self.is_said = False

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Say it after some seconds, or at the end of the first epoch."""
        self.n_steps += 1
        if self.n_steps == FIRST_STEPS:
            self.begun = time.perf_counter()
        if self.is_said or self.n_steps <= FIRST_STEPS:
            return

        seconds = time.perf_counter() - self.begun
        if seconds >= MIN_SECONDS or trainer.is_last_batch:
            self.is_said = True
            step = seconds / (self.n_steps - FIRST_STEPS)
            low, high = self.bound(trainer, step / 60)
            line = f"about {low:.1f} to {high:.1f} minutes on this machine; {QUICK}"
            get_console().print(line, highlight=False)

    def bound(self, trainer: pl.Trainer, step: float) -> tuple[float, float]:
        """Return the fewest and the most minutes of the run, by those of a step."""
        n_batches = trainer.num_training_batches
        n_batches += VALIDATION_SHARE * sum(trainer.num_val_batches)
        n_epochs = (trainer.max_epochs or 1) - trainer.current_epoch
        longest = step * n_batches * n_epochs * self.n_trainings
        return SHORTEST * longest + self.evaluation, longest + self.evaluation
