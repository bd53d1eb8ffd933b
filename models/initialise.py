"""Build the towers, and start their tables from the data or from an earlier run's weights.

Random item vectors over-fit where events are few. In sets, and where items are bought again, they
start from the singular vectors of the interaction matrix, affinities from those of the users'
category lifts. With the weights of an earlier run, whose vocabularies and catalogue may have grown
since, a row of a table is found by its name: an item, a value of a feature, a type of event. New
rows start as in any training, those of new items with content at zero: their content places them.

Letters: U users, N items, D entries of taste, Q categories, A entries of affinity.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import ArpackError, svds
from torch import Tensor, nn

from datamodules.datamodule import InteractionsDataModule
from models.checkpoints import read_checkpoint
from models.config import ModelConfig, Recipe
from models.item_tower import ItemTower
from models.memory import N_STATE_FEATURES, Memory, MemorySample
from models.table_rows import bound_table
from models.towers import Towers
from models.two_tower import TwoTower
from models.user_tower import UserTower
from serve.bundle import CHECKPOINTS, Bundle
from serve.encode import category_features, value_slices
from serve.errors import BundleError, SchemaError
from serve.events import USER_STATISTICS, statistic_names
from serve.kinds import FIRST_CODE, Feature
from serve.schema import Schema

CONTENT_STEPS = 60
# power of a user's number of items, by which their row is scaled: heavy buyers would decide
REPEATED_USER_POWER = -0.25
# share of the largest singular value below which a factor is left out
MIN_SINGULAR = 1e-3
FIRST_SCORE = 0.4  # score of a pooled history: dropout brings it here in training
# of these checkpoints, the first that exists was exported
MEASURED = ("final/last.ckpt", "select/best.ckpt", "select/last.ckpt")
WEIGHTS = ("refit/last.ckpt", *MEASURED)
IDS = "towers.item_tower.id_table.weight"
ID_ROWS = "towers.id_rows"  # where items share rows
MEMORY = "towers.user_tower.memory"
# weights whose columns, not rows, stand for inputs
_PROFILE_WEIGHT = f"{MEMORY}.profile_weight.weight"
_ITEM_SCORE = f"{MEMORY}.item_score.0.weight"
_SIDES = {
    "item_tower.content": "item",
    "user_tower.demographics": "user",
    "user_tower.context": "context",
}
# weights -> the name of each of their rows, or columns
Rows = dict[str, list[Hashable]]


def build_towers(data: InteractionsDataModule, recipe: Recipe, seed: int) -> Towers:
    """Build both towers, and start their tables from the training events.

    Tables start at random unless histories are sets or items may be repeated.

    Args:
        data: the training events.
        recipe: sizes of the towers.
        seed: decides the singular vectors.
    """
    sample = sample_memory(data) if data.schema.repeats == "allow" else None
    towers = make_towers(data, recipe, sample)
    memory = towers.user_tower.memory
    if memory is not None and sample is not None:
        matrix = read_matrix(data)
        start_taste(towers, item_factors(matrix, recipe.dim, seed, REPEATED_USER_POWER))
        if memory.affinity_dim:
            start_affinity(towers, memory, sample.category_preferences, seed)
    elif data.schema.is_set and not recipe.n_blocks:
        start_pooling(towers, read_matrix(data), recipe.logit_unit, seed)

    bound_table(towers, data, recipe.table_rows)
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
    memory = None
    if sample is not None:
        memory = Memory(data.schema, recipe, item_tower.affinity_dim, sample)
    return Towers(item_tower, UserTower(data.schema, recipe, memory), data.catalogue)


def read_matrix(data: InteractionsDataModule) -> sp.csr_array:
    """Return the binary interaction matrix (U, N) float32 of the events that factors may use."""
    users, item_rows = data.early_pairs()
    shape = (int(users.max(initial=0)) + 1, len(data.catalogue))
    matrix = sp.csr_array((np.ones(len(users), np.float32), (users, item_rows)), shape)
    matrix.data[:] = 1
    return matrix


def item_factors(
    matrix: sp.csr_array, dim: int, seed: int, user_power: float = 0.0
) -> Tensor:
    """Factorise the interaction matrix.

    Columns are scaled by (count + 1) ** -.25, rows by (count + 1) ** user_power.

    Args:
        matrix: (U, N) binary interactions.
        dim: number of factors.
        seed: decides the start of the factorisation.
        user_power: scale of the rows.

    Returns:
        (N, dim) factors, whose rows are of unit length on average.
    """
    item_scale = (matrix.sum(axis=0) + 1.0) ** -0.25  # (N,)
    user_scale = (matrix.sum(axis=1) + 1.0) ** user_power  # (U,)
    rows = sp.diags_array(user_scale) @ matrix.astype(np.float64)  # (U, N)
    scaled = sp.csr_array(rows @ sp.diags_array(item_scale))  # (U, N)
    vectors = _right_vectors(scaled, dim, seed)  # (N, dim)
    factors = vectors * np.sqrt(matrix.shape[1] / dim)  # (N, dim)
    return torch.from_numpy(factors.astype(np.float32))  # (N, dim)


def start_taste(towers: Towers, factors: Tensor) -> None:
    """Let content explain the factors (N, D) as far as it can, and the id table the rest.

    A cold item is then placed where the factors of items like it are.
    """
    content = towers.item_tower.content
    codes = towers.item_codes
    values = towers.item_values

    if towers.item_has_content.any():
        optimizer = torch.optim.Adam(content.parameters(), lr=0.05)
        for _ in range(CONTENT_STEPS):
            optimizer.zero_grad()
            rest = content.embed_catalogue(codes, values) - factors  # (N, D)
            error = rest.square().sum(dim=1).mean()  # scalar
            penalty = 1e-4 * content.table.weight.square().sum()  # scalar
            torch.autograd.backward(error + penalty)
            optimizer.step()

    with torch.no_grad():
        rest = factors - content.embed_catalogue(codes, values)  # (N, D)
        towers.item_tower.id_table.weight.copy_(rest)


def start_affinity(
    towers: Towers, memory: Memory, preferences: Tensor, seed: int
) -> None:
    """Start both affinity tables from the singular vectors of the users' category lifts (U, Q)."""
    with torch.no_grad():
        lift = memory.category_lift(preferences).numpy()  # (U, Q)
        categories = towers.categories.numpy().ravel()
        sizes = np.bincount(categories, minlength=lift.shape[1])[:, None]  # (Q, 1)

        root = np.sqrt(sizes)  # (Q, 1)
        right = _right_vectors(lift * root.T, memory.affinity_dim, seed)  # (Q, A)
        memory.affinity_table.copy_(torch.from_numpy(right * root))

        inverse = np.where(sizes > 0, 1 / np.maximum(root, 1), 0.0)  # (Q, 1)
        of_items = torch.from_numpy(right * inverse)  # (Q, A)
        towers.item_tower.affinity_table.weight.copy_(of_items)


def start_pooling(towers: Towers, matrix: sp.csr_array, unit: float, seed: int) -> None:
    """Start a set: a user is the sum of their items' factors, and popularity counts as it is.

    Args:
        towers: of a set, without attention.
        matrix: (U, N) binary interactions.
        unit: what one unit of popularity adds to a score.
        seed: decides the factorisation.
    """
    tower = towers.user_tower
    start_taste(towers, item_factors(matrix, tower.dim, seed))
    with torch.no_grad():
        tower.project_state.weight.mul_(FIRST_SCORE)
        # a gap of 0 s has a weight, too
        for layer in (tower.event_table, tower.project_weight, tower.project_gap):
            layer.weight.zero_()
        tower.start_token.zero_()

    if tower.popularity_gate is not None:
        # undoes the division of the standardised popularity by its spread
        spread = float(np.log1p(matrix.sum(axis=0)).std())
        nn.init.constant_(tower.popularity_gate.bias, unit * spread)


@torch.no_grad()
def start_untrained(
    towers: Towers, data: InteractionsDataModule, unit: float, seed: int
) -> None:
    """Take the weights from the data alone, for towers that are not trained.

    A user is the sum of the factors of their items, or of an order that of the last one; somebody
    new wants what is popular. Demographics, context and recency say nothing.

    Args:
        towers: as `build_towers` makes them, without blocks.
        data: the training events, without repeats.
        unit: see `start_pooling`.
        seed: decides the factorisation.
    """
    tower = towers.user_tower
    if not data.schema.is_set:
        with torch.enable_grad():
            start_pooling(towers, read_matrix(data), unit, seed)
        vectors = towers.item_vectors(towers.no_popularity)  # (N, D)
        counts = torch.from_numpy(data.count_targets())  # (N,)
        tower.start_token.copy_(counts.log1p() @ vectors)

    for part in (tower.demographics, tower.context, tower.project_recency, tower.head):
        for parameter in part.parameters():
            parameter.zero_()


def _right_vectors(
    matrix: sp.csr_array | np.ndarray, dim: int, seed: int
) -> np.ndarray:
    """Return the `dim` leading right singular vectors as columns, zeros where there are fewer.

    Rounding errors, which no seed decides, change neither signs nor digits.
    """
    vectors = np.zeros((matrix.shape[1], dim))
    rank = min(dim, min(matrix.shape) - 1)
    if rank < 1:  # a single user or item
        return vectors

    try:
        _, values, right = svds(matrix, k=rank, random_state=seed)
    except ArpackError:  # too many values are equal, and any basis is as good
        drawn = np.random.default_rng(seed).normal(size=(matrix.shape[0], rank))
        right = np.linalg.qr(matrix.T @ drawn).Q.T
        values = np.ones(rank)
    right[values <= MIN_SINGULAR * values.max()] = 0
    # of entries that differ by rounding errors the first is the largest
    largest = np.abs(right).round(5).argmax(axis=1)
    signs = np.sign(right[np.arange(rank), largest])
    leading = (right * signs[:, None])[::-1].T
    vectors[:, :rank] = leading.round(5) + 0.0  # without -0.0

    return vectors


# ---- the weights of an earlier run


@dataclass(frozen=True)
class Start:
    """The weights that a training starts from.

    Attributes:
        path: file of the weights.
        model: the configuration by which they were trained.
        weights: tensors by name.
        rows: names of their rows.
    """

    path: Path
    model: ModelConfig
    weights: dict[str, Tensor]
    rows: Rows

    @classmethod
    def read(cls, bundle: Bundle, run: Path, names: Sequence[str] = WEIGHTS) -> Start:
        """Read the weights that a run left beside its bundle.

        Args:
            bundle: exported from them.
            run: its folder.
            names: of checkpoints; the first that exists is read.

        Raises:
            SchemaError: the run left none.
            BundleError: the bundle was not exported from them.
        """
        paths = [run / CHECKPOINTS / name for name in names]
        path = next(filter(Path.exists, paths), None)
        if path is None:
            raise SchemaError(
                f"{run} holds no weights to start from: leave --warm_start out"
            )

        weights = dict[str, Tensor](read_checkpoint(path)["state_dict"])
        if ID_ROWS in weights:
            weights[IDS] = weights[IDS][weights.pop(ID_ROWS)]  # (N, D)
        rows = name_rows(bundle.schema, bundle.items.column("item_id").to_pylist())
        for name in rows.keys() & weights.keys():
            if len(rows[name]) != weights[name].shape[_axis(name)]:
                raise BundleError(
                    f"{bundle.path} was not exported from {path}: leave --warm_start out"
                )

        config = bundle.manifest.facts.config["model"]
        return cls(path, ModelConfig(**config), weights, rows)


def name_rows(schema: Schema, item_ids: Sequence[Hashable]) -> Rows:
    """Map each table whose size depends on the data to the names of its rows."""
    rows: Rows = {
        IDS: list(item_ids),
        "towers.user_tower.event_table.weight": [
            *range(FIRST_CODE),
            *schema.event_types,
        ],
    }

    for name, side in _SIDES.items():
        features = schema.features(side)
        coded = [feature for feature in features if not feature.has_values]
        rows[f"towers.{name}.table.weight"] = _name_codes(coded) or [None]
        numbers: list[Hashable] = []
        for feature, span in value_slices(features):
            entries = range(span.stop - span.start)
            numbers += [(feature.name, entry) for entry in entries]
        rows[f"towers.{name}.number_table"] = numbers

    categories = _name_codes(
        [pair[0] for pair in category_features(schema.item_features)]
    )
    rows["towers.item_tower.affinity_table.weight"] = categories or [None]
    rows[f"{MEMORY}.affinity_table"] = categories
    rows[f"{MEMORY}.category_shares"] = categories
    # decays are numbered, since their days change with the span of the data
    decays = range(len(schema.decay_days))
    statistics: list[Hashable] = [*statistic_names(decays, schema.event_types)]

    for name in ("standardise.mean", "standardise.scale", "profile_weight.weight"):
        rows[f"{MEMORY}.{name}"] = statistics
    n_others = len(USER_STATISTICS) + N_STATE_FEATURES + 1
    rows[_ITEM_SCORE] = [*statistics, *range(n_others)]
    return rows


def _name_codes(features: Sequence[Feature]) -> list[Hashable]:
    """Name the rows of a table that features share."""
    names: list[Hashable] = []
    for feature in features:
        buckets = [(feature.buckets, bucket) for bucket in range(feature.buckets)]
        values = [*range(FIRST_CODE), *feature.vocabulary, *buckets]
        names += [(feature.name, value) for value in values]

    return names


def _axis(name: str) -> int:
    """Return the axis of weights that `name_rows` names."""
    return 1 if name in (_PROFILE_WEIGHT, _ITEM_SCORE) else 0


@torch.no_grad()
def take_over(
    model: TwoTower, start: Start, item_ids: Sequence[Hashable], schema: Schema
) -> None:
    """Give a new model the weights of an earlier one.

    Args:
        model: changed in place.
        start: the earlier weights.
        item_ids: (N,) ids of the new catalogue.
        schema: of the new model.

    Raises:
        SchemaError: the two models differ by more than the rows of tables.
    """
    state = model.state_dict()
    names_of_rows = name_rows(schema, item_ids)
    _check_alike(start, state, model.recipe.to_config())

    for name, tensor in state.items():  # these share memory with the model
        earlier = start.weights[name]
        if name not in names_of_rows:
            tensor.copy_(earlier)
            continue

        earlier_rows = {row: index for index, row in enumerate(start.rows[name])}
        indices = [earlier_rows.get(row, -1) for row in names_of_rows[name]]
        sources = torch.tensor(indices, dtype=torch.int64)  # (rows,)
        is_earlier = sources >= 0

        if name == IDS:
            tensor[~is_earlier & model.towers.item_has_content] = 0.0
        axis = _axis(name)
        taken = earlier.movedim(axis, 0)[sources[is_earlier]]
        tensor.movedim(axis, 0)[is_earlier] = taken


def _check_alike(start: Start, state: Mapping[str, Tensor], model: ModelConfig) -> None:
    """Raise SchemaError if names or shapes differ, apart from the number of table rows."""
    there = _describe(start.model, start.weights, start.rows)
    here = _describe(model, state, start.rows)
    differences = []
    for name in {**there, **here}:
        earlier = there.get(name)
        later = here.get(name)
        if earlier != later:
            differences.append(f"{name} is {earlier} there and {later} here")

    if differences:
        raise SchemaError(
            f"{start.path} holds weights of another shape: {'; '.join(differences[:3])}; "
            "give those, or leave --warm_start out"
        )


def _describe(
    model: ModelConfig, weights: Mapping[str, Tensor], rows: Rows
) -> dict[str, object]:
    """Return settings, and shapes of weights without the axis that depends on the data."""
    described: dict[str, object] = {}
    for key in ("dim", "n_blocks", "similarity"):
        described[f"model.{key}"] = getattr(model, key)
    for name, tensor in weights.items():
        shape = list(tensor.shape)
        if name in rows:
            del shape[_axis(name)]
        described[name] = shape

    return described
