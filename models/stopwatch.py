"""Where the time of a training goes, and how many targets a second it looks at."""

from __future__ import annotations

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from datamodules.batch import RequestBatch, WindowBatch
from models.smoothing import MONITOR

PARTS = ("loader", "forward", "backward", "optimizer", "validation")


class Stopwatch(Callback):
    """Add up the seconds of each part of a training; what a resumed training did before is not in it."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.n_targets = 0
        self.best = float("-inf")
        self.seconds_to_best = 0.0
        self.started = self.last = time.perf_counter()

    def summary(self) -> dict[str, float]:
        """Return targets a second of training, seconds until the best validation, and each part's share of the time."""
        total = sum(self.seconds.values())
        training = total - self.seconds["validation"]
        shares = {f"share_{name}": round(seconds / max(total, 1e-9), 3) for name, seconds in self.seconds.items()}
        return {
            "targets_per_second": round(self.n_targets / max(training, 1e-9), 1),
            "seconds_to_best": round(self.seconds_to_best, 2),
            **shares,
        }

    def _lap(self, part: str | None) -> None:
        """Give the time since the last lap to a part."""
        now = time.perf_counter()
        if part is not None:
            self.seconds[part] += now - self.last
        self.last = now

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._lap(None)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._lap("loader")

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self._lap("forward")

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._lap("backward")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._lap("optimizer")
        self.n_targets += count_targets(batch)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._lap(None)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._lap("validation")
        value = float(trainer.callback_metrics.get(MONITOR, self.best))
        if value > self.best:
            self.best, self.seconds_to_best = value, time.perf_counter() - self.started


def count_targets(batch: WindowBatch | RequestBatch) -> int:
    return int(batch.is_target.sum()) if isinstance(batch, WindowBatch) else len(batch.target_rows)
