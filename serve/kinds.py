"""Hashed texts, vectors, and Arrow columns of numpy arrays and back, without pandas, which Arrow's own ways import."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice, pairwise
from typing import Any
from zlib import crc32

import numpy as np

from serve.arrays import Floats

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
