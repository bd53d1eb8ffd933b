"""What the folder of a run holds: nothing, a run to go on with, or a finished one."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import Any

from models.checkpoints import CHECKPOINTS, compare, read_published
from run_config import Config
from serve.errors import SchemaError
from serve.layout import BUNDLE, LOGS
from serve.staging import read_version

SHOWN = {"enable_progress_bar", "enable_model_summary", "log_every_n_steps"}
"""Arguments of the Trainer that change what is seen and not what is trained."""


def declare(config: Config) -> dict[str, Any]:
    """Return what makes a run, whose configuration is whole, what it is, as JSON values, without the data itself."""
    trainer = {name: value for name, value in config.trainer.items() if name not in SHOWN}
    return {
        "data": config.data.declared(),
        "model": asdict(config.model),
        "trainer": {name: value if _is_plain(value) else type(value).__name__ for name, value in trainer.items()},
        "seed": config.seed,
    }


def refuse_replacing(config: Config) -> None:
    """Refuse to begin where a finished run would be replaced and nobody said that it may be.

    Raises:
        SchemaError: `config.out` holds a bundle.
    """
    bundle = config.out / BUNDLE
    version, _ = read_published(config.out)
    is_done = version is not None and version == read_version(bundle)
    if bundle.exists() and not config.overwrite and not (config.resume and is_done):
        raise SchemaError(f"{config.out} holds a finished run: choose another --out, or add --overwrite")


def is_finished(config: Config) -> bool:
    """Say whether the run is finished; clear what is not to be gone on with.

    Under `resume` a run that is finished is left as it is, or begun anew under `overwrite`; where there is no
    checkpoint, the run begins too, so that whoever restarts it after an interruption may always say `resume`.

    Raises:
        SchemaError: there is a bundle of another run, and nobody said that it may be replaced.
    """
    bundle = config.out / BUNDLE
    version, run = read_published(config.out)
    is_done = version is not None and version == read_version(bundle)
    if bundle.exists() and not config.overwrite:
        refuse_replacing(config)
        for difference in compare(run, declare(config)):
            raise SchemaError(
                f"{config.out} holds another run, finished: {difference}; choose another --out, or add --overwrite"
            )
        return True
    if is_done or not config.resume:
        for name in (CHECKPOINTS, LOGS):
            shutil.rmtree(config.out / name, ignore_errors=True)
    return False


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
