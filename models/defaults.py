"""Choose the recipe of a training from counts of the data, with the reason for each choice."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from datamodules.config import DataConfig
from datamodules.sequences import FOLDS
from datamodules.tables import Tables
from datamodules.values import find_ties, is_set
from models.config import ModelConfig, Recipe
from serve.errors import SchemaError
from serve.schema import MIN_USERS, Similarity

# Mean events of a user above which two blocks and less dropout pay.
LONG_HISTORY = 40

# Histories count up to this multiple of the median in the mean: a robot says nothing of the others.
MAX_OF_MEDIAN = 100

# Events from which on less dropout is needed where they have an order.
MANY_EVENTS = 200_000

# Item-item weights of all items, and of one, in sets and small catalogues.
MAX_WEIGHTS = 2**23
MAX_NEIGHBOURS = 1024

# Item-item weights of all items of a large catalogue (8 bytes each), and the fewest of one.
MAX_WEIGHTS_OF_LARGE = 2**25
MIN_NEIGHBOURS = 16

# Users behind an item-item weight of short unordered histories: the most that cost less than 2 % of
# NDCG there. Where they have an order two cost 4 %, see docs/decisions.md.
MIN_USERS_OF_SHORT_SETS = 2

# Items above which negatives are sampled: of ordered events, of many events in long histories, of
# sets and baskets.
MANY_ITEMS = 5_000
MANY_ITEMS_OF_LONG = 3_000
MANY_ITEMS_OF_REQUESTS = 20_000

# Negatives of a step; long histories sample a share of the catalogue, up to a limit.
NEGATIVES = 1024
NEGATIVES_OF_REQUESTS = 4096
SHARE_OF_LONG = 0.3
MAX_OF_LONG = 8192

# Targets that a training shows over all epochs; two blocks need more.
TARGETS_SHOWN = 2_400_000
TARGETS_SHOWN_OF_LONG = 24_000_000

# User timelines that a training with repeats shows over all epochs, whose targets are those of a
# horizon or of one group alone, and its fewest epochs.
CUTOFFS_SHOWN = 16_000
GROUPS_SHOWN = 40_000
EPOCHS_OF_REPEATS = 8

EPOCHS_OF_SETS = 4
MIN_EPOCHS = 12
MAX_EPOCHS = 24

# Fewest steps of an epoch, and examples of a step: little data makes small batches.
MIN_STEPS = 16
MIN_STEPS_OF_REPEATS = 8
MIN_BATCH = 16

# Largest share of all steps in which the rate may rise.
WARMUP_SHARE = 0.25


@dataclass(frozen=True)
class Family:
    """Values that suit one kind of data; the others follow from its counts."""

    dim: int
    n_blocks: int
    dropout: float
    dropout_of_many: float
    id_dropout: float
    similarity: Similarity
    neighbours: int
    learning_rate: float
    max_batch: int
    warmup_steps: int
    patience: int


FAMILIES = {
    "short": Family(96, 1, 0.5, 0.3, 0.1, "cosine", 64, 2e-3, 128, 200, 8),
    "long": Family(96, 2, 0.3, 0.1, 0.0, "cosine", 64, 2e-3, 64, 50, 8),
    "baskets": Family(64, 1, 0.5, 0.5, 0.0, "cosine", 0, 2e-3, 128, 200, 8),
    "long baskets": Family(64, 2, 0.3, 0.3, 0.0, "cosine", 0, 2e-3, 64, 50, 8),
    "set": Family(128, 0, 0.5, 0.5, 0.0, "dot", 256, 1e-3, 128, 10, 3),
    "set in context": Family(48, 0, 0.5, 0.5, 0.0, "dot", 256, 1e-3, 128, 10, 3),
    "repeats": Family(64, 1, 0.2, 0.2, 0.1, "dot", 64, 5e-4, 256, 10, 3),
}


@dataclass(frozen=True)
class DataCounts:
    """Counts and properties of the data that the recipe depends on."""

    n_examples: int  # users, or parts of their sets, in an epoch
    n_items: int  # items that have events
    n_events: int
    mean_history: float
    is_set: bool
    is_repeated: bool  # owned items are recommended again: the memory is trained
    is_ordered: bool  # every event is a target of those before it
    has_content: bool
    has_context: bool
    n_unused: int = 0  # items of the items table without events
    has_horizon: bool = False  # targets are all events of a time span

    @property
    def n_listed(self) -> int:
        return self.n_items + self.n_unused

    @property
    def is_long(self) -> bool:
        return self.mean_history > LONG_HISTORY

    @property
    def family(self) -> str:
        if self.is_repeated:
            return "repeats"
        if self.is_set:
            return "set in context" if self.has_context else "set"
        if self.is_ordered:
            return "long" if self.is_long else "short"
        return "long baskets" if self.is_long else "baskets"

    @property
    def shape(self) -> str:
        if self.is_repeated:
            return "items are consumed again"
        if self.is_set:
            return "events have no order"
        return f"{self.mean_history:.0f} events a user"

    @property
    def catalogue(self) -> str:
        unused = f", {self.n_unused:,} without events" if self.n_unused else ""
        return f"{self.n_listed:,} items{unused}, {self.shape}"


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
    n_examples = len(history)

    if has_no_order:
        n_examples = int(history.clip(upper=FOLDS).sum())
    is_unused = ~tables.items["item_id"].isin(rows["item_id"])
    usual_history = history.clip(upper=MAX_OF_MEDIAN * history.median())
    mean_history = float(usual_history.mean())
    n_items = rows["item_id"].nunique()
    features = config.features
    is_repeated = config.repeats == "allow"
    has_order = find_ties(rows, config.ties) == "ordered"

    return DataCounts(
        n_examples=n_examples,
        n_items=n_items,
        n_unused=int(is_unused.sum()),
        n_events=len(rows),
        mean_history=mean_history,
        is_set=has_no_order,
        is_repeated=is_repeated,
        is_ordered=has_order and not is_repeated,
        has_content=bool(features.item),
        has_context=bool(features.context),
        has_horizon=config.split.at is not None,
    )


def choose_recipe(
    config: ModelConfig, counts: DataCounts
) -> tuple[Recipe, list[Choice]]:
    """Complete a configuration.

    Args:
        config: the `model` section; None leaves a key open.
        counts: counts of the data.

    Returns:
        The recipe, and the choices made for open keys.

    Raises:
        SchemaError: the configuration asks for item-item weights of baskets.
    """
    family = FAMILIES[counts.family]
    if config.neighbours and not family.neighbours:
        raise SchemaError(
            f"model.neighbours is {config.neighbours}; "
            "allowed where data.ties is simultaneous: 0"
        )

    values = asdict(config)

    choices = []
    for name, (value, reason) in _default_values(counts, family).items():
        if values[name] is None:
            values[name] = value
            choices.append(Choice(name, value, reason))

    n_heads = 2 if family.n_blocks == 2 and values["dim"] % 2 == 0 else 1
    n_batches = math.ceil(counts.n_examples / values["batch_size"])
    longest = int(WARMUP_SHARE * values["max_epochs"] * n_batches)
    warmup_steps = min(family.warmup_steps, max(1, longest))

    return Recipe(**values, n_heads=n_heads, warmup_steps=warmup_steps), choices


def _default_values(counts: DataCounts, family: Family) -> dict[str, tuple[Any, str]]:
    """Return the value of each key, with its reason."""
    shape = counts.shape
    catalogue = counts.catalogue
    events = f"{counts.n_events:,} events, {shape}"
    examples = f"{counts.n_examples:,} examples"
    epochs = _epochs(counts)
    patience = max(epochs // 3, 3) if counts.is_repeated else family.patience

    has_many = counts.n_events >= MANY_EVENTS
    dropout = family.dropout_of_many if has_many else family.dropout
    id_dropout = family.id_dropout if counts.has_content else 0.0

    neighbours = _neighbours(counts, family)
    batch_size = _batch_size(counts, family)
    placed = "items too" if id_dropout else "cold items alone"

    return {
        "dim": (family.dim, shape),
        "n_blocks": (family.n_blocks, shape),
        "dropout": (dropout, events),
        "id_dropout": (id_dropout, f"{shape}: content places {placed}"),
        "similarity": (family.similarity, shape),
        "neighbours": (neighbours, f"{catalogue}: items that go together"),
        "min_users": (_min_users(counts), f"{shape}: behind each weight"),
        "negatives": (_negatives(counts), catalogue),
        "learning_rate": (family.learning_rate, shape),
        "batch_size": (batch_size, f"{examples}, {shape}"),
        "max_epochs": (epochs, f"{examples}, {events}"),
        "patience": (patience, shape),
    }


def _neighbours(counts: DataCounts, family: Family) -> int:
    fitting = max(MIN_NEIGHBOURS, MAX_WEIGHTS_OF_LARGE // max(counts.n_items, 1))
    if fitting < family.neighbours:
        return fitting
    if not counts.is_set and (counts.n_items > MAX_NEIGHBOURS or not family.neighbours):
        return family.neighbours
    fitting = 2 ** int(math.log2(MAX_WEIGHTS / max(counts.n_items, 1)))
    return int(min(max(family.neighbours, fitting), MAX_NEIGHBOURS))


def _min_users(counts: DataCounts) -> int:
    if counts.is_long or counts.is_repeated:
        return MIN_USERS
    return MIN_USERS_OF_SHORT_SETS if counts.is_set else 1


def _negatives(counts: DataCounts) -> int:
    if counts.is_repeated:
        return 0
    if not counts.is_ordered:
        return NEGATIVES_OF_REQUESTS if counts.n_listed > MANY_ITEMS_OF_REQUESTS else 0

    is_large = counts.is_long and counts.n_events >= MANY_EVENTS
    if counts.n_listed <= (MANY_ITEMS_OF_LONG if is_large else MANY_ITEMS):
        return 0

    share = 2 ** round(math.log2(SHARE_OF_LONG * counts.n_listed))

    return min(share, MAX_OF_LONG) if counts.is_long else NEGATIVES


def _batch_size(counts: DataCounts, family: Family) -> int:
    n_steps = MIN_STEPS_OF_REPEATS if counts.is_repeated else MIN_STEPS
    fitting = 2 ** round(math.log2(max(counts.n_examples, 1) / n_steps))
    return int(min(max(fitting, MIN_BATCH), family.max_batch))


def _epochs(counts: DataCounts) -> int:
    if counts.is_repeated:
        shown = CUTOFFS_SHOWN if counts.has_horizon else GROUPS_SHOWN
        epochs = round(shown / max(counts.n_examples, 1))
        return min(max(epochs, EPOCHS_OF_REPEATS), MAX_EPOCHS)

    if counts.is_set:
        return EPOCHS_OF_SETS
    shown = TARGETS_SHOWN_OF_LONG if counts.is_long else TARGETS_SHOWN
    return min(max(round(shown / max(counts.n_events, 1)), MIN_EPOCHS), MAX_EPOCHS)
