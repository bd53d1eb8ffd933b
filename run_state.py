"""What the folder of a run holds: nothing, a run to go on with, or a finished one."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.checkpoints import CHECKPOINTS, compare, forget_published, read_published
from run_config import Config
from serve.bundle import (
    BUNDLE,
    CONFIG,
    LOGS,
    METRICS,
    REPORT,
)
from serve.errors import SchemaError
from serve.staging import read_version

SHOWN = {"enable_progress_bar", "enable_model_summary", "log_every_n_steps"}
"""Arguments of the Trainer that change what is seen and not what is trained."""

STAGES = ("select", "final")
"""Trainings of a run, each with a folder of checkpoints and one of logs."""


def declare(config: Config) -> dict[str, Any]:
    """Return what makes a run, whose configuration is whole, what it is, as JSON values, without the data itself."""
    trainer = {name: value for name, value in config.trainer.items() if name not in SHOWN}
    return {
        "data": config.data.declared(),
        "model": asdict(config.model),
        "trainer": {name: value if _is_plain(value) else type(value).__name__ for name, value in trainer.items()},
        "seed": config.seed,
    }


def declare_finished(config: Config, rows: str) -> dict[str, Any]:
    """Return the same with a fingerprint of the tables, which no checkpoint is looked into for when all is done."""
    return {**declare(config), "previous": str(config.previous), "rows": rows}


def refuse_replacing(config: Config) -> None:
    """Refuse to begin where a finished run would be replaced and nobody said that it may be.

    Raises:
        SchemaError: `config.out` is no folder, or holds a bundle, or files of the names of a run's that no run left.
    """
    _refuse_files(config)
    bundle = config.out / BUNDLE
    version, _ = read_published(config.out)
    is_done = version is not None and version == read_version(bundle)
    if bundle.exists() and not config.overwrite and not (config.resume and is_done):
        raise SchemaError(f"{config.out} holds a finished run: choose another --out, or add --overwrite")


def is_finished(config: Config, rows: str) -> bool:
    """Say whether the run is finished; clear what is not to be gone on with.

    Under `resume` a run that is finished is left as it is, or begun anew under `overwrite`; where there is no
    checkpoint, the run begins too, so that whoever restarts it after an interruption may always say `resume`.

    Args:
        config: of the run, whole.
        rows: fingerprint of its tables.

    Raises:
        SchemaError: there is a bundle of another run, and nobody said that it may be replaced.
    """
    bundle = config.out / BUNDLE
    version, run = read_published(config.out)
    is_done = version is not None and version == read_version(bundle)
    if bundle.exists() and not config.overwrite:
        refuse_replacing(config)
        for difference in compare(run, declare_finished(config, rows)):
            raise SchemaError(
                f"{config.out} holds another run, finished: {difference}; choose another --out, or add --overwrite"
            )
        return True
    if is_done or not config.resume:
        _clear(config.out)
    return False


def _refuse_files(config: Config) -> None:
    """Refuse a folder in which a run would take the place of somebody's files, such as the config.yaml of a project."""
    for place in (config.out, *config.out.parents):
        if place.exists() and not place.is_dir():
            raise SchemaError(f"--out is {config.out}, but {place} is a file; give a folder")
    traces = (BUNDLE, *(f"{CHECKPOINTS}/{stage}" for stage in STAGES))
    is_of_run = any((config.out / name).exists() for name in traces) or read_published(config.out)[0] is not None
    strange = [name for name in (CONFIG, METRICS, REPORT) if (config.out / name).exists()]
    if strange and not is_of_run and not config.overwrite:
        raise SchemaError(
            f"{config.out} holds no run, but '{strange[0]}', which a run would replace: choose another --out, or add "
            "--overwrite"
        )


def _clear(folder: Path) -> None:
    """Remove checkpoints and logs of a run, and nothing else that lies beside them."""
    for name in (CHECKPOINTS, LOGS):
        for stage in STAGES:
            shutil.rmtree(folder / name / stage, ignore_errors=True)
    forget_published(folder)
    for name in (CHECKPOINTS, LOGS):
        with suppress(OSError):  # it may be missing, or hold something else
            (folder / name).rmdir()


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
