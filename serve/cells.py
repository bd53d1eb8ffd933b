"""Single values, of tables and of requests: ids, labels, numbers, texts, vectors, and hashed words.

A `parse_...` returns a value that is right; a `SchemaError` says where the wrong one stands.
"""

from __future__ import annotations

import hmac
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from serve.arrays import Floats, Id, IdType
from serve.errors import BundleError, SchemaError, show

INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")  # a whole id: "007" is a text
LISTS = (list, tuple, np.ndarray)

HASHES = 2**32
MAX_TEXT = 4096  # letters read of a text: they bound the cost of a request
MAX_WORD = 64  # letters of a word that n-grams are made of

_FRACTIONS = (float, np.floating, Decimal)
_MISSING_OF_PANDAS = ("NAType", "NaTType")  # by name: pandas is not imported here
_ID_FORMS = {
    "integer": "a whole number of 64 bits",
    "string": "a text that is not empty",
}
_FRACTION = re.compile(r"-?(0|[1-9]\d*)\.\d+", re.ASCII)
_GRAM_SIZES = (4, 3, 5)  # letters
# Not \w, which cuts at vowel signs.
_WORD = re.compile(r"[^\s!-/:-@\[-`{-\xbf\u2000-\u206f\u3000-\u303f]+")
_CACHED_WORDS = 65_536

KEY_FILE = "BASCULE_PSEUDONYMS"  # variable of the environment: the keys of pseudonyms
PSEUDONYM = re.compile(r"p([0-9a-f]{8})-[0-9a-f]{32}")
_KEY = re.compile(r"[0-9a-f]{64}")


# ---- ids


def parse_id(value: Any, id_type: IdType, where: str) -> Id:
    """Check an id and return it in the type of the bundle: 7, "7" and " 7 " are the same id.

    Raises:
        SchemaError: the value is no id of this type.
    """
    plain = to_plain(value)
    if isinstance(plain, str):
        plain = plain.strip()

    if id_type == "string":
        if type(plain) is int and -(2**63) <= plain < 2**64:
            return str(plain)
        if isinstance(plain, str) and plain and is_writable(plain):
            return plain
    else:
        if isinstance(plain, str) and INTEGER.fullmatch(plain):
            plain = int(plain)
        if type(plain) is int and -(2**63) <= plain < 2**63:
            return plain

    raise SchemaError(
        f"{where} is {show(plain)}; expected {_ID_FORMS[id_type]}, as in the training data"
    )


def parse_ids(
    values: list[Any], id_type: IdType, name_of: Callable[[int], str]
) -> list[Id]:
    """Check ids as `parse_id` does; `name_of` says where the value at an index stands."""
    return [
        parse_id(value, id_type, name_of(index)) for index, value in enumerate(values)
    ]


def parse_distinct_ids(raw: Any, id_type: IdType, where: str) -> tuple[Id, ...]:
    """Check a list of ids and return each once."""
    values = list(check_list(raw, where))
    ids = parse_ids(values, id_type, lambda index: f"{where}[{index}]")
    return tuple(dict.fromkeys(ids))


def check_id(value: Id, where: str) -> None:
    """Refuse what is no id of any bundle, of texts or of integers."""
    parse_id(value, "string" if isinstance(value, str) else "integer", where)


# ---- pseudonyms of users


@dataclass(frozen=True)
class Pseudonyms:
    """Keyed pseudonyms of users, by one key after another.

    A pseudonym is `p`, the mark of a key, `-` and 32 digits: HMAC-SHA256 of the id under that key,
    cut to 128 bits, which a billion users share by a chance of 1e-21. That of a second key is the
    HMAC of the first pseudonym, and so on. So users get a new key without anybody's id, which
    nothing computes back, and an old key alone links nothing any more.

    Attributes:
        keys: mark -> key of 32 bytes, the oldest first. The mark is 8 digits.
    """

    keys: Mapping[str, bytes]

    @property
    def first(self) -> str:
        """The mark of the first key, by which a run is known."""
        return next(iter(self.keys))

    def list_names(self, user_id: Id) -> list[str]:
        """Return an id or pseudonym, and the pseudonyms by each later key: the last one counts.

        Raises:
            SchemaError: it is a pseudonym by another key.
        """
        names = [str(user_id)]
        marks = list(self.keys)
        if made := PSEUDONYM.fullmatch(names[0]):
            if made[1] not in marks:
                raise SchemaError(f"{names[0]} is by another key than those of {marks}")
            marks = marks[marks.index(made[1]) + 1 :]

        for mark in marks:
            names.append(f"p{mark}-{_digest(self.keys[mark], names[-1])[:32]}")
        return names

    def name(self, user_id: Id) -> str:
        """Return the pseudonym of an id, or of an earlier pseudonym."""
        return self.list_names(user_id)[-1]


def read_keys(path: str) -> Pseudonyms:
    """Read a file of keys, 64 hexadecimal digits a line, that nobody but its owner may read."""
    return _read_keys(path, os.stat(path).st_mtime_ns)


@lru_cache
def _read_keys(path: str, changed: int) -> Pseudonyms:
    lines = Path(path).read_text(errors="replace").split()
    is_private = not os.stat(path).st_mode & 0o077
    if not (lines and is_private and all(map(_KEY.fullmatch, lines))):
        raise SchemaError(
            f"{path} is no file of keys; expected mode 600 (chmod 600) and 64 hexadecimal digits a "
            "line, as of `openssl rand -hex 32`, the oldest key first"
        )
    keys = map(bytes.fromhex, lines)
    return Pseudonyms({_digest(key, "")[:8]: key for key in keys})


def _digest(key: bytes, text: str) -> str:
    return hmac.digest(key, text.encode(errors="surrogatepass"), "sha256").hex()


def find_keys(first: str | None) -> Pseudonyms | None:
    """Return the keys that the environment names for a run; None if it has no pseudonyms.

    Args:
        first: mark of the first key of the run, None without pseudonyms.

    Raises:
        BundleError: the keys are missing, or of another run.
    """
    path = os.environ.get(KEY_FILE)
    keys = read_keys(path) if path else None
    got = keys.first if keys else None
    if got != first:
        raise BundleError(
            f"{KEY_FILE} has the first key {got}; expected {first}, as of the run: set it to the "
            "file of that key, or unset it where None is expected"
        )
    return keys


# ---- numbers, labels and lists


def parse_number(value: Any, where: str) -> float:
    """Return a finite number; a text is none."""
    value = to_plain(value)
    if type(value) in (int, float, Decimal) and abs(value) < 2**1023:
        return float(value)
    raise SchemaError(f"{where} is {show(value)}; expected a number, finite or null")


def check_number(
    value: Any, where: str, low: float, high: float, kind: type = float
) -> float:
    """Return a number within its bounds, a whole one if `kind` is int."""
    value = to_plain(value)
    if type(value) not in (int, kind) or not low <= value <= high:
        raise SchemaError(
            f"{where} is {show(value)}; expected a number from {low:g} to {high:g}"
        )

    return float(value)


def parse_weight(value: Any, where: str) -> float | None:
    """Return the weight of an event, None where there is none."""
    weight = None if value is None else parse_number(value, where)
    if weight is not None and weight < 0:
        raise SchemaError(f"{where} is {weight}; expected 0 or more")
    return weight


def parse_label(value: Any, where: str) -> Any:
    """Return a text, number or bool as it is: `to_text` makes them equal to the vocabulary's."""
    value = to_plain(value)
    if value is not None and not isinstance(value, (str, bool)):
        parse_number(value, where)
    return value


def check_list(raw: Any, where: str) -> Sequence[Any]:
    """Return the entries of a list, tuple or array."""
    if not isinstance(raw, LISTS):
        raise SchemaError(f"{where} is {show(raw)}; expected a list")
    return raw.tolist() if isinstance(raw, np.ndarray) else raw


def to_plain(value: Any) -> Any:
    """Return the Python value of a numpy scalar."""
    return value.item() if isinstance(value, np.generic) else value


def is_writable(text: str) -> bool:
    """Tell a text from one with half a surrogate pair, which no file or answer can hold."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


# ---- cells as texts


def to_text(value: Any) -> str | None:
    """Write a value the one way vocabularies know it: None, NaN and "" are None.

    Example:
        >>> to_text(7.0), to_text(" 7 "), to_text(True), to_text(" ")
        ('7', '7', 'true', None)
    """
    if isinstance(value, str):
        return value.strip() or None
    if value is None or type(value).__name__ in _MISSING_OF_PANDAS:
        return None
    if isinstance(value, (*_FRACTIONS, np.datetime64)) and value != value:
        return None
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, _FRACTIONS) and math.isfinite(value) and value == int(value):
        return str(int(value))
    return str(value).strip() or None


def join_text(cell: Any) -> str | None:
    """Return the text of a cell that holds a text or a list of texts: a line each."""
    if not isinstance(cell, LISTS):
        return to_text(cell)
    texts = [to_text(part) for part in cell]
    return "\n".join(text for text in texts if text is not None) or None


def list_spellings(values: Sequence[str]) -> dict[str, str]:
    """Return spelling -> value: of true and false in any case, of 7.0 also 7, if all are such."""
    if all(map(_FRACTION.fullmatch, values)):
        return {value.removesuffix(".0"): value for value in values}
    if {value.lower() for value in values} <= {"true", "false"}:
        cases = (str.lower, str.title, str.upper)
        return {spell(value): value for spell in cases for value in values}

    return {}


# ---- vectors


@dataclass(frozen=True, slots=True)
class Vector:
    """A float32 vector as a cell of a table: small, and comparable like a text."""

    packed: bytes

    def entries(self) -> Floats:
        """Return the numbers, (W,)."""
        return np.frombuffer(self.packed, dtype=np.float32)


def read_vector(cell: Any) -> Floats | None:
    """Read a vector from an array, a list or a text such as "0.1 0.2" and "[0.1, 0.2]".

    Returns:
        The numbers (W,), None if the cell is missing, empty or all NaN.

    Raises:
        ValueError: the cell holds something else, or an entry that is not finite.
    """
    if isinstance(cell, Vector):
        return cell.entries()
    if not isinstance(cell, LISTS) and to_text(cell) is None:
        return None
    if isinstance(cell, str):
        cell = cell.strip("[]() \t\n").replace(",", " ").split()

    try:
        with np.errstate(over="ignore"):  # becomes infinite, which is refused
            entries = np.asarray(cell).astype(np.float32)
        if entries.ndim != 1:
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("no list of numbers") from error

    if np.isnan(entries).all():
        return None
    if not np.isfinite(entries).all():
        raise ValueError("an entry is not finite")
    return entries


# ---- words, pairs of neighbouring words, then n-grams of letters


def hash_texts(
    texts: Iterable[str | None], most: int, n_buckets: int = HASHES
) -> Iterator[list[int]]:
    """Hash words, pairs of words and n-grams of letters (Bojanowski et al., TACL 2017).

    Args:
        texts: lines of words; a pair does not cross lines.
        most: buckets kept of a text: those of its words, its pairs, then its n-grams, size by size.
        n_buckets: a power of two.

    Returns:
        An iterator over the distinct buckets of each text.
    """
    # Most texts share words with others.
    grams_of = lru_cache(_CACHED_WORDS)(_split_grams)
    for text in texts:
        lines = [split_words(line) for line in (text or "")[:MAX_TEXT].splitlines()]
        words = [word for line in lines for word in line]
        tokens = list(words)
        for line in lines:
            tokens += [f"{left} {right}" for left, right in pairwise(line)]

        # Size by size, so that every word has its first.
        for grams_by_word in zip(*map(grams_of, words), strict=True):
            for grams in grams_by_word:
                tokens += grams

        buckets: dict[int, None] = {}
        for token in tokens:
            content = token.encode("utf-8", "surrogatepass")
            buckets[crc32(content) & (n_buckets - 1)] = None

        yield list(buckets)[:most]


def split_words(line: str) -> list[str]:
    """Return the words of a line, each letter in one spelling and without case."""
    if not line.isascii():
        line = unicodedata.normalize("NFKC", line)
    return _WORD.findall(line.casefold())


def _split_grams(word: str) -> list[list[str]]:
    """Return the n-grams of `<word>` for each size; the mark `~` keeps them apart from words."""
    framed = f"<{word[:MAX_WORD]}>"
    grams_by_size = []
    for size in _GRAM_SIZES:
        starts = range(len(framed) - size + 1)
        grams_by_size.append([f"~{framed[start : start + size]}" for start in starts])

    return grams_by_size
