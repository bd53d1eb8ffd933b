"""The first stage of a run: read, clean and split the tables, and complete the configuration.

Nothing here imports torch, so that a mistake in the data is told at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from datamodules.clean import check_joins, clean, order_tables, weigh_targets
from datamodules.fingerprint import fingerprint
from datamodules.on_disk import (
    FOLDER,
    OnDisk,
    PartName,
    store_events,
    type_interactions,
)
from datamodules.rejects import Rejects, check_reject_rates, write_rejects
from datamodules.schema_fitting import check_times
from datamodules.sources import TableLike
from datamodules.splits import Split, check_counts, split_interactions
from datamodules.tables import Tables, read_tables, tables_from_frames
from datamodules.values import date_baskets
from models.config import ModelConfig
from models.defaults import Choice, DataCounts, choose_recipe, count_data
from pipeline.config import Config
from pipeline.run_folder import Previous, Work, console, find_previous
from serve.arrays import Ints
from serve.bundle import REJECTS
from serve.errors import SchemaError
from serve.files import name_file
from service.forget import inherit_left_out

QUICK_EPOCHS = 3  # where repeats are allowed: without them a memory knows little
Frames = tuple[TableLike, TableLike | None, TableLike | None]
"""Interactions, users and items."""


def prepare(config: Config, frames: Frames | None, beside: Path) -> Work:
    """Read, clean and split the tables, and complete the configuration.

    Args:
        config: as it was given.
        frames: stand for the files that `config.data` names.
        beside: folder that the rejects are written into.

    Raises:
        SchemaError: the tables cannot be learned from.
    """
    on_disk = None
    devices = config.trainer.get("devices", 1)
    if config.data.on_disk and devices != 1:
        raise SchemaError(
            f"data.on_disk is true and trainer.devices is {devices}; allowed with it: 1"
        )
    if config.data.on_disk:
        if frames is not None:
            raise SchemaError(
                "data.on_disk is true and the tables are in memory: give files, or leave it out"
            )
        tables, report, on_disk = read_from_disk(config, beside)
    else:
        tables, report = read(config, frames, beside)
    split = split_interactions(tables.interactions, config.data, config.seed)
    if on_disk is None:
        rows = fingerprint(tables)
    else:
        ids = (on_disk.user_ids, on_disk.item_ids, on_disk.event_types)
        rows = fingerprint(on_disk.events, ids, on_disk.users, tables.items)
        on_disk = replace(on_disk, counts=count_parts(on_disk, split))
    previous = find_previous(config, split) if config.warm_start else None
    if previous is not None:
        config = keep_sizes(config, previous)

    if config.quick:
        model = replace(config.model, n_blocks=0, max_epochs=QUICK_EPOCHS)
        config = replace(config, model=model)

    learned: PartName = "train" if config.data.split.strict else "refit"
    sample = replace(tables, interactions=getattr(split, learned))
    counts = count_data(sample, config.data)
    if on_disk is not None:
        counts = count_all(on_disk, learned, counts)
    recipe, choices = choose_recipe(config.model, counts)
    config = replace(config, model=recipe.to_config())

    return Work(config, recipe, tables, split, report, choices, rows, previous, on_disk)


def keep_sizes(config: Config, previous: Previous) -> Config:
    """Return the configuration with the sizes of an earlier run, where it names no others.

    The data has grown, and might choose other values.
    """
    values = dict(previous.bundle.manifest.facts.config["model"])
    for name, value in asdict(config.model).items():
        if value is not None:
            values[name] = value
    return replace(config, model=ModelConfig(**values))


def read(
    config: Config, frames: Frames | None, beside: Path
) -> tuple[Tables, dict[str, Any]]:
    """Read and clean the tables.

    Rejected rows go beside the bundle, or into the run's folder where they stop the run.

    Returns:
        the tables, and the reports of rejects and cleaning.
    """
    erased = inherit_left_out(config.out, config.previous)
    if frames is None:
        tables, rejects = read_tables(config.data, erased)
    else:
        tables, rejects = tables_from_frames(config.data, *frames, erased=erased)

    keep_rejects(config, rejects, beside)
    tables, cleaning = clean(tables, config.data)
    if not len(tables.interactions):
        n_rejected = sum(map(len, rejects.tables.values()))
        raise SchemaError(
            f"no interaction is left: {n_rejected:,} records are rejected, "
            f"{cleaning.negative_weights:,} have a weight below 0; is another column "
            "data.interactions.columns.weight?"
        )

    check_joins(tables, rejects.records)
    check_counts(tables.interactions)
    check_times(tables.interactions, config.data)
    is_numbered = "datetime" not in tables.interactions
    if is_numbered and config.data.ties == "simultaneous":
        events = date_baskets(tables.interactions)
        tables = replace(tables, interactions=events)
    tables = order_tables(tables, config.data.ties)
    weighed = weigh_targets(tables.interactions, config.data)
    report = {"rejects": rejects, "cleaning": cleaning}

    return replace(tables, interactions=weighed), report


def keep_rejects(config: Config, rejects: Rejects, beside: Path) -> None:
    """Write the rejects; too many of them stop the run by a `SchemaError`."""
    try:
        check_reject_rates(rejects, config.data.max_reject_rate)
    except SchemaError:
        write_rejects(rejects, config.out / REJECTS)
        raise

    with name_file(beside / REJECTS):
        write_rejects(rejects, beside / REJECTS)


# ---- events on disk


def read_from_disk(
    config: Config, beside: Path
) -> tuple[Tables, dict[str, Any], OnDisk]:
    """Do as `read` with events that stay on disk.

    Returns:
        the tables with the events of drawn users, the reports, and all events.
    """
    erased = inherit_left_out(config.out, config.previous)
    folder = config.out / FOLDER
    typed = type_interactions(config.data, erased, folder)
    tables, rejects = read_tables(config.data, erased, typed)
    keep_rejects(config, rejects, beside)
    tables, cleaning = clean(tables, config.data)
    on_disk, cleaned = store_events(tables, folder)

    users = tables.users
    if config.data.users is None:
        users = pd.DataFrame({"user_id": on_disk.user_ids})
    on_disk = replace(on_disk, users=users)
    sample = on_disk.draw(config.seed)
    if len(sample) < len(on_disk.events.time):
        users = users[users["user_id"].isin(sample["user_id"])]
    tables = order_tables(Tables(sample, users, tables.items), config.data.ties)
    check_joins(tables, rejects.records)
    check_counts(sample)
    check_times(sample, config.data)
    report = {"rejects": rejects, "cleaning": replace(cleaning, **cleaned)}

    return tables, report, on_disk


def count_parts(on_disk: OnDisk, split: Split) -> dict[PartName, Ints]:
    """Count how many of each user's first events belong to each part, (U,)."""
    if split.validation_at is not None and split.test_at is not None:
        return {
            "train": on_disk.count_before(split.validation_at),
            "refit": on_disk.count_before(split.test_at),
        }
    counts = on_disk.events.counts
    if len(split.test):
        counts = counts - (counts > 1)
    is_held_out = pd.Index(on_disk.user_ids).isin(split.validation["user_id"])
    return {"train": counts - is_held_out, "refit": counts}


def count_all(on_disk: OnDisk, part: PartName, counts: DataCounts) -> DataCounts:
    """Return the counts of all events in place of those of drawn users."""
    lengths = on_disk.counts[part]
    n_items = len(on_disk.list_items(part))
    n_unused = max(counts.n_listed - n_items, 0)
    counts = replace(counts, n_items=n_items, n_unused=n_unused)
    n_users = int(np.count_nonzero(lengths))
    return replace(counts, n_examples=n_users, n_events=int(lengths.sum()))


def print_choices(choices: Sequence[Choice]) -> None:
    """Print the values that the data decided, with the reasons."""
    if not choices:
        return
    console.rule("chosen from the data")
    table = Table.grid(padding=(0, 2))
    for choice in choices:
        table.add_row(f"model.{choice.name}", f"{choice.value}", choice.reason)
    console.print(table)
