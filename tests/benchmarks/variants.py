"""A training with something taken out, or done the other way round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from models.config import recipe_of
from models.two_tower import TwoTower
from run_config import Config
from tests.benchmarks.board_fit import Prepared

WHOLE = "all"
FOREVER = 10**9
FIRST_ID_DROPOUT = 0.1


class Silent(nn.Module):
    """Take the place of a layer and say nothing: zeros."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.n_features = n_features

    def forward(self, values: Tensor) -> Tensor:
        """Map (..., anything) to zeros (..., F)."""
        return torch.zeros(*values.shape[:-1], self.n_features, device=values.device)


@dataclass(frozen=True)
class Variant:
    """Something taken out, or done the other way round."""

    name: str
    applies: Callable[[Prepared], bool] = lambda prepared: True
    configure: Callable[[Config], Config] = lambda config: config
    alter: Callable[[TwoTower], None] = lambda model: None
    """Replace a piece of the model that was built."""
    tell: Callable[[Config], str] | None = None
    """Say what a changed configuration has; None: the name says it."""


def without_attributes(config: Config) -> Config:
    return replace(config, data=replace(config.data, features=replace(config.data.features, item={})))


def other_similarity(config: Config) -> Config:
    other = "dot" if recipe_of(config.model).similarity == "cosine" else "cosine"
    return replace(config, model=replace(config.model, similarity=other))


def without_dropout(config: Config) -> Config:
    return replace(config, model=replace(config.model, dropout=0.0))


def other_id_dropout(config: Config) -> Config:
    other = 0.0 if recipe_of(config.model).id_dropout else FIRST_ID_DROPOUT
    return replace(config, model=replace(config.model, id_dropout=other))


def without_context(config: Config) -> Config:
    return replace(config, data=replace(config.data, features=replace(config.data.features, context={})))


def hold_rate(model: TwoTower) -> None:
    """Put the model at the very beginning of a schedule without a rise: the rate stays at its peak."""
    model.max_epochs, model.warmup_steps = FOREVER, 1


def silence_gaps(model: TwoTower) -> None:
    for block in model.towers.user_tower.blocks.blocks:
        block.gap_bias.weight.requires_grad_(False).zero_()


def silence_recency(model: TwoTower) -> None:
    tower = model.towers.user_tower
    tower.project_recency = Silent(tower.dim)


def silence_memory(model: TwoTower) -> None:
    """Let owned items score by the product of the vectors, as the others do."""
    memory = model.towers.user_tower.memory
    memory.score_owned = lambda state, vectors, inputs: vectors.new_zeros(len(inputs.owned_users))


def has_attributes(prepared: Prepared) -> bool:
    return bool(prepared.config.data.features.item)


def has_times(prepared: Prepared) -> bool:
    return "datetime" in prepared.tables.interactions


def has_context(prepared: Prepared) -> bool:
    return has_times(prepared) or bool(prepared.config.data.features.context)


def attends_to_times(prepared: Prepared) -> bool:
    return has_times(prepared) and recipe_of(prepared.config.model).n_blocks > 0


def has_memory(prepared: Prepared) -> bool:
    return prepared.config.data.repeats == "allow"


VARIANTS = (
    Variant(WHOLE),
    Variant("no-attributes", has_attributes, without_attributes),
    Variant(
        "other-similarity",
        configure=other_similarity,
        tell=lambda config: f"similarity {recipe_of(config.model).similarity}",
    ),
    Variant("no-dropout", configure=without_dropout),
    Variant("constant-rate", alter=hold_rate),
    Variant("no-time-in-attention", attends_to_times, alter=silence_gaps),
    Variant("no-request-context", has_context, without_context, silence_recency),
    Variant("no-memory-term", has_memory, alter=silence_memory),
    Variant(
        "other-id-dropout",
        has_attributes,
        other_id_dropout,
        tell=lambda config: f"id dropout {recipe_of(config.model).id_dropout:g}",
    ),
)
