"""Kinds of feature columns: all that tells one kind from another stands in one entry of `KINDS`.

Codes: 0 = padding, 1 = unknown or missing, 2.. = the vocabulary in its order, or hashed n-grams.
A new kind is a name in `Kind`, an entry here, and its fitting in `datamodules/schema_fitting.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from serve.arrays import Doubles, Floats, Ints, holds_numbers, is_missing_row
from serve.cells import (
    LISTS,
    Vector,
    hash_texts,
    join_text,
    list_spellings,
    parse_label,
    parse_number,
    read_vector,
    to_plain,
    to_text,
)
from serve.clock import DAY, parse_times, read_calendar, to_iso, to_seconds
from serve.errors import SchemaError, show

Kind = Literal[
    "categorical",
    "multi_categorical",
    "hierarchical",
    "text",
    "hour_of_day",
    "day_of_week",
    "month_of_year",
    "week_of_year",
    "numeric",
    "date",
    "vector",
]
Role = Literal["category", "number", "date", "vector", "value"]

PADDING = 0
UNKNOWN = 1
# Reserved column of the items of a bundle, where there are any that are never listed.
IS_UNLISTED = "is_unlisted"
FIRST_CODE = 2
LIMIT = 10.0  # standardised values are clipped to +- this many times the scale


@dataclass(frozen=True)
class Feature:
    """One declared feature and what was fitted for it.

    Attributes:
        column: column of the table; `datetime` for the kinds derived from the time of the event.
        vocabulary: the value at index i has code i + 2; empty for kinds of values and `text`.
        width: most values of a cell with several, most n-grams of a `text`, entries of a `vector`.
        mean: of numbers; of a `date`: mean age in days, less `data_until` in days since 1970.
        scale: never 0: deviation of numbers or ages, root mean square length of vectors.
        buckets: hashes of a `text`: a power of two.
    """

    name: str
    kind: Kind
    column: str
    vocabulary: tuple[str, ...] = ()
    separator: str = "|"
    width: int = 1
    mean: float = 0.0
    scale: float = 1.0
    buckets: int = 0

    @property
    def traits(self) -> Traits:
        """The entry of the feature's kind in `KINDS`."""
        return KINDS[self.kind]

    @property
    def is_numeric(self) -> bool:
        return self.kind == "numeric"

    @property
    def is_date(self) -> bool:
        return self.kind == "date"

    @property
    def is_vector(self) -> bool:
        return self.kind == "vector"

    @property
    def is_text(self) -> bool:
        return self.kind == "text"

    @property
    def is_categorical(self) -> bool:
        """Whether a cell holds one value of a vocabulary."""
        return self.kind == "categorical"

    @property
    def is_derived(self) -> bool:
        """Whether the feature is taken from the time of the event or request: nobody gives it."""
        return self.traits.period > 0

    @property
    def has_values(self) -> bool:
        """Whether the feature is encoded as numbers, else as codes."""
        return self.traits.has_values

    @property
    def has_several(self) -> bool:
        """Whether a cell holds several values of a vocabulary."""
        return self.traits.has_several

    @property
    def has_vocabulary(self) -> bool:
        """Whether codes stand for values that training has seen."""
        return self.is_categorical or self.has_several

    @property
    def n_codes(self) -> int:
        """Rows of an embedding table: padding, unknown, then the vocabulary or the buckets."""
        return FIRST_CODE + len(self.vocabulary) + self.buckets

    @cached_property
    def keys(self) -> Ints:
        """Code -> a hash of its value, the same in every schema; 0 for padding and unknown."""
        hashes = [crc32(f"{self.name}={value}".encode()) for value in self.vocabulary]
        return np.array([0] * FIRST_CODE + hashes + [0] * self.buckets, dtype=np.int64)

    @cached_property
    def codes(self) -> dict[str, int]:
        """Known value -> code, in each of its spellings."""
        codes = {value: row for row, value in enumerate(self.vocabulary, FIRST_CODE)}
        spellings = list_spellings(self.vocabulary)
        return {text: codes[value] for text, value in spellings.items()} | codes

    def encode(self, column: Any, timezone: str | None = None) -> NDArray[Any]:
        """Encode a column of n raw cells: the same code in training and in serving.

        Args:
            column: (n,) cells; UTC seconds for the derived kinds.
            timezone: zone of naive dates, and of hours, weekdays, weeks and months.

        Returns:
            int64 codes (n, width) within [0, n_codes); if the feature `has_values`, float32
            (n, width + 1): the standardised numbers, then 1.0 where they are missing.

        Raises:
            SchemaError: a cell is of another kind.
        """
        encoded = self.traits.encode(self, column, timezone)
        return _standardise(self, encoded) if self.has_values else encoded

    def parse(self, value: Any, where: str) -> Any:
        """Check the value of a request: of its kind, finite, of its width; None is missing."""
        value = to_plain(value)
        return None if value is None else self.traits.parse(self, value, where)

    def read(self, column: Any) -> NDArray[Any]:
        """Read a column as profiles hold it: numbers (n,), vectors (n, W), else texts (n,)."""
        return self.traits.read(self, column)

    def texts(self, cell: Any) -> list[str]:
        """Return the distinct values of a cell as texts; of a hierarchy the paths to each level."""
        return list(dict.fromkeys(self.traits.split(self, cell)))

    def write(self, cell: Any) -> str | None:
        """Write a cell as a text that is read as the cell was."""
        texts = self.texts(cell)
        if self.kind == "hierarchical":
            texts = texts[-1:]
        return self.separator.join(texts) or None

    def draw(self, rng: np.random.Generator) -> Any:
        """Draw a value for a synthetic request; None if the vocabulary is empty."""
        return self.traits.draw(self, rng)


# ---- columns of codes


def _encode_category(feature: Feature, cells: Any, timezone: str | None) -> Ints:
    if holds_numbers(cells):  # through their distinct values, which are few
        distinct, inverse = np.unique(cells, return_inverse=True)
        return _encode_category(feature, list(distinct), timezone)[inverse]
    codes = [feature.codes.get(to_text(cell) or "", UNKNOWN) for cell in cells]
    return np.array(codes, dtype=np.int64)[:, None]


def _encode_several(feature: Feature, cells: Any, timezone: str | None) -> Ints:
    """Return the codes of cells with several values, each once a row."""
    codes_by_row = []
    for cell in cells:
        codes = [feature.codes.get(text, UNKNOWN) for text in feature.texts(cell)]
        codes_by_row.append(list(dict.fromkeys(codes)))
    return _pad(feature, len(cells), codes_by_row)


def _encode_texts(feature: Feature, cells: Any, timezone: str | None) -> Ints:
    hashed = hash_texts(map(join_text, cells), feature.width, feature.buckets)
    codes = ([FIRST_CODE + bucket for bucket in buckets] for buckets in hashed)
    return _pad(feature, len(cells), codes)


def _pad(feature: Feature, n: int, codes_by_row: Iterable[list[int]]) -> Ints:
    """Return rows of codes, UNKNOWN where there is none, then PADDING, (n, width)."""
    padded = np.full((n, feature.width), PADDING, dtype=np.int64)
    for row, codes in zip(padded, codes_by_row, strict=True):
        first = codes[: feature.width] or [UNKNOWN]
        row[: len(first)] = first
    return padded


def _encode_times(feature: Feature, cells: Any, timezone: str | None) -> Ints:
    """Return the codes of hours, weekdays and the like, which are those of their numbers."""
    numbers = to_numbers(feature, cells)
    is_known = ~np.isnan(numbers)
    seconds = np.where(is_known, numbers, 0).astype(np.int64)
    codes = FIRST_CODE + read_calendar(feature.kind, seconds, timezone)
    return np.where(is_known, codes, UNKNOWN)[:, None]


# ---- columns of values


def _standardise(feature: Feature, values: NDArray[Any]) -> Floats:
    """Return (n, width + 1): standardised values, and where they are missing."""
    entries = values.reshape(-1, feature.width)
    is_missing = is_missing_row(entries)
    mean = entries.dtype.type(feature.mean)
    scale = entries.dtype.type(feature.scale)
    # The ends of the range overflow to what is clipped anyway.
    with np.errstate(over="ignore"):
        standard = np.clip((entries - mean) / scale, -LIMIT, LIMIT)

    standard[is_missing] = 0.0
    return np.column_stack([standard, is_missing]).astype(np.float32)


def to_numbers(feature: Feature, cells: Any) -> Doubles:
    """Read a column of numbers, or of texts of numbers, (n,), NaN where missing.

    Raises:
        SchemaError: a value is no number, or infinite.
    """
    where = f"feature '{feature.name}'"
    try:
        if not holds_numbers(cells):
            cells = [np.nan if to_text(cell) is None else float(cell) for cell in cells]
        numbers = np.array(cells, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise SchemaError(f"{where}: {error}") from error

    if np.isinf(numbers).any():
        raise SchemaError(f"{where}: a value is infinite; give a finite number or none")
    return numbers


def to_vectors(feature: Feature, cells: Any) -> Floats:
    """Read a column of vectors, cells or a matrix, as (n, W), NaN where missing."""
    matrix = np.full((len(cells), feature.width), np.nan, dtype=np.float32)
    for row, cell in zip(matrix, cells, strict=True):
        try:
            vector = read_vector(cell)
            if vector is not None and len(vector) != feature.width:
                raise ValueError(
                    f"a vector of {len(vector)} numbers; expected {feature.width}"
                )
        except ValueError as error:
            raise SchemaError(
                f"feature '{feature.name}': {error}: {show(cell)}"
            ) from error

        if vector is not None:
            row[:] = vector

    return matrix


def to_days(feature: Feature, cells: Any, timezone: str | None) -> Doubles:
    """Read a column of dates as days since 1970, (n,), NaN where missing."""
    texts = [to_text(cell) for cell in cells]
    seconds, is_valid = to_seconds(texts, timezone)
    for row in np.flatnonzero(~is_valid):
        if texts[row] is not None:
            raise SchemaError(
                f"feature '{feature.name}': {show(texts[row])} is no date; "
                "give one as 2024-05-31"
            )
    return np.where(is_valid, seconds / DAY, np.nan)


# ---- values of requests


def _parse_date(feature: Feature, value: Any, where: str) -> str:
    """Return an ISO text: a number as a text would take the unit of its column."""
    (seconds,) = parse_times([value], None, lambda _: where)
    return value if isinstance(value, str) and "-" in value else to_iso(seconds)


def _parse_vector(feature: Feature, value: Any, where: str) -> Vector | None:
    (vector,) = to_vectors(feature, [value])
    return None if np.isnan(vector).all() else Vector(vector.tobytes())


def _parse_labels(feature: Feature, value: Any, where: str) -> Any:
    if not isinstance(value, LISTS):
        return parse_label(value, where)
    return [parse_label(part, f"{where}[{i}]") for i, part in enumerate(value)]


# ---- texts of cells


def _keep_whole(feature: Feature, cell: Any) -> list[str]:
    text = join_text(cell)
    return [] if text is None else [text]


def _split_values(feature: Feature, cell: Any) -> list[str]:
    """Return the values of a cell, a text with separators or a list of such texts."""
    values = []
    for part in cell if isinstance(cell, LISTS) else (cell,):
        pieces = (to_text(part) or "").split(feature.separator)
        values += [piece.strip() for piece in pieces if piece.strip()]
    return values


def _split_path(feature: Feature, cell: Any) -> list[str]:
    """Return the paths to each level of the one path in a cell."""
    link = f" {feature.separator.strip()} "
    levels = _split_values(feature, cell)
    return list(accumulate(levels, lambda path, level: f"{path}{link}{level}"))


def _read_texts(feature: Feature, cells: Any) -> NDArray[Any]:
    texts = np.empty(len(cells), dtype=np.object_)
    texts[:] = [feature.write(cell) for cell in cells]
    return texts


# ---- synthetic values


def _draw_word(feature: Feature, rng: np.random.Generator) -> str | None:
    return str(rng.choice(feature.vocabulary)) if feature.vocabulary else None


def _draw_text(feature: Feature, rng: np.random.Generator) -> str:
    numbers = rng.integers(feature.buckets, size=5)
    return " ".join(f"word{number}" for number in numbers)


def _draw_date(feature: Feature, rng: np.random.Generator) -> str:
    # The mean is that of the age less the end of the data.
    days = -feature.mean + feature.scale * rng.standard_normal()
    return to_iso(int(DAY * days))


def _draw_vector(feature: Feature, rng: np.random.Generator) -> list[float]:
    entries = feature.scale * rng.standard_normal(feature.width)
    return [float(f"{entry:.4g}") for entry in entries]


# ---- the table


@dataclass(frozen=True)
class Traits:
    """What all features of one kind have in common; the functions serve the methods of `Feature`.

    Attributes:
        role: how a reader of tables types the column.
        separator: the default between the values of a cell.
        period: the number of hours, weekdays, ..., of a kind that is derived from the time.
    """

    encode: Callable[[Feature, Any, str | None], NDArray[Any]]
    draw: Callable[[Feature, np.random.Generator], Any] = _draw_word
    parse: Callable[[Feature, Any, str], Any] = lambda _, value, where: parse_label(
        value, where
    )
    read: Callable[[Feature, Any], NDArray[Any]] = _read_texts
    split: Callable[[Feature, Any], list[str]] = _keep_whole
    role: Role = "value"
    separator: str | None = None
    has_values: bool = False
    has_several: bool = False
    period: int = 0


KINDS: dict[Kind, Traits] = {
    "categorical": Traits(encode=_encode_category, role="category"),
    "multi_categorical": Traits(
        encode=_encode_several,
        parse=_parse_labels,
        split=_split_values,
        separator="|",
        has_several=True,
    ),
    "hierarchical": Traits(
        encode=_encode_several,
        parse=_parse_labels,
        split=_split_path,
        separator=">",
        has_several=True,
    ),
    "text": Traits(encode=_encode_texts, draw=_draw_text, parse=_parse_labels),
    "hour_of_day": Traits(_encode_times, period=24),
    "day_of_week": Traits(_encode_times, period=7),
    "month_of_year": Traits(_encode_times, period=12),
    "week_of_year": Traits(_encode_times, period=53),
    "numeric": Traits(
        encode=lambda feature, cells, _: to_numbers(feature, cells),
        draw=lambda feature, rng: float(
            feature.mean + feature.scale * rng.standard_normal()
        ),
        parse=lambda _, value, where: parse_number(value, where),
        read=to_numbers,
        role="number",
        has_values=True,
    ),
    "date": Traits(
        # The age at the end of the data, which is a part of the mean.
        encode=lambda feature, cells, timezone: -to_days(feature, cells, timezone),
        draw=_draw_date,
        parse=_parse_date,
        role="date",
        has_values=True,
    ),
    "vector": Traits(
        encode=lambda feature, cells, _: to_vectors(feature, cells),
        draw=_draw_vector,
        parse=_parse_vector,
        read=to_vectors,
        role="vector",
        has_values=True,
    ),
}
