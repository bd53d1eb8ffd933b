"""Records of users who are to be forgotten, left out before anything is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from datamodules.reading.raw_records import RawRecords
from serve.encoding import to_text
from serve.state.tombstones import Tombstones

_OWNER = "user_id"


def leave_out_forgotten(
    raw: Mapping[str, list[RawRecords]], tombstones: Tombstones
) -> tuple[dict[str, list[RawRecords]], dict[str, int]]:
    """Take the records of such users out of all tables, and count them by table.

    A record that could not be taken apart does not say whose it is: its text, which rejects would show, goes.
    """
    if not len(tombstones):
        return dict(raw), {}
    kept = {name: [_leave_out(file, tombstones) for file in files] for name, files in raw.items()}
    gone = {
        name: sum(file.n_records for file in files) - sum(file.n_records for file in kept[name])
        for name, files in raw.items()
    }
    return kept, {name: count for name, count in gone.items() if count}


def _leave_out(raw: RawRecords, tombstones: Tombstones) -> RawRecords:
    if _OWNER not in raw.frame:
        return raw
    is_kept = ~_are_forgotten(raw.frame[_OWNER], tombstones)
    return replace(
        raw,
        frame=raw.frame[is_kept].reset_index(drop=True),
        lines=raw.lines[is_kept],
        rejects=raw.rejects.assign(value=pd.Series(None, raw.rejects.index, dtype="str")),
        n_records=raw.n_records - int(np.count_nonzero(~is_kept)),
    )


def _are_forgotten(ids: pd.Series, tombstones: Tombstones) -> np.ndarray:
    """Look each distinct id up once."""
    texts = pd.Series([_write(user_id) for user_id in ids], dtype=object)
    codes, distinct = pd.factorize(texts)
    is_forgotten = np.array([*map(tombstones.holds, distinct), False], dtype=bool)  # the last for a missing id
    return is_forgotten[codes]


def _write(user_id: object) -> str | None:
    """Return an id as it would be written: texts as they are, 7.0 as 7."""
    return user_id if isinstance(user_id, str) else to_text(user_id)
