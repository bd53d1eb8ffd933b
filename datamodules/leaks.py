"""Leaks: held-out events in training, columns that give the item away, counts of the test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from datamodules.config import DataConfig
from datamodules.splits import Split
from datamodules.tables import Tables
from datamodules.values import is_set, mark_shared
from serve.arrays import Flags, Ints
from serve.cells import join_text
from serve.errors import SchemaError

MAX_ROWS = 200_000  # training rows on which columns are measured
MAX_ROWS_PER_USER = 2_000
MIN_ROWS = 100  # a column with fewer decisive rows is not judged
MIN_ITEMS = 100  # tested items; a column of the items with fewer is not judged
N_RANGES = 16  # equally full ranges that numbers are put into
LATE_USERS = 0.01  # a clock's slip explains a smaller share of late users
GIVES_AWAY = 0.5  # a column of this power is a leak
FACT = 0.9  # a column of this power is a fact of the item
MISSING = -1  # code of a missing cell
ADVICE = {
    "identifies the item": "take it out of the context",
    "fact of the item": "make it a feature of the items",
    "known after the choice": "take it out if a request cannot know it",
}


@dataclass(frozen=True)
class Leak:
    """A column that seems to give the target away, or held-out events that training sees."""

    kind: str
    column: str  # TABLE.COLUMN; several columns, joined by commas, if events are compared by them
    power: float  # 0 (says nothing) to 1 (tells all)
    message: str  # one line for a person: the figures, and what to do


def find_leaks(tables: Tables, split: Split, config: DataConfig) -> tuple[Leak, ...]:
    """Look for leaks in the parts of the split, the request context and the items.

    Args:
        tables: cleaned; the columns of the items are judged.
        split: the parts of the interactions.
        config: declares the features.
    """
    leaks = [*_find_shared_events(split), *_find_late_users(split)]
    if len(split.refit) and config.features.context:
        leaks += _find_context_leaks(_draw_sample(split.refit), config)
    return (*leaks, *_find_item_leaks(tables, split, config))


def stop_on_leaks(leaks: Sequence[Leak]) -> None:
    """Refuse data with leaks.

    Raises:
        SchemaError: there are leaks; all are named.
    """
    if leaks:
        messages = "; ".join(leak.message for leak in leaks)
        raise SchemaError(
            f"data.leaks is 'stop' and {len(leaks)} found: {messages}. "
            "Mend the data, or set leaks to warn"
        )


def code_cells(cells: pd.Series[Any]) -> Ints:
    """Number the values of a column, equal values alike; `MISSING` where features read none."""
    if cells.dtype == "object":
        cells = cells.map(
            lambda cell: tuple(cell) if isinstance(cell, (list, np.ndarray)) else cell
        )

    codes, values = pd.factorize(cells)
    is_missing = [join_text(value) is None for value in values]
    return np.where(np.append(is_missing, True)[codes], MISSING, codes)


def _gain(share: float, chance: float) -> float:
    """Return how far a share has come from chance (0) to certainty (1)."""
    return (share - chance) / (1 - chance) if chance < 1 else 0.0


# ---- parts of the split


def _find_shared_events(split: Split) -> Iterator[Leak]:
    """Find held-out events that are in training too."""
    for before, held_out, name in (
        (split.refit, split.test, "test"),
        (split.train, split.validation, "validation"),
    ):
        keys = _event_columns(before, split.kind)
        n = int(mark_shared(held_out, before, keys).sum())
        if n:
            columns = ", ".join(keys)
            message = (
                f"{n:,} of {len(held_out):,} {name} events are in training too, "
                f"by {columns}; take them out"
            )
            yield Leak(
                "test in training",
                f"interactions.{columns}",
                n / len(held_out),
                message,
            )


def _event_columns(events: pd.DataFrame, kind: str) -> list[str]:
    """Return the columns that make two events the same.

    Between files a position counts anew, and a weight tells no events apart.
    """
    pair = ["user_id", "item_id"]
    if kind == "pairs" or is_set(events):
        return pair
    others = ["datetime", "position", "event", "weight"]
    if kind == "files" and "datetime" in events:
        others = ["datetime"]
    return pair + [name for name in others if name in events]


def _find_late_users(split: Split) -> Iterator[Leak]:
    """Find users whose training events are later than their first test event."""
    if split.kind not in ("files", "pairs") or "datetime" not in split.refit:
        return
    first = split.test.groupby("user_id")["datetime"].min()
    last = split.refit.groupby("user_id")["datetime"].max()
    share = float((last.reindex(first.index) > first).mean())
    if share > LATE_USERS:
        message = (
            f"{share:.1%} of the test users have training events after their first "
            "test event; hold these out"
        )
        yield Leak("test in training", "interactions.datetime", share, message)


# ---- columns of the request context


@dataclass(frozen=True)
class _Sample:
    """Training rows of whole users: guesses are learned from one half, and measured on the other.

    Arrays are of the n rows; a pair of neighbours is of two different items.
    """

    rows: pd.DataFrame
    item: Ints
    is_learnt: Flags
    neighbours: list[tuple[Ints, Ints]]  # rows that follow each other, by user, by time


def _draw_sample(rows: pd.DataFrame) -> _Sample:
    """Draw users by a fixed seed until `MAX_ROWS` are reached."""
    rng = np.random.default_rng(0)
    rows = rows.groupby("user_id").head(MAX_ROWS_PER_USER)
    sizes = rows["user_id"].value_counts().sort_index()
    drawn = sizes.iloc[rng.permutation(len(sizes))]
    rows = rows[rows["user_id"].isin(drawn.index[drawn.cumsum() <= MAX_ROWS])]
    user, users = pd.factorize(rows["user_id"], sort=True)
    item, items = pd.factorize(rows["item_id"], sort=True)

    # The rows of one moment may stand in any order, but not in that of the item.
    rank = rng.permutation(len(items))[item]
    names = [name for name in ("position", "datetime") if name in rows]
    keys = [rank, *(rows[name].to_numpy() for name in names)]
    neighbours = [_pair_up(np.lexsort([*keys, user]), item, user)]

    if "datetime" in rows:
        together = np.zeros(len(rows), np.int64)
        neighbours.append(_pair_up(np.lexsort(keys), item, together))

    is_learnt = rng.permutation(len(users)) < len(users) // 2  # (users,)
    return _Sample(rows, item, is_learnt[user], neighbours)


def _pair_up(order: Ints, item: Ints, group: Ints) -> tuple[Ints, Ints]:
    """Pair each row with those before and after it in its group, where the item is another."""
    left = order[:-1]
    right = order[1:]
    is_pair = (group[left] == group[right]) & (item[left] != item[right])
    left = left[is_pair]
    right = right[is_pair]

    return np.concatenate([left, right]), np.concatenate([right, left])


def _find_context_leaks(sample: _Sample, config: DataConfig) -> Iterator[Leak]:
    """Judge each column of the context by what it and the item tell of each other."""
    kinds = config.features.kinds_of("context")
    kinds.pop("datetime", None)

    for column, of_column in kinds.items():
        codes = code_cells(sample.rows[column])
        ranges = codes
        if of_column == "numeric":
            shares = sample.rows[column].rank(pct=True).to_numpy()
            bins = np.minimum(shares * N_RANGES, N_RANGES - 1)
            ranges = np.nan_to_num(bins, nan=MISSING).astype(np.int64)

        power = _guess_items(sample, codes)
        kind = "identifies the item"
        if power < GIVES_AWAY:
            power = max(_measure_fact(sample, codes), _measure_fact(sample, ranges))
            kind = "fact of the item" if power >= FACT else "known after the choice"
        if power >= GIVES_AWAY:
            message = (
                f"interactions.{column}: {kind}: predicted {power:.0%} of the way to "
                f"certainty; {ADVICE[kind]}"
            )
            yield Leak(kind, f"interactions.{column}", power, message)


def _guess_items(sample: _Sample, codes: Ints) -> float:
    """Return how much better a column guesses the items of unseen users than popularity does."""
    is_known = codes != MISSING
    is_learnt = sample.is_learnt & is_known
    is_measured = ~sample.is_learnt & is_known
    if min(is_learnt.sum(), is_measured.sum()) < MIN_ROWS:
        return 0.0
    learnt = sample.item[is_learnt]
    popular = np.bincount(learnt).argmax()
    best = _most_frequent(codes[is_learnt], learnt, int(codes.max()) + 1)
    guess = best[codes[is_measured]]
    guess = np.where(guess == MISSING, popular, guess)
    item = sample.item[is_measured]

    return _gain(float((guess == item).mean()), float((popular == item).mean()))


def _measure_fact(sample: _Sample, codes: Ints) -> float:
    """Return how much of a column the item predicts.

    That is 1 - errors / errors of predicting it by the row before or after, the lesser of both
    orders.
    """
    is_known = codes != MISSING
    is_learnt = sample.is_learnt & is_known
    n_items = int(sample.item.max()) + 1
    best = _most_frequent(sample.item[is_learnt], codes[is_learnt], n_items)
    guess = best[sample.item]
    is_measured = ~sample.is_learnt & is_known & (guess != MISSING)

    powers = []
    for row, neighbour in sample.neighbours:
        is_compared = is_measured[row] & is_known[neighbour]
        own = codes[row[is_compared]]
        other = codes[neighbour[is_compared]]
        guessed = guess[row[is_compared]]
        n_changes = np.count_nonzero(own != other)
        n_chance = np.count_nonzero(other != guessed)
        if n_changes < 2 * MIN_ROWS or not n_chance:  # a row is in two pairs
            return 0.0
        powers.append(1 - np.count_nonzero(own != guessed) / n_chance)

    return min(powers)


def _most_frequent(keys: Ints, values: Ints, n_keys: int) -> Ints:
    """Return the most frequent value of each key, `MISSING` of one that has none, (n_keys,)."""
    width = int(values.max(initial=0)) + 1
    pairs, counts = np.unique(keys * width + values, return_counts=True)
    pairs = pairs[np.lexsort((-pairs, counts))]  # the last write is the most frequent
    best = np.full(n_keys, MISSING)
    best[pairs // width] = pairs % width

    return best


# ---- columns of the items


def _find_item_leaks(
    tables: Tables, split: Split, config: DataConfig
) -> Iterator[Leak]:
    """Judge each number of the items by its rank correlation with counts that include the test."""
    tested = split.test["item_id"].value_counts()
    before = split.refit["item_id"].value_counts()
    before = before.reindex(tested.index, fill_value=0)
    items = tables.items.set_index("item_id")

    for column, of_column in config.features.kinds_of("item").items():
        if of_column != "numeric":
            continue
        numbers = items[column].astype(np.float64).reindex(tested.index).dropna()
        if len(numbers) < MIN_ITEMS or numbers.nunique() == 1:
            continue
        without = _correlate(numbers, before)
        with_test = _correlate(numbers, before + tested)
        power = _gain(with_test, without)
        if power >= GIVES_AWAY:
            message = (
                f"items.{column} counts the test: rank correlation {with_test:.4f} "
                f"with its events, {without:.4f} without"
            )
            yield Leak("made from the test", f"items.{column}", power, message)


def _correlate(numbers: pd.Series[Any], counts: pd.Series[Any]) -> float:
    """Return the absolute rank correlation of numbers and counts, 0 where all counts are equal."""
    counts = counts.reindex(numbers.index)
    if counts.nunique() == 1:
        return 0.0
    return abs(numbers.corr(counts, method="spearman"))
