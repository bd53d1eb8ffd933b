"""Fit a TwoTower with Lightning: checkpoints, early stopping, a log, the pace and an estimate."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]
from rich import get_console

from datamodules.datamodule import InteractionsDataModule
from models.checkpoints import RunCheckpoints, read_checkpoint
from models.devices import joins, make_strategy, run_in_processes
from models.two_tower import NDCG, TRAIN_LOSS, TwoTower
from serve.bundle import CHECKPOINTS, CURVES, LOGS
from serve.errors import SchemaError, say
from serve.files import write_file

BEST = "best"
LAST = "last"
MONITOR = "val_ndcg_recent"

# Validations that are averaged: with few users, one epoch differs from the next by chance.
N_RECENT = 3

# 128 + SIGTERM: an orchestrator must not take an interrupted run for a trained model.
TERMINATED = 143

# Precisions of training; weights and what is exported are float32.
PRECISIONS = (None, 32, "32", "32-true", 16, "16", "16-mixed", "bf16", "bf16-mixed")

# Of an estimate: the first steps allocate and take longer; a validation batch takes a share of a
# step; the validation may stop both trainings after half of the epochs.
FIRST_STEPS = 3
MIN_SECONDS = 2.0  # of timed steps
VALIDATION_SHARE = 0.3
SHORTEST = 0.5
FIXED_MINUTES = 0.2  # export, segments, report and the answers that are timed
MINUTES_A_PAIR = 3e-8  # to rank an item for a user, with all baselines
QUICK = "--quick takes a fraction of it"

QUIET = (
    ".*does not have many workers.*",  # batches are made whole; a worker would only copy them
    ".*LeafSpec.*is deprecated.*",  # Lightning's own call
    ".*exists and is not empty.*",  # resuming
    ".*Early stopping conditioned on metric.*",  # `fit` reports a training without a validation
    ".*could not find the monitored key.*",
    ".*It is recommended to use `self.log.*",  # all processes log the same validation
    ".*find_unused_parameters=True was specified.*",
    ".*Grad strides do not match.*",  # of a matrix of one column
    ".*`broadcast_buffers` is deprecated.*",  # older torch knows no other name
)


class EpochLog(Callback):
    """Write loss and validation of each epoch to a CSV file; monitor the recent validation.

    Checkpoints hold the rows, so that a resumed training has all of them; the first epoch is 1.

    Args:
        path: the CSV file.
        prints: whether to print each epoch.
    """

    def __init__(self, path: Path, prints: bool) -> None:
        self.path = path
        self.prints = prints
        self.rows: list[dict[str, float]] = []
        self.validated: dict[str, float] = {}
        self.n_targets = 0
        self.best = float("-inf")
        self.training = self.to_best = 0.0
        self.started = self.resumed = 0.0

    @property
    def pace(self) -> dict[str, float]:
        """Targets per second of training, and seconds until the best validation."""
        return {
            "targets_per_second": round(self.n_targets / max(self.training, 1e-9), 1),
            "seconds_to_best": round(self.to_best, 2),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def on_train_start(self, *_: Any) -> None:
        self.started = self.resumed = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, model: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        is_target = batch.target_weights > 0  # (B, L) or (M,)
        self.n_targets += trainer.world_size * int(is_target.sum())
        now = time.perf_counter()
        self.training += now - self.resumed
        self.resumed = now

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Add the mean of the last validations as a metric of its own."""
        metrics = trainer.callback_metrics
        values = [row[NDCG] for row in self.rows if NDCG in row]
        values.append(float(metrics[NDCG]))
        recent = values[-N_RECENT:]
        mean = sum(recent) / len(recent)
        metrics[MONITOR] = metrics[NDCG].new_tensor(mean)
        self.resumed = time.perf_counter()

        if mean > self.best:
            self.best = mean
            self.to_best = self.resumed - self.started

        self.validated = {
            name: float(value)
            for name, value in metrics.items()
            if name.startswith("val_")
        }

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Add the epoch; the checkpoint is written after this."""
        loss = float(trainer.callback_metrics[TRAIN_LOSS])
        epoch = trainer.current_epoch + 1
        row = {"epoch": epoch, "step": trainer.global_step, TRAIN_LOSS: loss}
        self.rows.append(row | self.validated)
        if trainer.is_global_zero:
            table = pd.DataFrame(self.rows).to_csv(index=False, lineterminator="\n")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self.path, table.encode())

        if self.prints:
            line = f"epoch {epoch} of {trainer.max_epochs}: {TRAIN_LOSS} {loss:.4f}"
            if NDCG in self.validated:
                line += f", {NDCG} {self.validated[NDCG]:.4f}"
            get_console().print(line, highlight=False)

        self.validated = {}


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


class ResumedStopping(EarlyStopping):
    """Stop by the validation; a stopped training that is resumed does not begin another epoch."""

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
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
    """Train, resuming from the last checkpoint if there is one.

    Args:
        model: the model; holds the best weights afterwards, without a validation the last.
        data: training data and validation.
        folder: the run's folder; files go to `checkpoints/<stage>` and `logs/<stage>` in it.
        stage: name of the training.
        max_epochs: epochs to train; the schedule may be longer.
        trainer_options: arguments of Lightning's Trainer.
        origin: JSON values that the run is made of; a checkpoint of others is refused.

    Returns:
        The epochs of these weights, and the pace.

    Raises:
        SchemaError: an option cannot be used here, or the checkpoint is of another run.
        MemoryError: that of the graphics card does not suffice.
        SystemExit: with `TERMINATED` on SIGTERM.
    """
    checkpoints = folder / CHECKPOINTS / stage
    options = dict(trainer_options)
    patience = model.recipe.patience if data.validation_batches else None

    is_shown = options.pop("enable_progress_bar", True)
    is_terminal = get_console().is_terminal
    options["enable_progress_bar"] = is_shown and is_terminal
    log = EpochLog(folder / LOGS / stage / CURVES, is_shown and not is_terminal)
    callbacks = [log, *_make_checkpoints(checkpoints, patience)]

    last = checkpoints / f"{LAST}.ckpt"
    start = str(last) if last.exists() else None

    if patience is None:
        options.setdefault("limit_val_batches", 0)
    with _quiet_lightning(), _plain_errors():
        trainer = _make_trainer(callbacks, RunCheckpoints(origin), max_epochs, options)
        if trainer.world_size == 1 or joins():
            trainer.fit(model, data, ckpt_path=start, weights_only=True)
            pace = log.pace
        else:
            arguments = (model, data, folder, stage, max_epochs, trainer_options)
            job = partial(fit, *arguments, origin)
            _, pace = run_in_processes(job, trainer.world_size)

    if trainer.received_sigterm:
        raise SystemExit(TERMINATED)

    best = last if patience is None else checkpoints / f"{BEST}.ckpt"
    if not best.exists():
        raise SchemaError(
            "the training ended before its first epoch or validation: see --trainer.max_time, "
            "max_steps, limit_train_batches and check_val_every_n_epoch"
        )

    return _load_weights(model, best), pace


def load_best(model: TwoTower, folder: Path, stage: str) -> None:
    """Load the best weights of a finished stage into a model that is to be trained."""
    _load_weights(model, folder / CHECKPOINTS / stage / f"{BEST}.ckpt")
    model.train()  # Lightning leaves the mode as it is


def list_callbacks(callbacks: Callback | Sequence[Callback] | None) -> list[Callback]:
    """Return the Trainer's `callbacks`, which may be one, several or none, as a list."""
    return [callbacks] if isinstance(callbacks, Callback) else list(callbacks or ())


def _make_checkpoints(folder: Path, patience: int | None) -> list[Callback]:
    options: dict[str, Any] = {
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
    }
    last = ModelCheckpoint(folder, LAST, **options)

    if patience is None:
        return [last]

    best = ModelCheckpoint(folder, BEST, monitor=MONITOR, mode="max", **options)

    # Not strict: `fit` reports that there was no validation.
    stopping = ResumedStopping(MONITOR, mode="max", patience=patience, strict=False)

    return [stopping, best, last]


def _make_trainer(
    callbacks: list[Callback],
    plugin: RunCheckpoints,
    max_epochs: int,
    options: dict[str, Any],
) -> pl.Trainer:
    callbacks = [*callbacks, *list_callbacks(options.pop("callbacks", None))]
    precision = options.get("precision")
    if precision not in PRECISIONS:
        allowed = "32-true, 16-mixed, bf16-mixed"
        raise SchemaError(f"trainer.precision is {precision!r}; allowed: {allowed}")

    options = {
        "max_epochs": max_epochs,
        # Others, as of a Mac, lack 64 bit numbers.
        "accelerator": "cuda" if torch.cuda.is_available() else "cpu",
        "devices": 1,
        # Threads would sum the gradients of gathered rows in any order.
        "deterministic": "warn",
        "logger": False,
        "plugins": [plugin, LightningEnvironment()],  # whatever cluster this is of
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "gradient_clip_val": 1.0,
        **options,
    }
    if joins():
        options |= {"strategy": make_strategy(), "use_distributed_sampler": False}

    try:
        return pl.Trainer(**options, callbacks=callbacks)
    except (
        MisconfigurationException,
        ValueError,
        TypeError,
        ModuleNotFoundError,
    ) as error:
        raise SchemaError(f"trainer: {say(error)}") from error


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise errors that callers know without torch and Lightning."""
    try:
        yield
    except MisconfigurationException as error:
        raise SchemaError(say(error)) from error
    except torch.OutOfMemoryError as error:
        raise MemoryError(say(error)) from error


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Hide Lightning's notes on hardware, products and loaders."""
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
