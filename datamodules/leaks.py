"""Leaks: held-out events in training, columns that give the chosen item away, item counts that include the test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from datamodules.config import DataConfig
from datamodules.splits import Split
from datamodules.tables import Tables, is_set
from serve.arrays import Ints
from serve.encode import join_text
from serve.errors import SchemaError

MAX_ROWS = 200_000  # training rows on which columns are measured
MAX_ROWS_PER_USER = 2_000
MIN_DECISIVE = 100  # rows and tested items; with fewer nothing is said of a column
MIN_ITEMS = 100
N_RANGES = 16  # ranges, equally full, that numbers are put into
LATE_USERS = 0.01  # so many tested users with later events in training are no slip of a clock any more
GIVES_AWAY = 0.5  # powers from which a column is named, and called a fact of the item
FACT = 0.9
MISSING = -1  # code of a missing cell
Kind = Literal[
    "identifies the item",
    "fact of the item",
    "known after the choice",
    "made from the test",
    "test in training",
]


@dataclass(frozen=True)
class Leak:
    """A column that seems to give the target away, or held-out events that training sees."""

    kind: Kind
    table: str
    column: str  # as in the table; several, joined by commas, where events are compared by them
    power: float  # 0 (says nothing) to 1 (tells all)
    message: str  # one line for a person: the figures, and what to do


def find_leaks(tables: Tables, split: Split, config: DataConfig) -> tuple[Leak, ...]:
    """Look for leaks in the parts of the split, the request context and the items."""
    leaks = [*_find_shared_events(split)]
    if len(split.refit) and config.features.context:
        leaks += _find_context_leaks(_draw_sample(split.refit), config)
    return (*leaks, *_find_item_leaks(tables, split, config))


def stop_on_leaks(leaks: Sequence[Leak]) -> None:
    """Refuse data with leaks; all are named."""
    if leaks:
        found = "; ".join(
            f"({number}) {leak.message}" for number, leak in enumerate(leaks, 1)
        )
        raise SchemaError(
            f"data.leaks is 'stop' and {len(leaks)} found: {found}. Mend the data, or set leaks to warn"
        )


def code_cells(cells: pd.Series[Any]) -> Ints:
    """Number the values of a column of any kind, equal values alike; `MISSING` where features read none."""
    if cells.dtype == object:
        cells = cells.map(
            lambda cell: tuple(cell) if isinstance(cell, (list, np.ndarray)) else cell
        )
    codes, values = pd.factorize(cells)
    known = [
        not isinstance(value, (str, tuple)) or join_text(value) is not None
        for value in values
    ]
    return np.where(np.array([*known, False])[codes], codes, MISSING).astype(np.int64)


def _gain(share: float, chance: float) -> float:
    """Return how far a share has come from chance (0) to certainty (1)."""
    return (share - chance) / (1 - chance) if chance < 1 else 0.0


def _most_frequent(keys: Ints, values: Ints, n_keys: int) -> Ints:
    """Return the most frequent value of each key, `MISSING` of one that has none, (n_keys,)."""
    width = int(values.max(initial=0)) + 1
    pairs, counts = np.unique(keys * width + values, return_counts=True)
    order = np.lexsort((-pairs, counts))  # the last write is the most frequent
    best = np.full(n_keys, MISSING)
    best[pairs[order] // width] = pairs[order] % width
    return best


def _find_shared_events(split: Split) -> Iterator[Leak]:
    """Find held-out events that are in training too, and users of whom training knows what came after their test."""
    for before, held_out, name in (
        (split.refit, split.test, "test"),
        (split.train, split.validation, "validation"),
    ):
        keys = _event_columns(before, split.kind)
        n = int(
            pd.MultiIndex.from_frame(held_out[keys])
            .isin(pd.MultiIndex.from_frame(before[keys]))
            .sum()
        )
        if n:
            columns = ", ".join(keys)
            message = f"{n:,} of {len(held_out):,} {name} events are in training too, by {columns}; take them out"
            yield Leak(
                "test in training", "interactions", columns, n / len(held_out), message
            )
    if (
        split.kind in ("files", "pairs")
        and "datetime" in split.refit
        and len(split.test)
    ):
        first = split.test.groupby("user_id")["datetime"].min()
        last = split.refit.groupby("user_id")["datetime"].max().reindex(first.index)
        share = float((last > first).mean())
        if share > LATE_USERS:
            message = f"{share:.1%} of the test users have training events after their first test event; hold these out"
            yield Leak("test in training", "interactions", "datetime", share, message)


def _event_columns(events: pd.DataFrame, kind: str) -> list[str]:
    """Return what makes two events the same; a position counts anew in each file, and a weight tells none apart."""
    if kind == "pairs" or is_set(events):
        return ["user_id", "item_id"]
    others = (
        ("datetime",)
        if kind == "files" and "datetime" in events
        else ("datetime", "position", "event", "weight")
    )
    return ["user_id", "item_id", *(name for name in others if name in events)]


@dataclass(frozen=True)
class _Sample:
    """Training rows of whole users; guesses are learned from one half of the users and measured on the other."""

    rows: pd.DataFrame
    item: Ints
    is_learnt: NDArray[np.bool_]
    neighbours: tuple[
        tuple[Ints, Ints], ...
    ]  # rows of different items that follow each other, by user and by time


def _draw_sample(rows: pd.DataFrame) -> _Sample:
    """Draw users by a fixed seed until `MAX_ROWS` are reached."""
    rng = np.random.default_rng(0)
    rows = rows.groupby("user_id").head(MAX_ROWS_PER_USER)
    sizes = rows["user_id"].value_counts().sort_index()
    drawn = sizes.iloc[rng.permutation(len(sizes))]
    rows = rows[rows["user_id"].isin(drawn.index[drawn.cumsum() <= MAX_ROWS])]
    user, users = pd.factorize(rows["user_id"], sort=True)
    item, items = pd.factorize(rows["item_id"], sort=True)
    rank = rng.permutation(len(items))[
        item
    ]  # at one time rows stand in any order, but not in that of the item
    keys = [
        rank,
        *(rows[name].to_numpy() for name in ("position", "datetime") if name in rows),
    ]
    neighbours = [_pair_up(np.lexsort([*keys, user]), item, user)]
    if "datetime" in rows:
        neighbours.append(
            _pair_up(np.lexsort(keys), item, np.zeros(len(rows), np.int64))
        )
    return _Sample(
        rows,
        item,
        (rng.permutation(len(users)) < len(users) // 2)[user],
        tuple(neighbours),
    )


def _pair_up(order: NDArray[np.intp], item: Ints, group: Ints) -> tuple[Ints, Ints]:
    """Pair each row with those before and after it in its group, where the item is another."""
    left = order[:-1]
    right = order[1:]
    is_pair = (group[left] == group[right]) & (item[left] != item[right])
    left = left[is_pair]
    right = right[is_pair]
    return np.concatenate([left, right]), np.concatenate([right, left])


def _find_context_leaks(sample: _Sample, config: DataConfig) -> Iterator[Leak]:
    """Judge each column of the context but the moment by what it and the item tell of each other."""
    features = {
        str(feature.column): feature
        for feature in config.features.of("context").values()
    }
    for column in filter("datetime".__ne__, features):
        codes = ranges = code_cells(sample.rows[column])
        if features[column].kind == "numeric":
            shares = sample.rows[column].rank(pct=True).fillna(-1).to_numpy()
            ranges = np.where(
                shares < 0, MISSING, np.minimum(shares * N_RANGES, N_RANGES - 1)
            ).astype(np.int64)
        named = _guess_items(sample, codes)
        fact = max(_measure_fact(sample, codes), _measure_fact(sample, ranges))
        kind: Kind
        if named >= GIVES_AWAY:
            kind = "identifies the item"
            power = named
            advice = "take it out of the context"
        elif fact >= FACT:
            kind = "fact of the item"
            power = fact
            advice = "make it a feature of the items"
        else:
            kind = "known after the choice"
            power = fact
            advice = "take it out if a request cannot know it"
        if power >= GIVES_AWAY:
            message = f"interactions.{column}: {kind}: predicted {power:.0%} of the way to certainty; {advice}"
            yield Leak(kind, "interactions", column, power, message)


def _guess_items(sample: _Sample, codes: Ints) -> float:
    """Return how much better items are guessed from a column's value than from popularity, for unseen users."""
    learnt = sample.is_learnt & (codes != MISSING)
    measured = ~sample.is_learnt & (codes != MISSING)
    if min(learnt.sum(), measured.sum()) < MIN_DECISIVE:
        return 0.0
    popular = int(np.bincount(sample.item[learnt]).argmax())
    guess = _most_frequent(codes[learnt], sample.item[learnt], int(codes.max()) + 1)[
        codes[measured]
    ]
    item = sample.item[measured]
    share = float((np.where(guess == MISSING, popular, guess) == item).mean())
    return _gain(share, float((item == popular).mean()))


def _measure_fact(sample: _Sample, codes: Ints) -> float:
    """Return how much of a column the item predicts: 1 - errors / errors against the values of neighbouring rows."""
    known = codes != MISSING
    learnt = sample.is_learnt & known
    guess = _most_frequent(
        sample.item[learnt], codes[learnt], int(sample.item.max()) + 1
    )[sample.item]
    is_measured = ~sample.is_learnt & known & (guess != MISSING)

    def compare(row: Ints, other: Ints) -> float:
        is_kept = is_measured[row] & known[other]
        row = row[is_kept]
        other = other[is_kept]
        if (
            np.count_nonzero(codes[row] != codes[other]) < 2 * MIN_DECISIVE
        ):  # a row is in two pairs
            return 0.0
        chance = np.count_nonzero(codes[other] != guess[row])
        return (
            1 - np.count_nonzero(codes[row] != guess[row]) / chance if chance else 0.0
        )

    return min(compare(*pairs) for pairs in sample.neighbours)


def _find_item_leaks(
    tables: Tables, split: Split, config: DataConfig
) -> Iterator[Leak]:
    """Judge each number of the items by whether it orders the tested ones as counts that include the test do."""
    tested = split.test["item_id"].unique()
    before = split.refit["item_id"].value_counts().reindex(tested, fill_value=0)
    with_test = before + split.test["item_id"].value_counts().reindex(
        tested, fill_value=0
    )
    for column in {
        str(one.column): 0
        for one in config.features.of("item").values()
        if one.kind == "numeric"
    }:
        numbers = (
            pd.Series(
                tables.items[column].to_numpy(np.float64), tables.items["item_id"]
            )
            .reindex(tested)
            .dropna()
        )
        if len(numbers) < MIN_ITEMS or numbers.nunique() == 1:
            continue
        known = (counts.reindex(numbers.index) for counts in (before, with_test))
        old, new = (
            abs(numbers.corr(one, method="spearman")) if one.nunique() > 1 else 0.0
            for one in known
        )
        if _gain(new, old) >= GIVES_AWAY:
            message = f"items.{column} counts the test: rank correlation {new:.4f} with its events, {old:.4f} without"
            yield Leak("made from the test", "items", column, _gain(new, old), message)
