"""Build the towers, and start their tables: from the data for sets and for repeats, or from an earlier run's weights.

Random item vectors over-fit where events are few. They start from the singular vectors of the interaction matrix,
affinities from those of the users' category lifts. With the weights of an earlier run, whose vocabularies and catalogue
may have grown since, a row of a table is found by what it stands for: an item, a value of a feature, a type of event.
Rows that are new start as in any training, those of new items with content at zero: their content alone places them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import svds
from torch import Tensor, nn

from datamodules.datamodule import InteractionsDataModule
from models.checkpoints import CHECKPOINTS, read_checkpoint
from models.config import ModelConfig, Recipe
from models.item_tower import ItemTower
from models.memory import N_STATE_FEATURES, Memory, MemorySample
from models.towers import Towers
from models.two_tower import TwoTower
from models.user_tower import UserTower
from serve.bundle import Bundle
from serve.encode import category_features, value_slices
from serve.errors import BundleError, SchemaError
from serve.events import USER_STATISTICS, statistic_names
from serve.schema import FIRST_CODE, Feature, Schema

CONTENT_STEPS = 60
REPEATED_USER_POWER = -0.25
"""Of a user's items in the scale of their row: who buys much of everything would decide what goes with what."""
MIN_SINGULAR = (
    1e-3  # share of the largest singular value below which a direction is left out
)
FIRST_SCORE = 0.4  # score of a pooled history: dropout brings it here in training
WEIGHTS = (
    "final/last.ckpt",
    "select/best.ckpt",
    "select/last.ckpt",
)  # the first that is there was exported
IDS = "towers.item_tower.id_table.weight"
MEMORY = "towers.user_tower.memory"
_BY_COLUMN = (
    f"{MEMORY}.profile_weight.weight",
    f"{MEMORY}.item_score.0.weight",
)  # inputs are their columns
_SIDES = {
    "item_tower.content": "item",
    "user_tower.demographics": "user",
    "user_tower.context": "context",
}
Rows = dict[
    str, list[Hashable]
]  # weights -> what each of their rows, or of `_BY_COLUMN` columns, stands for


def build_towers(data: InteractionsDataModule, recipe: Recipe, seed: int) -> Towers:
    """Build both towers, and start their tables from the training events for sets and where repeats are allowed."""
    sample = sample_memory(data) if data.schema.repeats == "allow" else None
    towers = make_towers(data, recipe, sample)
    memory = towers.user_tower.memory
    if memory is not None and sample is not None:
        start_taste(
            towers,
            item_factors(read_matrix(data), recipe.dim, seed, REPEATED_USER_POWER),
        )
        if memory.affinity_dim:
            start_affinity(towers, memory, sample.category_preferences, seed)
    elif data.schema.is_set and not recipe.n_blocks:
        start_pooling(towers, read_matrix(data), recipe.logit_unit, seed)
    return towers


def sample_memory(data: InteractionsDataModule) -> MemorySample:
    """Return the inputs of the memory for all users."""
    arrays = [batch.arrays for batch in data.final_requests()]
    names = ("owned_statistics", "user_statistics", "category_preferences")
    return MemorySample(*(torch.cat([part[name] for part in arrays]) for name in names))


def make_towers(
    data: InteractionsDataModule, recipe: Recipe, sample: MemorySample | None
) -> Towers:
    """Make both towers of random weights, with a memory where there is a sample of its inputs."""
    item_tower = ItemTower(data.schema, recipe, len(data.catalogue))
    memory = (
        None
        if sample is None
        else Memory(data.schema, recipe, item_tower.affinity_dim, sample)
    )
    return Towers(item_tower, UserTower(data.schema, recipe, memory), data.catalogue)


def read_matrix(data: InteractionsDataModule) -> sp.csr_array:
    """Return the binary matrix (U, N) float32 of the events that factors may be taken from."""
    users, item_rows = data.early_pairs()
    shape = (int(users.max(initial=0)) + 1, len(data.catalogue))
    matrix = sp.csr_array((np.ones(len(users), np.float32), (users, item_rows)), shape)
    matrix.data[:] = 1
    return matrix


def item_factors(
    matrix: sp.csr_array, dim: int, seed: int, user_power: float = 0.0
) -> Tensor:
    """Factorise the interactions (U, N), scaled by (count + 1)^-.25 of items and ^user_power of users: (N, dim).

    Rows are of unit length on average.
    """
    item_scale = (matrix.sum(axis=0) + 1.0) ** -0.25  # (N,)
    user_scale = (matrix.sum(axis=1) + 1.0) ** user_power  # (U,)
    scaled = sp.csr_array(
        sp.diags_array(user_scale)
        @ matrix.astype(np.float64)
        @ sp.diags_array(item_scale)
    )
    vectors = _right_vectors(scaled, dim, seed)  # (N, dim)
    return torch.from_numpy(
        (vectors * np.sqrt(matrix.shape[1] / dim)).astype(np.float32)
    )  # (N, dim)


def start_taste(towers: Towers, factors: Tensor) -> None:
    """Let content explain the factors (N, D) as far as it can, and the id table the rest.

    A cold item is then placed where the factors of items like it are.
    """
    tower = towers.item_tower
    optimizer = torch.optim.Adam(tower.content.parameters(), lr=0.05)
    codes = towers.item_codes
    values = towers.item_values
    for _ in range(CONTENT_STEPS if towers.item_has_content.any() else 0):
        optimizer.zero_grad()
        error = (
            (tower.content.embed_catalogue(codes, values) - factors)
            .square()
            .sum(dim=1)
            .mean()
        )  # scalar
        penalty = 1e-4 * tower.content.table.weight.square().sum()  # scalar
        torch.autograd.backward(error + penalty)
        optimizer.step()
    with torch.no_grad():
        tower.id_table.weight.copy_(
            factors - tower.content.embed_catalogue(codes, values)
        )


def start_affinity(
    towers: Towers, memory: Memory, preferences: Tensor, seed: int
) -> None:
    """Start both affinity tables from the singular vectors of the category lifts of the users (U, Q)."""
    with torch.no_grad():
        lift = memory.category_lift(preferences).numpy()  # (U, Q)
        sizes = np.bincount(
            towers.categories.numpy().ravel(), minlength=lift.shape[1]
        )  # (Q,)
        root = np.sqrt(sizes)  # (Q,)
        right = _right_vectors(lift * root, memory.affinity_dim, seed)  # (Q, A)
        memory.affinity_table.copy_(
            torch.from_numpy((right * root[:, None]).astype(np.float32))
        )
        inverse = np.where(sizes > 0, 1 / np.maximum(root, 1), 0.0)[:, None]  # (Q, 1)
        towers.item_tower.affinity_table.weight.copy_(
            torch.from_numpy((right * inverse).astype(np.float32))
        )


def start_pooling(towers: Towers, matrix: sp.csr_array, unit: float, seed: int) -> None:
    """Start a set: a user is the sum of their items' factors, and popularity counts as it is."""
    tower = towers.user_tower
    start_taste(towers, item_factors(matrix, tower.dim, seed))
    with torch.no_grad():
        tower.project_state.weight.mul_(FIRST_SCORE)
        for layer in (
            tower.event_table,
            tower.project_weight,
            tower.project_gap,
        ):  # a gap of 0 s has a weight too
            layer.weight.zero_()
        tower.start_token.zero_()
    if (
        tower.popularity_gate is not None
    ):  # the standardised popularity was divided by the spread
        nn.init.constant_(
            tower.popularity_gate.bias, unit * float(np.log1p(matrix.sum(axis=0)).std())
        )


def _right_vectors(
    matrix: sp.csr_array | np.ndarray, dim: int, seed: int
) -> np.ndarray:
    """Return the `dim` leading right singular vectors as columns, zeros where there are fewer."""
    vectors = np.zeros((matrix.shape[1], dim))
    rank = min(dim, min(matrix.shape) - 1)
    if rank < 1:  # a single user or item
        return vectors
    _, values, right = svds(matrix, k=rank, random_state=seed)
    right[values <= MIN_SINGULAR * values.max()] = (
        0  # directions of rounding errors, which no seed decides
    )
    largest = (
        np.abs(right).round(5).argmax(axis=1)
    )  # of two that differ by rounding errors the first
    signs = np.sign(right[np.arange(rank), largest])
    vectors[:, :rank] = (right * signs[:, None])[::-1].T.round(
        5
    ) + 0.0  # without last digits and -0.0
    return vectors


# ---- the weights of an earlier run


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
        path = next(
            (path for name in WEIGHTS if (path := run / CHECKPOINTS / name).exists()),
            None,
        )
        if path is None:
            raise SchemaError(
                f"{run / CHECKPOINTS} holds no weights to start from: leave --warm_start out"
            )
        weights = dict[str, Tensor](read_checkpoint(path)["state_dict"])
        rows = name_rows(bundle.schema, bundle.items.column("item_id").to_pylist())
        for name in rows.keys() & weights.keys():
            if len(rows[name]) != weights[name].shape[_axis(name)]:
                raise BundleError(
                    f"{path} is not what {bundle.path} was exported from: leave --warm_start out"
                )
        return cls(
            path, ModelConfig(**bundle.manifest.facts.config["model"]), weights, rows
        )


def name_rows(schema: Schema, item_ids: Sequence[Hashable]) -> Rows:
    """Say what the rows of each table stand for of which the data decides the number."""
    codes = range(FIRST_CODE)
    rows: Rows = {
        IDS: list(item_ids),
        "towers.user_tower.event_table.weight": [*codes, *schema.event_types],
    }
    for name, side in _SIDES.items():
        features = schema.features(side)
        coded = [
            row
            for feature in features
            if not feature.has_values
            for row in _name_codes(feature)
        ]
        spans = [
            (feature.name, span.stop - span.start)
            for feature, span in value_slices(features)
        ]
        rows[f"towers.{name}.table.weight"] = coded or [None]
        rows[f"towers.{name}.number_table"] = [
            (one, entry) for one, width in spans for entry in range(width)
        ]
    categories = [
        row
        for feature, _ in category_features(schema.item_features)
        for row in _name_codes(feature)
    ]
    rows["towers.item_tower.affinity_table.weight"] = categories or [None]
    decays = range(
        len(schema.decay_days)
    )  # the days themselves change with the span of the data
    numbered: list[Hashable] = [*statistic_names(decays, schema.event_types)]
    rows |= dict.fromkeys(
        (f"{MEMORY}.affinity_table", f"{MEMORY}.category_shares"), categories
    )
    rows |= dict.fromkeys(
        (f"{MEMORY}.standardise.mean", f"{MEMORY}.standardise.scale", _BY_COLUMN[0]),
        numbered,
    )
    return rows | {
        _BY_COLUMN[1]: [*numbered, *range(len(USER_STATISTICS) + N_STATE_FEATURES + 1)]
    }


def _name_codes(feature: Feature) -> list[Hashable]:
    values = [
        *range(FIRST_CODE),
        *feature.vocabulary,
        *((feature.buckets, one) for one in range(feature.buckets)),
    ]
    return [(feature.name, value) for value in values]


def _axis(name: str) -> int:
    """Return the axis of weights that `name_rows` names."""
    return 1 if name in _BY_COLUMN else 0


@torch.no_grad()
def take_over(
    model: TwoTower, start: Start, item_ids: Sequence[Hashable], schema: Schema
) -> None:
    """Give a new model the weights of an earlier one; the schema and the ids (N,) are those of the new one."""
    state = model.state_dict()
    rows = name_rows(schema, item_ids)
    check_shapes(start, state, model.recipe.to_config())
    for name, tensor in state.items():  # of the memory of the model itself
        was = start.weights[name]
        if name not in rows:
            tensor.copy_(was)
            continue
        place = {row: index for index, row in enumerate(start.rows[name])}
        found = torch.tensor(
            [place.get(row, -1) for row in rows[name]], dtype=torch.int64
        )  # (rows,)
        is_kept = found >= 0
        if name == IDS:
            tensor[~is_kept & model.towers.item_has_content] = 0.0
        axis = _axis(name)
        tensor.movedim(axis, 0)[is_kept] = was.movedim(axis, 0)[found[is_kept]]


def check_shapes(start: Start, state: Mapping[str, Tensor], model: ModelConfig) -> None:
    """Refuse weights of other names or of other shapes but for the rows of tables."""

    def describe(weights: Mapping[str, Tensor], name: str) -> list[int] | None:
        tabled = _axis(name) if name in start.rows else None
        return (
            [size for axis, size in enumerate(weights[name].shape) if axis != tabled]
            if name in weights
            else None
        )

    names = ("dim", "n_blocks", "similarity")
    keys = {
        f"model.{name}": (getattr(start.model, name), getattr(model, name))
        for name in names
    }
    shapes = {
        name: (describe(start.weights, name), describe(state, name))
        for name in {**start.weights, **state}
    }
    both = (keys | shapes).items()
    different = [
        f"{name} is {there!r} there and {here!r} here"
        for name, (there, here) in both
        if there != here
    ]
    if different:
        what = "; ".join(different[: len(keys)])
        raise SchemaError(
            f"{start.path} holds weights of another shape: {what}; give those, or leave --warm_start out"
        )
