"""The folder of a run: empty, a run to resume, or a finished one.

DIR/checkpoints/published.json   version of the bundle that the checkpoints led to
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any

from rich.console import Console

from datamodules.on_disk import OnDisk
from datamodules.splits import Split
from datamodules.tables import Tables
from datamodules.values import is_set
from models.config import Recipe
from models.defaults import Choice
from pipeline.config import Config, IndexConfig, PrivacyConfig
from serve.bundle import BUNDLE, CHECKPOINTS, CONFIG, LOGS, METRICS, REPORT, Bundle
from serve.clock import to_iso
from serve.errors import SchemaError
from serve.files import write_json
from service.publish import read_version

NOT_TRAINED = {"enable_progress_bar", "enable_model_summary", "log_every_n_steps"}
"""Arguments of the Trainer that change what is shown, not what is trained."""
STAGES = ("select", "final", "refit")
"""Trainings of a run, each with a folder of checkpoints and one of logs."""
PUBLISHED = f"{CHECKPOINTS}/published.json"
console = Console(log_path=False)


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
    on_disk: OnDisk | None = None
    """All events; tables and split then have those of drawn users."""

    def with_test(self) -> Work:
        """Return the same work with nothing held out."""
        on_disk = self.on_disk
        if on_disk is not None:
            counts = on_disk.events.counts
            on_disk = replace(on_disk, counts={"train": counts, "refit": counts})
        return replace(self, split=self.split.give_back(), on_disk=on_disk)


def declare(config: Config) -> dict[str, Any]:
    """Return what identifies a run, but for its data, as JSON values."""
    trainer = {}
    for name in sorted(config.trainer.keys() - NOT_TRAINED):
        value = config.trainer[name]
        is_plain = isinstance(value, (int, float, str, NoneType))
        trainer[name] = value if is_plain else type(value).__name__

    declared = {
        "data": config.data.declared(),
        "model": asdict(config.model),
        "trainer": trainer,
        "seed": config.seed,
    }
    if config.refit is not None:
        declared["refit"] = config.refit
    if config.index != IndexConfig():
        declared["index"] = asdict(config.index)
    if config.privacy != PrivacyConfig():
        declared["privacy"] = asdict(config.privacy)
    return declared | ({"quick": True} if config.quick else {})


def declare_finished(config: Config, rows: str) -> dict[str, Any]:
    """Return the same with the fingerprint of the tables: a finished run reads no checkpoint."""
    return {
        **declare(config),
        "previous": str(config.previous),
        "rows": rows,
        "warm_start": config.warm_start,
    }


def refuse_replacing(config: Config) -> None:
    """Check that a run may write into its folder.

    Raises:
        SchemaError: a bundle would be replaced without `overwrite`, or files named as a run's that
            no run left; or the folder is a file.
    """
    out = config.out
    for path in (out, *out.absolute().parents):
        if path.is_file():
            raise SchemaError(f"{path} is a file: choose a folder as --out")
    version, _ = read_published(out)
    if config.overwrite:
        return
    is_of_run = (out / BUNDLE).exists() or (out / CHECKPOINTS).exists()
    for name in (CONFIG, METRICS, REPORT):
        if not is_of_run and (out / name).exists():
            raise SchemaError(
                f"{out} holds no run, but '{name}', which a run would replace: "
                "choose another --out, or add --overwrite"
            )

    is_resumed = config.resume and version == read_version(out / BUNDLE)
    if (out / BUNDLE).exists() and not is_resumed:
        raise SchemaError(
            f"{out} holds a finished run: choose another --out, or add --overwrite"
        )

    is_interrupted = not version and any((out / CHECKPOINTS).glob("*/*.ckpt"))
    if is_interrupted and not config.resume:
        raise SchemaError(
            f"{out} holds an interrupted run: --ckpt_path last continues it, "
            "--overwrite begins anew"
        )


def is_finished(config: Config, rows: str) -> bool:
    """Return whether the run of these tables is finished; clear what is not to be resumed.

    Under `resume` a finished run stays as it is, and where there is no checkpoint the run begins:
    a restart after an interruption may always say `resume`.

    Args:
        config: complete.
        rows: fingerprint of the tables.

    Raises:
        SchemaError: the folder holds another run, finished.
    """
    out = config.out
    version, run = read_published(out)
    if (out / BUNDLE).exists() and not config.overwrite:
        from models.checkpoints import compare

        for difference in compare(run, declare_finished(config, rows)):
            raise SchemaError(
                f"{out} holds another run, finished: {difference}; "
                "choose another --out, or add --overwrite"
            )
        return True

    if version == read_version(out / BUNDLE) or not config.resume:
        _clear(out)
    return False


def note_published(folder: Path, run: Mapping[str, Any], version: str) -> None:
    """Record which bundle the checkpoints of a run led to, before it is published."""
    (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    write_json(folder / PUBLISHED, {"version": version, "run": run})


def read_published(folder: Path) -> tuple[str, dict[str, Any]]:
    """Read the version and the run that `note_published` wrote, both empty without."""
    path = folder / PUBLISHED
    if not path.exists():
        return "", {}
    content = json.loads(path.read_bytes())
    return content["version"], content["run"]


def find_previous(config: Config, split: Split) -> Previous | None:
    """Find the run of a warm start; None where it found nothing that is worth going on from.

    Raises:
        SchemaError: its weights are not beside its bundle, or have seen events of the test.
    """
    previous = Path(config.previous or "").resolve()
    run = previous.parent
    bundle = Bundle.load(previous)
    remedy = "or leave --warm_start out"
    content = {}
    if (run / METRICS).exists():
        content = json.loads((run / METRICS).read_bytes())
    versions = {content.get("version"), read_published(run)[0]}
    if versions != {bundle.manifest.version}:
        raise SchemaError(
            f"{run} holds other metrics or checkpoints than its bundle's: "
            f"give a run's folder, {remedy}"
        )

    is_drawn = split.kind == "leave_one_out" and is_set(split.train)
    if config.data.split.strict or split.kind == "pairs" or is_drawn:
        raise SchemaError(
            f"a strict or drawn split holds out what {run} was trained on: "
            f"choose another, {remedy}"
        )

    until = bundle.schema.data_until
    if split.test_at is not None and split.test_at < until:
        raise SchemaError(
            f"{run} was trained on events up to {to_iso(until)}: "
            f"set data.split.at to that or later, {remedy}"
        )

    if content.get("signal"):
        console.print(f"{run} was no better than a plain list: this run trains anew")
        return None

    return Previous(run, bundle, content["training"]["refinement"] or {})


def _clear(folder: Path) -> None:
    """Remove checkpoints and logs of a run, and nothing else that lies beside them."""
    for name in (CHECKPOINTS, LOGS):
        for stage in STAGES:
            shutil.rmtree(folder / name / stage, ignore_errors=True)

    # Only now: checkpoints without a note are those of an interrupted run.
    (folder / PUBLISHED).unlink(missing_ok=True)
