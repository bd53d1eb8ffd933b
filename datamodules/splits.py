"""Test and validation events set apart before anything is fitted, and checks that they can be learned and measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from datamodules.clean import only_targets
from datamodules.config import DataConfig, SplitConfig
from datamodules.tables import PART, TARGET_WEIGHT, is_set
from serve.clock import to_seconds
from serve.errors import SchemaError
from serve.schema import Repeats

_PAIR = ["user_id", "item_id"]
VALIDATION_USERS = 2048  # the most users of whom an event is held out for early stopping, where not all of them are
DEFAULT_SHARE = 0.2  # of each user's items, held out by a split by pairs


@dataclass(frozen=True)
class Split:
    """Rows of the interactions, each in one part; the index is their place in the cleaned table."""

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    kind: str
    validation_at: int | None = (
        None  # UTC seconds at which validation begins; None without a common moment
    )
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
    """Where each event stands in its user's timeline; one event, one basket or, in a set, one item is a group."""

    user: np.ndarray  # int64 (n,): number of the user, in ascending order of ids
    from_end: (
        np.ndarray
    )  # int64 (n,): later groups of the user that hold a target; 0 from the last one on
    is_able: np.ndarray  # bool (n, 2): there are events before the user's last, second-last group with a target
    is_head: np.ndarray  # bool (n,): the first event of a group with a target


def split_interactions(
    interactions: pd.DataFrame, config: DataConfig, seed: int
) -> Split:
    """Split as `config.split` says.

    Events of a user are in the order of time, position and place in the table; of a set, the last target is drawn by
    the seed. Where only some events are targets, the parts begin at targets, and events after them go with them.
    """
    if config.split.kind == "time":
        return _split_by_time(interactions, str(config.split.at), config.timezone)
    if config.split.kind == "files":
        return _split_by_file(interactions, config, seed)
    if config.split.kind == "pairs":
        return _split_by_pair(
            interactions,
            DEFAULT_SHARE if config.split.share is None else config.split.share,
            seed,
        )
    if config.split.kind == "none":
        is_test = np.zeros(len(interactions), bool)
        return _take_parts(
            interactions, _draw_validation(interactions, config, seed), is_test, "none"
        )
    groups = _group(interactions, config, seed)
    is_test = (groups.from_end == 0) & groups.is_able[:, 0]
    most_users = (
        len(interactions) if config.split.strict else _count_users(groups, ~is_test)
    )
    return _take_parts(
        interactions,
        _is_of_sample(groups, 1, most_users, seed),
        is_test,
        "leave_one_out",
    )


def _draw_validation(
    interactions: pd.DataFrame, config: DataConfig, seed: int
) -> np.ndarray:
    """Mark what stops training on all rows: of sampled users the last target group, in a set a share of the items."""
    groups = _group(interactions, config, seed)
    if is_set(interactions) and TARGET_WEIGHT not in interactions:
        is_drawn = np.isin(groups.user, _draw_users(groups, 0, VALIDATION_USERS, seed))
        is_share = _draw_items(
            interactions, is_drawn, DEFAULT_SHARE, np.random.default_rng(seed)
        )
        if is_share.any():
            return is_share
    return _is_of_sample(
        groups, 0, _count_users(groups, np.ones(len(groups.user), bool)), seed
    )


def _count_users(groups: _Groups, is_left: np.ndarray) -> int:
    """Return of how many users a target group is held out: half of those that are left stay to be learned from."""
    return min(VALIDATION_USERS, int((groups.is_head & is_left).sum()) // 2)


def _group(interactions: pd.DataFrame, config: DataConfig, seed: int) -> _Groups:
    """Find the groups of each user's timeline and which of them hold targets."""
    user, _ = pd.factorize(interactions["user_id"], sort=True)
    keys = [
        interactions[name].to_numpy()
        for name in ("datetime", "position")
        if name in interactions
    ]
    weight = (
        interactions[TARGET_WEIGHT].to_numpy()
        if TARGET_WEIGHT in interactions
        else np.ones(len(user))
    )
    unordered = is_set(interactions)
    if unordered:  # targets last; else a rank of each pair that does not depend on its place in the table
        pairs, index = np.unique(_number_pairs(interactions)[0], return_inverse=True)
        is_target = np.bincount(index, weight > 0) > 0  # (pairs,)
        keys = [
            np.lexsort(
                (np.random.default_rng(seed).permutation(len(pairs)), is_target)
            ).argsort()[index]
        ]
    order = np.lexsort([*keys[::-1], user])
    user_sorted = user[order]
    same = interactions["item_id"].to_numpy() if unordered else keys[0]
    is_start = np.ones(len(order), bool)
    if unordered or config.ties == "simultaneous":
        is_start[1:] = (user_sorted[1:] != user_sorted[:-1]) | (
            same[order][1:] != same[order][:-1]
        )
    group = np.cumsum(is_start) - 1
    first_event = np.searchsorted(user_sorted, np.arange(user_sorted[-1] + 1))
    is_target = np.isin(np.arange(group[-1] + 1), group[weight[order] > 0])  # (groups,)
    up_to = np.cumsum(is_target)  # targets up to and with each group
    last_of_user = np.append(group[first_event[1:]] - 1, group[-1])
    later = up_to[last_of_user[user_sorted]] - up_to[group]
    most = np.maximum.reduceat(later, first_event)[user_sorted]
    from_end = np.empty(len(order), np.int64)
    is_able = np.empty((len(order), 2), bool)
    is_head = np.empty(len(order), bool)
    from_end[order] = later
    is_able[order] = np.stack([most > 0, most > 1], axis=1)
    is_head[order] = is_target[group] & np.append(True, group[1:] != group[:-1])
    return _Groups(user, from_end, is_able, is_head)


def _number_pairs(interactions: pd.DataFrame) -> tuple[np.ndarray, int]:
    """Return a number of each row's (user, item) pair, (n,): user * number of items + item; and the number of items."""
    user, _ = pd.factorize(interactions["user_id"], sort=True)
    item, items = pd.factorize(interactions["item_id"], sort=True)
    return user * len(items) + item, len(items)


def _is_of_sample(
    groups: _Groups, from_end: int, most_users: int, seed: int
) -> np.ndarray:
    """Mark one target group, with what follows it, of drawn users who have earlier events left to train on."""
    is_drawn = np.isin(groups.user, _draw_users(groups, from_end, most_users, seed))
    return np.asarray((groups.from_end == from_end) & is_drawn)


def _draw_users(
    groups: _Groups, from_end: int, most_users: int, seed: int
) -> np.ndarray:
    able = np.unique(groups.user[groups.is_able[:, from_end]])
    return np.asarray(np.random.default_rng(seed).permutation(able)[:most_users])


def _split_by_pair(interactions: pd.DataFrame, share: float, seed: int) -> Split:
    """Hold out a share of every user's items, all events on them together; of the rest as much again to stop by."""
    rng = np.random.default_rng(seed)
    is_test = _draw_items(interactions, np.ones(len(interactions), bool), share, rng)
    is_validation = _draw_items(interactions, ~is_test, share, rng)
    if not is_test.any():
        raise SchemaError(
            f"data.split.share is {share:g}, but no user has enough items to hold one out: raise it"
        )
    return _take_parts(interactions, is_validation, is_test, "pairs")


def _draw_items(
    interactions: pd.DataFrame,
    is_left: np.ndarray,
    share: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Mark the rows of a share of each user's items, of those whose rows are left; one item stays with each user."""
    pair, n_items = _number_pairs(interactions)
    pairs = np.unique(pair[is_left])
    owner = pairs // n_items
    order = np.lexsort((rng.permutation(len(pairs)), owner))
    size = np.bincount(owner)
    rank = (
        np.arange(len(pairs)) - (np.cumsum(size) - size)[owner]
    )  # pairs are ascending, so owners are
    n_drawn = np.minimum(np.floor(size * share + 0.5), size - 1)
    return np.asarray(np.isin(pair, pairs[order][rank < n_drawn[owner]]) & is_left)


def _split_by_file(interactions: pd.DataFrame, config: DataConfig, seed: int) -> Split:
    """Take the parts as given; without a file of validation it is drawn from the training rows."""
    part = interactions[PART].to_numpy()
    rows = interactions.drop(columns=PART)
    is_test = part == "test"
    is_validation = part == "validation"
    if config.split.validation is None and not is_test.all():
        is_validation[~is_test] = _draw_validation(rows[~is_test], config, seed)
    return _take_parts(rows, is_validation, is_test, "files")


def _split_by_time(interactions: pd.DataFrame, at: str, timezone: str | None) -> Split:
    """Test from a moment on; the equally long window before it is validation."""
    seconds, is_valid = to_seconds([at], timezone)
    if not is_valid[0]:
        raise SchemaError(
            f"data.split.at is '{at}'; allowed: an ISO date or time such as 2017-12-01"
        )
    test_at = int(seconds[0])
    times = interactions["datetime"].to_numpy()
    length = max(int(times.max()) - test_at, 1)
    validation_at = test_at - length
    if times.max() < test_at or validation_at <= times.min():
        first, last = (
            str(np.datetime64(int(time), "s")) for time in (times.min(), times.max())
        )
        raise SchemaError(
            f"data.split.at is '{at}', the events lie between {first} and {last} UTC: a test and a validation as long "
            "leave nothing to train on or to test; choose another moment"
        )
    is_test = times >= test_at
    return _take_parts(
        interactions,
        (times >= validation_at) & ~is_test,
        is_test,
        "time",
        validation_at,
        test_at,
    )


def _take_parts(
    rows: pd.DataFrame,
    is_validation: np.ndarray,
    is_test: np.ndarray,
    kind: str,
    *moments: int,
) -> Split:
    return Split(
        rows[~is_validation & ~is_test],
        rows[is_validation],
        rows[is_test],
        kind,
        *moments,
    )


def mark_owned(part: pd.DataFrame, known: pd.DataFrame) -> pd.Series:
    """Mark which distinct pairs of user and item of held-out rows are in the known rows before them, of any kind."""
    pairs = pd.MultiIndex.from_frame(part[_PAIR].drop_duplicates())
    return pd.Series(
        pairs.isin(pd.MultiIndex.from_frame(known[_PAIR].drop_duplicates())), dtype=bool
    )


def check_targets(split: Split, repeats: Repeats) -> None:
    """Refuse a split of which a part has no target, or all held-out ones are owned where no owned item is listed."""
    parts = {
        "training": split.train,
        "test": split.test,
        "validation": split.validation,
    }
    counts = {name: len(only_targets(part)) for name, part in parts.items()}
    for name, part in parts.items():
        if not counts[name] and (len(part) or name == "training"):
            raise SchemaError(
                f"none of the {len(part):,} events of the {name} is a target (targets: {counts}); change data.targets "
                "or data.split"
            )
    is_owned = mark_owned(only_targets(split.test), split.refit)
    if not len(is_owned):
        is_owned = mark_owned(only_targets(split.validation), split.train)
    if repeats == "exclude" and len(is_owned) and is_owned.all():
        raise SchemaError(
            f"all {len(is_owned):,} held-out pairs of user and item are owned before, by events of any kind, which "
            "data.repeats: exclude never lists; set data.repeats to allow, or leave out the events before each target"
        )


def check_files(split: Split, declared: SplitConfig, items: pd.DataFrame) -> None:
    """Refuse a declared file to test on or to stop by whose items nothing else has: every figure would be 0."""
    for part, known in (("test", split.refit), ("validation", split.train)):
        asked = only_targets(getattr(split, part))["item_id"]
        listed = pd.concat([items["item_id"], known["item_id"]])
        if (
            getattr(declared, part) is not None
            and len(asked)
            and not asked.isin(listed).any()
        ):
            raise SchemaError(
                f"none of the {asked.nunique():,} items of data.split.{part} is among the items or in training: "
                f"item_id is {asked.iloc[0]!r} there and {listed.iloc[0]!r} here; write ids as in the other tables"
            )
