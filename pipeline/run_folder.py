"""The folder of a run: empty, a run to resume, or a finished one.

DIR/checkpoints/published.json   version of the bundle that came of the checkpoints, written just before it is published
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.splits import Split
from datamodules.tables import Tables, is_set
from models.checkpoints import CHECKPOINTS, compare
from models.config import Recipe
from models.defaults import Choice
from pipeline.config import Config
from serve.bundle import BUNDLE, CONFIG, LOGS, METRICS, REPORT, Bundle
from serve.errors import BundleError, SchemaError
from serve.files import write_file
from service.publish import read_version

NOT_TRAINED = {"enable_progress_bar", "enable_model_summary", "log_every_n_steps"}
"""Arguments of the Trainer that change what is shown, not what is trained."""
STAGES = (
    "select",
    "final",
)  # trainings of a run, each with a folder of checkpoints and one of logs
PUBLISHED = f"{CHECKPOINTS}/published.json"


@dataclass(frozen=True)
class Previous:
    """A run whose weights a training starts from."""

    run: Path
    bundle: Bundle
    refinement: dict[str, Any]  # chosen by the validation that was, and kept


@dataclass(frozen=True)
class Work:
    """Clean tables and their split, and a complete configuration."""

    config: Config
    recipe: Recipe
    tables: Tables
    split: Split
    report: dict[str, Any]  # rejects and cleaning of the tables
    choices: list[Choice]
    rows: str  # fingerprint of the tables
    previous: Previous | None = None  # of a warm start


def declare(config: Config) -> dict[str, Any]:
    """Return what identifies a run with a complete configuration, but for its data, as JSON values."""
    trainer = {
        name: value
        if value is None or isinstance(value, (bool, int, float, str))
        else type(value).__name__
        for name, value in config.trainer.items()
        if name not in NOT_TRAINED
    }
    model = asdict(config.model)
    return {
        "data": config.data.declared(),
        "model": model,
        "trainer": trainer,
        "seed": config.seed,
    }


def declare_finished(config: Config, rows: str) -> dict[str, Any]:
    """Return the same with the fingerprint of the tables, since a finished run reads no checkpoint."""
    warm = {"warm_start": True} if config.warm_start else {}
    return {**declare(config), "previous": str(config.previous), "rows": rows, **warm}


def refuse_replacing(config: Config) -> None:
    """Refuse to replace a bundle, or files named as a run's that no run left, without `overwrite`."""
    for place in (config.out, *config.out.parents):
        if place.exists() and not place.is_dir():
            raise SchemaError(
                f"--out is {config.out}, but {place} is a file; give a folder"
            )
    version, _ = read_published(config.out)
    if config.overwrite:
        return
    traces = (BUNDLE, *(f"{CHECKPOINTS}/{stage}" for stage in STAGES))
    is_of_run = version is not None or any(
        (config.out / name).exists() for name in traces
    )
    foreign = [
        name for name in (CONFIG, METRICS, REPORT) if (config.out / name).exists()
    ]
    if foreign and not is_of_run:
        raise SchemaError(
            f"{config.out} holds no run, but '{foreign[0]}', which a run would replace: choose another --out, or add "
            "--overwrite"
        )
    if (config.out / BUNDLE).exists() and not (
        config.resume and _is_done(config.out, version)
    ):
        raise SchemaError(
            f"{config.out} holds a finished run: choose another --out, or add --overwrite"
        )
    if (
        version is None
        and not config.resume
        and any((config.out / CHECKPOINTS).glob("*/*.ckpt"))
    ):
        raise SchemaError(
            f"{config.out} holds an interrupted run: --ckpt_path last (in Python: resume=True) continues "
            "it, --overwrite begins anew"
        )


def is_finished(config: Config, rows: str) -> bool:
    """Return whether the run of these tables is finished; clear what is not to be resumed.

    Under `resume` a finished run is left as it is, and where there is no checkpoint the run begins: a restart after an
    interruption may always say `resume`.
    """
    version, run = read_published(config.out)
    if (config.out / BUNDLE).exists() and not config.overwrite:
        refuse_replacing(config)
        for difference in compare(run, declare_finished(config, rows)):
            raise SchemaError(
                f"{config.out} holds another run, finished: {difference}; choose another --out, or add --overwrite"
            )
        return True
    if _is_done(config.out, version) or not config.resume:
        _clear(config.out)
    return False


def note_published(folder: Path, run: Mapping[str, Any], version: str) -> None:
    """Record which bundle the checkpoints of a run led to, before it is published."""
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    write_file(
        folder / PUBLISHED,
        json.dumps({"version": version, "run": run}, indent=1).encode(),
    )


def read_published(folder: Path) -> tuple[str | None, dict[str, Any]]:
    """Read the version and the run that `note_published` wrote; None and nothing where it did not."""
    path = folder / PUBLISHED
    try:
        content = json.loads(path.read_bytes())
        return content["version"], dict(content["run"])
    except FileNotFoundError:
        return None, {}
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{path} is damaged: {error!r}; delete it and train with --overwrite"
        ) from error


def find_previous(config: Config, split: Split) -> Previous:
    """Find the run of a warm start; refuse one whose weights have seen what is to be tested."""
    previous = Path(config.previous or "").resolve()
    run = previous.parent
    bundle = Bundle.load(previous)
    remedy = "or leave --warm_start out"
    metrics = run / METRICS
    content = json.loads(metrics.read_bytes()) if metrics.exists() else {}
    if {bundle.manifest.version} != {content.get("version"), read_published(run)[0]}:
        raise SchemaError(
            f"{run} holds other metrics or checkpoints than its bundle's: give a run's folder, {remedy}"
        )
    if run == config.out.resolve():
        raise SchemaError(
            f"--out is {config.out}, whose weights are to be started from: give another folder, {remedy}"
        )
    if (
        config.data.split.strict
        or split.kind == "pairs"
        or (split.kind == "leave_one_out" and is_set(split.train))
    ):
        raise SchemaError(
            f"a strict or drawn split holds out what {run} was trained on: choose another, {remedy}"
        )
    until = bundle.schema.data_until
    if split.test_at is not None and split.test_at < until:
        end = f"{np.datetime64(until, 's')}Z"
        raise SchemaError(
            f"{run} was trained on events up to {end}: set data.split.at to that or later, {remedy}"
        )
    return Previous(run, bundle, content["training"]["refinement"] or {})


def _is_done(folder: Path, version: str | None) -> bool:
    return version is not None and version == read_version(folder / BUNDLE)


def _clear(folder: Path) -> None:
    """Remove checkpoints and logs of a run, and nothing else that lies beside them."""
    for name in (CHECKPOINTS, LOGS):
        for stage in STAGES:
            shutil.rmtree(folder / name / stage, ignore_errors=True)
    (folder / PUBLISHED).unlink(missing_ok=True)
    for name in (CHECKPOINTS, LOGS):
        with suppress(OSError):  # it may be missing, or hold something else
            (folder / name).rmdir()
