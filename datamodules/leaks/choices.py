"""Columns that tell chosen events from the others: what is there, or what it is, depends on the outcome."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from datamodules.config import DataConfig
from datamodules.leaks.codes import MISSING, code_feature
from datamodules.leaks.context import context_columns
from datamodules.leaks.leak import Leak
from datamodules.leaks.power import Telling, tell_targets
from datamodules.leaks.sample import Sample
from datamodules.tables import Tables

TELLS = 0.9
"""Named where it finds nearly all choices and mistakes nearly none: what a request knows leaves more doubt."""
MOST_CHOICES = 12
"""Of more types of events the rarest are tried as the choice; of more distinct weights only all above 0."""


@dataclass(frozen=True)
class _Choice:
    """Events that may be those chosen."""

    name: str
    is_chosen: NDArray[np.bool_]


@dataclass(frozen=True)
class _Column:
    """A column of one of the tables, brought to the n rows of the sample."""

    table: str
    name: str
    codes: NDArray[np.int64]


def find_choice_leaks(sample: Sample, tables: Tables, config: DataConfig) -> Iterator[Leak]:
    """Judge each column of context, users and items by how well it tells what was chosen."""
    choices = list(_list_choices(sample))
    if not choices:
        return
    for column in _list_columns(sample, tables, config):
        yield from _judge(sample, column, choices)


def _list_choices(sample: Sample) -> Iterator[_Choice]:
    """Return the declared targets, each type of event, rare ones first, and the events of high weight."""
    if sample.is_target is not None:
        yield _Choice("the targets", sample.is_target)
    if "event" in sample.rows:
        events = sample.rows["event"]
        types = events.value_counts(ascending=True).index
        yield from (_Choice(f"the events '{name}'", (events == name).to_numpy(bool)) for name in types[:MOST_CHOICES])
    if "weight" in sample.rows:
        weights = sample.rows["weight"].to_numpy(np.float64)
        levels = np.unique(weights[~np.isnan(weights)])
        for below, level in pairwise(levels):
            if len(levels) <= MOST_CHOICES or below == 0:
                yield _Choice(f"the events of weight {level:g} or more", weights >= level)


def _list_columns(sample: Sample, tables: Tables, config: DataConfig) -> Iterator[_Column]:
    for feature in context_columns(config):
        cells = sample.rows[str(feature.column)]
        yield _Column("interactions", str(feature.column), code_feature(cells, feature))
    for side, table in (("user", tables.users), ("item", tables.items)):
        for column, feature in {str(one.column): one for one in config.features.of(side).values()}.items():
            codes = pd.Series(code_feature(table[column], feature), table[f"{side}_id"])
            of_row = codes.reindex(sample.rows[f"{side}_id"], fill_value=MISSING)
            yield _Column(f"{side}s", column, of_row.to_numpy(np.int64))


def _judge(sample: Sample, column: _Column, choices: list[_Choice]) -> Iterator[Leak]:
    """Name a column by the choice that it tells best, by being there alone if that is enough."""
    is_there = np.where(column.codes == MISSING, MISSING, 0)
    for codes, say in ((is_there, _say_there), (column.codes, _say_value)):
        told = [(choice, tell_targets(sample, codes, choice.is_chosen)) for choice in choices]
        sure = [(choice, telling) for choice, telling in told if telling is not None and telling.power >= TELLS]
        if sure:
            choice, telling = max(sure, key=lambda pair: pair[1].power)
            message = (
                f"{column.table}.{column.name} {say(column, choice, telling)}: it seems to be known only after the "
                "choice; take it out of the features"
            )
            yield Leak("known after the choice", column.table, column.name, telling.power, message)
            return


def _say_there(column: _Column, choice: _Choice, _: Telling) -> str:
    is_there = column.codes != MISSING
    inside, outside = is_there[choice.is_chosen].mean(), is_there[~choice.is_chosen].mean()
    return f"is there in {inside:.1%} of {choice.name} and in {outside:.1%} of the other events"


def _say_value(_: _Column, choice: _Choice, telling: Telling) -> str:
    return (
        f"tells {choice.name} from the others: it finds {telling.found:.1%} of them and takes {telling.mistaken:.1%} "
        "of the others for them"
    )
