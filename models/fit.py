"""Fit a TwoTower with Lightning: checkpoints, early stopping by recent validation, a log of each epoch."""

from __future__ import annotations

import csv
import io
import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    Callback,
    EarlyStopping,
    ModelCheckpoint,
    RichProgressBar,
)
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]
from rich import get_console

from datamodules.batch import WindowBatch
from datamodules.datamodule import InteractionsDataModule
from models.checkpoints import CHECKPOINTS, RunCheckpoints, read_checkpoint
from models.two_tower import NDCG, TwoTower
from serve.bundle import CURVES, LOGS
from serve.errors import SchemaError, say
from serve.files import write_file

BEST = "best"
LAST = "last"
MONITOR = "val_ndcg_recent"
N_RECENT = 3  # validations that are averaged: of few users, one epoch differs from the next by chance
TERMINATED = 143  # 128 + SIGTERM: an orchestrator must not read an interrupted run as a trained model
PRECISIONS = (None, 32, "32", "32-true", 16, "16", "16-mixed", "bf16", "bf16-mixed")
"""Precisions of training; weights and what is exported are float32."""
LOSS = "train_loss"
QUIET = (
    ".*does not have many workers.*",  # batches are made whole; a worker would only copy them
    ".*LeafSpec.*is deprecated.*",  # Lightning's own call
    ".*exists and is not empty.*",  # resuming
    ".*Early stopping conditioned on metric.*",  # `fit` reports a training without a validation
    ".*could not find the monitored key.*",
)


class EpochLog(Callback):
    """Write loss and validation of each epoch to a CSV file, print them, and monitor the recent validation.

    Checkpoints hold the rows, so that a resumed training has all of them; the first epoch is 1.
    """

    def __init__(self, path: Path, prints: bool) -> None:
        self.path = path
        self.prints = prints
        self.rows: list[dict[str, float]] = []
        self.validated: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def on_validation_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        """Add the mean of the last validations as a metric of its own."""
        metrics = trainer.callback_metrics
        values = [row[NDCG] for row in self.rows if NDCG in row] + [
            float(metrics[NDCG])
        ]
        recent = values[-N_RECENT:]
        metrics[MONITOR] = metrics[NDCG].new_tensor(sum(recent) / len(recent))
        self.validated = {
            name: float(value)
            for name, value in metrics.items()
            if name.startswith("val_")
        }

    def on_train_epoch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        """Add the epoch; the checkpoint is written after this."""
        loss = float(trainer.callback_metrics[LOSS])
        row = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            LOSS: loss,
            **self.validated,
        }
        self.rows.append(row)
        self.validated = {}
        names = list(dict.fromkeys(name for one in self.rows for name in one))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_file(self.path, text.getvalue().encode())
        if self.prints:
            figures = ", ".join(
                f"{name} {row[name]:.4f}" for name in (LOSS, NDCG) if name in row
            )
            get_console().print(
                f"epoch {row['epoch']} of {trainer.max_epochs}: {figures}",
                highlight=False,
            )


class Pace(Callback):
    """Measure the targets a second of training, without validation, and the seconds until the best validation."""

    def __init__(self) -> None:
        self.n_targets = 0
        self.best = float("-inf")
        self.training = self.to_best = 0.0
        self.started = self.resumed = time.perf_counter()

    def summary(self) -> dict[str, float]:
        pace = self.n_targets / max(self.training, 1e-9)
        return {
            "targets_per_second": round(pace, 1),
            "seconds_to_best": round(self.to_best, 2),
        }

    def on_train_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        self.started = self.resumed = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.n_targets += (
            int(batch.is_target.sum())
            if isinstance(batch, WindowBatch)
            else len(batch.target_rows)
        )
        now = time.perf_counter()
        self.training += now - self.resumed
        self.resumed = now

    def on_validation_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        self.resumed = time.perf_counter()
        value = float(trainer.callback_metrics.get(MONITOR, self.best))
        if value > self.best:
            self.best = value
            self.to_best = self.resumed - self.started


class ResumedStopping(EarlyStopping):
    """Stop by the validation; a training that had stopped and is resumed does not begin another epoch."""

    def on_train_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        trainer.should_stop = (
            self.stopping_reason is not EarlyStoppingReason.NOT_STOPPED
        )


def fit(
    model: TwoTower,
    data: InteractionsDataModule,
    folder: Path,
    stage: str,
    max_epochs: int,
    trainer_options: Mapping[str, Any],
    origin: Mapping[str, Any],
) -> tuple[int, dict[str, float]]:
    """Train, resuming from the last checkpoint, and leave the best weights in `model`; without validation, the last.

    Return the epochs of these weights and the summary of `Pace`. Files go to `checkpoints/<stage>` and `logs/<stage>`
    below the run's folder; a checkpoint of another origin (JSON values) is refused. The schedule may be longer than
    `max_epochs`.
    """
    checkpoints = folder / CHECKPOINTS / stage
    pace = Pace()
    options = dict(trainer_options)
    patience = model.recipe.patience if data.validation_batches else None
    has_bar = bool(options.pop("enable_progress_bar", True))
    shows_bar = has_bar and get_console().is_terminal
    log = EpochLog(folder / LOGS / stage / CURVES, prints=has_bar and not shows_bar)
    bar = [RichProgressBar(leave=False)] if shows_bar else []
    callbacks = [log, pace, *bar, *_make_checkpoints(checkpoints, patience)]
    last = checkpoints / f"{LAST}.ckpt"
    with _quiet_lightning():
        trainer = _make_trainer(
            callbacks, RunCheckpoints(origin), max_epochs, patience is None, options
        )
        trainer.fit(
            model,
            data,
            ckpt_path=str(last) if last.exists() else None,
            weights_only=True,
        )
    if trainer.received_sigterm:
        raise SystemExit(TERMINATED)
    kept = last if patience is None else checkpoints / f"{BEST}.ckpt"
    if not kept.exists():
        raise SchemaError(
            f"the training ended before {'an epoch did' if patience is None else 'its first validation'}: see "
            "--trainer.max_time, max_steps, limit_train_batches and check_val_every_n_epoch"
        )
    return _load_weights(model, kept), pace.summary()


def load_best(model: TwoTower, folder: Path, stage: str) -> None:
    """Load the best weights of a finished stage into a model that is to be trained."""
    _load_weights(model, folder / CHECKPOINTS / stage / f"{BEST}.ckpt")
    model.train()  # Lightning leaves the mode as it is


def list_callbacks(given: Callback | Sequence[Callback] | None) -> list[Callback]:
    """Return the Trainer's `callbacks`, which may be one, several or none, as a list."""
    return [given] if isinstance(given, Callback) else list(given or ())


def _make_checkpoints(folder: Path, patience: int | None) -> list[Callback]:
    options: dict[str, Any] = {
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
    }
    last = ModelCheckpoint(folder, LAST, **options)
    if patience is None:
        return [last]
    stopping = ResumedStopping(
        MONITOR, mode="max", patience=patience, strict=False
    )  # `fit` reports a missing one
    return [
        stopping,
        ModelCheckpoint(folder, BEST, monitor=MONITOR, mode="max", **options),
        last,
    ]


def _make_trainer(
    callbacks: list[Callback],
    plugin: RunCheckpoints,
    max_epochs: int,
    is_unvalidated: bool,
    options: dict[str, Any],
) -> pl.Trainer:
    callbacks = [*callbacks, *list_callbacks(options.pop("callbacks", None))]
    if options.get("precision") not in PRECISIONS:
        raise SchemaError(
            f"trainer.precision is {options['precision']!r}; allowed: 32-true, 16-mixed, bf16-mixed"
        )
    ours: dict[str, Any] = {
        "enable_progress_bar": any(
            isinstance(one, RichProgressBar) for one in callbacks
        ),
        "max_epochs": max_epochs,
        "accelerator": "cuda"
        if torch.cuda.is_available()
        else "cpu",  # others, as of a Mac, lack 64 bit numbers
        "devices": 1,
        "deterministic": "warn",  # threads would sum the gradients of gathered rows in any order
        "logger": False,
        "plugins": [plugin],
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0 if is_unvalidated else None,
        "gradient_clip_val": 1.0,
    }
    try:
        trainer = pl.Trainer(**{**ours, **options}, callbacks=callbacks)
    except (
        MisconfigurationException,
        ValueError,
        TypeError,
        ModuleNotFoundError,
    ) as error:
        raise SchemaError(f"trainer: {say(error)}") from error
    if trainer.world_size > 1:
        raise SchemaError(
            f"trainer: {trainer.world_size} processes; allowed: one device of one node"
        )
    return trainer


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's notes on hardware, products and loaders from the run's own output."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in QUIET:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.setLevel(level)


def _load_weights(model: TwoTower, path: Path) -> int:
    checkpoint = read_checkpoint(path)
    model.load_state_dict(checkpoint["state_dict"])
    model.cpu().eval()
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise FloatingPointError(
                f"after training '{name}' is not finite: lower --model.learning_rate"
            )
    return int(checkpoint["epoch"]) + 1
