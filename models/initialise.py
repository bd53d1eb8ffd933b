"""Build the towers, and start their tables from the data for sets and for repeats: random item vectors over-fit there.

Repeats start from the singular vectors of the interaction matrix, sets with request context as well; other sets from a
low rank of EASE's partial correlations. Affinities start from the singular vectors of the users' category lifts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from scipy import linalg
from scipy.sparse.linalg import svds
from torch import Tensor, nn
from torch.nn import functional

from datamodules.batch import RequestBatch
from evaluation.metrics import ndcg
from models.config import Recipe
from models.item_item import partial_correlations
from models.item_tower import ItemTower
from models.memory import Memory, MemorySample
from models.towers import EncodedItems, Towers
from models.user_tower import UserTower
from serve.schema import Schema, Similarity

CONTENT_STEPS = 60
REPEATED_USER_POWER = -0.25
"""Of a user's items in the scale of their row: who buys much of everything would decide what goes with what."""
FIRST_SCORE = 0.4
"""Score of a pooled history under request context: dropout brings it here in training."""
EASE_SCORE = 1.5
"""Score of a history of average length under EASE factors."""
TRAINED_LENGTH = 0.2
"""Length of an EASE factor under `cosine` that is trained, about that of a random vector: longer ones turn too slowly."""
NOISE = 1e-6
TRAINED_OF_FROZEN = ("user_tower.demographics", "start_token")
"""Parameters that are trained where items are frozen."""
RIDGES = (30.0, 100.0, 300.0, 1000.0)
POPULARITY_SHARES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Tried ratios of the spread of popularity to that of the products."""
MAX_FACTORISED, MAX_TRIED, MAX_JUDGES = 16_000, 4_000, 1_000
"""Items of the inverted matrix, items on which the settings are compared, and users that compare them."""
HIDDEN_SHARE, TOP = 0.2, 10
MIN_SPREAD = 0.1
"""Of log popularity: without it its weight would have no bounds where items are equally popular."""
WEIGHT_POWER = 1 / 8
"""Of an item's users in its weight when a low rank approximates the correlations."""
KRYLOV_BLOCK, KRYLOV_COLUMNS = 128, 640
"""Columns that are multiplied at once, and columns of the space beyond three times the rank."""
EPSILON = 1e-9


@dataclass(frozen=True)
class History:
    """All training events, as the start of the tables reads them."""

    requests: Iterable[RequestBatch]
    """One request of each user with all their events; read where there is a memory."""
    users: np.ndarray
    """(E,) user of each event that factors may be taken from."""
    item_rows: np.ndarray
    """(E,) item of each."""

    def matrix(self, n_items: int) -> sp.csr_array:
        """Return the binary interaction matrix (U, N) float32."""
        shape = (int(self.users.max(initial=0)) + 1, n_items)
        matrix = sp.csr_array((np.ones(len(self.users), np.float32), (self.users, self.item_rows)), shape)
        matrix.data[:] = 1
        return matrix


def build_towers(schema: Schema, recipe: Recipe, items: EncodedItems, history: History, seed: int) -> Towers:
    """Build both towers and start their tables.

    Args:
        schema: of the data.
        recipe: size of the towers.
        items: the catalogue.
        history: read for sets and where repeats are allowed.
        seed: of the factorisations.
    """
    item_tower = ItemTower(schema, recipe, len(items.codes))
    if schema.repeats == "allow":
        sample = _sample_memory(history.requests)
        memory = Memory(schema, recipe, item_tower.affinity_dim, sample)
        towers = Towers(item_tower, UserTower(schema, recipe, memory), items)
        start_taste(towers, item_factors(history.matrix(towers.n_items), recipe.dim, seed, REPEATED_USER_POWER))
        if item_tower.affinity_dim:
            start_affinity(towers, memory, sample.category_preferences, seed)
        return towers
    towers = Towers(item_tower, UserTower(schema, recipe, None), items)
    if schema.is_set and not recipe.n_blocks:
        matrix = history.matrix(towers.n_items)
        if schema.context_features:
            start_pooling(towers, matrix, recipe.logit_unit, seed)
        else:
            start_ease(towers, matrix, recipe.freeze_items, seed)
    return towers


def _sample_memory(requests: Iterable[RequestBatch]) -> MemorySample:
    arrays = [batch.arrays for batch in requests]
    names = ("owned_statistics", "user_statistics", "category_preferences")
    return MemorySample(*(torch.cat([part[name] for part in arrays]) for name in names))


def item_factors(matrix: sp.csr_array, dim: int, seed: int, user_power: float = 0.0) -> Tensor:
    """Factorise the interaction matrix with its columns scaled by (count + 1)^-.25.

    Args:
        matrix: (U, N) binary.
        dim: factors.
        seed: of the factorisation's first vector.
        user_power: each user's row is multiplied by (count + 1) ** user_power.

    Returns:
        (N, dim) float32, of unit length on average.
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
    """Start a set with request context: a user is the sum of their items' factors, popularity counts as it is."""
    factors = item_factors(matrix, towers.user_tower.dim, seed)  # (N, D)
    _start_sum(towers, factors, FIRST_SCORE)
    _start_popularity(towers, matrix, unit)


def start_ease(towers: Towers, matrix: sp.csr_array, freeze_items: bool, seed: int) -> None:
    """Start a set without request context: a user is the sum of their items' EASE factors, beside popularity.

    Frozen items leave little to train: their correlations have seen every pair of the training.
    """
    tower = towers.user_tower
    found = ease_factors(matrix, tower.dim, tower.similarity, seed)
    n_users = max(np.count_nonzero(matrix.sum(axis=1)), 1)
    score = EASE_SCORE / math.sqrt(max(matrix.nnz / n_users, 1))
    is_cosine = tower.similarity == "cosine"
    vectors = found.vectors if freeze_items or not is_cosine else _turnable(found.vectors, seed)  # (N, D)
    _start_sum(towers, vectors, score)
    _start_popularity(towers, matrix, found.popularity * (1 if is_cosine else score))
    nn.init.zeros_(tower.pool_power)  # popularity says less to those with many items
    nn.init.zeros_(tower.head[-1].weight)  # type: ignore[arg-type]
    if not freeze_items:
        nn.init.normal_(tower.start_token, std=0.02)  # under cosine the gradient of a vector of zeros has no bounds
        return
    for name, parameter in towers.named_parameters():
        parameter.requires_grad_(any(trained in name for trained in TRAINED_OF_FROZEN))


def _turnable(vectors: Tensor, seed: int) -> Tensor:
    """Give vectors (N, D) the length that is trained, those of zeros in a random direction."""
    noise = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(seed))  # (N, D)
    return TRAINED_LENGTH * functional.normalize(vectors + NOISE * noise, dim=1)  # (N, D)


def _start_sum(towers: Towers, factors: Tensor, score: float) -> None:
    tower = towers.user_tower
    start_taste(towers, factors)
    with torch.no_grad():
        tower.project_state.weight.mul_(score)
        for layer in (tower.event_table, tower.project_weight, tower.project_gap):  # a gap of 0 s has a weight too
            layer.weight.zero_()
        tower.start_token.zero_()


def _start_popularity(towers: Towers, matrix: sp.csr_array, unit: float) -> None:
    gate = towers.user_tower.popularity_gate
    if gate is not None:  # the standardised popularity was divided by the spread
        nn.init.constant_(gate.bias, unit * float(np.log1p(matrix.sum(axis=0)).std()))


@dataclass(frozen=True)
class EaseFactors:
    """A user's score of an item is the product with the sum of their items, and popularity beside it."""

    vectors: Tensor
    """(N, D) float32, of unit length on average among items with events."""
    popularity: float
    """Weight of log(1 + users of an item), beside the product or the cosine."""


def ease_factors(matrix: sp.csr_array, dim: int, similarity: Similarity, seed: int) -> EaseFactors:
    """Factorise the partial correlations of items, and weigh popularity beside them.

    With X the interaction matrix and P = (X'X + ridge I)^-1, the partial correlations are -P_ij / sqrt(P_ii P_jj).
    EASE's weights -P_ij / P_jj (Steck 2019) differ by a scale of rows and columns alone. The most popular items are
    inverted; the others are placed by least squares from their users.

    Args:
        matrix: (U, N) binary interactions.
        dim: factors.
        similarity: of a user's sum to an item.
        seed: of the hidden items that choose the settings, and of the factorisation.
    """
    users = matrix.sum(axis=0)  # (N,)
    ranked = np.argsort(-users, kind="stable")[: max(1, np.count_nonzero(users))]  # (n,) items with events
    ridge, popularity = _choose_settings(matrix[:, ranked[:MAX_TRIED]].tocsr(), dim, similarity, seed)
    core, rest = ranked[:MAX_FACTORISED], ranked[MAX_FACTORISED:]
    vectors = np.zeros((matrix.shape[1], dim), np.float32)
    vectors[core] = _approximate(partial_correlations(matrix[:, core], ridge)[0], users[core], dim, seed)
    if len(rest):
        vectors[rest] = _place(matrix[:, core] @ vectors[core], matrix[:, rest], ridge)
    length = float(np.linalg.norm(vectors[ranked], axis=1).mean())
    length = length if length > EPSILON else 1.0
    scale = length**2 if similarity == "dot" else 1  # a product is as long as both of its sides
    return EaseFactors(torch.from_numpy(vectors / length), popularity / scale)


def _approximate(correlations: np.ndarray, users: np.ndarray, dim: int, seed: int) -> np.ndarray:
    """Return V, (n, dim), of the V V' nearest to correlations (n, n), weighing items by their users (n,).

    Overwrites the correlations.
    """
    weight = (1 + users) ** WEIGHT_POWER  # (n,)
    weight /= weight.mean()
    correlations *= weight[:, None]
    correlations *= weight
    if not correlations.any():
        return np.zeros((len(correlations), dim), np.float32)
    rank = min(dim, len(correlations) - 1)
    values, columns = _leading_eigenvectors(correlations, rank, seed)  # (rank,), (n, rank)
    columns[~correlations.any(axis=1)] = 0  # but for rounding they are
    factors = np.zeros((len(correlations), dim), np.float32)
    factors[:, :rank] = columns * np.sqrt(np.maximum(values, 0)) / weight[:, None]  # (n, rank)
    return factors


def _leading_eigenvectors(symmetric: np.ndarray, rank: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest eigenvalues (rank,), descending, and their vectors (n, rank), the largest entry positive.

    From a block Krylov space (Musco and Musco 2015, arXiv 1504.05477), which reads a large matrix some ten times where
    Lanczos reads it 660 times, or from the whole of a small matrix.
    """
    n, n_columns = len(symmetric), KRYLOV_COLUMNS + 3 * rank
    if 2 * n_columns > n:
        values, columns = linalg.eigh(symmetric, driver="evd")
    else:
        basis = _krylov_basis(symmetric, n_columns, seed)  # (n, K)
        values, turned = np.linalg.eigh(basis.T @ (symmetric @ basis))  # (K,), (K, K)
        columns = basis @ turned[:, -rank:]  # (n, rank)
    values, columns = values[::-1][:rank], columns[:, ::-1][:, :rank]
    return values, columns * np.sign(columns[np.abs(columns).argmax(axis=0), np.arange(rank)])


def _krylov_basis(symmetric: np.ndarray, n_columns: int, seed: int) -> np.ndarray:
    """Return orthonormal columns that span a random block and its products with powers of the matrix, (n, K)."""
    rng, basis = np.random.default_rng(seed), np.empty((len(symmetric), 0), np.float32)
    block = rng.standard_normal((len(symmetric), KRYLOV_BLOCK)).astype(np.float32)  # (n, block)
    while basis.shape[1] < n_columns:
        for _ in range(2):  # rounding leaves something of the former blocks the first time
            block = np.linalg.qr(block - basis @ (basis.T @ block))[0]  # (n, block)
        basis = np.concatenate([basis, block], axis=1)
        block = symmetric @ block  # (n, block)
    return basis


def _place(states: np.ndarray, matrix: sp.csr_array, ridge: float) -> np.ndarray:
    """Place the items of (U, n) by least squares on the states (U, D) of their users, (n, D)."""
    gram = states.T @ states + ridge * np.eye(states.shape[1])  # (D, D)
    return np.linalg.solve(gram, (matrix.T @ states).T).T  # (n, D)


def _choose_settings(matrix: sp.csr_array, dim: int, similarity: Similarity, seed: int) -> tuple[float, float]:
    """Return the ridge, and the weight of popularity, that best find hidden items of the users by NDCG@10."""
    hidden, kept = _hold_out(matrix, np.random.default_rng(seed))
    judges = np.flatnonzero(np.diff(hidden.indptr))[:MAX_JUDGES]
    if not len(judges):
        return RIDGES[0], 1.0
    popularity = np.log1p(kept.sum(axis=0)).astype(np.float32)  # (N,)
    found: dict[tuple[float, float], float] = {}
    for ridge in RIDGES:
        vectors = _approximate(partial_correlations(kept, ridge)[0], kept.sum(axis=0), dim, seed)  # (N, D)
        products = _multiply(kept[judges], vectors, similarity)  # (J, N)
        weight = float(products.std() or 1.0) / max(float(popularity.std()), MIN_SPREAD)
        for share in POPULARITY_SHARES:
            scores = products + share * weight * popularity  # (J, N)
            found[ridge, share * weight] = _mean_ndcg(kept[judges], hidden[judges], scores)
    return max(found, key=lambda settings: found[settings])


def _multiply(owned: sp.csr_array, vectors: np.ndarray, similarity: Similarity) -> np.ndarray:
    """Return the similarity of each item to the sum of a user's items, (J, N)."""
    if similarity == "dot":
        return np.asarray((owned @ vectors) @ vectors.T)
    directions = _normalise(vectors)  # (N, D)
    return np.asarray(_normalise(owned @ directions) @ directions.T)


def _normalise(vectors: np.ndarray) -> np.ndarray:
    normalised: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), EPSILON)
    return normalised


def _hold_out(matrix: sp.csr_array, rng: np.random.Generator) -> tuple[sp.csr_array, sp.csr_array]:
    """Divide each user's items into a hidden share and the others."""
    entries = matrix.tocoo()
    is_hidden = rng.random(entries.nnz) < HIDDEN_SHARE
    hidden, kept = (
        sp.csr_array((entries.data[part], (entries.row[part], entries.col[part])), matrix.shape)
        for part in (is_hidden, ~is_hidden)
    )
    return hidden, kept


def _mean_ndcg(kept: sp.csr_array, hidden: sp.csr_array, scores: np.ndarray) -> float:
    """Return the mean NDCG@10 of hidden items by scores (J, N), overwritten, among the items that are not kept."""
    scores[kept.nonzero()] = -np.inf
    best = torch.from_numpy(scores).topk(min(TOP, scores.shape[1]), dim=1).indices.numpy()  # (J, K)
    hits = np.take_along_axis(hidden.toarray() > 0, best, 1)  # (J, K)
    return float(ndcg(hits, np.diff(hidden.indptr), TOP).mean())


def _right_vectors(matrix: sp.csr_array | np.ndarray, dim: int, seed: int) -> np.ndarray:
    """Return the `dim` leading right singular vectors as columns, zeros where there are fewer."""
    vectors = np.zeros((matrix.shape[1], dim))
    rank = min(dim, min(matrix.shape) - 1)
    if rank < 1:  # a single user or item
        return vectors
    _, _, right = svds(matrix, k=rank, random_state=seed)
    signs = np.sign(right[np.arange(rank), np.abs(right).argmax(axis=1)])
    vectors[:, :rank] = (right * signs[:, None])[::-1].T
    return vectors
