"""Leaks: held-out events in training, columns that give the chosen item away, features computed from the test.

Not found: a column that is known after the choice but hangs on nothing that the tables show, such as a session's
length; a vector of a user that was learned from the test; an item's text that was changed because it sold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from datamodules.clean import TARGET_WEIGHT, find_rows, is_set
from datamodules.config import DataConfig
from datamodules.splits import Split
from datamodules.tables import Tables
from serve.encode import join_text
from serve.errors import SchemaError

MAX_ROWS, MAX_ROWS_PER_USER = 200_000, 2_000
"""Training rows that columns are judged on: so many tell a share to well under one percent."""
MIN_DECISIVE = 100
"""With fewer rows that a guess can be right or wrong about, nothing is said of a column."""
MIN_OF_EACH = 50
"""With fewer targets, or fewer other events, nothing is said of what tells them apart."""
MIN_USERS, MAX_USERS = 30, 20_000
"""Tested users that a feature of users is judged on."""
MIN_ITEMS = 100
"""Tested items that a number of items is judged on."""
N_RANGES = 16
"""Ranges, equally full, that numbers are cut into."""
LATE_USERS = 0.01
"""So many tested users with later events in training are no slip of a clock any more."""
GIVES_AWAY = 0.5
"""A measure of 0 (says nothing) to 1 (tells all) from which a column is named. Honest columns of the data sets at hand
stay below 0.1."""
FACT = 0.9
"""From here on a column of the context is called a fact of the item."""
TELLS_CHOICES = 0.9
"""Share of the targets found less that of the others mistaken for them, from which a column is named."""
MAX_CHOICES = 12
"""Types of events, and weights, that are tried as the choice."""
MISSING = -1
"""Code of a missing cell."""
Ints = NDArray[np.int64]
_ADVICE = {"files": "take them out of one file", "pairs": "keep all rows of a pair in one part"}


@dataclass(frozen=True)
class Leak:
    """A column that seems to give the target away, or held-out events that training sees."""

    kind: Literal[
        "identifies the item", "fact of the item", "known after the choice", "made from the test", "test in training"
    ]
    table: str
    """interactions, users or items."""
    column: str
    """As in the table; several, joined by commas, where events are compared by them."""
    power: float
    """0 (says nothing) to 1 (tells all), in the measure that `message` puts into words."""
    message: str
    """One line for a person: the figures, and what to do."""


def find_leaks(tables: Tables, split: Split, config: DataConfig) -> tuple[Leak, ...]:
    """Look for leaks in the parts of the split, the request context, the choices, the users and the items.

    Args:
        tables: cleaned.
        split: of the interactions; with what is declared about targets, so that choices are told from other events.
        config: names the features.
    """
    leaks = [*_find_shared_events(split)]
    if len(split.refit) and config.features.context:
        leaks += _find_context_leaks(_draw_sample(split.refit), config)
    return (*leaks, *_find_user_leaks(tables, split, config), *_find_item_leaks(tables, split, config))


def stop_on_leaks(leaks: Sequence[Leak]) -> None:
    """Refuse data with leaks.

    Raises:
        SchemaError: there is a leak; all are named.
    """
    if leaks:
        found = "; ".join(f"({number}) {leak.message}" for number, leak in enumerate(leaks, 1))
        raise SchemaError(
            f"data.leaks is 'stop' and {len(leaks)} found: {found}. Mend the data, or set data.leaks to warn"
        )


def code_cells(cells: pd.Series[Any]) -> Ints:
    """Number the values of a column of any kind, equal values alike; `MISSING` where features read none."""
    if cells.dtype == object:
        cells = cells.map(lambda cell: tuple(cell) if isinstance(cell, (list, np.ndarray)) else cell)
    codes, values = pd.factorize(cells)
    known = [not isinstance(value, (str, tuple)) or join_text(value) is not None for value in values]
    return np.where(np.array([*known, False])[codes], codes, MISSING).astype(np.int64)


def _cut(numbers: NDArray[np.float64]) -> Ints:
    """Number the range of each number; `MISSING` where there is none."""
    shares = pd.Series(numbers).rank(pct=True).to_numpy()
    return np.where(np.isnan(shares), MISSING, np.minimum(shares * N_RANGES, N_RANGES - 1)).astype(np.int64)


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
    for before, held_out, name in ((split.refit, split.test, "test"), (split.train, split.validation, "validation")):
        keys = _event_columns(before, split.kind)
        n = int(pd.MultiIndex.from_frame(held_out[keys]).isin(pd.MultiIndex.from_frame(before[keys])).sum())
        if n:
            advice = _ADVICE.get(split.kind, "leave copies out, or set data.ties to simultaneous")
            message = (
                f"{n:,} of {len(held_out):,} {name} events ({n / len(held_out):.1%}) are in training too, by "
                f"{', '.join(keys)}; {advice}"
            )
            yield Leak("test in training", "interactions", ", ".join(keys), n / len(held_out), message)
    if split.kind in ("files", "pairs") and "datetime" in split.refit and len(split.test):
        first = split.test.groupby("user_id")["datetime"].min()
        last = split.refit.groupby("user_id")["datetime"].max().reindex(first.index)
        share = float((last > first).mean())
        if share > LATE_USERS:
            message = (
                f"{share:.1%} of {len(first):,} test users have events in training later than their first test event; "
                "hold out the last events of each user, or all from one moment on"
            )
            yield Leak("test in training", "interactions", "datetime", share, message)


def _event_columns(events: pd.DataFrame, kind: str) -> list[str]:
    """Return what makes two events the same; a position counts anew in each file, and a weight tells none apart."""
    if kind == "pairs" or is_set(events):
        return ["user_id", "item_id"]
    others = ("datetime",) if kind == "files" and "datetime" in events else ("datetime", "position", "event", "weight")
    return ["user_id", "item_id", *(name for name in others if name in events)]


@dataclass(frozen=True)
class _Sample:
    """Training rows of whole users; guesses are learned from one half of the users and measured on the other."""

    rows: pd.DataFrame
    item: Ints
    is_learnt: NDArray[np.bool_]
    neighbours: tuple[tuple[Ints, Ints], ...]
    """Pairs of rows of different items that follow each other, by user and by time: they share what a request knows
    before the choice (the person, the place, the moment)."""


def _draw_sample(rows: pd.DataFrame) -> _Sample:
    """Draw users by a fixed seed until `MAX_ROWS` are reached."""
    rng = np.random.default_rng(0)
    rows = rows.groupby("user_id").head(MAX_ROWS_PER_USER)
    sizes = rows["user_id"].value_counts().sort_index()
    drawn = sizes.iloc[rng.permutation(len(sizes))]
    rows = rows[rows["user_id"].isin(drawn.index[drawn.cumsum() <= MAX_ROWS])]
    user, users = pd.factorize(rows["user_id"], sort=True)
    item, items = pd.factorize(rows["item_id"], sort=True)
    rank = rng.permutation(len(items))[item]  # at one time rows stand in any order, but not in that of the item
    keys = [rank, *(rows[name].to_numpy() for name in ("position", "datetime") if name in rows)]
    neighbours = [_pair_up(np.lexsort([*keys, user]), item, user)]
    if "datetime" in rows:
        neighbours.append(_pair_up(np.lexsort(keys), item, np.zeros(len(rows), np.int64)))
    return _Sample(rows, item, (rng.permutation(len(users)) < len(users) // 2)[user], tuple(neighbours))


def _pair_up(order: NDArray[np.intp], item: Ints, group: Ints) -> tuple[Ints, Ints]:
    """Pair each row with those before and after it in its group, where the item is another."""
    left, right = order[:-1], order[1:]
    is_pair = (group[left] == group[right]) & (item[left] != item[right])
    left, right = left[is_pair], right[is_pair]
    return np.concatenate([left, right]), np.concatenate([right, left])


def _find_context_leaks(sample: _Sample, config: DataConfig) -> Iterator[Leak]:
    """Judge each column of the context by what it and the item, or it and the choice, tell of each other.

    The moment comes before the choice, even where it tells it.
    """
    features = {str(feature.column): feature for feature in config.features.of("context").values()}
    choices = _list_choices(sample.rows)
    for column in filter("datetime".__ne__, features):
        cells = sample.rows[column]
        codes = code_cells(cells)
        coarse = _cut(cells.to_numpy(np.float64)) if features[column].kind == "numeric" else codes
        names = _guess_items(sample, codes)
        fact = max(_measure_fact(sample, codes), _measure_fact(sample, coarse))
        told = max((_tell(sample, coarse, is_chosen) for is_chosen in choices), default=0.0)
        name = f"interactions.{column}"
        if names >= GIVES_AWAY:
            message = f"{name} gives the item away: it tells {names:.0%} of what popularity leaves open; take it out"
            yield Leak("identifies the item", "interactions", column, names, message)
        elif fact >= FACT:
            message = f"{name} is a fact of the item, which tells {fact:.0%} of it; make it a feature of the items"
            yield Leak("fact of the item", "interactions", column, fact, message)
        elif fact >= GIVES_AWAY or told >= TELLS_CHOICES:
            power = max(fact, told)
            message = (
                f"{name} seems to be known only after the choice: {power:.0%} of it goes with the choice; take it out "
                "of the context if a request cannot know it"
            )
            yield Leak("known after the choice", "interactions", column, power, message)


def _list_choices(rows: pd.DataFrame) -> list[NDArray[np.bool_]]:
    """Return which events are targets, of each type, and of each weight or more."""
    choices = [rows[TARGET_WEIGHT].to_numpy() > 0] if TARGET_WEIGHT in rows else []
    if "event" in rows:
        choices += [(rows["event"] == name).to_numpy(bool) for name in rows["event"].dropna().unique()[:MAX_CHOICES]]
    if "weight" in rows:
        weights = rows["weight"].to_numpy()
        choices += [weights >= level for level in np.unique(weights)[1:MAX_CHOICES]]
    return choices


def _guess_items(sample: _Sample, codes: Ints) -> float:
    """Return how much better items are guessed from a column's value than from popularity, for unseen users."""
    learnt, measured = sample.is_learnt & (codes != MISSING), ~sample.is_learnt & (codes != MISSING)
    if min(learnt.sum(), measured.sum()) < MIN_DECISIVE:
        return 0.0
    popular = int(np.bincount(sample.item[learnt]).argmax())
    guess = _most_frequent(codes[learnt], sample.item[learnt], int(codes.max()) + 1)[codes[measured]]
    item = sample.item[measured]
    share = float((np.where(guess == MISSING, popular, guess) == item).mean())
    return _gain(share, float((item == popular).mean()))


def _measure_fact(sample: _Sample, codes: Ints) -> float:
    """Return how much of a column is told by the item: 1 - errors / errors against the values of neighbouring rows.

    Each item's most frequent value is its guess. A column of the user, of the visit or of the moment is the same in
    the neighbour's row, and gets 0 however often the guess is right.
    """
    known = codes != MISSING
    learnt = sample.is_learnt & known
    guess = _most_frequent(sample.item[learnt], codes[learnt], int(sample.item.max()) + 1)[sample.item]
    is_measured = ~sample.is_learnt & known & (guess != MISSING)

    def compare(row: Ints, other: Ints) -> float:
        is_kept = is_measured[row] & known[other]
        row, other = row[is_kept], other[is_kept]
        if np.count_nonzero(codes[row] != codes[other]) < 2 * MIN_DECISIVE:  # a row is in two pairs
            return 0.0
        chance = np.count_nonzero(codes[other] != guess[row])
        return 1 - np.count_nonzero(codes[row] != guess[row]) / chance if chance else 0.0

    return min(compare(*pairs) for pairs in sample.neighbours)


def _tell(sample: _Sample, codes: Ints, is_chosen: NDArray[np.bool_]) -> float:
    """Call an event chosen where its value goes with chosen ones more often than usual; return Youden's J."""
    learnt, measured = sample.is_learnt, ~sample.is_learnt
    sizes = [np.count_nonzero(half & chosen) for half in (learnt, measured) for chosen in (is_chosen, ~is_chosen)]
    if min(sizes) < MIN_OF_EACH:
        return 0.0
    value = codes - MISSING
    count = np.bincount(value[learnt], minlength=int(value.max()) + 1)
    chosen = np.bincount(value[learnt], is_chosen[learnt], minlength=len(count))
    is_called = (chosen > is_chosen[learnt].mean() * count)[value[measured]]
    return float(is_called[is_chosen[measured]].mean() - is_called[~is_chosen[measured]].mean())


def _find_user_leaks(tables: Tables, split: Split, config: DataConfig) -> Iterator[Leak]:
    """Judge each user feature by what it tells of held-out items, or of their categories, beyond training ones."""
    features = {str(one.column): one for one in config.features.of("user").values() if one.kind != "vector"}
    before, test = (split.refit, split.test) if len(split.test) else (split.train, split.validation)
    rng = np.random.default_rng(0)
    user_ids = np.sort(rng.permutation(np.unique(test["user_id"].to_numpy()))[:MAX_USERS])
    if not features or len(user_ids) < MIN_USERS:
        return
    is_learnt = rng.permutation(len(user_ids)) < len(user_ids) // 2
    users = find_rows(tables.users, "user_id", user_ids)
    names = [*_name_items(tables.items, before, test, config)]
    held_out = [_distinct_pairs(test, user_ids, name) for name in names]
    for column in features:
        codes = code_cells(users[column])
        power, best = max((_guess_names(codes, *pairs, is_learnt), place) for place, pairs in enumerate(held_out))
        if power >= GIVES_AWAY:  # less what training events tell
            power -= max(_guess_names(codes, *_distinct_pairs(before, user_ids, names[best]), is_learnt), 0.0)
        if power >= GIVES_AWAY:
            message = (
                f"users.{column} is made from the test: users of one value share a held-out item or its kind, "
                f"which it tells {power:.0%} of the way from chance to certainty; make it from training events alone"
            )
            yield Leak("made from the test", "users", column, power, message)


def _name_items(
    items: pd.DataFrame, before: pd.DataFrame, test: pd.DataFrame, config: DataConfig
) -> Iterator[pd.Series[int]]:
    """Yield a code of each item by its id, and by each of its categorical features."""
    ids = np.unique(np.concatenate([before["item_id"].to_numpy(), test["item_id"].to_numpy()]))
    known = find_rows(items, "item_id", ids)
    yield pd.Series(np.arange(len(ids)), ids)
    for feature in config.features.of("item").values():
        if feature.kind == "categorical":
            yield pd.Series(code_cells(known[str(feature.column)]), ids)


def _distinct_pairs(rows: pd.DataFrame, user_ids: NDArray[Any], name: pd.Series[int]) -> tuple[Ints, Ints]:
    """Return the user and the name of each distinct pair of the rows."""
    user, code = pd.Index(user_ids).get_indexer(pd.Index(rows["user_id"])), rows["item_id"].map(name).to_numpy(np.int64)
    width = int(name.max()) + 1
    pairs = np.unique((user * width + code)[(user >= 0) & (code != MISSING)])
    return pairs // width, pairs % width


def _guess_names(codes: Ints, user: Ints, name: Ints, is_learnt: NDArray[np.bool_]) -> float:
    """Return how well one name per value, learned from half of the users, is a name of the others' items.

    Args:
        codes: (U,) value of each user.
        user: of each distinct pair.
        name: of each distinct pair.
        is_learnt: (U,) users that guesses are learned from.
    """
    learnt = is_learnt[user] & (codes[user] != MISSING)
    measured = ~is_learnt[user] & np.isin(codes[user], codes[user][learnt])
    owners = np.unique(user[measured])
    if len(owners) < MIN_USERS:
        return 0.0
    width = int(name.max()) + 1
    frequency = np.bincount(name[learnt], minlength=width) / len(np.unique(user[learnt]))
    pairs, counts = np.unique(codes[user[learnt]] * width + name[learnt], return_counts=True)
    n_users = np.bincount(codes[np.unique(user[learnt])], minlength=int(codes.max()) + 1)
    excess = counts / n_users[pairs // width] - frequency[pairs % width]
    order = np.argsort(excess, kind="stable")  # the last write is the greatest excess
    guess = np.zeros(len(n_users), np.int64)
    guess[pairs[order] // width] = pairs[order] % width
    guessed = guess[codes[owners]]
    chance = float(frequency[guessed].mean())
    if (1 - chance) * len(owners) < MIN_USERS:
        return 0.0
    hits = np.isin(owners * width + guessed, user[measured] * width + name[measured])
    return _gain(float(hits.mean()), chance)


def _find_item_leaks(tables: Tables, split: Split, config: DataConfig) -> Iterator[Leak]:
    """Judge each number of the items by whether it orders the tested ones as counts that include the test do."""
    columns = {str(feature.column) for feature in config.features.of("item").values() if feature.kind == "numeric"}
    tested = split.test["item_id"].unique()
    before = split.refit["item_id"].value_counts().reindex(tested, fill_value=0)
    with_test = before + split.test["item_id"].value_counts().reindex(tested, fill_value=0)
    for column in sorted(columns):
        numbers = pd.Series(tables.items[column].to_numpy(np.float64), tables.items["item_id"]).reindex(tested).dropna()
        if len(numbers) < MIN_ITEMS:
            continue
        old, new = (_correlate(numbers, counts.reindex(numbers.index)) for counts in (before, with_test))
        power = _gain(new, old)
        if power >= GIVES_AWAY:
            message = (
                f"items.{column} counts the test: it orders the tested items as the events with the test do (rank "
                f"correlation {new:.4f}), not as those before it do ({old:.4f}); count training events alone"
            )
            yield Leak("made from the test", "items", column, power, message)


def _correlate(left: pd.Series[Any], right: pd.Series[Any]) -> float:
    """Return Spearman's correlation without its sign."""
    ranks = np.stack([left.rank().to_numpy(), right.rank().to_numpy()])
    return float(abs(np.corrcoef(ranks)[0, 1])) if (np.ptp(ranks, axis=1) > 0).all() else 0.0
