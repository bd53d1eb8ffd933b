"""Fit a TwoTower with Lightning: best weights by validation NDCG, progress bars, logs, checkpoints."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger

from models.two_tower import TwoTower

MONITOR = "val_ndcg"
TERMINATED = 143  # 128 + SIGTERM: an orchestrator must not read an interrupted run as a trained model


def fit(
    model: TwoTower,
    data: pl.LightningDataModule,
    folder: Path,
    stage: str,
    max_epochs: int,
    patience: int | None,
    trainer_options: Mapping[str, Any],
    resume: bool,
) -> int:
    """Train, and leave the best weights in `model`.

    Args:
        model: to train.
        data: its batches.
        folder: of the run; `checkpoints/<stage>` and `logs/<stage>` go below it.
        stage: name of this training in the run.
        max_epochs: when to stop at the latest.
        patience: epochs without improvement before training stops; None: no validation, the last weights stay.
        trainer_options: arguments of `pl.Trainer` that the user gave.
        resume: go on from the last checkpoint in the folder, if there is one.

    Returns:
        How many epochs the weights in `model` were trained for.

    Raises:
        SystemExit: with status 143 if the process was told to stop.
    """
    checkpoints = folder / "checkpoints" / stage
    if not resume:
        shutil.rmtree(checkpoints, ignore_errors=True)
    best = ModelCheckpoint(
        dirpath=checkpoints,
        filename="best",
        monitor=MONITOR if patience is not None else None,
        mode="max",
        save_last=True,
        enable_version_counter=False,
    )
    callbacks: list[Callback] = [best]
    if patience is not None:
        callbacks.append(EarlyStopping(MONITOR, mode="max", patience=patience))
    logger = CSVLogger(str(folder / "logs"), name=stage, version="")
    with _quiet_lightning():
        trainer = _make_trainer(callbacks, logger, max_epochs, patience is not None, trainer_options)
        last = checkpoints / "last.ckpt"
        trainer.fit(model, data, ckpt_path=str(last) if resume and last.exists() else None, weights_only=True)
    if trainer.received_sigterm:
        raise SystemExit(TERMINATED)
    return _load_best(model, Path(best.best_model_path or last))


def _make_trainer(
    callbacks: list[Callback], logger: CSVLogger, max_epochs: int, validates: bool, options: Mapping[str, Any]
) -> pl.Trainer:
    given = dict(options)
    if given.get("enable_progress_bar", True):
        callbacks = [*callbacks, RichProgressBar(leave=False)]
    ours: dict[str, Any] = {
        "max_epochs": max_epochs,
        "deterministic": "warn",  # else threads sum the gradients of gathered rows in any order
        "logger": logger,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "limit_val_batches": None if validates else 0,
        "gradient_clip_val": 1.0,
    }
    callbacks = [*callbacks, *given.pop("callbacks", [])]
    return pl.Trainer(**{**ours, **given}, callbacks=callbacks)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's notes on hardware, products and loaders from the run's own output."""
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in (
                ".*does not have many workers.*",  # batches are made whole; a worker would only copy them
                ".*LeafSpec.*is deprecated.*",  # Lightning's own call
                ".*exists and is not empty.*",  # resuming
            ):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.setLevel(level)


def _load_best(model: TwoTower, path: Path) -> int:
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(checkpoint["state_dict"])
    model.cpu().eval()
    return int(checkpoint["epoch"]) + 1
