"""The first stage of a run: read, clean and split the tables, and complete the configuration.

Nothing here imports torch, so that a mistake in the data is told at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from datamodules.blocks import BlockSplit, split_blocks
from datamodules.clean import check_joins, clean, order_tables, weigh_targets
from datamodules.fingerprint import fingerprint
from datamodules.out_of_core import BLOCKS, is_on_disk, read_blocks, type_events
from datamodules.rejects import Rejects, check_reject_rates, write_rejects
from datamodules.schema_fitting import check_times
from datamodules.sources import TableLike
from datamodules.splits import check_counts, split_interactions
from datamodules.tables import Tables, read_tables, tables_from_frames
from models.config import ModelConfig
from models.defaults import Choice, choose_recipe, count_data
from pipeline.config import Config
from pipeline.run_folder import Work, console, find_previous
from serve.bundle import REJECTS
from serve.errors import SchemaError
from serve.files import name_file
from service.forget import inherit_erasure_list

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
    if frames is None and is_on_disk(config.data):
        tables, report, on_disk = read_from_disk(config, beside)
        rows = fingerprint(on_disk.blocks.digest, tables.users, tables.items)
        split = on_disk.split
    else:
        tables, report = read(config, frames, beside)
        rows = fingerprint(tables)
        split = split_interactions(tables.interactions, config.data, config.seed)
    previous = None
    if config.warm_start:
        previous = find_previous(config, split)
        # The data has grown, and might choose other values.
        values = dict(previous.bundle.manifest.facts.config["model"])
        for name, value in asdict(config.model).items():
            if value is not None:
                values[name] = value
        config = replace(config, model=ModelConfig(**values))

    if config.quick:
        model = replace(config.model, n_blocks=0, max_epochs=QUICK_EPOCHS)
        config = replace(config, model=model)

    is_strict = config.data.split.strict
    learned = split.train if is_strict else split.refit
    part = None
    if on_disk is not None:
        part = on_disk.train if is_strict else on_disk.refit
    counts = count_data(replace(tables, interactions=learned), config.data, part)
    recipe, choices = choose_recipe(config.model, counts)
    config = replace(config, model=recipe.to_config())

    return Work(config, recipe, tables, split, report, choices, rows, previous, on_disk)


def read(
    config: Config, frames: Frames | None, beside: Path
) -> tuple[Tables, dict[str, Any]]:
    """Read and clean the tables.

    Rejected rows go beside the bundle, or into the run's folder where they stop the run.

    Returns:
        the tables, and the reports of rejects and cleaning.
    """
    erased = inherit_erasure_list(config.out, config.previous)
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


def read_from_disk(
    config: Config, beside: Path
) -> tuple[Tables, dict[str, Any], BlockSplit]:
    """Do as `read` with events that stay on disk, and split them.

    Returns:
        the tables with the interactions of drawn users, the reports, and all events.
    """
    erased = inherit_erasure_list(config.out, config.previous)
    folder = config.out / BLOCKS
    typed = type_events(config.data, erased, folder)
    tables, rejects = read_tables(config.data, erased, typed)
    keep_rejects(config, rejects, beside)
    tables, cleaning = clean(tables, config.data)
    blocks, counts = read_blocks(tables, folder)

    on_disk = split_blocks(blocks, config.data, config.seed)
    users = tables.users
    if config.data.users is None:
        users = pd.DataFrame({"user_id": blocks.user_ids})
    tables = Tables(on_disk.sample, users, tables.items)
    check_joins(tables, rejects.records)
    check_counts(tables.interactions)
    report = {"rejects": rejects, "cleaning": replace(cleaning, **counts)}

    return order_tables(tables, config.data.ties), report, on_disk


def print_choices(choices: Sequence[Choice]) -> None:
    """Print the values that the data decided, with the reasons."""
    if not choices:
        return
    console.rule("chosen from the data")
    table = Table.grid(padding=(0, 2))
    for choice in choices:
        table.add_row(f"model.{choice.name}", f"{choice.value}", choice.reason)
    console.print(table)
