"""Interactions and users from CSV, also as `.csv.gz`, or Parquet, with ids and times as a bundle knows them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from serve.clock import to_seconds
from serve.encoding import to_numbers, to_text
from serve.errors import SchemaError, name_nearest, say
from serve.request_values import parse_id
from serve.requests import DERIVED
from serve.schema import Feature, IdType, Schema


def read_interactions(path: Path, schema: Schema) -> pd.DataFrame:
    """Read `user_id`, `item_id` and what there is of `datetime`, `position`, `event`, `weight` and context.

    Raises:
        SchemaError: no such file, not CSV or Parquet, a column missing, or a value that cannot be read.
    """
    frame = _read_frame(path)
    _check_columns(frame, ("user_id", "item_id"), path)
    columns = {
        "user_id": _read_ids(frame["user_id"], schema.user_id_type, f"{path.name}: user_id"),
        "item_id": _read_ids(frame["item_id"], schema.item_id_type, f"{path.name}: item_id"),
    }
    if "datetime" in frame:
        columns["datetime"] = _read_times(frame["datetime"], schema.timezone, f"{path.name}: datetime")
    if "position" in frame:
        columns["position"] = _read_positions(frame["position"], f"{path.name}: position")
    if "weight" in frame:
        columns["weight"] = _read_weights(frame["weight"], f"{path.name}: weight")
    if "event" in frame:
        columns["event"] = np.array([to_text(value) for value in frame["event"]], object)
    stated = [feature for feature in schema.context_features if feature.kind not in DERIVED]
    stated = [feature for feature in stated if feature.column not in columns]  # our own are what training read them as
    return pd.DataFrame(columns | _read_features(frame, stated, path))


def read_users(path: Path, schema: Schema) -> pd.DataFrame:
    """Read `user_id` and the columns of the user features.

    Raises:
        SchemaError: as for interactions, or a user in two rows.
    """
    frame = _read_frame(path)
    features = [feature for feature in schema.user_features if feature.kind not in DERIVED]
    _check_columns(frame, ("user_id", *(feature.column for feature in features)), path)
    ids = _read_ids(frame["user_id"], schema.user_id_type, f"{path.name}: user_id")
    users = pd.DataFrame({"user_id": ids} | _read_features(frame, features, path))
    is_twin = users["user_id"].duplicated()
    if is_twin.any():
        first = users["user_id"][is_twin].tolist()[0]
        raise SchemaError(f"{path.name}: user_id {first!r} is there twice; keep one row")
    return users


def read_moment(text: str, timezone: str | None) -> int:
    """Read an ISO date or time, or an epoch number, as UTC seconds."""
    seconds, is_valid = to_seconds([text], timezone)
    if not is_valid[0]:
        raise SchemaError(f"moment '{text}' cannot be read; allowed: an ISO date or time such as 2017-12-01")
    return int(seconds[0])


def _read_csv(path: Path) -> pd.DataFrame:
    """Read all cells as text: an id such as 007, or NA, is what it says.

    The header is read as a record is: where records have a cell more than it, pandas would take the first one for an
    index and shift the others, and of two columns of one name it would rename the second.
    """
    cells = pd.read_csv(path, header=None, dtype=str, keep_default_na=False, na_values=[""])
    return cells[1:].set_axis(cells.iloc[0].tolist(), axis=1).reset_index(drop=True)


_READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    ".csv": _read_csv,
    ".csv.gz": _read_csv,
    ".parquet": pd.read_parquet,
}


def _read_frame(path: Path) -> pd.DataFrame:
    kind = "".join(path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:])
    read = _READERS.get(kind.lower())
    if read is None:
        raise SchemaError(f"{path.name}: cannot read '{kind}'; allowed: {', '.join(_READERS)}")
    if not path.is_file():
        raise SchemaError(f"{path}: no such file")
    try:
        frame = read(path)
    except (ValueError, OSError, EOFError, zlib.error) as error:  # of pandas' and Arrow's parsers, and of gzip
        raise SchemaError(f"{path}: cannot be read: {say(error)}") from error
    is_twin = frame.columns.duplicated() & frame.columns.notna()
    if is_twin.any():
        raise SchemaError(f"{path.name}: two columns are called '{frame.columns[is_twin][0]}'; rename all but one")
    return frame


def _check_columns(frame: pd.DataFrame, needed: Iterable[str], path: Path) -> None:
    for column in needed:
        if column not in frame:
            raise SchemaError(f"{path.name}: no column '{column}'; {name_nearest(column, map(str, frame))}")


def _read_ids(column: pd.Series[Any], id_type: IdType, where: str) -> np.ndarray:
    _refuse_missing(column.isna().to_numpy(), column, where)
    try:
        codes, values = pd.factorize(column)
    except TypeError as error:  # of values that cannot be hashed
        raise SchemaError(f"{where} holds lists; allowed: whole numbers or texts") from error
    kind = np.int64 if id_type == "integer" else object
    return np.array([parse_id(value, id_type, where) for value in values], kind)[codes]


def _read_times(column: pd.Series[Any], timezone: str | None, where: str) -> np.ndarray:
    seconds, is_valid = to_seconds(column.to_numpy(), timezone)
    _refuse_missing(~is_valid, column, where)
    return seconds


def _read_positions(column: pd.Series[Any], where: str) -> np.ndarray:
    positions = pd.to_numeric(column, errors="coerce")
    _refuse_missing(~np.isfinite(positions.to_numpy(np.float64)), column, where)
    return positions.to_numpy()


def _read_weights(column: pd.Series[Any], where: str) -> np.ndarray:
    weights = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    _refuse_missing(~(np.isfinite(weights) & (weights >= 0)), column, where)
    return weights


def _refuse_missing(is_bad: np.ndarray, column: pd.Series[Any], where: str) -> None:
    if is_bad.any():
        row = int(is_bad.argmax())
        got = f"{column.iloc[[row]].tolist()[0]!r} in record {row + 1}"  # of Python, not np.int64(-1)
        raise SchemaError(f"{where} is {got}, which cannot be read; mend it or leave the record out")


def _read_features(frame: pd.DataFrame, features: Iterable[Feature], path: Path) -> dict[str, Any]:
    """Return the columns that the frame has of the features, numbers as float64."""
    known = [feature for feature in features if feature.column in frame]
    for feature in known:
        if feature.kind == "categorical" and any(map(pd.api.types.is_list_like, frame[feature.column])):
            raise SchemaError(f"{path.name}: {feature.column} holds lists; expected one value each, as categorical")
    return {
        feature.column: to_numbers(feature, frame[feature.column].to_numpy())
        if feature.is_numeric
        else frame[feature.column].to_numpy(object)
        for feature in known
    }
