"""The first stage of a run: read, clean and split the tables, and complete the configuration.

Nothing here imports torch, so that a mistake in the data is told at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from datamodules.clean import check_joins, clean, order_tables, weigh_targets
from datamodules.fingerprint import fingerprint
from datamodules.rejects import check_reject_rates, write_rejects
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

    learned = split.train if config.data.split.strict else split.refit
    counts = count_data(replace(tables, interactions=learned), config.data)
    recipe, choices = choose_recipe(config.model, counts)
    config = replace(config, model=recipe.to_config())

    return Work(config, recipe, tables, split, report, choices, rows, previous)


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

    try:
        check_reject_rates(rejects, config.data.max_reject_rate)
    except SchemaError:
        write_rejects(rejects, config.out / REJECTS)
        raise

    with name_file(beside / REJECTS):
        write_rejects(rejects, beside / REJECTS)

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


def print_choices(choices: Sequence[Choice]) -> None:
    """Print the values that the data decided, with the reasons."""
    if not choices:
        return
    console.rule("chosen from the data")
    table = Table.grid(padding=(0, 2))
    for choice in choices:
        table.add_row(f"model.{choice.name}", f"{choice.value}", choice.reason)
    console.print(table)
