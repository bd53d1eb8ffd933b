"""Hashed texts, vectors, and Arrow columns of numpy arrays and back, without pandas, which Arrow's own ways import."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice, pairwise
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serve.schema import IdType

Floats = NDArray[np.float32]

HASHES = 2**32
MAX_TEXT = 4096  # letters read of a text, and of a word for its n-grams: they bound the cost of a request
MAX_WORD = 64

_GRAM_SIZES = (4, 3, 5)  # letters
_WORD = re.compile(
    r"[^\s!-/:-@\[-`{-\xbf\u2000-\u206f\u3000-\u303f]+"
)  # not \w, which cuts at vowel signs
_CACHED_WORDS = 65_536


@dataclass(frozen=True, slots=True)
class Vector:
    """A float32 vector as a cell of a table: small, and comparable like a text."""

    packed: bytes

    def entries(self) -> Floats:
        return np.frombuffer(self.packed, dtype=np.float32)


def read_vector(cell: Any) -> Floats | None:
    """Read a vector (W,) from an array, a list or a text such as "0.1 0.2" and "[0.1, 0.2]"; None if it is empty."""
    if isinstance(cell, Vector):
        return cell.entries()
    if isinstance(cell, str):
        cell = cell.strip("[]() \t\n").replace(",", " ").split()
    try:
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            entries = np.asarray(cell).astype(np.float32)
        if entries.ndim != 1:
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("no list of numbers") from error
    if not np.isfinite(entries).all():
        raise ValueError("an entry is not finite")
    return entries if len(entries) else None


def is_missing_row(matrix: Floats) -> NDArray[np.bool_]:
    """Return which rows (n,) of a matrix (n, W) hold no vector."""
    return np.asarray(np.isnan(matrix).all(axis=1))


# ---- words, pairs of neighbouring words, then n-grams of letters (Bojanowski et al. 2017)


def hash_texts(
    texts: Iterable[str | None], most: int, n_buckets: int = HASHES
) -> Iterator[list[int]]:
    """Yield at most `most` distinct buckets of each text's tokens; a pair of words does not cross lines."""
    grams_of = lru_cache(_CACHED_WORDS)(
        _split_grams
    )  # most texts share words with others
    for text in texts:
        lines = (
            []
            if text is None
            else [split_words(line) for line in text[:MAX_TEXT].splitlines()]
        )
        words = list(chain.from_iterable(lines))
        pairs = (f"{left} {right}" for line in lines for left, right in pairwise(line))
        by_size = zip(
            *map(grams_of, words), strict=True
        )  # size by size, so that every word has its first
        tokens = chain(words, pairs, chain.from_iterable(chain.from_iterable(by_size)))
        hashes = (
            crc32(token.encode("utf-8", "surrogatepass")) & (n_buckets - 1)
            for token in tokens
        )
        yield list(islice(dict.fromkeys(hashes), most))


def split_words(line: str) -> list[str]:
    """Return the words of a line, each letter in one spelling and without case."""
    if not line.isascii():
        line = unicodedata.normalize("NFKC", line)
    return _WORD.findall(line.casefold())


def _split_grams(word: str) -> list[list[str]]:
    """Return the n-grams of `<word>` for each size; marked, so that no n-gram is a word."""
    framed = f"<{word[:MAX_WORD]}>"
    return [
        [f"~{framed[at : at + size]}" for at in range(len(framed) - size + 1)]
        for size in _GRAM_SIZES
    ]


# ---- columns of Arrow


def to_arrow(
    values: NDArray[Any], is_valid: NDArray[np.bool_] | None = None
) -> pa.Array:
    """Return an Arrow array of numbers or flags, or of the texts (None = null) of an object array."""
    if values.dtype == np.object_:
        return _arrow_texts(values)
    kind = pa.from_numpy_dtype(values.dtype)
    valid = None if is_valid is None else _arrow_bits(is_valid)
    content = (
        _arrow_bits(values)
        if values.dtype == np.bool_
        else pa.py_buffer(np.ascontiguousarray(values))
    )
    return pa.Array.from_buffers(kind, len(values), [valid, content])


def ids_to_arrow(
    ids: Sequence[str | int | None] | NDArray[np.object_], id_type: IdType
) -> pa.Array:
    """Return ids as an Arrow array of their type, null where there is none."""
    given = np.empty(len(ids), dtype=np.object_)
    given[:] = ids
    if id_type == "string":
        return to_arrow(given)
    is_valid = np.array([value is not None for value in ids], dtype=np.bool_)
    return to_arrow(np.where(is_valid, given, 0).astype(np.int64), is_valid)


def to_numpy(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return the numbers of a column without nulls, or its texts (None = null), equal ones as one object."""
    values = column.combine_chunks()
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        return _numbers(values)
    encoded = values.dictionary_encode(null_encoding="encode")
    texts = np.empty(len(encoded.dictionary), dtype=np.object_)
    texts[:] = encoded.dictionary.to_pylist()
    return np.asarray(texts[_numbers(encoded.indices)])


def _numbers(values: pa.Array) -> NDArray[Any]:
    stop = values.offset + len(values)
    return np.frombuffer(
        values.buffers()[1], dtype=values.type.to_pandas_dtype(), count=stop
    )[values.offset :]


def _arrow_texts(texts: NDArray[np.object_]) -> pa.Array:
    encoded = [b"" if text is None else text.encode() for text in texts]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    is_valid = np.array([text is not None for text in texts], dtype=np.bool_)
    buffers = [
        _arrow_bits(is_valid),
        pa.py_buffer(ends),
        pa.py_buffer(b"".join(encoded)),
    ]
    return pa.Array.from_buffers(pa.large_string(), len(texts), buffers).cast(
        pa.string()
    )


def _arrow_bits(flags: NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))


def vectors_to_arrow(matrix: Floats) -> pa.Array:
    """Return a FixedSizeList<float32> column of the rows of a matrix (n, W), null where there is no vector."""
    entries = np.ascontiguousarray(matrix, dtype=np.float32)
    child = pa.Array.from_buffers(
        pa.float32(), entries.size, [None, pa.py_buffer(entries)]
    )
    valid = _arrow_bits(~is_missing_row(entries))
    return pa.Array.from_buffers(
        pa.list_(pa.float32(), entries.shape[1]),
        len(entries),
        [valid],
        children=[child],
    )


def vectors_from_arrow(column: pa.ChunkedArray) -> Floats:
    """Return the matrix (n, W) that `vectors_to_arrow` wrote."""
    array = column.combine_chunks()
    matrix = np.full((len(array), array.type.list_size), np.nan, dtype=np.float32)
    entries = array.drop_null().flatten()
    if len(entries):
        numbers = np.frombuffer(entries.buffers()[1], np.float32)[
            entries.offset : entries.offset + len(entries)
        ]
        matrix[np.array(array.is_valid().to_pylist())] = numbers.reshape(
            -1, matrix.shape[1]
        )
    return matrix
