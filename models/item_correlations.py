"""Item factors of sets: the leading eigenvectors of how items go together when all others are held fixed.

With X (U, N) who has what, P = (X'X + ridge I)^-1 and the partial correlations C_ij = -P_ij / sqrt(P_ii P_jj),
C_ii = 0, EASE scores x by x B with B_ij = -P_ij / P_jj (Steck, "Embarrassingly Shallow Autoencoders", 2019): C and B
differ by a scale of rows and columns alone. C is symmetric, so its best approximation of a rank is V V': one vector an
item, which a history adds up and an index searches, ranks nearly as the whole matrix does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from evaluation.baselines import invert_regularised
from evaluation.metrics import ndcg
from models.eigenvectors import leading_eigenvectors
from serve.schema import Similarity

RIDGES = (30.0, 100.0, 300.0, 1000.0)
POPULARITY_SHARES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""How much popularity varies, as a share of how much the products do."""
MOST_CORRELATED = 16_000
"""Items of the matrix that is inverted, the most popular ones; the others are placed by who has them."""
MOST_TRIED = 4_000
"""Of these, on which the settings are compared."""
MOST_JUDGES = 1_000
HIDDEN_SHARE = 0.2
LEAST_SPREAD = 0.1
"""Of log popularity: where items are as popular as each other, its weight would have no bounds."""
TOP = 10
WEIGHT_POWER = 1 / 8
"""Of how many have an item. With it 384 factors of 12,526 groceries of 2,462 households ranked 1 to 2 % better, pairs
of Amazon Beauty, Frappe and MovieLens alike. With 1 / 4 groceries ranked .4 % better still, Beauty 1 to 2 % worse."""
SHORTEST = 1e-9
"""Of what is divided by."""


@dataclass(frozen=True)
class Correlated:
    """A user's score of an item is the product with the sum of her items, and popularity beside it."""

    vectors: Tensor
    """(N, D) float32, of unit length on average where somebody has them."""
    popularity: float
    """What one unit of log(1 + users of an item) adds to the product, or to the cosine."""


@dataclass(frozen=True)
class Factors:
    """Of partial correlations, or, with vectors as much longer as an item varies more, of partial covariances.

    Both as far as the rank of the factors reaches.
    """

    vectors: Tensor
    """(N, R) float32, V of the correlations."""
    spread: Tensor
    """(N,) float32, how much each item varies when all others are held fixed, 1 on average over all."""

    def of_covariances(self) -> Tensor:
        """Return the factors of -P_ij / (P_ii P_jj), (N, R): what many have stands out more."""
        return self.vectors * self.spread.unsqueeze(1)  # (N, R)


@dataclass(frozen=True)
class Settings:
    """What the factors are made with, and what popularity counts beside them."""

    ridge: float
    popularity: float
    """As of `Correlated`, for factors as long as they come."""


def correlate(
    user: np.ndarray, item_row: np.ndarray, shape: tuple[int, int], dim: int, similarity: Similarity, seed: int
) -> Correlated:
    """Factorise the partial correlations of items, and weigh popularity beside them.

    Args:
        user: (E,) user of each event.
        item_row: (E,) item of each event.
        shape: (U, N).
        dim: factors.
        similarity: of the sum of a user's items to an item.
        seed: of what is hidden to choose the settings, and of the factorisation's first block.
    """
    matrix = who_has_what(user, item_row, shape)
    by_popularity = order_by_popularity(matrix)
    settings = choose_settings(matrix[:, by_popularity[:MOST_TRIED]].tocsr(), dim, similarity, seed)
    vectors, _ = _factorise(matrix, by_popularity, dim, settings.ridge, seed, MOST_CORRELATED)  # (N, D)
    length = float(np.linalg.norm(vectors[by_popularity], axis=1).mean())
    length = length if length > SHORTEST else 1.0  # where no two items go together there is no length to bring to 1
    is_long = similarity == "dot"  # a product is as long as both of its sides
    return Correlated(torch.from_numpy(vectors / length), settings.popularity / (length**2 if is_long else 1))


def factorise(
    user: np.ndarray, item_row: np.ndarray, shape: tuple[int, int], dim: int, ridge: float, seed: int, most: int
) -> Factors:
    """Return the factors alone; arguments as of `correlate`, with the ridge, and `most`.

    The `most` popular items are correlated, the others are placed by who has them.
    """
    matrix = who_has_what(user, item_row, shape)
    vectors, spread = _factorise(matrix, order_by_popularity(matrix), dim, ridge, seed, most)  # (N, dim), (N,)
    return Factors(torch.from_numpy(vectors), torch.from_numpy(spread / spread.mean()))


def who_has_what(user: np.ndarray, item_row: np.ndarray, shape: tuple[int, int]) -> sp.csr_array:
    """Return 1 for each pair of a user and an item, (U, N) float32."""
    matrix = sp.csr_array((np.ones(len(user), np.float32), (user, item_row)), shape)  # sums what comes twice
    matrix.data[:] = 1
    return matrix


def order_by_popularity(matrix: sp.csr_array) -> np.ndarray:
    """Return the items that anybody has, at least one, (n,): a table may list many more that nobody has."""
    users = matrix.sum(axis=0)  # (N,)
    return np.argsort(-users, kind="stable")[: max(1, np.count_nonzero(users))]


def _factorise(
    matrix: sp.csr_array, by_popularity: np.ndarray, dim: int, ridge: float, seed: int, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Correlate the most popular items, and place the others by who has them: (N, dim), and their spread (N,).

    That of the others is what they would have if no item said anything of them.
    """
    core, rest = by_popularity[:most], by_popularity[most:]
    users = matrix.sum(axis=0)  # (N,)
    vectors, spread = np.zeros((matrix.shape[1], dim), np.float32), np.sqrt(users + ridge)  # (N, dim), (N,)
    correlations, spread[core] = partial_correlations(matrix[:, core], ridge)
    vectors[core] = _approximate(correlations, users[core], dim, seed)
    if len(rest):
        vectors[rest] = _place(matrix[:, core] @ vectors[core], matrix[:, rest], ridge)
    return vectors, spread


def _approximate(correlations: np.ndarray, users: np.ndarray, dim: int, seed: int) -> np.ndarray:
    """Return V, (n, dim), of V V' that is nearest to correlations (n, n), most of all where many users (n,) have each.

    Such items stand in more histories, and are wanted more often. Overwrites the correlations.
    """
    weight = (1 + users) ** WEIGHT_POWER  # (n,)
    weight /= weight.mean()
    correlations *= weight[:, None]
    correlations *= weight
    factors: np.ndarray = _leading(correlations, dim, seed) / weight[:, None]
    return factors


def choose_settings(matrix: sp.csr_array, dim: int, similarity: Similarity, seed: int) -> Settings:
    """Return the settings that find best, by NDCG@10, what is hidden of the users' items.

    Popularity always counts: it is all that there is to be said to a user without items.
    """
    hidden, kept = _hide(matrix, np.random.default_rng(seed))
    judges = np.flatnonzero(np.diff(hidden.indptr))[:MOST_JUDGES]
    if not len(judges):
        return Settings(RIDGES[0], 1.0)
    popularity = np.log1p(kept.sum(axis=0)).astype(np.float32)  # (N,)
    found: dict[Settings, float] = {}
    for ridge in RIDGES:
        vectors = _approximate(partial_correlations(kept, ridge)[0], kept.sum(axis=0), dim, seed)
        products = _products(kept[judges], vectors, similarity)  # (J, N)
        weight = float(products.std() or 1.0) / max(float(popularity.std()), LEAST_SPREAD)
        for share in POPULARITY_SHARES:
            scores = products + share * weight * popularity  # (J, N)
            found[Settings(ridge, share * weight)] = fmean(_judge(kept[judges], hidden[judges], scores))
    return max(found, key=lambda settings: found[settings])


def partial_correlations(matrix: sp.csr_array, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Return C, (N, N) float32, of the users' items (U, N), and how much each varies beside all others, (N,)."""
    precision = invert_regularised((matrix.T @ matrix).toarray(), ridge)  # (N, N)
    root = np.sqrt(precision.diagonal())  # (N,)
    precision /= -root[:, None]
    precision /= root
    np.fill_diagonal(precision, 0)
    return precision, 1 / root


def _products(owned: sp.csr_array, vectors: np.ndarray, similarity: Similarity) -> np.ndarray:
    """Return how like each item is to the sum of a user's items, (J, N)."""
    if similarity == "dot":
        return np.asarray((owned @ vectors) @ vectors.T)
    directions = _normalise(vectors)  # (N, D)
    return np.asarray(_normalise(owned @ directions) @ directions.T)


def _normalise(vectors: np.ndarray) -> np.ndarray:
    normalised: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), SHORTEST)
    return normalised


def _leading(symmetric: np.ndarray, dim: int, seed: int) -> np.ndarray:
    """Return V, (N, dim), of the best V V' of that rank; zeros where there are fewer positive eigenvalues."""
    if not symmetric.any():
        return np.zeros((len(symmetric), dim), np.float32)
    values, columns = leading_eigenvectors(symmetric, len(symmetric), dim, seed)  # (dim,), (N, dim)
    vectors: np.ndarray = columns * np.sqrt(np.maximum(values, 0))
    vectors[~symmetric.any(axis=1)] = 0  # but for rounding they are: nobody has these
    return vectors


def _place(states: np.ndarray, matrix: sp.csr_array, ridge: float) -> np.ndarray:
    """Place items by least squares: the states (U, D) of users who have an item point at it, (n, D)."""
    gram = states.T @ states + ridge * np.eye(states.shape[1])  # (D, D)
    return np.linalg.solve(gram, (matrix.T @ states).T).T


def _hide(matrix: sp.csr_array, rng: np.random.Generator) -> tuple[sp.csr_array, sp.csr_array]:
    """Deal each user's items out: a share is hidden, the others are kept."""
    entries = matrix.tocoo()
    is_hidden = rng.random(entries.nnz) < HIDDEN_SHARE
    return tuple(  # type: ignore[return-value]
        sp.csr_array((entries.data[part], (entries.row[part], entries.col[part])), matrix.shape)
        for part in (is_hidden, ~is_hidden)
    )


def _judge(kept: sp.csr_array, hidden: sp.csr_array, scores: np.ndarray) -> Iterator[float]:
    """Yield the NDCG of each user's hidden items by scores (J, N) among all that she is not known to have."""
    scores[kept.nonzero()] = -np.inf
    k = min(TOP, scores.shape[1])
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    best = np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1), axis=1), 1)  # (J, K)
    hits = np.take_along_axis(hidden.toarray() > 0, best, 1)  # (J, K)
    yield from ndcg(hits, np.diff(hidden.indptr), TOP).tolist()
