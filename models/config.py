"""Size of the towers and how they are trained: what a configuration may fix, and the whole that is run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

from serve.declared_types import take_declared_types
from serve.errors import SchemaError, passes
from serve.schema import Similarity

Correction = Literal["negatives", "every_logit"]


@dataclass(frozen=True)
class ModelConfig:
    """The two towers and their optimiser; what is left out is chosen from the data, see `models.defaults`."""

    dim: int | None = None
    """Entries of the taste part of a vector."""
    n_blocks: int | None = None
    """Attention blocks of the user tower. 0: a history is the sum of its events over a power of
    their number, which often suits sets."""
    n_heads: int | None = None
    """Heads of a block; divides `dim`."""
    dropout: float | None = None
    """On the tower's input, in its blocks and in its head."""
    id_dropout: float | None = None
    """Share of the items that lose their id part in a step, so that content alone places an item."""
    similarity: Similarity | None = None
    """Inner product, or cosine with a learned temperature."""
    correlations: int | None = None
    """Entries of a vector, beside those of `dim`, that hold correlations of items, blended in after training by as much
    as the validation says; 0: none; refused above it where events have an order and none is taken again."""
    neighbours: int | None = None
    """The most items to whose scores each item of a history adds, in place of `correlations`; how much they count, in
    sets how many there are, and in an order whether it is what comes next or, as in a set, what goes together, the
    validation says. Of more than 16,000 items of a set the popular ones have at most
    as many again of the others. 0: none, as always where `data.ties` is `simultaneous` or
    `data.repeats` is `allow`."""
    low_pass: int | None = None
    """The most factors of a low-pass filter of who has what, which are put into vectors after training; the validation
    says how many, and how much they count. In sets the filter is tried pair by pair too, as further neighbours. 0:
    neither, as always where `data.repeats` is `allow`."""
    shrink_items: bool | None = None
    """Shrink items towards where content puts them, once all is trained, the more the fewer have taken them, as far as
    the validation says; refused with baskets, repeats, or items without features."""
    freeze_items: bool | None = None
    """Leave the items of a set where their correlations put them, and train hardly more than demographics; read where
    there is no request context and `n_blocks` is 0."""
    negatives: int | None = None
    """Items drawn in a step that all its targets are told from; 0: all items of the catalogue, as always where
    `data.repeats` is `allow`."""
    learning_rate: float | None = None
    """Peak of the schedule."""
    warmup_steps: int | None = None
    """Steps of linear rise before the cosine descent."""
    batch_size: int | None = None
    """Windows or users of a batch."""
    max_epochs: int | None = None
    """Length of the schedule."""
    patience: int | None = None
    """Epochs without a better validation NDCG, the mean of the last three, before training stops."""
    temperature: float = 0.07
    """First temperature under `cosine`."""
    in_batch_negatives: int = 0
    """Drawn besides from the targets of the step, which come as often as items do; read where `negatives` > 0, and
    refused where not every event is a target: in sets, in baskets and with repeats."""
    correction: Correction = "negatives"
    """What is corrected by how often an item is drawn: the negatives, or the logit of the target as well."""
    weight_decay: float = 0.01
    """Of AdamW."""
    affinity_dim: int = 16
    """Entries of the category part of a vector; read where `data.repeats` is `allow`."""
    memory_learning_rate: float = 1e-2
    """Of the few weights of the memory; read where `data.repeats` is `allow`."""

    def __post_init__(self) -> None:
        take_declared_types(self, "model")
        for name in ("dim", "affinity_dim", "n_heads", "batch_size", "max_epochs", "warmup_steps", "patience"):
            self._check(name, lambda value: value >= 1, "1 or more")
        for name in ("n_blocks", "correlations", "neighbours", "low_pass", "negatives", "in_batch_negatives"):
            self._check(name, lambda value: value >= 0, "0 or more")
        self._check("weight_decay", lambda value: 0 <= value < math.inf, "0 or more, and finite")
        for name in ("temperature", "learning_rate", "memory_learning_rate"):
            self._check(name, lambda value: 0 < value < math.inf, "more than 0, and finite")
        for name in ("dropout", "id_dropout"):
            self._check(name, lambda value: 0 <= value < 1, "0 to less than 1")
        if self.dim is not None and self.n_heads is not None and self.dim % self.n_heads:
            raise SchemaError(f"model.dim is {self.dim} and model.n_heads {self.n_heads}; heads must divide dim")
        if self.correlations and self.neighbours:
            given = f"model.correlations is {self.correlations} and model.neighbours {self.neighbours}"
            raise SchemaError(f"{given}; allowed: one of them, and 0 for the other")

    def _check(self, name: str, is_allowed: Callable[[float], bool], allowed: str) -> None:
        value = getattr(self, name)
        if value is not None and not passes(value, is_allowed):
            raise SchemaError(f"model.{name} is {value}; allowed: {allowed}")


@dataclass(frozen=True)
class Recipe:
    """What `ModelConfig` may leave open, decided; its docstrings say what each is."""

    dim: int
    n_blocks: int
    n_heads: int
    dropout: float
    id_dropout: float
    similarity: Similarity
    correlations: int
    neighbours: int
    low_pass: int
    shrink_items: bool
    freeze_items: bool
    negatives: int
    learning_rate: float
    warmup_steps: int
    batch_size: int
    max_epochs: int
    patience: int


def recipe_of(config: ModelConfig) -> Recipe:
    """Return the recipe of a configuration that is whole.

    Raises:
        SchemaError: something is left open.
    """
    values = {field.name: getattr(config, field.name) for field in fields(Recipe)}
    for name in [name for name, value in values.items() if value is None]:
        raise SchemaError(f"model.{name} is left open: `settle` decides it from the data")
    return Recipe(**values)
