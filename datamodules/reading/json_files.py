"""Read the declared keys of a JSON Lines file: one object a line, each value of the type it is written as.

The standard reader goes line by line, since it alone keeps "007", 7 and integers above 2**53 apart in one column,
tells a key that is given twice, and says of every line what is wrong with it.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from datamodules.reading.columns import Column
from datamodules.reading.raw_records import RawRecords, find_columns
from datamodules.reading.rejects import LONGEST_VALUE, reject_frame
from serve.packed_files import open_bytes


class _TwinKeysError(ValueError):
    """An object gives a key twice, and which of the two counts would be a guess."""


@dataclass
class _Scanned:
    """What a file holds, column by column; n rows."""

    cells: list[list[Any]]
    """One list of n values for each asked column; None where it is absent."""
    lines: list[int] = field(default_factory=list)
    faults: list[tuple[int, str, str]] = field(default_factory=list)
    """Line, text and reason of each record that is no row."""
    keys: dict[str, Any] = field(default_factory=dict)
    """All that were seen, in their order."""


def read_json_lines(path: Path, columns: tuple[Column, ...]) -> RawRecords:
    """Read one file; an absent key is a missing value, and a blank line is no record.

    Raises:
        SchemaError: a declared key is in no record.
    """
    scanned = _scan(path, [column.source for column in columns])
    found, dropped = find_columns(str(path), columns, scanned.keys) if scanned.lines else (columns, ())
    frame = pd.DataFrame(
        {
            column.name: _to_series(cells)
            for column, cells in zip(columns, scanned.cells, strict=True)
            if column in found
        }
    )
    lines, texts, reasons = (pd.Series(values, dtype=object) for values in _transpose(scanned.faults))
    no_column = pd.Series([None] * len(lines), dtype=object)
    rejects = reject_frame(str(path), lines.astype("int64"), no_column, texts, reasons)
    n_records = len(scanned.lines) + len(rejects)
    numbers = np.array(scanned.lines, np.int64)
    return RawRecords(str(path), found, frame, numbers, rejects, n_records, dropped, is_text=False)


def _transpose(faults: list[tuple[int, str, str]]) -> Iterable[tuple[Any, ...]]:
    return zip(*faults, strict=True) if faults else ((), (), ())


def _scan(path: Path, sources: list[str]) -> _Scanned:
    scanned = _Scanned([[] for _ in sources])
    asked = list(zip(scanned.cells, sources, strict=True))
    for number, line in _read_lines(path):
        record = _read_object(line)
        if isinstance(record, str):
            scanned.faults.append((number, line.decode(errors="replace").strip()[:LONGEST_VALUE], record))
            continue
        scanned.lines.append(number)
        scanned.keys.update(record)
        for cells, source in asked:
            cells.append(record.get(source))
    return scanned


def _read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Give the lines that are not blank, numbered from 1."""
    with open_bytes(path) as file:
        if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            file.seek(0)
        yield from ((number, line) for number, line in enumerate(file, start=1) if not line.isspace())


def _read_object(line: bytes) -> dict[str, Any] | str:
    """Return the object of a line, or why there is none."""
    try:
        record = _DECODER.decode(line.decode())
        if b"\\u" in line:  # half of a surrogate pair may be written so, and is no text
            json.dumps(record, ensure_ascii=False).encode()
    except _TwinKeysError:
        return "a key is given twice"
    except UnicodeDecodeError:
        return "not UTF-8"
    except UnicodeEncodeError:
        return "a text is not Unicode"
    except (ValueError, RecursionError):
        return "not JSON"
    return record if isinstance(record, dict) else "not a JSON object"


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise _TwinKeysError
    return record


_DECODER = json.JSONDecoder(object_pairs_hook=_refuse_twins)


def _to_series(cells: list[Any]) -> pd.Series:
    """Make a column without changing a value: of one type if all are, else of objects."""
    kinds = set(map(type, cells))
    if kinds == {str}:
        return pd.Series(cells, dtype="str")
    if kinds == {float} or kinds == {bool}:
        return pd.Series(cells)
    if kinds == {int} and min(cells) >= -(2**63) and max(cells) < 2**63:
        return pd.Series(cells, dtype="int64")
    return pd.Series(cells, dtype=object)
