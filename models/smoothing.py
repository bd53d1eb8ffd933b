"""A steadier figure to stop by: the validation of one epoch is noisy where it asks few users."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

NDCG = "val_ndcg"
MONITOR = "val_ndcg_recent"
WINDOW = 3
"""Validations that are averaged. On 943 users one epoch differs from the next by a few percent without being better,
and the lucky one is then often an early one, of a rate that has not fallen yet."""


class RecentValidation(Callback):
    """Give the mean of the last validations, of fewer at the beginning, as a metric of its own."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        return {"values": self.values}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values = state_dict["values"]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        metrics = trainer.callback_metrics
        self.values = [*self.values, float(metrics[NDCG])][-WINDOW:]
        metrics[MONITOR] = metrics[NDCG].new_tensor(sum(self.values) / len(self.values))
