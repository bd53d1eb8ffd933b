"""The `model` section of a configuration, and the recipe that training runs."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, fields

from serve.errors import SchemaError
from serve.schema import Similarity

TEMPERATURE = 0.07  # first temperature under `cosine`; it is learned


@dataclass(frozen=True)
class ModelConfig:
    """Size of the towers and how they are trained; a key that is left out is chosen from the data.

    The parser of a configuration checks the types of values, this class their ranges.

    Raises:
        SchemaError: a value is out of its range.
    """

    dim: int | None = None
    """Entries of the taste part of a vector."""
    n_blocks: int | None = None
    """Attention blocks over the history; 0: a weighted sum of its events, which suits sets."""
    dropout: float | None = None
    """Dropout of the user tower: input, blocks and head."""
    id_dropout: float | None = None
    """Share of items that lose their id embedding in a step, so that content alone places them."""
    similarity: Similarity | None = None
    """`dot`: the length of a vector counts. `cosine`: its direction, with a learned temperature."""
    neighbours: int | None = None
    """Item-item weights per item, fitted after training, weighed by the validation; 0: none."""
    negatives: int | None = None
    """Items drawn per step as negatives; 0, as always with repeats: softmax over the catalogue."""
    learning_rate: float | None = None
    """Peak of the schedule."""
    batch_size: int | None = None
    """Users, or windows of their histories, in a step."""
    max_epochs: int | None = None
    """Length of the schedule."""
    patience: int | None = None
    """Epochs without a better validation NDCG, averaged over three, before training stops."""
    table_rows: int | None = None
    """Most rows of the id table: rare and old items then share rows. Default: a row an item."""
    min_users: int | None = None
    """Users who took both items of an item-item weight, at least: one that fewer made would name
    them. Default: 5; 2 of short unordered histories, 1 of short ordered ones, that is any pair."""

    def __post_init__(self) -> None:
        for name in ("dim", "batch_size", "max_epochs", "min_users", "patience"):
            self._check(name, 1, math.inf, "an integer from 1")
        self._check("table_rows", 2, math.inf, "an integer from 2")
        for name in ("n_blocks", "neighbours", "negatives"):
            self._check(name, 0, math.inf, "an integer from 0")
        for name in ("dropout", "id_dropout"):
            self._check(name, 0, 1, "a number from 0 to below 1")
        self._check(
            "learning_rate", sys.float_info.min, math.inf, "a finite number above 0"
        )

    def _check(self, name: str, low: float, below: float, allowed: str) -> None:
        value = getattr(self, name)
        if value is not None and not low <= value < below:
            raise SchemaError(f"model.{name} is {value!r}; allowed: {allowed}")


@dataclass(frozen=True)
class Recipe:
    """A complete `ModelConfig`, with the values that follow from it and the data."""

    dim: int
    n_blocks: int
    dropout: float
    id_dropout: float
    similarity: Similarity
    neighbours: int
    negatives: int
    learning_rate: float
    batch_size: int
    max_epochs: int
    patience: int
    n_heads: int  # attention heads of a block; divides `dim`
    warmup_steps: int  # steps of linear rise before the cosine descent
    table_rows: int | None = None
    min_users: int = 1

    @property
    def logit_unit(self) -> float:
        """The score that is one unit of logits before training."""
        return TEMPERATURE if self.similarity == "cosine" else 1.0

    def to_config(self) -> ModelConfig:
        """Return the public keys."""
        names = [field.name for field in fields(ModelConfig)]
        return ModelConfig(**{name: getattr(self, name) for name in names})
