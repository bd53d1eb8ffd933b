"""Start a training from the weights of an earlier run, whose vocabularies and catalogue may have grown since.

A row of a table is found by what it stands for: an item, a value of a feature, a type of event. Rows that are new start
as in any training, those of new items with content at zero, so that their content alone places them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoints import CHECKPOINTS, read_checkpoint
from models.config import ModelConfig
from models.memory import N_STATE_FEATURES
from models.two_tower import TwoTower
from serve.bundle import Bundle
from serve.encode import category_features, value_slices
from serve.errors import BundleError, SchemaError
from serve.events import USER_STATISTICS, statistic_names
from serve.schema import FIRST_CODE, Feature, Schema

WEIGHTS = ("final/last.ckpt", "select/best.ckpt", "select/last.ckpt")  # the first that is there was exported
IDS, MEMORY = "towers.item_tower.id_table.weight", "towers.user_tower.memory"
_BY_COLUMN = (f"{MEMORY}.profile_weight.weight", f"{MEMORY}.item_score.0.weight")  # inputs are their columns
_SIDES = {"item_tower.content": "item", "user_tower.demographics": "user", "user_tower.context": "context"}
Rows = dict[str, list[Hashable]]  # weights -> what each of their rows, or of `_BY_COLUMN` columns, stands for


@dataclass(frozen=True)
class Start:
    """What a training starts from."""

    path: Path  # of the weights
    model: ModelConfig  # by which they were trained
    weights: dict[str, Tensor]
    rows: Rows

    @classmethod
    def read(cls, bundle: Bundle, run: Path) -> Start:
        """Read the weights that a run left beside its bundle."""
        path = next((path for name in WEIGHTS if (path := run / CHECKPOINTS / name).exists()), None)
        if path is None:
            raise SchemaError(f"{run / CHECKPOINTS} holds no weights to start from: leave --warm_start out")
        weights = dict[str, Tensor](read_checkpoint(path)["state_dict"])
        rows = name_rows(bundle.schema, bundle.items.column("item_id").to_pylist())
        for name in rows.keys() & weights.keys():
            if len(rows[name]) != weights[name].shape[_axis(name)]:
                raise BundleError(f"{path} is not what {bundle.path} was exported from: leave --warm_start out")
        return cls(path, ModelConfig(**bundle.manifest.facts.config["model"]), weights, rows)


def name_rows(schema: Schema, item_ids: Sequence[Hashable]) -> Rows:
    """Say what the rows of each table stand for of which the data decides the number."""
    codes = range(FIRST_CODE)
    rows: Rows = {IDS: list(item_ids), "towers.user_tower.event_table.weight": [*codes, *schema.event_types]}
    for name, side in _SIDES.items():
        features = schema.features(side)
        coded = [row for feature in features if not feature.has_values for row in _name_codes(feature)]
        spans = [(feature.name, span.stop - span.start) for feature, span in value_slices(features)]
        rows[f"towers.{name}.table.weight"] = coded or [None]
        rows[f"towers.{name}.number_table"] = [(one, entry) for one, width in spans for entry in range(width)]
    categories = [row for feature, _ in category_features(schema.item_features) for row in _name_codes(feature)]
    rows["towers.item_tower.affinity_table.weight"] = categories or [None]
    numbered: list[Hashable] = [
        *statistic_names(range(len(schema.decay_days)), schema.event_types)
    ]  # decays change with the span of data
    rows |= dict.fromkeys((f"{MEMORY}.affinity_table", f"{MEMORY}.category_shares"), categories)
    rows |= dict.fromkeys((f"{MEMORY}.standardise.mean", f"{MEMORY}.standardise.scale", _BY_COLUMN[0]), numbered)
    return rows | {_BY_COLUMN[1]: [*numbered, *range(len(USER_STATISTICS) + N_STATE_FEATURES + 1)]}


def _name_codes(feature: Feature) -> list[Hashable]:
    values = [*range(FIRST_CODE), *feature.vocabulary, *((feature.buckets, one) for one in range(feature.buckets))]
    return [(feature.name, value) for value in values]


def _axis(name: str) -> int:
    """Return the axis of weights that `name_rows` names."""
    return 1 if name in _BY_COLUMN else 0


@torch.no_grad()
def take_over(model: TwoTower, start: Start, item_ids: Sequence[Hashable], schema: Schema) -> None:
    """Give a new model the weights of an earlier one; the schema and the ids (N,) are those of the new one."""
    state, rows = model.state_dict(), name_rows(schema, item_ids)
    check_shapes(start, state, model.recipe.to_config())
    for name, tensor in state.items():  # of the memory of the model itself
        was = start.weights[name]
        if name not in rows:
            tensor.copy_(was)
            continue
        place = {row: index for index, row in enumerate(start.rows[name])}
        found = torch.tensor([place.get(row, -1) for row in rows[name]], dtype=torch.int64)  # (rows,)
        is_kept = found >= 0
        if name == IDS:
            tensor[~is_kept & model.towers.item_has_content] = 0.0
        axis = _axis(name)
        tensor.movedim(axis, 0)[is_kept] = was.movedim(axis, 0)[found[is_kept]]


def check_shapes(start: Start, state: Mapping[str, Tensor], model: ModelConfig) -> None:
    """Refuse weights of other names or of other shapes but for the rows of tables."""

    def describe(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        fixed = {
            name: [size for axis, size in enumerate(one.shape) if name not in start.rows or axis != _axis(name)]
            for name, one in weights.items()
        }
        return {name: tuple(sizes) for name, sizes in fixed.items()}

    was, here = describe(start.weights), describe(state)
    names = [name for name in sorted(was.keys() | here.keys()) if was.get(name) != here.get(name)]
    keys = {key: [getattr(one, key) for one in (start.model, model)] for key in ("dim", "n_blocks", "similarity")}
    different = [
        f"model.{key} is {there!r} there and {now!r} here" for key, (there, now) in keys.items() if there != now
    ]
    if names or different:
        what = "; ".join(different) or f"'{names[0]}' is {was.get(names[0])} there and {here.get(names[0])} here"
        raise SchemaError(
            f"{start.path} holds weights of another shape: {what}; give what it has, or leave --warm_start out"
        )
