"""Whether there are targets to learn from, and whether lists can hold those that are held out."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from datamodules.config import SplitConfig
from datamodules.splits import Split
from datamodules.targets import only_targets
from serve.errors import SchemaError
from serve.schema import Repeats

MANY = 0.1
"""From this share of the tested pairs on it is said that they are out of reach."""
_PAIR = ["user_id", "item_id"]


def mark_owned(part: pd.DataFrame, known: pd.DataFrame) -> pd.Series:
    """Say of each distinct pair of user and item in some rows whether the user has the item by other rows, of any kind.

    Args:
        part: rows that are held out.
        known: the rows before them.
    """
    pairs = pd.MultiIndex.from_frame(part[_PAIR].drop_duplicates())
    return pd.Series(pairs.isin(pd.MultiIndex.from_frame(known[_PAIR].drop_duplicates())), dtype=bool)


def check_targets(split: Split, repeats: Repeats) -> None:
    """Refuse a split that nothing can be learnt from, or whose test nothing can pass.

    Raises:
        SchemaError: no target is left to train on, or is in a part that is held out, or all that are held out are owned
            where no owned item is listed.
    """
    _check_training(split)
    _check_held_out(split)
    _check_reach(split, repeats)


def _check_training(split: Split) -> None:
    tested, validated = (len(only_targets(part)) for part in (split.test, split.validation))
    if only_targets(split.train).empty:
        raise SchemaError(
            f"none of the {len(split.train):,} events to train on is a target: {tested:,} are held out for the test, "
            f"{validated:,} for the validation; declare more kinds of events or a lower min_weight in data.targets, or "
            "another data.split"
        )


def _check_held_out(split: Split) -> None:
    for name, part in (("test", split.test), ("validation", split.validation)):
        if len(part) and only_targets(part).empty:
            raise SchemaError(
                f"none of the {len(part):,} events of the {name} is a target, so that nothing can be measured by it; "
                "declare more kinds of events or a lower min_weight in data.targets, or another data.split"
            )


def _check_reach(split: Split, repeats: Repeats) -> None:
    is_owned = mark_owned(only_targets(split.test), split.refit)
    if not len(is_owned):
        is_owned = mark_owned(only_targets(split.validation), split.train)
    if repeats == "exclude" and len(is_owned) and is_owned.all():
        raise SchemaError(
            f"all {len(is_owned):,} pairs of user and item that are held out as targets are of items that the user has "
            "before, by events of any kind, and data.repeats is 'exclude', under which no list holds those: every "
            "figure would be 0; set data.repeats to allow, or leave out the events, such as views, that come before "
            "each target"
        )


def check_files(split: Split, declared: SplitConfig, items: pd.DataFrame) -> None:
    """Refuse a file to test on or to stop by whose items nothing else has: every figure would be 0.

    Args:
        split: as declared.
        declared: names the files; of a part that is cut from the interactions nothing is said, as all may be new there.
        items: the items table.

    Raises:
        SchemaError: a file has targets, and the catalogue has none of their items.
    """
    for part, known in (("test", split.refit), ("validation", split.train)):
        asked = only_targets(getattr(split, part))["item_id"]
        listed = pd.concat([items["item_id"], known["item_id"]])
        if getattr(declared, part) is not None and len(asked) and not asked.isin(listed).any():
            raise SchemaError(
                f"none of the {asked.nunique():,} items of data.split.{part} is in the items table or among the "
                f"interactions to train on: item_id is {asked.iloc[0]!r} there and {listed.iloc[0]!r} here, and every "
                "figure would be 0; write ids as in the other tables"
            )


def hint_at_owned(share: float | None, repeats: Repeats) -> Iterator[str]:
    """Say how much of the test counts as missed whatever is listed, if that is much.

    Args:
        share: of the tested pairs that are owned before, None where there is no test.
        repeats: may owned items be listed?
    """
    if repeats == "exclude" and share is not None and share >= MANY:
        yield (
            f"{share:.1%} of the tested pairs are owned before, by events of any kind, and count as misses: only "
            "data.repeats: allow lists them"
        )
