"""Size of the towers and how they are trained; `train.py` unpacks it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from serve.errors import SchemaError
from serve.schema import Similarity

Correction = Literal["negatives", "every_logit"]


@dataclass(frozen=True)
class ModelConfig:
    """The two towers and their optimiser."""

    dim: int = 64
    """Entries of the taste part of a vector."""
    affinity_dim: int = 64
    """Entries of the category part of a vector; read where `data.repeats` is `allow`."""
    n_blocks: int = 1
    """Attention blocks of the user tower. 0: a history is the mean of its events, which often suits sets."""
    n_heads: int = 1
    """Heads of a block; divides `dim`."""
    dropout: float = 0.2
    """On the tower's input, in its blocks and in its head."""
    id_dropout: float = 0.1
    """Share of the items that lose their id part in a step, so that content alone places an item."""
    similarity: Similarity = "dot"
    """Inner product, or cosine with a learned temperature."""
    temperature: float = 0.07
    """First temperature under `cosine`."""
    negatives: int = 0
    """Items drawn in a step that all its targets are told from; 0: all items of the catalogue, always."""
    in_batch_negatives: int = 0
    """Drawn besides from the targets of the step, which come as often as items do; read where `negatives` > 0."""
    correction: Correction = "negatives"
    """What is corrected by how often an item is drawn: the negatives, or the logit of the target as well."""
    learning_rate: float = 1e-3
    """Peak of the schedule."""
    memory_learning_rate: float = 1e-2
    """Of the few weights of the memory; read where `data.repeats` is `allow`."""
    weight_decay: float = 0.01
    """Of AdamW."""
    warmup_steps: int = 50
    """Steps of linear rise before the cosine descent."""
    batch_size: int = 128
    """Windows or users of a batch."""
    max_epochs: int = 20
    """Length of the schedule."""
    patience: int = 5
    """Epochs without a better validation NDCG before training stops."""

    def __post_init__(self) -> None:
        for name in (
            "dim",
            "affinity_dim",
            "n_heads",
            "batch_size",
            "max_epochs",
            "warmup_steps",
            "patience",
        ):
            if getattr(self, name) < 1:
                raise SchemaError(f"model.{name} is {getattr(self, name)}; allowed: 1 or more")
        for name in ("n_blocks", "negatives", "in_batch_negatives"):
            if getattr(self, name) < 0:
                raise SchemaError(f"model.{name} is {getattr(self, name)}; allowed: 0 or more")
        for name in ("temperature", "learning_rate", "memory_learning_rate"):
            if not getattr(self, name) > 0:
                raise SchemaError(f"model.{name} is {getattr(self, name)}; allowed: more than 0")
        if self.dim % self.n_heads:
            raise SchemaError(f"model.dim is {self.dim} and model.n_heads {self.n_heads}; heads must divide dim")
        for name in ("dropout", "id_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise SchemaError(f"model.{name} is {getattr(self, name)}; allowed: 0 to less than 1")
