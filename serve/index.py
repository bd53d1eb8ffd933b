"""Items by row: ids, vectors, item-item weights, and the exact search among them.

    score(u, i) = u . v_i + sum over the items j of the history of w_j weights_ji / sqrt(sum of w_j) + m_u(i)

The products are BLAS's and the lists FAISS's heaps, since its flat search can neither add to a score nor leave out
items of one request. Letters: B requests, N items, W columns of a vector, L history positions, C terms of a sum.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from serve.arrays import Flags, Floats, Ints
from serve.errors import SchemaError
from serve.events import spans
from serve.requests import Id, parse_id, show
from serve.schema import IdType

Content = NDArray[np.uint8]
Pairs = tuple[
    Ints, Ints
]  # (requests, rows): pairs of a request and an item row, in any order
Terms = tuple[
    Ints, Ints, Floats
]  # (requests, rows, values): values added to scores; pairs may come several times

UNKNOWN_ROW = -1  # never an array index: numpy and ONNX would read it as the last row
ENTRY = np.dtype([("neighbour", "<i4"), ("weight", "<f4")])
_MAX_WEIGHT = 1e15  # of an item-item weight: no sum of terms is infinite
_BLOCK_SCORES = 2**19  # 2 MiB of scores stay in the cache
_MIN_BLOCK = 64


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The item-item weights of a catalogue of N items, row by row, and what some items have for everybody."""

    offsets: Ints  # (N + 1,): item j has the entries from offsets[j] to offsets[j + 1]; those after them are for all
    rows: NDArray[np.integer]
    weights: Floats
    decay: float = 0.0  # w_j is exp(-decay * events after j), so 1 in sets
    context_gain: float = 0.0  # and 1 + context_gain times that where j happened in the context of the request

    @classmethod
    def none(cls, n_items: int) -> Neighbours:
        """Return the weights of a catalogue whose items add nothing."""
        return cls(
            np.zeros(n_items + 1, np.int64),
            np.empty(0, np.int64),
            np.empty(0, np.float32),
        )

    @classmethod
    def from_bytes(
        cls,
        offsets: Content,
        entries: Content,
        n_items: int,
        decay: float,
        context_gain: float = 0.0,
    ) -> Neighbours:
        """Read the arrays that `to_bytes` wrote; a `ValueError` says that they are not of these items."""
        starts = _read_array(offsets, np.dtype("<i8"))
        pairs = _read_array(entries, ENTRY)
        is_sound = (
            len(starts) == n_items + 1 and starts[0] == 0 and starts[-1] <= len(pairs)
        )
        if not is_sound or (np.diff(starts) < 0).any():
            raise ValueError(
                f"{len(starts)} offsets do not divide {len(pairs)} entries among {n_items} items"
            )
        rows = pairs["neighbour"]
        weights = pairs["weight"]
        if len(rows) and not (
            rows.min() >= 0
            and rows.max() < n_items
            and (np.abs(weights) < _MAX_WEIGHT).all()
        ):
            raise ValueError(
                f"a row is outside 0 to {n_items - 1}, or a weight is not finite"
            )
        return cls(starts, rows, weights, decay, context_gain)

    def to_bytes(self) -> tuple[bytes, bytes]:
        """Write offsets and entries in the format of `np.save`."""
        entries = np.empty(len(self.rows), ENTRY)
        entries["neighbour"] = self.rows
        entries["weight"] = self.weights
        files = io.BytesIO(), io.BytesIO()
        np.save(files[0], self.offsets.astype("<i8"))
        np.save(files[1], entries)
        return files[0].getvalue(), files[1].getvalue()

    def of_histories(
        self,
        history_rows: Ints,
        lengths: Ints,
        remembered: Pairs | None = None,
        matches: Any = 0.0,
    ) -> Terms | None:
        """Return the terms that histories (B, L) of lengths (B,) add to scores, none to `remembered` items.

        `matches` (B, L) is 1 where an event happened in the context of the request. Items that came after the bundle
        have no weights.
        """
        if not len(self.rows):
            return None
        later = (
            lengths[:, None] - 1 - np.arange(history_rows.shape[1])
        )  # (B, L) events after each; below 0: padding
        decayed = np.exp(
            -self.decay * np.arange(history_rows.shape[1])
        )  # (L,) the last event first
        counts = np.where(later >= 0, decayed[np.maximum(later, 0)], 0.0)  # (B, L)
        counts *= 1 + self.context_gain * matches
        sums = np.cumsum(counts[:, ::-1], axis=1)[
            :, -1
        ]  # (B,) one by one, the last event first: padding adds nothing
        shares = counts / np.sqrt(np.where(lengths, sums, 1.0))[:, None]  # (B, L)
        n_items = len(self.offsets) - 1
        requests, places = (
            (later >= 0) & (history_rows < n_items)
        ).nonzero()  # (E,) known events
        items = history_rows[requests, places]
        start = self.offsets[items]
        stop = self.offsets[items + 1]
        counts = stop - start  # (E,), (C,)
        entries = spans(start, stop)
        values = self.weights[entries] * np.repeat(
            shares[requests, places], counts
        ).astype(np.float32)
        requests = np.repeat(requests, counts)
        rows = self.rows[entries].astype(np.int64)
        if remembered is None:
            return requests, rows, values
        is_new = ~np.isin(
            requests * n_items + rows, remembered[0] * n_items + remembered[1]
        )
        return requests[is_new], rows[is_new], values[is_new]

    def of_all(self, n_requests: int) -> Terms | None:
        """Return the terms that are added to the scores of every request."""
        rows = self.rows[self.offsets[-1] :].astype(np.int64)
        weights = self.weights[self.offsets[-1] :]
        if not len(rows):
            return None
        return (
            np.repeat(np.arange(n_requests), len(rows)),
            np.tile(rows, n_requests),
            np.tile(weights, n_requests),
        )


def _read_array(content: Content, kind: np.dtype[Any]) -> NDArray[Any]:
    """Read an array (n,) that `np.save` wrote; nothing in it is evaluated, and its size is that of the content."""
    start = 10 + int.from_bytes(content[8:10].tobytes(), "little")
    head = io.BytesIO()
    n = max(0, content.size - start) // kind.itemsize
    described = {
        "descr": np.lib.format.dtype_to_descr(kind),
        "fortran_order": False,
        "shape": (n,),
    }
    np.lib.format.write_array_header_1_0(head, described)
    expected = head.getvalue()
    found = content[:start].tobytes()
    if found[:8] != expected[:8] or found[10:].rstrip() != expected[10:].rstrip():
        raise ValueError(
            f"it holds something else than {n} entries {kind}, as its size says"
        )
    return np.frombuffer(content, kind, n, start).copy()


def join_terms(parts: Sequence[Terms | None]) -> Terms | None:
    """Put terms together; None stands for none."""
    given = [part for part in parts if part is not None]
    return tuple(map(np.concatenate, zip(*given, strict=True))) if given else None  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class Query:
    """A search for B requests."""

    users: Floats  # (B, W)
    left_out: Pairs | None = None
    added: Terms | None = None
    only: Pairs | None = None  # if given, no other items are listed

    def __len__(self) -> int:
        return len(self.users)

    def take(self, requests: Ints) -> Query:
        """Return the query of some of the requests, in ascending order."""
        place = np.full(len(self), -1)
        place[requests] = np.arange(len(requests))

        def pick(part: Any) -> Any:
            if part is None:
                return None
            is_kept = place[part[0]] >= 0
            return (place[part[0][is_kept]], *(column[is_kept] for column in part[1:]))

        return Query(
            self.users[requests], pick(self.left_out), pick(self.added), pick(self.only)
        )


class ItemIndex:
    """Item vectors (N, W) and the search for the best of them."""

    def __init__(self, vectors: Floats, is_hidden: Flags | None = None) -> None:
        """Index vectors (N, W), float32 in C order, which are not copied; hidden items (N,) are never listed."""
        if (
            vectors.ndim != 2
            or vectors.dtype != np.float32
            or not vectors.size
            or not vectors.flags.c_contiguous
        ):
            raise ValueError(
                f"item vectors are {vectors.dtype} {vectors.shape}; expected float32 (N, W) in C order"
            )
        if not np.isfinite(vectors).all():
            raise ValueError("an item vector is not finite")
        self.vectors = vectors
        self.is_hidden = (
            is_hidden if is_hidden is not None and is_hidden.any() else None
        )  # they count in `len`
        self._lengths: dict[int, Floats] = {}

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def from_bytes(cls, content: Content) -> ItemIndex:
        """Read the content of the file that `write_index` wrote; a `ValueError` says that it is another one."""
        try:
            reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(content), content.size)  # type: ignore[attr-defined]
            stored = faiss.read_index(
                reader, faiss.IO_FLAG_MMAP_IFC
            )  # a view of the content
        except RuntimeError as error:
            raise ValueError(f"no FAISS index: {error}") from error
        if type(stored) is not faiss.IndexFlatIP or not stored.ntotal:
            raise ValueError(
                f"{stored.ntotal} vectors in a {type(stored).__name__}; expected some in an IndexFlatIP"
            )
        # Copied, since the file puts vectors at an odd address, where BLAS takes eight times as long.
        vectors: Floats = faiss.rev_swig_ptr(
            stored.get_xb(), stored.ntotal * stored.d
        ).copy()
        vectors.flags.writeable = False
        return cls(vectors.reshape(stored.ntotal, stored.d))

    def search(
        self, query: Query, k: int, barred: Flags | None = None
    ) -> tuple[Floats, Ints]:
        """Find the k items with the largest score among those that are not barred (N,) and may be listed.

        Returns scores (B, min(k, N)), falling, equal ones by row, and rows; -inf and -1 fill the end of short lists.
        """
        if query.users.ndim != 2 or query.users.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"user vectors are {query.users.shape}; expected (B, {self.vectors.shape[1]})"
            )
        if self.is_hidden is not None:
            barred = self.is_hidden if barred is None else barred | self.is_hidden
        best = _TopItems(len(query), min(k, len(self)))
        block = max(_MIN_BLOCK, _BLOCK_SCORES // max(1, len(query)))
        added, left_out, only = (
            _split(part, block, len(self))
            for part in (query.added, query.left_out, query.only)
        )
        for start in range(0, len(self), block):
            scores: Floats = (
                query.users @ self.vectors[start : start + block].T
            )  # (B, block)
            if query.added is not None:
                add_terms(scores, next(added))
            if query.only is not None:
                kept = next(only)
                listed = scores[kept]
                scores.fill(-np.inf)
                scores[kept] = listed
            if query.left_out is not None:
                scores[next(left_out)] = -np.inf
            if barred is not None:
                scores[:, barred[start : start + block]] = -np.inf
            best.add(scores, start)
        return best.lists()

    def score(self, query: Query, rows: Ints) -> NDArray[np.float64]:
        """Return the scores of some items, (B, K), by distinct rows in ascending order: exact, to be subtracted."""
        scores = query.users.astype(np.float64) @ self.vectors[rows].T  # (B, K)
        if query.added is not None and len(rows):
            requests, of_terms, values = query.added
            columns = rows.searchsorted(of_terms).clip(max=len(rows) - 1)
            is_here = rows[columns] == of_terms
            np.add.at(scores, (requests[is_here], columns[is_here]), values[is_here])
        return scores

    def similar(self, row: int, k: int, n_dims: int) -> tuple[Floats, Ints]:
        """Return falling cosines over the first `n_dims` columns, and rows, of the items nearest to an item.

        An item whose columns are all 0 has cosine 0 to every other.
        """
        part = self.vectors[:, :n_dims]
        if n_dims not in self._lengths:
            found = np.linalg.norm(part, axis=1)
            self._lengths[n_dims] = np.where(found == 0, 1, found)
        lengths = self._lengths[n_dims]
        cosines: Floats = (part @ (part[row] / lengths[row]) / lengths)[None]  # (1, N)
        cosines[0, row] = -np.inf
        if self.is_hidden is not None:
            cosines[0, self.is_hidden] = -np.inf
        best = _TopItems(1, min(k, len(self)))
        best.add(cosines, 0)
        scores, rows = best.lists()
        is_found = rows[0] >= 0
        return scores[0, is_found], rows[0, is_found]


class _TopItems:
    """The k largest scores of each of n rows, by FAISS's heaps."""

    def __init__(self, n: int, k: int) -> None:
        if k < 1:
            raise ValueError(f"k is {k}; allowed: 1 or more")
        self._scores = np.empty((n, k), np.float32)
        self._rows = np.empty((n, k), np.int64)
        self._heaps = faiss.float_minheap_array_t()
        self._heaps.nh = n
        self._heaps.k = k
        self._heaps.val = faiss.swig_ptr(self._scores)
        self._heaps.ids = faiss.swig_ptr(self._rows)
        self._heaps.heapify()

    def add(self, scores: Floats, first_row: int) -> None:
        """Add scores (n, m) of the items from `first_row` on; -inf never enters."""
        self._heaps.addn(scores.shape[1], faiss.swig_ptr(scores), first_row)  # type: ignore[call-arg]

    def lists(self) -> tuple[Floats, Ints]:
        """Return scores, falling, and rows, (n, k) each; -inf and -1 fill the end."""
        self._heaps.reorder()
        scores = self._scores
        rows = self._rows
        scores[rows < 0] = -np.inf
        if (scores[:, 1:] == scores[:, :-1]).any():
            order = np.lexsort((rows, -scores), axis=1)
            return np.take_along_axis(scores, order, axis=1), np.take_along_axis(
                rows, order, axis=1
            )
        return scores, rows


def add_terms(scores: Floats, terms: Terms) -> None:
    """Add terms to scores (B, n) in C order, whose columns the rows of the terms are."""
    requests, columns, values = terms
    np.add.at(scores.reshape(-1), requests * scores.shape[1] + columns, values)


def _split(
    part: tuple[Any, ...] | None, block: int, n_items: int
) -> Iterator[tuple[Any, ...]]:
    """Yield the pairs or terms of each block of items, with columns of the block in place of rows."""
    if part is None or block >= n_items:
        yield part or ()
        return
    requests, rows, *values = part
    blocks = (rows // block).astype(np.uint16)  # 16 bits are sorted by radix
    order = blocks.argsort(kind="stable")
    bounds = blocks[order].searchsorted(np.arange(-(-n_items // block) + 1))
    for number in range(len(bounds) - 1):
        here = order[bounds[number] : bounds[number + 1]]
        yield (
            requests[here],
            rows[here] - number * block,
            *(value[here] for value in values),
        )


class ItemIds:
    """The ids of N items by item row, and the way back."""

    def __init__(self, ids: NDArray[np.generic]) -> None:
        """Prepare the look-up of distinct ids (N,): int64, or object with texts."""
        self.ids = ids.view()
        self.ids.flags.writeable = False  # answers hold it
        self.id_type: IdType = "string" if ids.dtype == np.object_ else "integer"
        self._rows: dict[Id, int] = {
            item_id: row for row, item_id in enumerate(ids.tolist())
        }

    def __len__(self) -> int:
        return len(self.ids)

    def extended(self, more: Sequence[Id]) -> ItemIds:
        """Return these ids and, behind them, others that are not among them."""
        extended = copy(self)
        extended.ids = np.concatenate([self.ids, np.array(more, dtype=self.ids.dtype)])
        extended.ids.flags.writeable = False
        extended._rows = self._rows | dict(
            zip(more, range(len(self), len(extended.ids)), strict=True)
        )
        return extended

    def find(self, ids: Sequence[Id] | NDArray[np.generic]) -> Ints:
        """Return the row of each id, `UNKNOWN_ROW` where there is no such item."""
        row_of = self._rows.get
        listed = ids.tolist() if isinstance(ids, np.ndarray) else ids
        return np.array(
            [row_of(item_id, UNKNOWN_ROW) for item_id in listed], dtype=np.int64
        )

    def require(self, ids: Sequence[Any]) -> Ints:
        """Return the row of each id as a caller wrote it; a `SchemaError` names one that is not known."""
        checked = [parse_id(item_id, self.id_type, "item_id") for item_id in ids]
        rows = self.find(checked)
        if (rows == UNKNOWN_ROW).any():
            unknown = show(checked[int((rows == UNKNOWN_ROW).argmax())])
            raise SchemaError(
                f"item_id {unknown} is unknown; allowed: the {len(self)} ids of the catalogue"
            )
        return rows
