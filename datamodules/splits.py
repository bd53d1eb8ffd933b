"""Set test and validation events apart before anything is fitted, and check the parts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from datamodules.clean import only_targets
from datamodules.config import DataConfig
from datamodules.sequences import count_within
from datamodules.tables import PART
from datamodules.values import TARGET_WEIGHT, is_set, mark_shared
from serve.arrays import Flags, Ints, Repeats
from serve.clock import to_seconds
from serve.errors import SchemaError

VALIDATION_USERS = 2048  # the most users with an event held out for early stopping
DEFAULT_SHARE = 0.2  # of each user's items, held out by a split by pairs
# Users of the window before a test by time, for one of the test; fewer tell nothing of it.
MIN_LIKENESS = 0.1

_PAIR = ["user_id", "item_id"]


@dataclass(frozen=True)
class Split:
    """Rows of the interactions, each in one part; the index is their row of the cleaned table."""

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    kind: str
    validation_at: int | None = None  # UTC seconds; None without a common moment
    test_at: int | None = None

    @property
    def horizon(self) -> int | None:
        """Seconds of the test of a split by time, which training looks ahead too.

        None means the next time group.
        """
        if self.validation_at is None or self.test_at is None:
            return None
        return self.test_at - self.validation_at

    @property
    def refit(self) -> pd.DataFrame:
        """Training and validation rows, in the order of the table."""
        return pd.concat([self.train, self.validation]).sort_index()

    def give_back(self) -> Split:
        """Return the same with every row in training, the test too."""
        everything = pd.concat([self.refit, self.test]).sort_index()
        nothing = self.test.iloc[:0]
        return replace(self, train=everything, validation=nothing, test=nothing)


def split_interactions(
    interactions: pd.DataFrame, config: DataConfig, seed: int
) -> Split:
    """Split as `config.split` says.

    Events of a user are in the order of time, position and row of the table; of a set, the last
    target is drawn by the seed. Where only some events are targets, the parts begin at targets,
    and the events after them go with them.

    Args:
        interactions: the cleaned table.
        config: its `split`, `ties` and `timezone` are read.
        seed: draws users and items.

    Raises:
        SchemaError: a part would be empty.
    """
    kind = config.split.kind
    if kind == "time":
        return _split_by_time(interactions, config, seed)
    if kind == "files":
        return _split_by_file(interactions, config, seed)
    if kind == "pairs":
        return _split_by_pair(interactions, config.split.share or DEFAULT_SHARE, seed)
    if kind == "none":
        is_validation = _draw_validation(interactions, config, seed)
        return _take_parts(interactions, is_validation, is_validation & False, kind)

    timeline = _order(interactions, config, seed)
    is_test = timeline.hold_out(0, seed)
    max_users = None if config.split.strict else timeline.count_users(~is_test)
    is_validation = timeline.hold_out(1, seed, max_users)

    return _take_parts(interactions, is_validation, is_test, kind)


# ---- the last events of each user


@dataclass(frozen=True)
class _Timeline:
    """The groups of each user's events: one event, one basket or, in a set, one item.

    All arrays are of the n events in the order of the table.
    """

    user: Ints  # number of the user, ascending with the ids
    n_later: Ints  # later groups of the user that hold a target
    is_head: Flags  # the first event of a group with a target

    def draw_users(self, n_later: int, seed: int, max_users: int | None) -> Flags:
        """Mark the events of users who have more than so many target groups behind an event."""
        able = np.unique(self.user[self.n_later > n_later])
        drawn = np.random.default_rng(seed).permutation(able)[:max_users]
        return np.isin(self.user, drawn)

    def hold_out(self, n_later: int, seed: int, max_users: int | None = None) -> Flags:
        """Mark a target group, counted from the last, with what follows it.

        Users without earlier events stay in training, and all but `max_users` drawn ones.
        """
        is_last = self.n_later == n_later
        return np.asarray(is_last & self.draw_users(n_later, seed, max_users))

    def count_users(self, is_left: Flags | slice = slice(None)) -> int:
        """Return the users to hold a target group out of; half of the groups stay to train on."""
        return min(VALIDATION_USERS, int(self.is_head[is_left].sum()) // 2)


def _order(interactions: pd.DataFrame, config: DataConfig, seed: int) -> _Timeline:
    """Find the groups of each user's events, and which of them hold targets."""
    n = len(interactions)
    weight = np.ones(n)
    if TARGET_WEIGHT in interactions:
        weight = interactions[TARGET_WEIGHT].to_numpy()
    has_groups = config.ties == "simultaneous"
    if is_set(interactions):
        has_groups = True
        keys = [_rank_pairs(interactions, weight > 0, seed)]
    else:
        names = [name for name in ("datetime", "position") if name in interactions]
        keys = [interactions[name].to_numpy() for name in names]

    # From here to the last lines, arrays are in the order of the timelines.
    user, _ = pd.factorize(interactions["user_id"], sort=True)
    order = np.lexsort([*reversed(keys), user])
    user = user[order]
    is_start = np.ones(n, bool)

    if has_groups:
        is_start[1:] = (np.diff(user) != 0) | (np.diff(keys[0][order]) != 0)
    group = np.cumsum(is_start) - 1
    is_head = is_start & (np.bincount(group, weight[order] > 0) > 0)[group]

    n_up_to = np.cumsum(is_head)  # target groups up to each event's own
    n_later = np.cumsum(np.bincount(user, is_head))[user] - n_up_to
    position = np.argsort(order)

    return _Timeline(user[position], n_later[position], is_head[position])


def _rank_pairs(interactions: pd.DataFrame, is_target: Flags, seed: int) -> Ints:
    """Return a drawn rank of each event's pair, targets last, (n,).

    It does not depend on the order of the table.
    """
    pairs, index = np.unique(_number_pairs(interactions)[0], return_inverse=True)
    has_target = np.bincount(index, is_target) > 0  # (pairs,)
    lot = np.random.default_rng(seed).permutation(len(pairs))
    return np.argsort(np.lexsort((lot, has_target)))[index]


def _number_pairs(interactions: pd.DataFrame) -> tuple[Ints, int]:
    """Return user * number of items + item of each event, (n,), and the number of items."""
    user, _ = pd.factorize(interactions["user_id"], sort=True)
    item, items = pd.factorize(interactions["item_id"], sort=True)
    return user * len(items) + item, len(items)


def _draw_validation(
    interactions: pd.DataFrame, config: DataConfig, seed: int
) -> Flags:
    """Mark the events that stop a training on all rows, (n,).

    These are the last target group of drawn users; in a set a share of their items.
    """
    timeline = _order(interactions, config, seed)
    if is_set(interactions) and TARGET_WEIGHT not in interactions:
        is_drawn = timeline.draw_users(0, seed, VALIDATION_USERS)
        rng = np.random.default_rng(seed)
        is_validation = _draw_items(interactions, is_drawn, DEFAULT_SHARE, rng)
        if is_validation.any():
            return is_validation

    return timeline.hold_out(0, seed, timeline.count_users())


# ---- pairs, files and time


def _split_by_pair(interactions: pd.DataFrame, share: float, seed: int) -> Split:
    """Hold out a share of every user's items, and as much of the rest to stop by."""
    rng = np.random.default_rng(seed)
    everything = np.ones(len(interactions), bool)
    is_test = _draw_items(interactions, everything, share, rng)
    is_validation = _draw_items(interactions, ~is_test, share, rng)
    if not is_test.any():
        raise SchemaError(
            f"data.split.share is {share:g}, but no user has enough items to hold one out: raise it"
        )

    return _take_parts(interactions, is_validation, is_test, "pairs")


def _draw_items(
    interactions: pd.DataFrame,
    is_left: Flags,
    share: float,
    rng: np.random.Generator,
) -> Flags:
    """Mark a share of each user's items among the rows that are left; one item stays, (n,)."""
    pair, n_items = _number_pairs(interactions)
    pairs = np.unique(pair[is_left])
    owner = pairs // n_items  # (pairs,) ascending
    order = np.lexsort((rng.permutation(len(pairs)), owner))
    sizes = np.bincount(owner)  # (users,)
    n_drawn = np.minimum(np.floor(sizes * share + 0.5), sizes - 1)  # (users,)
    is_drawn = count_within(sizes) < n_drawn[owner]  # (pairs,)

    return np.isin(pair, pairs[order][is_drawn]) & is_left


def _split_by_file(interactions: pd.DataFrame, config: DataConfig, seed: int) -> Split:
    """Take the parts as given; without a file of validation it is drawn from the training rows."""
    part = interactions[PART].to_numpy()
    rows = interactions.drop(columns=PART)
    is_test = part == "test"
    is_validation = part == "validation"
    if config.split.validation is None and not is_test.all():
        is_validation[~is_test] = _draw_validation(rows[~is_test], config, seed)
    return _take_parts(rows, is_validation, is_test, "files")


def _split_by_time(interactions: pd.DataFrame, config: DataConfig, seed: int) -> Split:
    """Test from a moment on; the equally long window before it is validation.

    Where hardly anybody comes in that window, the last groups of drawn users are. So it is where
    all of the test is dated alike.
    """
    at = str(config.split.at)
    seconds, is_valid = to_seconds([at], config.timezone)
    if not is_valid[0]:
        raise SchemaError(
            f"data.split.at is '{at}'; allowed: an ISO date or time such as 2017-12-01"
        )

    times = interactions["datetime"].to_numpy()
    first = int(times.min())
    last = int(times.max())
    test_at = int(seconds[0])
    validation_at = test_at - max(last - test_at, 1)

    if last < test_at or validation_at <= first:
        dates = f"{np.datetime64(first, 's')} and {np.datetime64(last, 's')}"
        raise SchemaError(
            f"data.split.at is '{at}', the events lie between {dates} UTC: a test and a validation "
            "as long leave nothing to train on or to test; choose another moment"
        )

    is_test = times >= test_at
    is_validation = (times >= validation_at) & ~is_test
    users = interactions["user_id"]
    likeness = users[is_validation].nunique() / users[is_test].nunique()
    if likeness >= MIN_LIKENESS:
        parts = _take_parts(interactions, is_validation, is_test, "time")
        return replace(parts, validation_at=validation_at, test_at=test_at)

    is_validation[:] = False
    is_validation[~is_test] = _draw_validation(interactions[~is_test], config, seed)
    parts = _take_parts(interactions, is_validation, is_test, "time")
    return replace(parts, test_at=test_at)


def _take_parts(
    rows: pd.DataFrame, is_validation: Flags, is_test: Flags, kind: str
) -> Split:
    train = rows[~is_validation & ~is_test]
    return Split(train, rows[is_validation], rows[is_test], kind)


# ---- checks


def check_counts(interactions: pd.DataFrame) -> None:
    """Refuse events of a single user, or on a single item, by a `SchemaError`."""
    for name in _PAIR:
        ids = interactions[name].drop_duplicates().tolist()
        if len(ids) == 1:
            side = name.removesuffix("_id")
            raise SchemaError(
                f"the {len(interactions):,} events have one {side}, {ids[0]!r}; allowed: two or "
                f"more; is another column data.interactions.columns.{name}?"
            )


def mark_owned(part: pd.DataFrame, known: pd.DataFrame) -> Flags:
    """Mark which distinct pairs of user and item of held-out rows are in the known rows too."""
    return mark_shared(part.drop_duplicates(_PAIR), known, _PAIR)


def check_targets(split: Split, repeats: Repeats) -> None:
    """Refuse a split that cannot be learned or measured.

    Raises:
        SchemaError: a part has no target, or all held-out targets are owned where owned items are
            never listed.
    """
    if split.kind == "leave_one_out" and not len(split.test):
        raise SchemaError(
            "no user has two events or more, so that data.split.kind: leave_one_out leaves "
            "nothing to test on; give more events, or data.split.kind: none"
        )

    parts = (split.train, split.test, split.validation)
    for name, part in zip(("training", "test", "validation"), parts, strict=True):
        if not len(only_targets(part)) and (len(part) or name == "training"):
            raise SchemaError(
                f"none of the {len(part):,} events of the {name} is a target; "
                "change data.targets or data.split"
            )

    is_owned = mark_owned(only_targets(split.test), split.refit)
    if not len(is_owned):
        is_owned = mark_owned(only_targets(split.validation), split.train)
    if repeats == "exclude" and len(is_owned) and is_owned.all():
        raise SchemaError(
            f"all {len(is_owned):,} held-out pairs of user and item are owned before, by events of "
            "any kind, which data.repeats: exclude never lists; set data.repeats to allow, or "
            "leave out the events before each target"
        )
