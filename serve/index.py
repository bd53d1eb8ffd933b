"""Items by row: their vectors, their item-item weights, and the exact search.

    score(u, i) = u . v_i
                + sum over the items j of the history of w_j weights_ji / sqrt(sum of w_j)
                + m_u(i)

The last two are sparse, so they arrive as `Terms`. In a small catalogue BLAS computes all products
u . v_i, terms are added block by block, and the heaps of FAISS keep the best. In a large one an
item of the list either has a term, or is among the best by its product alone. So the candidates are
all items with terms and those that a coarse index finds among the others; their scores are exact.

Letters: B requests, N items, W columns of a vector, L history positions, E known events, C terms.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from tokenize import TokenError
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from serve.arrays import (
    Content,
    Doubles,
    Flags,
    Floats,
    Ints,
    spans,
    to_unit,
)
from serve.nearest import TUNED_K, CoarseIndex, TopItems, split_blocks

# (requests, rows): pairs of a request and an item row, in any order
Pairs = tuple[Ints, Ints]

# (requests, rows, values): values that are added to scores; a pair may come several times
Terms = tuple[Ints, Ints, Floats]

# Never an array index: numpy and ONNX would read it as the last row.
UNKNOWN_ROW = -1

ENTRY = np.dtype([("neighbour", "<i4"), ("weight", "<f4")])
_MAX_WEIGHT = 1e15  # of an item-item weight, so that no sum of terms is infinite
_BLOCK_SCORES = 2**19  # 2 MiB of scores stay in the cache
_MIN_BLOCK = 64
_N_USERS = 16


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The item-item weights of a catalogue of N items, row by row.

    Item j has the entries from `offsets[j]` to `offsets[j + 1]`. The entries after those of the
    last item are added to the scores of every request.

    An event j of a history has the weight w_j = exp(-decay * events after j), times
    1 + `context_gain` if it happened in the context of the request.
    """

    offsets: Ints  # (N + 1,)
    rows: NDArray[np.integer]
    weights: Floats
    decay: float = 0.0  # 0 in unordered histories
    context_gain: float = 0.0

    @classmethod
    def none(cls, n_items: int) -> Neighbours:
        """Return the weights of a catalogue whose items add nothing."""
        nothing = np.zeros(n_items + 1, np.int64)
        return cls(nothing, nothing[:0], np.empty(0, np.float32))

    @classmethod
    def from_bytes(
        cls,
        offsets: Content,
        entries: Content,
        n_items: int,
        decay: float,
        context_gain: float = 0.0,
    ) -> Neighbours:
        """Read the two arrays that `to_bytes` wrote.

        Raises:
            ValueError: if the arrays do not belong to a catalogue of `n_items` items.
        """
        starts = _read_array(offsets, np.dtype("<i8"))
        pairs = _read_array(entries, ENTRY)
        has_bounds = len(starts) == n_items + 1 and starts[0] == 0
        if not has_bounds or starts[-1] > len(pairs) or (np.diff(starts) < 0).any():
            raise ValueError(
                f"{len(starts)} offsets do not divide {len(pairs)} entries "
                f"among {n_items} items"
            )

        rows = pairs["neighbour"]
        weights = pairs["weight"]
        is_row = (rows >= 0) & (rows < n_items)
        is_weight = np.abs(weights) < _MAX_WEIGHT
        if not (is_row & is_weight).all():
            raise ValueError(
                f"a row is outside 0 to {n_items - 1}, or a weight is not finite"
            )

        return cls(starts, rows, weights, decay, context_gain)

    def to_bytes(self) -> tuple[bytes, bytes]:
        """Write offsets and entries in the format of `np.save`."""
        entries = np.empty(len(self.rows), ENTRY)
        entries["neighbour"] = self.rows
        entries["weight"] = self.weights
        return _write_array(self.offsets.astype("<i8")), _write_array(entries)

    def of_histories(
        self,
        history_rows: Ints,
        lengths: Ints,
        remembered: Pairs | None = None,
        matches: Any = 0.0,
    ) -> Terms:
        """Return the terms that histories add to scores.

        Args:
            history_rows: (B, L) item rows, oldest first; items that came after the bundle have no
                weights.
            lengths: (B,) events of each history.
            remembered: pairs that get no terms, since the memory scores them.
            matches: (B, L), 1 where an event happened in the context of the request.

        Returns:
            C terms.
        """
        n_items = len(self.offsets) - 1
        shares = self._share_history(lengths, history_rows.shape[1], matches)  # (B, L)
        is_known = history_rows < n_items
        is_known &= np.arange(history_rows.shape[1]) < lengths[:, None]
        requests, positions = is_known.nonzero()  # (E,)

        items = history_rows[requests, positions]
        start = self.offsets[items]
        stop = self.offsets[items + 1]
        n_terms = stop - start  # (E,)
        entries = spans(start, stop)  # (C,)
        event_shares = np.repeat(shares[requests, positions], n_terms)
        values = self.weights[entries] * event_shares.astype(np.float32)
        requests = np.repeat(requests, n_terms)
        rows = self.rows[entries].astype(np.int64)
        if remembered is None:
            return requests, rows, values

        is_new = ~np.isin(
            requests * n_items + rows, remembered[0] * n_items + remembered[1]
        )
        return requests[is_new], rows[is_new], values[is_new]

    def _share_history(self, lengths: Ints, width: int, matches: Any) -> Doubles:
        """Return w_j / sqrt(sum of w_j) of each event, (B, L), 0 in the padding."""
        positions = np.arange(width)
        n_later = lengths[:, None] - 1 - positions  # (B, L), below 0: padding
        decayed = np.exp(-self.decay * positions)  # (L,), of the last event first
        weights = np.where(n_later >= 0, decayed[np.maximum(n_later, 0)], 0.0)
        weights *= 1 + self.context_gain * matches
        # Added one by one from the last event on, so that padding changes no bit of a sum.
        sums = np.cumsum(weights[:, ::-1], axis=1)[:, -1]  # (B,)
        roots = np.sqrt(np.where(lengths, sums, 1.0))
        return np.asarray(weights / roots[:, None])

    def of_all(self, n_requests: int) -> Terms:
        """Return the terms that are added to the scores of every request."""
        rows = self.rows[self.offsets[-1] :].astype(np.int64)
        weights = self.weights[self.offsets[-1] :]
        requests = np.repeat(np.arange(n_requests), len(rows))
        return requests, np.tile(rows, n_requests), np.tile(weights, n_requests)


def _write_array(values: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def _read_array(content: Content, kind: np.dtype[Any]) -> NDArray[Any]:
    """Read an array (n,) of a type that `np.save` wrote."""
    try:
        values: NDArray[Any] = np.lib.format.read_array(
            io.BytesIO(content.data), allow_pickle=False
        )
    except (MemoryError, TokenError) as error:
        raise ValueError(f"its header is none of an array: {error!r}") from error

    if values.dtype != kind or values.ndim != 1:
        raise ValueError(f"it holds {values.dtype} {values.shape}; expected {kind}")
    return values


def join_terms(parts: Iterable[Any]) -> Any:
    """Put terms, or pairs, together."""
    return tuple(map(np.concatenate, zip(*parts, strict=True)))


def add_terms(scores: Floats, terms: Terms) -> None:
    """Add terms to scores (B, n) in C order, whose columns the rows of the terms are."""
    requests, columns, values = terms
    np.add.at(scores.reshape(-1), requests * scores.shape[1] + columns, values)


def find_greatest(terms: Terms, n_requests: int) -> Floats:
    """Return the greatest sum of terms that an item has, at least 0, of each request, (B,).

    With it as a gain of owned items, terms order the others and lift none above those.
    """
    requests, rows, values = terms
    pairs, index = np.unique(rows * n_requests + requests, return_inverse=True)
    greatest = np.zeros(n_requests, np.float32)
    np.maximum.at(greatest, pairs % n_requests, np.bincount(index, values))
    return greatest


# ---- the search


@dataclass(frozen=True, eq=False)
class Query:
    """A search for B requests.

    Attributes:
        users: (B, W) user vectors.
        left_out: pairs that are not listed.
        added: terms that are added to the scores.
        only: if given, no other pairs are listed.
    """

    users: Floats
    left_out: Pairs | None = None
    added: Terms | None = None
    only: Pairs | None = None

    def __len__(self) -> int:
        return len(self.users)

    def take(self, requests: Ints) -> Query:
        """Return the query of some of the requests, in ascending order."""
        number = np.full(len(self), -1)
        number[requests] = np.arange(len(requests))
        parts: list[Any] = [self.left_out, self.added, self.only]

        for place, part in enumerate(parts):
            if part is not None:
                numbers = number[part[0]]
                columns = (numbers, *part[1:])
                parts[place] = tuple(column[numbers >= 0] for column in columns)

        return Query(self.users[requests], *parts)


class ItemIndex:
    """Item vectors (N, W) and the search for the best of them."""

    def __init__(
        self,
        vectors: Floats,
        is_hidden: Flags | None = None,
        coarse: CoarseIndex | None = None,
    ) -> None:
        """Index item vectors, which are not copied.

        Args:
            vectors: (N, W) float32 in C order.
            is_hidden: (N,) items that are never listed; they count in `len`.
            coarse: finds candidates among the first items; None: all products are computed.

        Raises:
            ValueError: if a vector is not finite.
        """
        if not np.isfinite(vectors).all():
            raise ValueError("an item vector is not finite")
        self.vectors = vectors
        has_hidden = is_hidden is not None and is_hidden.any()
        self.is_hidden = is_hidden if has_hidden else None
        self.coarse = coarse
        self._directions: dict[int, ItemIndex] = {}  # by their number of columns

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def from_bytes(cls, content: Content) -> ItemIndex:
        """Read the content of the file that `write_index` wrote.

        Raises:
            ValueError: if it is no flat FAISS index of inner products.
        """
        try:
            reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(content), content.size)  # type: ignore[attr-defined]
            # The stored index is a view of the content.
            stored = faiss.read_index(reader, faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise ValueError(f"no FAISS index: {error}") from error

        n_items = stored.ntotal
        if type(stored) is not faiss.IndexFlatIP or not n_items:
            raise ValueError(
                f"{n_items} vectors in a {type(stored).__name__}; "
                "expected some in an IndexFlatIP"
            )

        entries: Floats = faiss.rev_swig_ptr(stored.get_xb(), n_items * stored.d)
        # The file puts vectors at an odd address, where BLAS takes eight times as long.
        vectors = entries.copy()
        vectors.flags.writeable = False
        return cls(vectors.reshape(n_items, stored.d))

    def search(
        self, query: Query, k: int, barred: Flags | None = None
    ) -> tuple[Floats, Ints]:
        """Find the k items with the largest score for each request.

        Args:
            query: B requests.
            k: length of the lists, at least 1; they are not longer than the catalogue.
            barred: (N,) items that are listed for no request.

        Returns:
            Scores (B, k), falling, equal ones by row, and item rows (B, k). Scores of -inf and
            rows of -1 fill the end of a list that is shorter.
        """
        if self.is_hidden is not None:
            barred = self.is_hidden if barred is None else barred | self.is_hidden

        if self.coarse is not None and query.only is None:
            return self._search_each(self.coarse, query, min(k, len(self)), barred)

        best = TopItems(len(query), min(k, len(self)))
        block = max(_MIN_BLOCK, _BLOCK_SCORES // max(1, len(query)))
        added = split_blocks(query.added, block, len(self))
        left_out = split_blocks(query.left_out, block, len(self))
        only = split_blocks(query.only, block, len(self))

        for start in range(0, len(self), block):
            scores: Floats = query.users @ self.vectors[start : start + block].T
            if query.added is not None:
                add_terms(scores, next(added))
            if query.only is not None:
                pairs = next(only)
                scores_of_pairs = scores[pairs]
                scores.fill(-np.inf)
                scores[pairs] = scores_of_pairs

            if query.left_out is not None:
                scores[next(left_out)] = -np.inf
            if barred is not None:
                scores[:, barred[start : start + block]] = -np.inf

            best.add(scores, start)

        return best.lists()

    def _search_each(
        self, coarse: CoarseIndex, query: Query, k: int, barred: Flags | None
    ) -> tuple[Floats, Ints]:
        """Search for one request at a time."""
        if len(query) != 1:
            halves = np.array_split(np.arange(len(query)), 2)
            lists = [self.search(query.take(half), k, barred) for half in halves]
            scores, rows = map(np.concatenate, zip(*lists, strict=True))
            return scores, rows

        is_open = np.ones(len(self), np.bool_) if barred is None else ~barred
        if query.left_out is not None:
            is_open[query.left_out[1]] = False
        rows_of_terms = np.empty(0, np.int64)
        if query.added is not None:
            rows_of_terms = query.added[1]
        has_terms = is_open[rows_of_terms]
        is_open[rows_of_terms] = False

        others = coarse.search(query.users[0], k, is_open)
        rows = np.sort(np.append(others, rows_of_terms[has_terms]))
        rows = rows[np.diff(rows, prepend=UNKNOWN_ROW) > 0]  # an item may have several
        scores = query.users @ self.vectors[rows].T  # (1, C)
        if query.added is not None:
            requests, rows_of_terms, values = query.added
            places = rows.searchsorted(rows_of_terms[has_terms])
            add_terms(scores, (requests[has_terms], places, values[has_terms]))

        best = TopItems(1, k)
        best.add(scores, 0)
        scores, places = best.lists()
        return scores, np.append(rows, UNKNOWN_ROW)[places]

    def measure_recall(self, query: Query) -> float:
        """Return the share of the exact lists of `TUNED_K` items that this index finds."""
        _, exact = ItemIndex(self.vectors, self.is_hidden).search(query, TUNED_K)
        _, rows = self.search(query, TUNED_K)
        is_found = (exact[:, :, None] == rows[:, None]).any(axis=2)  # (B, K)
        return float(is_found[exact >= 0].mean())

    def score(self, query: Query, rows: Ints) -> Doubles:
        """Return the exact scores (B, K) of items by distinct rows (K,) in ascending order."""
        scores = query.users.astype(np.float64) @ self.vectors[rows].T  # (B, K)
        if query.added is not None:
            requests, rows_of_terms, values = query.added
            is_here = np.isin(rows_of_terms, rows)
            columns = rows.searchsorted(rows_of_terms[is_here])
            np.add.at(scores, (requests[is_here], columns), values[is_here])

        return scores

    def directions(self, n_dims: int) -> ItemIndex:
        """Return an index of the directions of the first `n_dims` columns: its scores are cosines.

        An item whose columns are all 0 has the cosine 0 to every other.
        """
        if n_dims not in self._directions:
            directions = to_unit(self.vectors[:, :n_dims])
            self._directions[n_dims] = ItemIndex(directions, self.is_hidden)

        return self._directions[n_dims]


def measure_items(vectors: Floats, coarse: CoarseIndex) -> float:
    """Return the recall of a coarse index with some of the item vectors (N, W) as users."""
    step = -(-len(vectors) // _N_USERS)
    return ItemIndex(vectors, coarse=coarse).measure_recall(Query(vectors[::step]))
