"""Words and pieces of words as hashes: the same in every process and on every machine.

The tokens of a text, in the order in which they are kept where there are too many: its words, its pairs of neighbouring
words, then pieces of its words, which bring inflections, compounds and misspellings near each other
(Bojanowski et al. 2017, arXiv 1607.04606).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import chain, pairwise
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from serve.schema import FIRST_CODE, PADDING, UNKNOWN

HASHES = 2**32
"""A hash is within [0, HASHES)."""
LONGEST_TEXT, LONGEST_WORD = 4096, 64
"""Letters read of a text, and of a word for its pieces: they bound what a single request can cost."""

_PIECES = (4, 3, 5)  # letters
_WORD = re.compile(r"[^\s!-/:-@\[-`{-\xbf\u2000-\u206f\u3000-\u303f]+")
"""What stands between spaces and punctuation. Not \\w, which would cut the words of scripts that use vowel signs."""
_CACHED_WORDS = 65_536


def encode_texts(texts: Sequence[str | None], width: int, n_buckets: int) -> NDArray[np.int64]:
    """Code the tokens of texts, (n, width): each bucket once a row, then PADDING; UNKNOWN where there is no token."""
    place = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    nothing, padding = [UNKNOWN - FIRST_CODE], [PADDING - FIRST_CODE] * width
    rows = hash_texts(place, width, n_buckets)
    padded = chain.from_iterable(((row or nothing) + padding)[:width] for row in rows)
    flat = np.fromiter(padded, dtype=np.int64, count=len(place) * width) + FIRST_CODE
    codes: NDArray[np.int64] = flat.reshape(len(place), width)[[place[text] for text in texts]]
    return codes


def hash_texts(texts: Iterable[str | None], most: int, n_buckets: int = HASHES) -> Iterator[list[int]]:
    """Give the distinct buckets of each text's tokens.

    Args:
        texts: lines of words; a pair of words does not cross lines. None has no token.
        most: buckets kept of a text.
        n_buckets: a power of two.
    """
    mask = n_buckets - 1
    hash_word = lru_cache(_CACHED_WORDS)(partial(_hash, mask=mask))  # most texts are made of the words of others
    hash_pieces = lru_cache(_CACHED_WORDS)(partial(_hash_pieces, mask=mask))
    for text in texts:
        lines = [] if text is None else [split_words(line) for line in text[:LONGEST_TEXT].splitlines()]
        words = list(chain.from_iterable(lines))
        pairs = (f"{left} {right}" for line in lines for left, right in pairwise(line))
        by_size = zip(*map(hash_pieces, words), strict=True)  # size by size, so that every word has its first
        pieces = chain.from_iterable(chain.from_iterable(by_size))
        hashes = chain(map(hash_word, words), (_hash(pair, mask) for pair in pairs), pieces)
        yield list(dict.fromkeys(hashes))[:most]


def split_words(line: str) -> list[str]:
    """Return the words of a line, each letter in one spelling and without case."""
    if not line.isascii():
        line = unicodedata.normalize("NFKC", line)
    return _WORD.findall(line.casefold())


def _hash_pieces(word: str, mask: int) -> list[list[int]]:
    """Hash what is read through a window moved over `<word>`, for each size; marked, so that no piece is a word."""
    framed = f"<{word[:LONGEST_WORD]}>"
    windows = [[framed[start : start + size] for start in range(len(framed) - size + 1)] for size in _PIECES]
    return [[_hash(f"~{piece}", mask) for piece in pieces] for pieces in windows]


def _hash(token: str, mask: int) -> int:
    return crc32(token.encode("utf-8", "surrogatepass")) & mask
