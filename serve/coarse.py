"""Item vectors rounded to 8 bits: scores of known error, for a quarter of the memory that a search reads.

For a few requests a search takes as long as the vectors take to be read. Users u and items v are rounded block by block
to 255 levels, and the product is one of integers; with u', v' for what is left of them

    |u v - u' v'| <= |u - u'| |v| + |u'| |v - v'|.

Both distances are measured, and the product is checked when it is made. Whoever adds twice the error to his slack
(`serve.top_k.find_contenders`) and scores contenders exactly finds what an exact product would find. The codes, and
what the session makes of them, need up to as much memory as the vectors.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve.coarse_graph import PRODUCTS, USERS, product_graph
from serve.errors import BundleError
from serve.item_vectors import bound_rounding, bound_scores, measure_lengths
from serve.session import ORT_ERRORS, start_session
from serve.top_k import Floats

FEWEST_ITEMS = 2**15
"""Of fewer, the float32 vectors are read from a cache and as fast."""
MOST_REQUESTS = 4
"""That are searched with rounded vectors: for more, whole ones are as fast."""
MOST_CONTENDERS = 2**11
"""For each request: more cost more than the product that leaves fewer."""
_MOST_BYTES = 2**30  # of the codes: a graph holds less than 2 GiB
_BLOCK = 32
_LEVELS, _ZERO = 127, 128
_LEAST, _LARGEST = 2.0**-48, 2.0**48  # of a scale: products of two are far from both ends of float32
_ROUNDED_UP = 1 + 2.0**-20  # whoever rounds the error to float32 does not make it smaller
_ROWS = 2**14  # that are rounded at once
_PROBES, _TRIALS, _PROBED_K = 4, 5, 20
_LOG = logging.getLogger("serve")


@dataclass(frozen=True)
class Rounded:
    """Vectors (N, D) as multiples of a scale for each block."""

    codes: NDArray[np.uint8]
    """(N, blocks, entries of a block), 128 is zero."""
    scales: Floats
    """(N, blocks)."""
    width: int
    """D."""
    farthest: float
    """Length of the longest v - v'."""

    def parts(self) -> Iterator[Floats]:
        """Yield the rounded vectors v' (n, D), some after the other."""
        for part in _parts(len(self.codes)):
            yield _multiply_out(self.codes[part].astype(np.float32) - _ZERO, self.scales[part], self.width)


class CoarseVectors:
    """The product with rounded item vectors (N, D)."""

    def __init__(self, rounded: Rounded, longest: float) -> None:
        """Start the product.

        Args:
            rounded: item vectors; the product has its own copy.
            longest: length of the longest one before it was rounded.

        Raises:
            BundleError: this ONNX Runtime has no such product.
        """
        self.longest = longest
        self._farthest = rounded.farthest
        graph = product_graph(rounded.codes, rounded.scales, rounded.width)
        self._session = start_session("product of rounded vectors", graph, 1)

    def round(self, users: Floats) -> Floats | None:
        """Round user vectors (T, D) so that the product takes them as they are; None if one is too long for it."""
        multiples, scales = _round(users)
        if scales.max(initial=0.0) > _LARGEST:
            return None
        return _multiply_out(multiples, scales, users.shape[1])

    def multiply(self, rounded: Floats) -> Floats:
        """Return the scores of all items for rounded users (T, D), (T, N).

        Raises:
            BundleError: ONNX Runtime does not compute it.
        """
        try:
            (scores,) = self._session.run([PRODUCTS], {USERS: rounded})
        except ORT_ERRORS as error:
            raise BundleError(f"the product of rounded vectors does not run here: {error}") from error
        return scores  # type: ignore[no-any-return]

    def score(self, users: Floats) -> tuple[Floats, NDArray[np.float64]] | None:
        """Score all items for each user (T, D).

        Returns:
            scores: (T, N) float32.
            errors: (T,) the most by which one differs from the exact score, but for the rounding of float32 sums.
            None where a user's vector is too long to be rounded.
        """
        rounded = self.round(users)
        if rounded is None:
            return None
        errors = measure_lengths(users - rounded) * self.longest + measure_lengths(rounded) * self._farthest
        return self.multiply(rounded), errors * _ROUNDED_UP


def round_vectors(vectors: Floats) -> Rounded:
    """Round vectors (N, D), a part at a time."""
    shape, width, farthest = (len(vectors), -(-vectors.shape[1] // _BLOCK)), vectors.shape[1], 0.0
    codes, scales = np.empty((*shape, _BLOCK), dtype=np.uint8), np.empty(shape, dtype=np.float32)
    for part in _parts(len(vectors)):
        multiples, scales[part] = _round(vectors[part])
        codes[part] = multiples + _ZERO
        left_out = vectors[part] - _multiply_out(multiples, scales[part], width)
        farthest = max(farthest, float(measure_lengths(left_out).max()))
    return Rounded(codes, scales, width, farthest)


def make_coarse(vectors: Floats) -> CoarseVectors | None:
    """Round item vectors; None where that is of no use.

    Few items; lengths so unlike that the error says nothing; a machine without a fast product of integers.
    """
    width = -(-vectors.shape[1] // _BLOCK) * _BLOCK
    if len(vectors) < FEWEST_ITEMS or len(vectors) * width > _MOST_BYTES:
        return None
    longest = float(measure_lengths(vectors).max())
    if longest > _LARGEST:
        return None
    try:
        rounded = round_vectors(vectors)
        coarse = CoarseVectors(rounded, longest)
        if not is_sound(coarse, rounded, vectors):
            _LOG.warning("the product of 8 bits of this ONNX Runtime is wrong on this processor: it is not used")
            return None
        return coarse if tells_apart(coarse, vectors) and is_faster(coarse, vectors) else None
    except BundleError:
        return None


def is_sound(coarse: CoarseVectors, rounded: Rounded, vectors: Floats) -> bool:
    """Compare products of each number of users with what codes and scales say: kernels differ by both."""
    users = coarse.round(np.concatenate([_draw_probes(vectors), _extreme_probes(rounded.width)]))
    if users is None:
        return False
    expected = np.concatenate([users.astype(np.float64) @ part.T for part in rounded.parts()], axis=1)  # (P, N)
    most = bound_rounding(bound_scores(users, coarse.longest), rounded.width)[:, None]
    for number in range(1, MOST_REQUESTS + 1):
        for start in range(0, len(users), number):
            part = slice(start, start + number)
            if not (np.abs(coarse.multiply(users[part]) - expected[part]) <= most[part]).all():
                return False  # so is what is not a number
    return True


def tells_apart(coarse: CoarseVectors, vectors: Floats) -> bool:
    """Say whether the error leaves few contenders to users that are like some items."""
    scored = coarse.score(_draw_probes(vectors))
    if scored is None:
        return False
    scores, errors = scored
    k = min(_PROBED_K, len(vectors))
    cut = np.partition(scores, len(vectors) - k, axis=1)[:, len(vectors) - k] - 2 * errors  # (P,)
    return int((scores >= cut[:, None]).sum(axis=1).max()) <= MOST_CONTENDERS


def is_faster(coarse: CoarseVectors, vectors: Floats) -> bool:
    """Compare with the product in float32, as fast as each can be: processors differ."""
    user, product = vectors[:1], np.empty((len(vectors), 1), dtype=np.float32)
    return _least(lambda: coarse.score(user)) < _least(lambda: np.matmul(vectors, user.T, out=product))


def _least(compute: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_TRIALS):
        started = time.perf_counter()
        compute()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _draw_probes(vectors: Floats) -> Floats:
    """Take some item vectors as users, (P, D)."""
    return vectors[:: -(-len(vectors) // _PROBES)]


def _extreme_probes(width: int) -> Floats:
    """Make users (3, D) with which sums of integers are as large as they can be, and with which they cancel out."""
    ones = np.ones(width, dtype=np.float32)
    signs = np.where(np.arange(width) % 2, -1, 1).astype(np.float32)
    return np.stack([ones, -ones, signs])


def _parts(n: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, n, _ROWS))


def _multiply_out(multiples: Floats, scales: Floats, width: int) -> Floats:
    whole: Floats = (multiples * scales[:, :, None]).reshape(len(multiples), -1)[:, :width]
    return whole


def _round(vectors: Floats) -> tuple[Floats, Floats]:
    """Round vectors (n, D) to multiples of a scale for each block; what is too small for a scale becomes 0.

    Returns:
        multiples: (n, blocks, entries of a block) whole numbers from -127 to 127, 0 beyond D.
        scales: (n, blocks) float32.
    """
    n_vectors, width = vectors.shape
    filled = np.zeros((n_vectors, -(-width // _BLOCK), _BLOCK), dtype=np.float32)
    filled.reshape(n_vectors, -1)[:, :width] = vectors
    scales = np.abs(filled).max(axis=2) / _LEVELS  # (n, blocks)
    scales[scales < _LEAST] = 0.0  # exactly: the product subtracts 128 scales, and so must lose nothing by it
    np.divide(filled, scales[:, :, None], out=filled, where=scales[:, :, None] > 0)
    filled[scales == 0] = 0.0
    return np.rint(filled, out=filled), scales
