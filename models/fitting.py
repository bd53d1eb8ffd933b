"""Fit a TwoTower with Lightning: best weights by recent validation NDCG, logs, checkpoints."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, ProgressBar
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

from models.checkpoints import CHECKPOINTS, RunCheckpoints, read_checkpoint
from models.curves import Curves
from models.heap import keep_freed_memory
from models.progress import show_progress
from models.smoothing import MONITOR, RecentValidation
from models.stopwatch import Stopwatch
from models.two_tower import TwoTower
from serve.bundle import CURVES, LOGS
from serve.errors import SchemaError, say

BEST = "best.ckpt"
TERMINATED = 143  # 128 + SIGTERM: an orchestrator must not read an interrupted run as a trained model


PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
"""Of training; weights and what is exported are float32."""
PRECISION_NAMES = {None, 32, "32", 16, "16", "bf16", *PRECISIONS}
"""What Lightning calls these too."""
_LEAST = {"accumulate_grad_batches": 1, "gradient_clip_val": 0}
"""Below it Lightning divides by 0, or turns gradients round."""


class ResumedStopping(EarlyStopping):
    """Stop by the validation; a training that had stopped and is resumed does not begin another epoch."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = self.stopping_reason is not EarlyStoppingReason.NOT_STOPPED


class MovableCheckpoint(ModelCheckpoint):
    """Keep one file; where the folder was moved since, it is known by its new place."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        path = str(Path(str(self.dirpath)) / f"{self.filename}.ckpt")
        here = {"dirpath": self.dirpath, "best_model_path": path, "kth_best_model_path": path}
        kept = dict(zip([path], state_dict["best_k_models"].values(), strict=False))  # none before the first
        super().load_state_dict({**state_dict, **here, "best_k_models": kept})


def fit(
    model: TwoTower,
    data: pl.LightningDataModule,
    folder: Path,
    stage: str,
    max_epochs: int,
    patience: int | None,
    trainer_options: Mapping[str, Any],
    origin: Mapping[str, Any],
) -> tuple[int, dict[str, float]]:
    """Train, going on from the last checkpoint if there is one, and leave the best weights in `model`.

    Args:
        model: to train.
        data: its batches.
        folder: of the run; `checkpoints/<stage>` and `logs/<stage>` go below it.
        stage: name of this training in the run.
        max_epochs: when to stop at the latest.
        patience: epochs without improvement before training stops; None: no validation, the last weights stay.
        trainer_options: arguments of `pl.Trainer` that the user gave.
        origin: what this training is made of, as JSON values; a checkpoint of anything else is refused.

    Returns:
        How many epochs the weights in `model` were trained for, and what `Stopwatch` says of them.

    Raises:
        SchemaError: the checkpoint is of another run, an argument of the trainer is none for such a training, or ends
            it before there are weights to keep.
        BundleError: a checkpoint is torn or altered.
        FloatingPointError: the loss, or a trained weight, is not finite.
        OSError: the disk is full or fails.
        SystemExit: with status 143 if the process was told to stop.
    """
    checkpoints = folder / CHECKPOINTS / stage
    last = checkpoints / "last.ckpt"
    stopwatch = Stopwatch()
    curves = Curves(folder / LOGS / stage / CURVES)
    keep_freed_memory()
    callbacks = [RecentValidation(), stopwatch, curves, *_make_checkpoints(checkpoints, patience)]
    with _quiet_lightning():
        trainer = _make_trainer(callbacks, RunCheckpoints(origin), max_epochs, patience is not None, trainer_options)
        trainer.fit(model, data, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    if trainer.received_sigterm:
        raise SystemExit(TERMINATED)
    kept = last if patience is None else checkpoints / BEST
    if not kept.exists():
        raise SchemaError(
            f"the training ended before {'an epoch did' if patience is None else 'its first validation'}: look at what "
            f"was given as --trainer.max_time, max_steps, limit_train_batches or check_val_every_n_epoch; there are "
            f"{max_epochs} epochs"
        )
    return _load_weights(model, kept), stopwatch.summary()


def load_best(model: TwoTower, folder: Path, stage: str) -> None:
    """Give a model that is to be trained the best weights of a training that validation stopped.

    Args:
        model: of the same schema and catalogue.
        folder: of the run.
        stage: name of that training.

    Raises:
        BundleError: the checkpoint is torn or altered.
    """
    _load_weights(model, folder / CHECKPOINTS / stage / BEST)
    model.train()  # Lightning leaves the mode as it is


def _make_checkpoints(folder: Path, patience: int | None) -> list[Callback]:
    last = MovableCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    if patience is None:
        return [last]
    stopping = ResumedStopping(MONITOR, mode="max", patience=patience, strict=False)  # `fit` says what is missing
    best = MovableCheckpoint(
        folder,
        BEST.removesuffix(".ckpt"),
        monitor=MONITOR,
        mode="max",
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    return [stopping, best, last]  # what the last checkpoint says of the best one must be so


def _make_trainer(
    callbacks: list[Callback],
    checkpoints: RunCheckpoints,
    max_epochs: int,
    validates: bool,
    options: Mapping[str, Any],
) -> pl.Trainer:
    given = dict(options)
    if given.pop("enable_progress_bar", True):
        callbacks = [*callbacks, show_progress()]
    ours: dict[str, Any] = {
        "enable_progress_bar": any(isinstance(one, ProgressBar) for one in callbacks),  # else it adds one of its own
        "max_epochs": max_epochs,
        "accelerator": "cuda" if torch.cuda.is_available() else "cpu",  # others, as of a Mac, lack 64 bit numbers
        "devices": 1,
        "deterministic": "warn",  # else threads sum the gradients of gathered rows in any order
        "logger": False,
        "plugins": [checkpoints],
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": None if validates else 0,
        "gradient_clip_val": 1.0,
    }
    callbacks = [*callbacks, *list_callbacks(given.pop("callbacks", None))]
    _check_options(given, validates)
    try:
        trainer = pl.Trainer(**{**ours, **given}, callbacks=callbacks)
    except (MisconfigurationException, ValueError, TypeError, ModuleNotFoundError) as error:
        raise SchemaError(f"trainer: {say(error)}") from error
    if trainer.world_size > 1:
        raise SchemaError(
            f"trainer: {trainer.world_size} processes on {trainer.num_nodes} nodes; allowed: one device of one node, "
            "as by default: batches are made whole, and every device would train on all of them"
        )
    return trainer


def list_callbacks(given: Callback | Sequence[Callback] | None) -> list[Callback]:
    """Return what was given as `callbacks`, which the Trainer takes as one, as several or as none."""
    return [given] if isinstance(given, Callback) else list(given or ())


def _check_options(options: Mapping[str, Any], validates: bool) -> None:
    """Refuse what Lightning takes and a training here can't do."""
    precision, interval = options.get("precision"), options.get("val_check_interval")
    if precision not in PRECISION_NAMES:
        raise SchemaError(f"trainer.precision is {precision!r}; allowed: {', '.join(PRECISIONS)}")
    if interval is not None and not isinstance(interval, float):
        raise SchemaError(f"trainer.val_check_interval is {interval!r}; allowed: a share of an epoch, such as 0.5")
    if validates and options.get("limit_val_batches") == 0:
        raise SchemaError("trainer.limit_val_batches is 0; allowed: more, since validation says when to stop")
    for name, least in _LEAST.items():
        value = options.get(name)
        if isinstance(value, (int, float)) and value < least:
            raise SchemaError(f"trainer.{name} is {value!r}; allowed: {least} or more")
    if options.get("overfit_batches"):
        raise SchemaError(
            f"trainer.overfit_batches is {options['overfit_batches']}; allowed: 0, as validation needs users of its own"
        )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's notes on hardware, products and loaders from the run's own output."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in (
                ".*does not have many workers.*",  # batches are made whole; a worker would only copy them
                ".*LeafSpec.*is deprecated.*",  # Lightning's own call
                ".*exists and is not empty.*",  # resuming
                ".*Early stopping conditioned on metric.*",  # a training without a validation is refused, at its end
                ".*could not find the monitored key.*",  # the same
            ):
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
            raise FloatingPointError(f"after training '{name}' is not finite: lower --model.learning_rate")
    return int(checkpoint["epoch"]) + 1
