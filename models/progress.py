"""What a training says while it runs: a bar on a terminal, elsewhere, as in a file, a line a minute."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, RichProgressBar
from rich import get_console
from rich.console import Console

from models.curves import LOSS
from models.smoothing import NDCG

LINE_SECONDS = 60.0
"""From one line to the next."""


def show_progress() -> Callback:
    """Return what fits the console that rich prints to: a bar in a file shows nothing until its end."""
    console = get_console()
    return EpochsFromOne(leave=False) if console.is_terminal or console.is_jupyter else ProgressLines(console)


class EpochsFromOne(RichProgressBar):
    """Count epochs as people, the curves and the report do."""

    def _get_train_description(self, current_epoch: int) -> str:
        longest = len(self.validation_description)  # bars of one width do not flicker
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}".ljust(longest)


class ProgressLines(Callback):
    """Say how far the training is, what its last whole epoch had, and how long it takes at most."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = self._said = 0.0
        self._begun_at = 0.0  # epochs: a resumed training took no time for those before

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = self._said = time.monotonic()
        self._begun_at = float(trainer.current_epoch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now, share = time.monotonic(), (batch_idx + 1) / trainer.num_training_batches
        if now - self._said < LINE_SECONDS:
            return
        self._said, taken, done = now, now - self._started, trainer.current_epoch + share
        left = ((trainer.max_epochs or 0) - done) * taken / (done - self._begun_at)
        epoch = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}: {share:.0%}"
        self._say(f"{epoch} after {_clock(taken)}, at most {_clock(left)} to go", trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        taken = time.monotonic() - self._started
        self._say(f"{trainer.current_epoch} of {trainer.max_epochs} epochs in {_clock(taken)}", trainer)

    def _say(self, text: str, trainer: pl.Trainer) -> None:
        named = {"loss": LOSS, "validation NDCG@10": NDCG}
        measured = {name: trainer.callback_metrics.get(key) for name, key in named.items()}
        figures = [f"{name} {float(value):.4f}" for name, value in measured.items() if value is not None]
        self._console.print("; ".join([text, *figures]), highlight=False, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
