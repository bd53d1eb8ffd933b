"""The rows of those who have events in the tables of users and items, and whether there are any."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd

from datamodules.tables import Tables
from serve.errors import SchemaError

_IDS = {"users": "user_id", "items": "item_id"}


def find_rows(table: pd.DataFrame, id_name: str, ids: np.ndarray) -> pd.DataFrame:
    """Return the row of each id, under it; one that the table does not have is of missing values.

    Integers stay integers: as floats, which have room for a gap, those above 2**53 would be others.
    """
    rows = table.set_index(id_name)
    if not pd.Index(ids).isin(rows.index).all():
        rows = rows.astype(dict.fromkeys(rows.select_dtypes("integer"), object))
    return rows.reindex(ids)


def measure_unlisted(tables: Tables, given: Collection[str]) -> dict[str, float]:
    """Return the share of the users, and of the items, of the interactions that have no row in their table.

    Args:
        tables: with an interaction at least.
        given: names of tables; of those of users and items the others are left out.
    """
    return {name: float((~_find_listed(tables, name)).mean()) for name in _IDS if name in given}


def check_joins(tables: Tables, given: Collection[str]) -> None:
    """Refuse a table in which nobody, or nothing, of the interactions has a row.

    Raises:
        SchemaError: the ids of the two are not of one kind.
    """
    for name, id_name in _IDS.items():
        rows: pd.DataFrame = getattr(tables, name)
        if name not in given or rows.empty or _find_listed(tables, name).any():
            continue
        known, asked = (frame[id_name].tolist()[0] for frame in (rows, tables.interactions))
        raise SchemaError(
            f"none of the {tables.interactions[id_name].nunique():,} {name} with events has a row in the {name} table: "
            f"{id_name} is {asked!r} in the interactions and {known!r} in the {name}; expected: ids written alike in "
            f"both; name the right column as {id_name} in data.{name}.columns, or leave out a table that is of others"
        )


def _find_listed(tables: Tables, name: str) -> pd.Series[Any]:
    """Mark the distinct ids of the interactions that have a row in a table."""
    ids = tables.interactions[_IDS[name]].drop_duplicates()
    return ids.isin(getattr(tables, name)[_IDS[name]])
