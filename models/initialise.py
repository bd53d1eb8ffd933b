"""Build the towers, and start their tables from the data for sets and for repeats: random item vectors over-fit there.

Item vectors start from the singular vectors of the interaction matrix, affinities from those of the users' category
lifts.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import svds
from torch import Tensor, nn

from datamodules.datamodule import InteractionsDataModule
from models.config import Recipe
from models.item_tower import ItemTower
from models.memory import Memory, MemorySample
from models.towers import Towers
from models.user_tower import UserTower

CONTENT_STEPS = 60
REPEATED_USER_POWER = -0.25
"""Of a user's items in the scale of their row: who buys much of everything would decide what goes with what."""
MIN_SINGULAR = 1e-3  # share of the largest singular value below which a direction is left out
FIRST_SCORE = 0.4  # score of a pooled history: dropout brings it here in training


def build_towers(data: InteractionsDataModule, recipe: Recipe, seed: int) -> Towers:
    """Build both towers, and start their tables from the training events for sets and where repeats are allowed."""
    sample = sample_memory(data) if data.schema.repeats == "allow" else None
    towers = make_towers(data, recipe, sample)
    memory = towers.user_tower.memory
    if memory is not None and sample is not None:
        start_taste(towers, item_factors(read_matrix(data), recipe.dim, seed, REPEATED_USER_POWER))
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


def make_towers(data: InteractionsDataModule, recipe: Recipe, sample: MemorySample | None) -> Towers:
    """Make both towers of random weights, with a memory where there is a sample of its inputs."""
    item_tower = ItemTower(data.schema, recipe, len(data.catalogue))
    memory = None if sample is None else Memory(data.schema, recipe, item_tower.affinity_dim, sample)
    return Towers(item_tower, UserTower(data.schema, recipe, memory), data.catalogue)


def read_matrix(data: InteractionsDataModule) -> sp.csr_array:
    """Return the binary matrix (U, N) float32 of the events that factors may be taken from."""
    users, item_rows = data.early_pairs()
    shape = (int(users.max(initial=0)) + 1, len(data.catalogue))
    matrix = sp.csr_array((np.ones(len(users), np.float32), (users, item_rows)), shape)
    matrix.data[:] = 1
    return matrix


def item_factors(matrix: sp.csr_array, dim: int, seed: int, user_power: float = 0.0) -> Tensor:
    """Factorise the interactions (U, N), scaled by (count + 1)^-.25 of items and ^user_power of users: (N, dim).

    Rows are of unit length on average.
    """
    item_scale = (matrix.sum(axis=0) + 1.0) ** -0.25  # (N,)
    user_scale = (matrix.sum(axis=1) + 1.0) ** user_power  # (U,)
    scaled = sp.csr_array(sp.diags_array(user_scale) @ matrix.astype(np.float64) @ sp.diags_array(item_scale))
    vectors = _right_vectors(scaled, dim, seed)  # (N, dim)
    return torch.from_numpy((vectors * np.sqrt(matrix.shape[1] / dim)).astype(np.float32))  # (N, dim)


def start_taste(towers: Towers, factors: Tensor) -> None:
    """Let content explain the factors (N, D) as far as it can, and the id table the rest.

    A cold item is then placed where the factors of items like it are.
    """
    tower = towers.item_tower
    optimizer = torch.optim.Adam(tower.content.parameters(), lr=0.05)
    codes, values = towers.item_codes, towers.item_values
    for _ in range(CONTENT_STEPS if towers.item_has_content.any() else 0):
        optimizer.zero_grad()
        error = (tower.content.embed_catalogue(codes, values) - factors).square().sum(dim=1).mean()  # scalar
        penalty = 1e-4 * tower.content.table.weight.square().sum()  # scalar
        torch.autograd.backward(error + penalty)
        optimizer.step()
    with torch.no_grad():
        tower.id_table.weight.copy_(factors - tower.content.embed_catalogue(codes, values))


def start_affinity(towers: Towers, memory: Memory, preferences: Tensor, seed: int) -> None:
    """Start both affinity tables from the singular vectors of the category lifts of the users (U, Q)."""
    with torch.no_grad():
        lift = memory.category_lift(preferences).numpy()  # (U, Q)
        sizes = np.bincount(towers.categories.numpy().ravel(), minlength=lift.shape[1])  # (Q,)
        root = np.sqrt(sizes)  # (Q,)
        right = _right_vectors(lift * root, memory.affinity_dim, seed)  # (Q, A)
        memory.affinity_table.copy_(torch.from_numpy((right * root[:, None]).astype(np.float32)))
        inverse = np.where(sizes > 0, 1 / np.maximum(root, 1), 0.0)[:, None]  # (Q, 1)
        towers.item_tower.affinity_table.weight.copy_(torch.from_numpy((right * inverse).astype(np.float32)))


def start_pooling(towers: Towers, matrix: sp.csr_array, unit: float, seed: int) -> None:
    """Start a set: a user is the sum of their items' factors, and popularity counts as it is."""
    tower = towers.user_tower
    start_taste(towers, item_factors(matrix, tower.dim, seed))
    with torch.no_grad():
        tower.project_state.weight.mul_(FIRST_SCORE)
        for layer in (tower.event_table, tower.project_weight, tower.project_gap):  # a gap of 0 s has a weight too
            layer.weight.zero_()
        tower.start_token.zero_()
    if tower.popularity_gate is not None:  # the standardised popularity was divided by the spread
        nn.init.constant_(tower.popularity_gate.bias, unit * float(np.log1p(matrix.sum(axis=0)).std()))


def _right_vectors(matrix: sp.csr_array | np.ndarray, dim: int, seed: int) -> np.ndarray:
    """Return the `dim` leading right singular vectors as columns, zeros where there are fewer."""
    vectors = np.zeros((matrix.shape[1], dim))
    rank = min(dim, min(matrix.shape) - 1)
    if rank < 1:  # a single user or item
        return vectors
    _, values, right = svds(matrix, k=rank, random_state=seed)
    right[values <= MIN_SINGULAR * values.max()] = 0  # directions of rounding errors, which no seed decides
    signs = np.sign(right[np.arange(rank), np.abs(right).argmax(axis=1)])
    vectors[:, :rank] = (right * signs[:, None])[::-1].T.round(5) + 0.0  # without last digits and -0.0
    return vectors
