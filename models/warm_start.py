"""Start the tables from the data where repeats are learned, and for sets: random item vectors over-fit there, measured.

Taste: the right singular vectors of the user x item matrix. Affinity: those of the users' category lifts.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.linalg import svds
from torch import Tensor, nn
from torch.nn import functional

from models.item_correlations import correlate
from models.memory import Memory
from models.towers import Towers

CONTENT_STEPS = 60
REPEATED_USER_POWER = -0.25  # who buys much of everything would decide what goes with what; sets were better without
FIRST_SCORE = 0.4  # of a pooled history: ranks are best at 1, likelihood under dropout at less, and training goes there
CORRELATED_SCORE = 1.5  # of a history of average length; it ranks alike at any, but for what demographics add
STARTED_TABLES = (
    "item_tower.id_table.weight",
    "item_tower.content.table.weight",
    "item_tower.content.number_table",
    "item_tower.affinity_table.weight",
    "user_tower.memory.affinity_table",
)
"""The parameters of `Towers` that `start_taste` and `start_affinity` set."""


def item_factors(
    user: np.ndarray, item_row: np.ndarray, shape: tuple[int, int], dim: int, seed: int, user_power: float = 0.0
) -> Tensor:
    """Factorise the binary user x item matrix with its columns scaled by (count + 1)^-.25.

    Args:
        user: (E,) user of each event.
        item_row: (E,) item of each event.
        shape: (U, N).
        dim: factors.
        seed: of the factorisation's first vector.
        user_power: each user's row is multiplied by (count + 1) ** user_power.

    Returns:
        (N, dim) float32, of unit length on average.
    """
    pairs = np.unique(user * shape[1] + item_row)
    users, items = pairs // shape[1], pairs % shape[1]
    scaled = (np.bincount(items, minlength=shape[1])[items] + 1.0) ** -0.25
    scaled *= (np.bincount(users, minlength=shape[0])[users] + 1.0) ** user_power
    vectors = _right_vectors(sp.csr_array((scaled, (users, items)), shape), dim, seed)
    return torch.from_numpy((vectors * np.sqrt(shape[1] / dim)).astype(np.float32))  # (N, D)


def start_taste(towers: Towers, factors: Tensor) -> None:
    """Let content explain the factors as far as it can, and the id table the rest.

    An item without id part, a new one, is then placed where the factors of items like it are.
    """
    tower = towers.item_tower
    optimizer = torch.optim.Adam(tower.content.parameters(), lr=0.05)
    codes, values = towers.item_codes, towers.item_values
    for _ in range(CONTENT_STEPS if towers.item_has_content.any() else 0):
        optimizer.zero_grad()
        error = (tower.content.embed_catalogue(codes, values) - factors).square().sum(dim=1).mean()
        penalty = 1e-4 * tower.content.table.weight.square().sum()
        torch.autograd.backward(error + penalty)
        optimizer.step()
    with torch.no_grad():
        tower.id_table.weight.copy_(factors - tower.content.embed_catalogue(codes, values))


LEARNED_AFTER_CORRELATIONS = ("user_tower.demographics", "start_token")
"""What is left to train where items are frozen: their correlations have seen every pair of the training, so that the
loss has no more to say of items. It would make popularity, whose weight was chosen by ranks, count for more, and
whatever can learn single pairs by heart only gets worse, measured."""
TRAINED_LENGTH = 0.2
"""Of an item's vector under `cosine`, where it is trained, about that of a random one: longer ones turn less in as many
steps; of length 1 they found 3 to 5 % less, measured."""
NOISE = 1e-6
"""Of an entry, beside vectors of length 1 on average."""


def start_correlated(towers: Towers, user: np.ndarray, item_row: np.ndarray, freeze_items: bool, seed: int) -> None:
    """Let a user of a set be the sum of her items' correlation factors, beside popularity.

    Args:
        towers: of a schema of sets without request context.
        user: (E,) user of each event.
        item_row: (E,) item of each event.
        freeze_items: leave it at that, and little to train.
        seed: of the factorisation.
    """
    shape, tower = (int(user.max(initial=0)) + 1, towers.n_items), towers.user_tower
    found = correlate(user, item_row, shape, tower.dim, tower.similarity, seed)
    pairs = np.unique(user * towers.n_items + item_row)
    score = CORRELATED_SCORE / math.sqrt(max(len(pairs) / max(len(np.unique(user)), 1), 1))
    is_cosine = tower.similarity == "cosine"
    _start_sum(towers, found.vectors if freeze_items or not is_cosine else _turnable(found.vectors, seed), score)
    _start_popularity(towers, pairs, found.popularity * (1 if is_cosine else score))
    nn.init.zeros_(tower.pool_power)  # the more she has, the less popularity says
    nn.init.zeros_(tower.head[-1].weight)  # type: ignore[arg-type]
    if not freeze_items:
        nn.init.normal_(tower.start_token, std=0.02)  # under cosine the gradient of a vector of zeros has no bounds
        return
    for name, parameter in towers.named_parameters():
        parameter.requires_grad_(any(learned in name for learned in LEARNED_AFTER_CORRELATIONS))


def _turnable(vectors: Tensor, seed: int) -> Tensor:
    """Give vectors (N, D) the length that is trained, those of zeros in a random direction."""
    noise = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(seed))  # (N, D)
    return TRAINED_LENGTH * functional.normalize(vectors + NOISE * noise, dim=1)  # (N, D)


def start_pooling(towers: Towers, user: np.ndarray, item_row: np.ndarray, unit: float, seed: int) -> None:
    """Let a user without blocks start as the sum of her items' factors, and popularity count as it is.

    Args:
        towers: of a schema of sets with request context.
        user: (E,) user of each event.
        item_row: (E,) item of each event.
        unit: the score that one unit of logits is: 1 for `dot`, the first temperature for `cosine`.
        seed: of the factorisation.
    """
    shape = (int(user.max(initial=0)) + 1, towers.n_items)
    factors = item_factors(user, item_row, shape, towers.user_tower.dim, seed)  # (N, D)
    _start_sum(towers, factors, FIRST_SCORE)
    _start_popularity(towers, np.unique(user * towers.n_items + item_row), unit)


def _start_sum(towers: Towers, factors: Tensor, score: float) -> None:
    tower = towers.user_tower
    start_taste(towers, factors)
    with torch.no_grad():
        tower.project_state.weight.mul_(score)
        for layer in (tower.event_table, tower.project_weight, tower.project_gap):  # a gap of 0 s has a weight too
            layer.weight.zero_()
        tower.start_token.zero_()


def _start_popularity(towers: Towers, pairs: np.ndarray, unit: float) -> None:
    gate = towers.user_tower.popularity_gate
    if gate is not None:
        counts = np.bincount(pairs % towers.n_items, minlength=towers.n_items)
        nn.init.constant_(gate.bias, unit * float(np.log1p(counts).std()))  # which was divided by it


def start_affinity(towers: Towers, memory: Memory, preferences: Tensor, seed: int) -> None:
    """Start both sides of the affinity part from the singular vectors of the category lifts.

    Args:
        towers: whose item tower holds one side.
        memory: holds the other side.
        preferences: (U, Q) `category_preferences` of training users.
        seed: of the factorisation.
    """
    dim = memory.affinity_dim
    with torch.no_grad():
        lift = memory.category_lift(preferences).numpy()  # (U, Q)
        sizes = np.bincount(towers.categories.numpy().ravel(), minlength=lift.shape[1])  # (Q,)
        root = np.sqrt(sizes)
        right = _right_vectors(lift * root, dim, seed)  # (Q, A)
        memory.affinity_table.copy_(torch.from_numpy((right * root[:, None]).astype(np.float32)))
        inverse = np.where(sizes > 0, 1 / np.maximum(root, 1), 0.0)[:, None]
        towers.item_tower.affinity_table.weight.copy_(torch.from_numpy((right * inverse).astype(np.float32)))


def _right_vectors(matrix: sp.csr_array | np.ndarray, dim: int, seed: int) -> np.ndarray:
    """Return the `dim` leading right singular vectors as columns, zeros where there are fewer."""
    rank = min(dim, min(matrix.shape) - 1)
    if rank < 1:  # a single user or item
        return np.zeros((matrix.shape[1], dim))
    _, _, right = svds(matrix, k=rank, random_state=seed)
    signs = np.sign(right[np.arange(rank), np.abs(right).argmax(axis=1)])
    vectors = np.zeros((matrix.shape[1], dim))
    vectors[:, :rank] = (right * signs[:, None])[::-1].T
    return vectors
