"""A training with something taken out, or done the other way round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor, nn

from datamodules.clean import TARGET_WEIGHT, only_targets
from models.config import recipe_of
from models.towers import Towers
from models.two_tower import TwoTower
from pipeline.config import Config
from run_finishing import blends
from tests.benchmarks.board_fit import Prepared

WHOLE = "all"
FOREVER = 10**9
FIRST_ID_DROPOUT = 0.1
ID_SHARE = 0.5


class Silent(nn.Module):
    """Take the place of a layer and say nothing: zeros."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.n_features = n_features

    def forward(self, values: Tensor) -> Tensor:
        """Map (..., anything) to zeros (..., F)."""
        return torch.zeros(*values.shape[:-1], self.n_features, device=values.device)


class BoundedIds(nn.Module):
    """Keep the id part of an item to a share of the length of its content (Let It Go, arXiv 2507.19473)."""

    def __init__(self, towers: Towers) -> None:
        super().__init__()
        self.table = towers.item_tower.id_table
        self._towers = [towers]  # in a list, or the towers would be a part of their own part

    def forward(self, rows: Tensor) -> Tensor:
        """Look up items (n,), (n, D); one without content keeps its whole id part."""
        (towers,) = self._towers
        ids = self.table(rows)  # (n, D)
        content = towers.item_tower.content(towers.item_codes[rows], towers.item_values[rows]).detach()  # (n, D)
        most = ID_SHARE * content.norm(dim=1, keepdim=True)  # (n, 1)
        bounded = ids * (most / ids.norm(dim=1, keepdim=True).clamp(min=1e-9)).clamp(max=1)  # (n, D)
        return torch.where(towers.item_has_content[rows].unsqueeze(1), bounded, ids)  # (n, D)


@dataclass(frozen=True)
class Variant:
    """Something taken out, or done the other way round."""

    name: str
    applies: Callable[[Prepared], bool] = lambda prepared: True
    configure: Callable[[Config], Config] = lambda config: config
    alter: Callable[[TwoTower], None] = lambda model: None
    """Replace a piece of the model that was built."""
    rows: Callable[[pd.DataFrame], pd.DataFrame] = lambda rows: rows
    """Change the interactions that are trained on; the test stays as it is."""
    tell: Callable[[Config], str] | None = None
    """Say what a changed configuration has; None: the name says it."""


def without_attributes(config: Config) -> Config:
    config = without_shrinkage(config)
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
    """Declare no context; a set of few users is left where correlations put it, all else is as with context."""
    has_blocks = recipe_of(config.model).n_blocks > 0
    model = replace(config.model, freeze_items=True)
    if not has_blocks:
        model = replace(model, correlations=0, neighbours=0)
    return replace(config, model=model, data=replace(config.data, features=replace(config.data.features, context={})))


def without_correlations(config: Config) -> Config:
    return replace(config, model=replace(config.model, correlations=0, neighbours=0))


def without_shrinkage(config: Config) -> Config:
    return replace(config, model=replace(config.model, shrink_items=False))


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


def bound_ids(model: TwoTower) -> None:
    model.towers.item_tower.id_table = BoundedIds(model.towers)  # type: ignore[assignment]


def every_event_a_target(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.drop(columns=TARGET_WEIGHT)


def without_weights(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.drop(columns="weight")


def weights_as_events(rows: pd.DataFrame) -> pd.DataFrame:
    return without_weights(rows.assign(event=rows["weight"].map("{:g}".format)))


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


def has_correlations(prepared: Prepared) -> bool:
    return blends(prepared.config)


def shrinks_items(prepared: Prepared) -> bool:
    return recipe_of(prepared.config.model).shrink_items


def has_ids_to_learn(prepared: Prepared) -> bool:
    """Tell whether ids do not start from the data: what started learns slowly, and is known by the name it had."""
    return has_attributes(prepared) and not has_memory(prepared)


def has_liked_targets(prepared: Prepared) -> bool:
    return prepared.config.data.targets.min_weight is not None


VARIANTS = (
    Variant(WHOLE),
    Variant("no-attributes", has_attributes, without_attributes),
    Variant(
        "other-similarity",
        configure=other_similarity,
        tell=lambda config: f"similarity {recipe_of(config.model).similarity}",
    ),
    Variant("no-correlations", has_correlations, without_correlations),
    Variant("no-shrinkage", shrinks_items, without_shrinkage),
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
    Variant("bounded-ids", has_ids_to_learn, without_shrinkage, bound_ids),  # to be compared with no-shrinkage
    Variant("every-event-a-target", has_liked_targets, rows=every_event_a_target),
    Variant("no-weights", has_liked_targets, rows=without_weights),
    Variant("weights-as-events", has_liked_targets, rows=weights_as_events),
    Variant("no-event-that-is-no-target", has_liked_targets, rows=only_targets),
)
