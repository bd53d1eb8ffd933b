"""Report each validation of a trial, and end a trial that falls behind the others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytorch_lightning as pl
from optuna import TrialPruned
from pytorch_lightning.callbacks import Callback

from models.fit import MONITOR
from models.two_tower import NDCG, TwoTower

Report = Callable[[float, int], bool]
"""Takes a figure and how many validations there were; says whether the trial is to end."""


class Watch(Callback):
    """Keep the best validation of a training: it is the one whose weights are kept."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.n_validations = 0
        self.best = -1.0
        self.best_values: dict[str, np.ndarray] = {}
        """View -> NDCG of each user that has a target in it, at the best validation."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note what was measured.

        Raises:
            TrialPruned: the trial is to end.
        """
        if trainer.sanity_checking or not isinstance(pl_module, TwoTower):
            return
        metrics = trainer.callback_metrics
        value = float(metrics[MONITOR])
        self.n_validations += 1
        if value > self.best:
            measured = {view: np.concatenate(parts) for view, parts in pl_module.validation_values.items()}
            self.best = value
            self.best_values = {view: values for view, values in measured.items() if f"{NDCG}_{view}" in metrics}
        if self.report(value, self.n_validations):
            raise TrialPruned
