"""Held-out events that training sees, and users or moments that the parts of a split share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from datamodules.clean import is_set
from datamodules.leaks.leak import Leak
from datamodules.splits import Split

FEW = 0.05
"""Parts that share at most so many users, or cross in time by at most so many events, were meant to be apart."""
LATE_USERS = 0.01
"""So many tested users with later events in training are no slip of a clock any more."""

_ADVICE = {"files": "take them out of one file", "pairs": "keep all rows of a pair in one part"}
_ADVICE_FOR_COPIES = (
    "leave copies out; if several events of a user do come at one time, set data.ties to simultaneous, and if she has "
    "an item again under another context, data.split.kind to pairs"
)

_ADVICE_FOR_LATER_EVENTS = {
    "files": "hold out the last events of each user, or all from one moment on",
    "pairs": "set data.split.kind to leave_one_out or time, since pairs is for data without times",
}


@dataclass(frozen=True)
class _Cut:
    """A moment between two parts."""

    at: int
    n_late: int
    """Training events after it."""
    n_early: int
    """Test events before it."""


def find_shared_events(split: Split) -> Iterator[Leak]:
    """Find what is in two parts, and what training sees of the time after the test began."""
    pairs = ((split.refit, split.test, "test"), (split.train, split.validation, "validation"))
    for before, held_out, name in pairs:
        if len(before) and len(held_out):
            yield from _find_same_events(before, held_out, name, split.kind)
    if not len(split.test):
        return
    if split.kind == "time" and split.test_at is not None:
        yield from _find_late_events(split.refit, split.test_at)
    if split.kind == "pairs" and "datetime" in split.refit:
        yield from _find_later_of_user(split.refit, split.test, split.kind)
    if split.kind == "files" and len(split.refit):
        yield from _find_crossings(split.refit, split.test)


def _find_same_events(before: pd.DataFrame, held_out: pd.DataFrame, name: str, kind: str) -> Iterator[Leak]:
    keys = _event_columns(before, kind)
    known = pd.MultiIndex.from_frame(before[keys])
    n = int(pd.MultiIndex.from_frame(held_out[keys]).isin(known).sum())
    if n:
        share = n / len(held_out)
        message = (
            f"{n:,} of {len(held_out):,} {name} events ({share:.1%}) are in training too, with the same "
            f"{', '.join(keys)}; {_ADVICE.get(kind, _ADVICE_FOR_COPIES)}"
        )
        yield Leak("test in training", "interactions", ", ".join(keys), share, message)


def _event_columns(events: pd.DataFrame, kind: str) -> list[str]:
    """Return what makes two events the same; a position counts anew in each file.

    Between files a weight does not tell events apart: rows of one moment that lie in two of them are one choice, seen
    in training. Where we split the rows of one table, those that differ in weight are lines of one purchase.
    """
    keys = ["user_id", "item_id"]
    if kind == "pairs" or is_set(events):
        return keys
    if kind == "files" and "datetime" in events:
        return [*keys, "datetime"]
    return keys + [name for name in ("datetime", "position", "event", "weight") if name in events]


def _find_late_events(before: pd.DataFrame, test_at: int) -> Iterator[Leak]:
    is_late = before["datetime"].to_numpy() >= test_at
    if is_late.any():
        yield _late_leak(int(is_late.sum()), len(before), f"at or after the first moment of the test, {_iso(test_at)}")


def _find_crossings(before: pd.DataFrame, test: pd.DataFrame) -> Iterator[Leak]:
    """Judge parts that come as files: nothing says whether they were to be apart by time or by user."""
    is_by_time = False
    if "datetime" in before:
        cut = _find_cut(np.sort(before["datetime"].to_numpy()), np.sort(test["datetime"].to_numpy()))
        is_by_time = cut.n_late + cut.n_early <= FEW * len(test)
        of_users = list(_find_later_of_user(before, test, "files"))
        yield from of_users
        if is_by_time and cut.n_late and not of_users:
            yield _late_leak(cut.n_late, len(before), f"later than {_iso(cut.at)}, when the test begins")
    if not is_by_time:
        yield from _find_few_shared_users(before, test)


def _find_few_shared_users(before: pd.DataFrame, test: pd.DataFrame) -> Iterator[Leak]:
    users = test["user_id"].drop_duplicates()
    n = int(users.isin(before["user_id"]).sum())
    if 0 < n <= FEW * len(users):
        message = (
            f"{n:,} of {len(users):,} test users ({n / len(users):.1%}) have events in training and all others have "
            "none; if the parts are to have different users, move each user to one part"
        )
        yield Leak("user in two parts", "interactions", "user_id", n / len(users), message)


def _find_later_of_user(before: pd.DataFrame, test: pd.DataFrame, kind: str) -> Iterator[Leak]:
    """Find users of whom training knows what came after the event to be predicted."""
    first = test.groupby("user_id")["datetime"].min()
    last = before.groupby("user_id")["datetime"].max().reindex(first.index)
    n = int((last > first).sum())
    if n > LATE_USERS * len(first):
        share = n / len(first)
        message = (
            f"{n:,} of {len(first):,} test users ({share:.1%}) have events in training that are later than their first "
            f"test event; {_ADVICE_FOR_LATER_EVENTS[kind]}"
        )
        yield Leak("test in training", "interactions", "datetime", share, message)


def _find_cut(before: np.ndarray, test: np.ndarray) -> _Cut:
    """Find the time of a test event that tells the parts best apart; both are ascending."""
    moments = np.unique(test)
    n_late = len(before) - np.searchsorted(before, moments, side="right")
    n_early = np.searchsorted(test, moments, side="left")
    best = int(np.argmin(n_late + n_early))
    return _Cut(int(moments[best]), int(n_late[best]), int(n_early[best]))


def _late_leak(n: int, n_before: int, what: str) -> Leak:
    share = n / n_before
    message = f"{n:,} of {n_before:,} training events ({share:.1%}) are {what}; move them to the test or leave them out"
    return Leak("test in training", "interactions", "datetime", share, message)


def _iso(seconds: int) -> str:
    return f"{np.datetime64(seconds, 's')}Z"
