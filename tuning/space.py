"""What a search tries: for each field of the recipe that is left open, a small range about what the data chose.

`patience` is none of them: it says how long to wait for a better figure, and more of it never lowers the best one. Nor
is `freeze_items`: what else was chosen was chosen for it. Nor are `correlations`, `neighbours`, `low_pass` and
`shrink_items`: trials are judged before anything is done to trained towers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from models.config import Recipe

Space = dict[str, BaseDistribution]

DIGITS = 3
"""Of a rate or share that is tried, so that it can be read and typed."""
SHARE_STEP, SHARE_STEPS = 0.05, 4
MOST_DROPOUT, MOST_ID_DROPOUT = 0.8, 0.5
RATE_FACTOR = 4
WARMUP_FACTOR = 4
HEADS = (1, 2, 4)


def make_space(recipe: Recipe, left_open: Collection[str], has_content: bool) -> Space:
    """Lay a range about each field that is left open.

    Args:
        recipe: what the data chose; lies within every range.
        left_open: fields of the recipe that may be searched.
        has_content: items have features, so that an id can be dropped.
    """
    space = {name: rule(recipe) for name, rule in _RULES.items() if name in left_open}
    if "n_heads" in left_open:
        space["n_heads"] = _heads(recipe, "dim" in left_open)
    if not has_content:
        space.pop("id_dropout", None)
    if not recipe.negatives:  # all items of the catalogue: no sample to size
        space.pop("negatives", None)
    if not recipe.n_blocks and "n_blocks" not in left_open:
        space.pop("n_heads", None)
    return {name: space[name] for name in list_fields() if name in space and not space[name].single()}


def list_fields() -> list[str]:
    """Name the fields of a recipe, in its order."""
    return [field.name for field in fields(Recipe)]


def default_of(recipe: Recipe, space: Iterable[str]) -> dict[str, Any]:
    """Return what the data chose for what is searched."""
    return {name: getattr(recipe, name) for name in space}


def tidy(values: Mapping[str, Any]) -> dict[str, Any]:
    """Round what was drawn."""
    return {name: _tidy(value) for name, value in values.items()}


def apply(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe with the values that are tried."""
    return replace(recipe, **values)


def _tidy(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _dim(recipe: Recipe) -> BaseDistribution:
    return IntDistribution(_step(recipe), 2 * recipe.dim, step=_step(recipe))


def _step(recipe: Recipe) -> int:
    """Return the half, or the whole where heads do not divide the half: they divide every size that is tried."""
    return recipe.dim if recipe.dim % (2 * recipe.n_heads) else recipe.dim // 2


def _heads(recipe: Recipe, is_dim_open: bool) -> BaseDistribution:
    divided = _step(recipe) if is_dim_open else recipe.dim
    return CategoricalDistribution(sorted({*(heads for heads in HEADS if not divided % heads), recipe.n_heads}))


def _blocks(recipe: Recipe) -> BaseDistribution:
    return IntDistribution(max(recipe.n_blocks - 1, 0), recipe.n_blocks + 1)


def _share(value: float, most: float) -> BaseDistribution:
    """Give some steps to both sides of the value, from 0 to `most`."""
    below = min(SHARE_STEPS, math.floor(round(value / SHARE_STEP, 6)))
    above = min(SHARE_STEPS, math.floor(round((max(most, value) - value) / SHARE_STEP, 6)))
    low, high = (round(value + steps * SHARE_STEP, 6) for steps in (-below, above))
    return FloatDistribution(low, high, step=SHARE_STEP)


def _dropout(recipe: Recipe) -> BaseDistribution:
    return _share(recipe.dropout, MOST_DROPOUT)


def _id_dropout(recipe: Recipe) -> BaseDistribution:
    return _share(recipe.id_dropout, MOST_ID_DROPOUT)


def _similarity(recipe: Recipe) -> BaseDistribution:
    return CategoricalDistribution(("cosine", "dot"))


def _negatives(recipe: Recipe) -> BaseDistribution:
    return _doublings(recipe.negatives, 2)


def _learning_rate(recipe: Recipe) -> BaseDistribution:
    rate = recipe.learning_rate
    return FloatDistribution(rate / RATE_FACTOR, rate * RATE_FACTOR, log=True)


def _warmup(recipe: Recipe) -> BaseDistribution:
    steps = recipe.warmup_steps
    return IntDistribution(max(steps // WARMUP_FACTOR, 1), steps * WARMUP_FACTOR, log=True)


def _batch_size(recipe: Recipe) -> BaseDistribution:
    return _doublings(recipe.batch_size, 1)


def _epochs(recipe: Recipe) -> BaseDistribution:
    epochs = recipe.max_epochs
    return IntDistribution(max(epochs // 2, 1), epochs + max(epochs // 2, 1))


def _doublings(value: int, most: int) -> BaseDistribution:
    """Give the half, the value and its doublings."""
    return CategoricalDistribution([value // 2] * (value > 1) + [value * 2**power for power in range(most + 1)])


_RULES: dict[str, Callable[[Recipe], BaseDistribution]] = {
    "dim": _dim,
    "n_blocks": _blocks,
    "dropout": _dropout,
    "id_dropout": _id_dropout,
    "similarity": _similarity,
    "negatives": _negatives,
    "learning_rate": _learning_rate,
    "warmup_steps": _warmup,
    "batch_size": _batch_size,
    "max_epochs": _epochs,
}
