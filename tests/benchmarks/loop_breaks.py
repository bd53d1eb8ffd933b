"""What breaks in the simulated shop of loop.py: a join, a pipeline, or the weights that a training begins with."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd

BREAKS = ("shuffled join", "lost events", "stale weights")
"""Of seeds 0, 1, 2, 3, ...: earlier events have the items of others, a third of them is lost, or a training begins
with the weights of the first version."""
LOST = 1 / 3


def break_data(folder: Path, state: Path, broken: str, at: int) -> Path:
    """Break what was before a moment, in the table and in a copy of the log.

    Args:
        folder: of the table, which is written anew, and for the copy.
        state: folder of the log, which stays as it is.
        broken: how; what is not broken by its data is left whole.
        at: UTC seconds.

    Returns:
        Folder of the state to train on.
    """
    if broken not in ("shuffled join", "lost events"):
        return state
    copy = folder / "broken" / "state"
    copy.mkdir(parents=True)
    with (
        contextlib.closing(sqlite3.connect(state / "state.db", timeout=60)) as whole,
        contextlib.closing(sqlite3.connect(copy / "state.db")) as log,
    ):
        whole.backup(log)
        break_log(log, broken, at)

    rng = np.random.default_rng(0)
    events = pd.read_csv(folder / "events.csv")
    if broken == "shuffled join":
        events["item_id"] = rng.permutation(events["item_id"])
    else:
        events = events[rng.random(len(events)) > LOST]
    events.to_csv(folder / "events.csv", index=False)
    return copy


def break_log(log: sqlite3.Connection, broken: str, at: int) -> None:
    """Give the events before a moment the items of other events, or lose a third of them."""
    rng = np.random.default_rng(0)
    select = "SELECT number, item_id FROM event_rows WHERE datetime < ?"
    numbers, items = zip(*log.execute(select, (at,)), strict=True)
    with log:
        if broken == "shuffled join":
            others = [items[place] for place in rng.permutation(len(items))]
            pairs = zip(others, numbers, strict=True)
            log.executemany("UPDATE event_rows SET item_id = ? WHERE number = ?", pairs)
        else:
            lost = np.flatnonzero(rng.random(len(numbers)) < LOST)
            chosen = [(numbers[place],) for place in lost]
            log.executemany("DELETE FROM event_rows WHERE number = ?", chosen)
