"""Set test and validation events apart, before anything is fitted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from datamodules.config import DataConfig
from serve.clock import to_seconds
from serve.errors import SchemaError

VALIDATION_USERS = 2048
"""The most users of whom an event is held out for early stopping, where not all of them are."""


@dataclass(frozen=True)
class Split:
    """Rows of the interactions, each in one part; the index is their place in the cleaned table."""

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    kind: str
    validation_at: int | None = None
    """UTC seconds at which the validation window begins; None where there is no common moment."""
    test_at: int | None = None

    @property
    def horizon(self) -> int | None:
        """Seconds of the test window of a split by time, which training looks ahead too; None: the next time group."""
        if self.validation_at is None or self.test_at is None:
            return None
        return self.test_at - self.validation_at

    @property
    def refit(self) -> pd.DataFrame:
        """Training and validation rows, in the order of the table."""
        return pd.concat([self.train, self.validation]).sort_index()


@dataclass(frozen=True)
class _Groups:
    """Where each event stands in its user's timeline; one event or one basket is a group."""

    user: np.ndarray
    """int64 (n,): number of the user, in ascending order of ids."""
    from_end: np.ndarray
    """int64 (n,): groups of the user after the one of the event; 0 in her last."""
    per_user: np.ndarray
    """int64 (U,): how many groups she has."""


def split_interactions(interactions: pd.DataFrame, config: DataConfig, seed: int) -> Split:
    """Split as `config.split` says.

    Within a user, events are in the order of time, position and place in the table. Where there is neither
    time nor position they are a set, and which one is the last is drawn by the seed.

    Args:
        interactions: cleaned rows.
        config: `split`, `ties` and `timezone` of it.
        seed: draws the users whose events are validation.

    Raises:
        SchemaError: a time split whose moment leaves one of the three parts empty.
    """
    if config.split.kind == "time":
        return _split_by_time(interactions, str(config.split.at), config.timezone)
    groups = _find_groups(interactions, config.ties == "simultaneous", np.random.default_rng(seed))
    if config.split.kind == "none":
        is_validation = _is_of_sample(groups, 0, VALIDATION_USERS, seed)
        return _take_parts(interactions, is_validation, np.zeros(len(interactions), bool), "none")
    is_test = (groups.from_end == 0) & (groups.per_user[groups.user] > 1)
    most_users = len(groups.per_user) if config.split.strict else VALIDATION_USERS
    return _take_parts(interactions, _is_of_sample(groups, 1, most_users, seed), is_test, "leave_one_out")


def _find_groups(interactions: pd.DataFrame, is_simultaneous: bool, rng: np.random.Generator) -> _Groups:
    user, ids = pd.factorize(interactions["user_id"], sort=True)
    keys = [interactions[name].to_numpy() for name in ("datetime", "position") if name in interactions]
    order = np.lexsort([*(keys or [_draw_order(interactions, rng)])[::-1], user])
    user_sorted = user[order]
    is_start = np.concatenate([[True], user_sorted[1:] != user_sorted[:-1]])
    if is_simultaneous and keys:
        moment = keys[0][order]
        is_start[1:] |= moment[1:] != moment[:-1]
    else:
        is_start[:] = True
    group = np.cumsum(is_start) - 1
    per_user = np.bincount(user_sorted[is_start], minlength=len(ids))
    from_end = np.empty(len(order), np.int64)
    from_end[order] = (np.cumsum(per_user) - 1)[user_sorted] - group
    return _Groups(user, from_end, per_user)


def _draw_order(interactions: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """Draw a rank for each event that does not depend on its place in the table."""
    item, _ = pd.factorize(interactions["item_id"], sort=True)
    user, _ = pd.factorize(interactions["user_id"], sort=True)
    rank = np.empty(len(interactions), np.int64)
    rank[np.lexsort([item, user])] = rng.permutation(len(interactions))
    return rank


def _is_of_sample(groups: _Groups, from_end: int, most_users: int, seed: int) -> np.ndarray:
    """Return the events of one group per drawn user, of users with an earlier group left to train on."""
    able = np.flatnonzero(groups.per_user > from_end + 1)
    is_drawn = np.zeros(len(groups.per_user), bool)
    is_drawn[np.random.default_rng(seed).permutation(able)[:most_users]] = True
    is_of_sample: np.ndarray = (groups.from_end == from_end) & is_drawn[groups.user]
    return is_of_sample


def _split_by_time(interactions: pd.DataFrame, at: str, timezone: str | None) -> Split:
    """Test from a moment on; the equally long window before it is validation."""
    seconds, is_valid = to_seconds([at], timezone)
    if not is_valid[0]:
        raise SchemaError(f"data.split.at is '{at}'; allowed: an ISO date or time such as 2017-12-01")
    test_at = int(seconds[0])
    times = interactions["datetime"].to_numpy()
    length = max(int(times.max()) - test_at, 1)
    validation_at = test_at - length
    if times.max() < test_at or validation_at <= times.min():
        first, last = (str(np.datetime64(int(time), "s")) for time in (times.min(), times.max()))
        raise SchemaError(
            f"data.split.at is '{at}', but the events lie between {first} and {last} UTC, and the test "
            f"window with a validation window as long before it ({length / 86400:.1f} days each) leaves "
            "nothing to train on or to test: choose another moment"
        )
    is_test = times >= test_at
    return _take_parts(interactions, (times >= validation_at) & ~is_test, is_test, "time", validation_at, test_at)


def _take_parts(
    interactions: pd.DataFrame,
    is_validation: np.ndarray,
    is_test: np.ndarray,
    kind: str,
    validation_at: int | None = None,
    test_at: int | None = None,
) -> Split:
    train = interactions[~is_validation & ~is_test]
    return Split(train, interactions[is_validation], interactions[is_test], kind, validation_at, test_at)
