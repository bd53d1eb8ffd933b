"""Choose the recipe of a training from counts of the data, with the reason for each choice."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from datamodules.clean import is_set
from datamodules.config import DataConfig
from datamodules.sets import FOLDS
from datamodules.tables import Tables
from models.config import ModelConfig, Recipe
from serve.errors import SchemaError

LONG_HISTORY = 40
"""Mean events of a user above which two blocks and less dropout pay."""
MAX_OF_MEDIAN = 100
"""Histories count up to this multiple of the median in the mean: a robot says nothing of the others."""
MAX_FROZEN = 5_000
"""Users or items, whichever are fewer, of a set whose item vectors stay at their EASE factors; larger ones are trained."""
FROZEN_DIM, TRAINED_DIM = 384, 128
"""EASE factors of a set, where items stay there and where training starts from them."""
USERS_PER_FACTOR, ITEMS_PER_FACTOR = 2, 4
"""Below these ratios the last of the factors would be empty."""
MAX_FACTORISED = 100_000
"""Items above which long vectors would slow down the search."""
MAX_WITH_NEIGHBOURS = 100_000
"""Items above which item-item weights, fitted on the 16,000 most popular items, would say too little."""
NEIGHBOURS, NEIGHBOURS_OF_SETS = 64, 256
"""Item-item weights per item."""
MANY_ITEMS, MANY_ITEMS_OF_LONG, MANY_ITEMS_OF_REQUESTS = 5_000, 3_000, 20_000
"""Items above which negatives are sampled: ordered events, the same with long histories, sets and baskets."""
NEGATIVES, NEGATIVES_OF_REQUESTS = 1024, 4096
SHARE_OF_LONG, MAX_OF_LONG = 0.3, 8192
"""Long histories sample this share of the catalogue, up to a limit."""
MANY_EVENTS = 250_000
"""Events from which on less dropout is needed."""
TARGETS_SHOWN, TARGETS_SHOWN_OF_LONG = 2_800_000, 24_000_000
"""Targets that a training on ordered events shows over all epochs; two blocks need more."""
MIN_EPOCHS, MAX_EPOCHS = 10, 24
CUTOFFS_SHOWN, EPOCHS_OF_REPEATS = 16_000, 8
"""User timelines that a training with repeats shows over all epochs, and its fewest epochs."""
MIN_STEPS, MIN_STEPS_OF_REPEATS = 16, 8
"""Batches of an epoch: little data makes small batches rather than few."""
MIN_BATCH = 16
WARMUP_SHARE = 0.25
"""Largest share of all steps in which the rate may rise."""


@dataclass(frozen=True)
class DataCounts:
    """Counts and properties of the data that the recipe depends on."""

    n_examples: int
    """Users, or parts of their sets, in an epoch."""
    n_users: int
    n_items: int
    """Items that have events."""
    n_events: int
    mean_history: float
    is_set: bool
    is_repeated: bool
    """Owned items are recommended again: the memory is trained."""
    trains_on_windows: bool
    """Every event is a target of those before it."""
    has_content: bool
    has_context: bool
    has_demographics: bool
    n_unused: int = 0
    """Items of the items table without events."""
    has_blocks: bool = False
    """`n_blocks` was given and is not 0."""

    @property
    def n_listed(self) -> int:
        return self.n_items + self.n_unused

    @property
    def catalogue(self) -> str:
        return f"{self.n_listed:,} items" + (f", {self.n_unused:,} without events" if self.n_unused else "")

    @property
    def is_long(self) -> bool:
        return self.mean_history > LONG_HISTORY

    @property
    def is_long_in_time(self) -> bool:
        """Histories are long, and the towers read their order."""
        return self.is_long and not (self.is_set or self.is_repeated)

    @property
    def is_ordered(self) -> bool:
        return self.trains_on_windows and not (self.is_set or self.is_repeated)

    @property
    def is_in_baskets(self) -> bool:
        """Events come in baskets that are not bought again."""
        return not (self.is_ordered or self.is_set or self.is_repeated)

    @property
    def starts_from_ease(self) -> bool:
        """Item vectors start from a low rank of EASE's partial correlations."""
        return self.is_set and not (self.has_context or self.is_repeated or self.has_blocks)

    @property
    def is_frozen(self) -> bool:
        return self.starts_from_ease and min(self.n_users, self.n_items) <= MAX_FROZEN

    @property
    def is_trained_from_ease(self) -> bool:
        return self.starts_from_ease and not self.is_frozen

    @property
    def shape(self) -> str:
        if self.is_repeated:
            return "items are consumed again"
        if self.is_set:
            return "events have no order"
        return f"{self.mean_history:.0f} events a user"


@dataclass(frozen=True)
class Choice:
    """A value that the data decided."""

    name: str
    value: Any
    reason: str


def count_data(tables: Tables, config: DataConfig) -> DataCounts:
    """Count what the choices depend on."""
    rows = tables.interactions
    has_no_order = is_set(rows)
    if has_no_order:  # rows of one pair are one preference
        rows = rows.drop_duplicates(["user_id", "item_id"])
    history = rows.groupby("user_id").size()
    return DataCounts(
        n_examples=int(history.clip(upper=FOLDS).sum()) if has_no_order else len(history),
        n_users=len(history),
        n_items=rows["item_id"].nunique(),
        n_unused=int((~tables.items["item_id"].isin(rows["item_id"])).sum()),
        n_events=len(rows),
        mean_history=float(history.clip(upper=MAX_OF_MEDIAN * history.median()).mean()),
        is_set=has_no_order,
        is_repeated=config.repeats == "allow",
        trains_on_windows=config.ties == "ordered" and config.repeats == "exclude" and not has_no_order,
        has_content=bool(config.features.item),
        has_context=bool(config.features.context),
        has_demographics=bool(config.features.user),
    )


def choose_recipe(config: ModelConfig, counts: DataCounts) -> tuple[Recipe, list[Choice]]:
    """Decide what the configuration leaves open.

    Args:
        config: keys that are given are kept.
        counts: of the data, without `has_blocks`.

    Returns:
        The recipe, and the choices made.

    Raises:
        SchemaError: item-item weights are wanted where there are none.
    """
    counts = DataCounts(**{**vars(counts), "has_blocks": bool(config.n_blocks)})
    if config.neighbours and counts.is_in_baskets:
        raise SchemaError(f"model.neighbours is {config.neighbours}; allowed where data.ties is simultaneous: 0")
    values: dict[str, Any] = {field.name: getattr(config, field.name) for field in fields(ModelConfig)}
    choices = [Choice(name, *rule(counts)) for name, rule in RULES.items() if values[name] is None]
    values |= {choice.name: choice.value for choice in choices}
    n_heads = 2 if counts.is_long_in_time and values["dim"] % 2 == 0 else 1
    warmup = _warmup_steps(counts, values["max_epochs"] * math.ceil(counts.n_examples / values["batch_size"]))
    return Recipe(**values, n_heads=n_heads, warmup_steps=warmup, freeze_items=counts.is_frozen), choices


def _warmup_steps(counts: DataCounts, n_steps: int) -> int:
    if counts.is_trained_from_ease:
        usual = 200
    elif counts.is_repeated or counts.is_set:
        usual = 10
    else:
        usual = 50 if counts.is_long else 200
    return min(usual, max(1, int(WARMUP_SHARE * n_steps)))


def _dim(counts: DataCounts) -> tuple[int, str]:
    if counts.starts_from_ease:
        has_users = counts.n_users >= USERS_PER_FACTOR * FROZEN_DIM
        has_items = ITEMS_PER_FACTOR * FROZEN_DIM <= counts.n_items and counts.n_listed <= MAX_FACTORISED
        reason = f"{counts.n_users:,} users, {counts.n_items:,} items, {counts.shape}: EASE factors"
        return (FROZEN_DIM if counts.is_frozen and has_users and has_items else TRAINED_DIM), reason
    if counts.is_set:
        return 48, counts.shape
    return (96 if counts.trains_on_windows else 64), counts.shape


def _blocks(counts: DataCounts) -> tuple[int, str]:
    if counts.is_set:
        return 0, counts.shape
    return (2 if counts.is_long_in_time else 1), counts.shape


def _dropout(counts: DataCounts) -> tuple[float, str]:
    if counts.is_repeated:
        return 0.2, counts.shape
    if counts.is_frozen:
        return 0.1, f"{counts.shape}: EASE factors leave few weights to train"
    if counts.is_trained_from_ease:
        start = f"{counts.n_events:,} events, {counts.shape}: EASE factors know every pair already"
        return (0.5 if counts.n_events >= MANY_EVENTS else 0.7), start
    if counts.is_ordered:
        few, many = (0.3, 0.1) if counts.is_long else (0.5, 0.3)
        return (many if counts.n_events >= MANY_EVENTS else few), f"{counts.n_events:,} events, {counts.shape}"
    return (0.3 if counts.is_long_in_time else 0.5), counts.shape


def _id_dropout(counts: DataCounts) -> tuple[float, str]:
    is_short = counts.is_ordered and not counts.is_long
    if counts.has_content and (counts.is_repeated or is_short or counts.is_trained_from_ease):
        return 0.1, f"{counts.shape}: an item is placed by its content too"
    return 0.0, "new items are placed by content that is fitted after training"


def _similarity(counts: DataCounts) -> tuple[str, str]:
    if counts.is_trained_from_ease:
        return "cosine", f"{counts.shape}: EASE factors are trained"
    return ("dot" if counts.is_repeated or counts.is_set else "cosine"), counts.shape


def _neighbours(counts: DataCounts) -> tuple[int, str]:
    if counts.is_in_baskets:
        return 0, "events come in baskets"
    if counts.n_items > MAX_WITH_NEIGHBOURS:
        return 0, f"{counts.n_items:,} items, {counts.shape}"
    is_set = counts.is_set and not counts.is_repeated
    return (NEIGHBOURS_OF_SETS if is_set else NEIGHBOURS), f"{counts.shape}: weights of items that go together"


def _negatives(counts: DataCounts) -> tuple[int, str]:
    reason = f"{counts.catalogue}, {counts.shape}"
    if counts.is_repeated:
        return 0, reason
    if not counts.trains_on_windows:
        return (NEGATIVES_OF_REQUESTS if counts.n_listed > MANY_ITEMS_OF_REQUESTS else 0), reason
    many = MANY_ITEMS_OF_LONG if counts.is_long and counts.n_events >= MANY_EVENTS else MANY_ITEMS
    if counts.n_listed <= many:
        return 0, reason
    share = 2 ** round(math.log2(SHARE_OF_LONG * counts.n_listed))
    return (min(share, MAX_OF_LONG) if counts.is_long else NEGATIVES), reason


def _learning_rate(counts: DataCounts) -> tuple[float, str]:
    if counts.is_repeated:
        return 5e-4, counts.shape
    return (1e-3 if counts.is_set else 2e-3), counts.shape


def _batch_size(counts: DataCounts) -> tuple[int, str]:
    largest = 64 if counts.is_long and not counts.is_set else 128
    if counts.is_repeated or counts.is_trained_from_ease:
        largest = 256
    n_steps = MIN_STEPS_OF_REPEATS if counts.is_repeated else MIN_STEPS
    fitting = 2 ** round(math.log2(max(counts.n_examples, 1) / n_steps))
    return min(max(fitting, MIN_BATCH), largest), f"{counts.n_examples:,} examples, {counts.shape}"


def _epochs(counts: DataCounts) -> tuple[int, str]:
    if counts.is_repeated:
        epochs = round(CUTOFFS_SHOWN / max(counts.n_examples, 1))
        return min(max(epochs, EPOCHS_OF_REPEATS), MAX_EPOCHS), f"{counts.n_examples:,} users, {counts.shape}"
    if counts.is_trained_from_ease:
        return 8, f"{counts.shape}: EASE factors are trained"
    if counts.is_frozen and not counts.has_demographics:
        return 1, f"{counts.shape}: EASE factors leave only the empty history to train"
    if counts.is_set:
        return 4, f"{counts.shape}: training starts near its end"
    shown = TARGETS_SHOWN_OF_LONG if counts.is_long else TARGETS_SHOWN
    epochs = round(shown / max(counts.n_events, 1))
    return min(max(epochs, MIN_EPOCHS), MAX_EPOCHS), f"{counts.n_events:,} events, {counts.shape}"


def _patience(counts: DataCounts) -> tuple[int, str]:
    if counts.is_repeated:
        return max(_epochs(counts)[0] // 3, 3), counts.shape
    return (3 if counts.is_set else 8), counts.shape


RULES: dict[str, Callable[[DataCounts], tuple[Any, str]]] = {
    "dim": _dim,
    "n_blocks": _blocks,
    "dropout": _dropout,
    "id_dropout": _id_dropout,
    "similarity": _similarity,
    "neighbours": _neighbours,
    "negatives": _negatives,
    "learning_rate": _learning_rate,
    "batch_size": _batch_size,
    "max_epochs": _epochs,
    "patience": _patience,
}
