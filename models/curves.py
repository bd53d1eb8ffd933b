"""The curves of a training, kept in its checkpoints, so that a resumed training has the whole of them."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from serve.durable import write_file

LOSS = "train_loss"
_FIRST = ("epoch", "step", LOSS)


class Curves(Callback):
    """Write loss and validation metrics of each epoch to a CSV file: one row per epoch, the first is 1."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, float]] = []
        self.validated: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note what was measured now: the trainer keeps it for epochs without a validation too."""
        metrics = trainer.callback_metrics
        self.validated = {name: float(value) for name, value in metrics.items() if name.startswith("val_")}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the epoch; the checkpoint is written after this."""
        loss = float(trainer.callback_metrics[LOSS])
        row = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, LOSS: loss, **self.validated}
        self.rows.append(row)
        self.validated = {}
        self._write()

    def _write(self) -> None:
        """Replace the file."""
        names = [*_FIRST, *sorted({name for row in self.rows for name in row} - set(_FIRST))]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_file(self.path, text.getvalue().encode())
