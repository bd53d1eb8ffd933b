"""Describe the data of a bundle: features with their vocabularies and scales, fitted on training rows.

Codes: 0 = padding, 1 = unknown or missing, 2.. = the vocabulary in its order, or the buckets of hashed n-grams.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, get_args, get_origin, get_type_hints
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from serve.errors import SchemaError

_Coded = Literal[
    "categorical",
    "multi_categorical",
    "hierarchical",
    "text",
    "hour_of_day",
    "day_of_week",
]
Kind = Literal[_Coded, "numeric", "date", "vector"]
Similarity = Literal["dot", "cosine"]
Ties = Literal["ordered", "simultaneous"]
Repeats = Literal["exclude", "allow"]
IdType = Literal["string", "integer"]

PADDING = 0
UNKNOWN = 1
FIRST_CODE = 2
DERIVED: tuple[Kind, ...] = (
    "hour_of_day",
    "day_of_week",
)  # taken from the time of an event or request
SEVERAL: tuple[Kind, ...] = (
    "multi_categorical",
    "hierarchical",
)  # with several values in a cell
WORDED: tuple[Kind, ...] = (
    "categorical",
    *SEVERAL,
)  # with a vocabulary of the values that training has seen
FORMAT = 1
MIN_USERS = 5  # of a value or slice that is kept: one of fewer may tell who they are, and stays when they are erased
_MAX_SIZE = (
    1 << 16
)  # of a width, a length or a number of buckets: four times the largest that training gives
_SIDES = ("user_features", "item_features", "context_features")
_WIDE: tuple[Kind, ...] = (*SEVERAL, "text", "vector")
_FRACTION = re.compile(r"-?(0|[1-9]\d*)\.\d+", re.ASCII)


@dataclass(frozen=True)
class Feature:
    """One declared feature and what was fitted for it."""

    name: str
    kind: Kind
    column: str  # `datetime` for the kinds taken from the time of the event
    vocabulary: tuple[
        str, ...
    ] = ()  # the value at index i has code i + 2. Empty for kinds of values and `text`.
    separator: str = "|"
    width: int = 1  # most values of a cell of a kind with several, most n-grams of a `text`, entries of a `vector`
    mean: float = 0.0  # of a `numeric` column; of a `date`: mean age in days, less `data_until` in days since 1970
    scale: float = 1.0  # never 0: standard deviation of numbers or ages, root mean square length of a `vector`
    buckets: int = 0  # hashes of a `text`: a power of two

    @property
    def is_numeric(self) -> bool:
        return self.kind == "numeric"

    @property
    def has_values(self) -> bool:
        return self.kind in ("numeric", "date", "vector")

    @property
    def n_codes(self) -> int:
        """Rows an embedding table needs: padding, unknown, then the vocabulary or the buckets."""
        return FIRST_CODE + len(self.vocabulary) + self.buckets

    @cached_property
    def keys(self) -> NDArray[np.int64]:
        """Code -> a hash of the value that no other schema changes, 0 for padding and unknown; (n_codes,)."""
        hashes = [crc32(f"{self.name}={value}".encode()) for value in self.vocabulary]
        return np.array([0] * FIRST_CODE + hashes + [0] * self.buckets, dtype=np.int64)

    @cached_property
    def codes(self) -> dict[str, int]:
        """Known value -> code, in any case where all are true and false; 7 is 7.0 where all are fractions."""
        codes = {
            value: FIRST_CODE + index for index, value in enumerate(self.vocabulary)
        }
        if all(map(_FRACTION.fullmatch, codes)):
            return {
                value.removesuffix(".0"): code for value, code in codes.items()
            } | codes
        if not {value.lower() for value in codes} <= {"true", "false"}:
            return codes
        ways = (str.lower, str.title, str.upper)
        return {
            way(value): code for value, code in codes.items() for way in ways
        } | codes


@dataclass(frozen=True)
class Schema:
    """The agreement of training and serving."""

    user_features: tuple[Feature, ...]
    item_features: tuple[Feature, ...]
    context_features: tuple[Feature, ...]
    user_id_type: IdType
    item_id_type: IdType
    event_types: tuple[str, ...]  # in code order; empty if the data has none
    has_datetime: bool
    has_weight: bool
    weight_mean: float
    weight_scale: float
    timezone: str | None
    ties: Ties
    repeats: Repeats
    history_length: int  # the most events the attention blocks read
    memory_length: int  # the most events per user that the memory reads
    decay_days: tuple[
        float, ...
    ]  # time constants of the decayed counts of the memory, short to long
    popularity_days: tuple[
        float, ...
    ]  # windows of recent popularity; empty: item vectors carry no popularity
    data_until: int  # UTC seconds just after the last training event

    @property
    def is_set(self) -> bool:
        """Whether a user's events have no order: the data has neither times nor positions."""
        return self.ties == "simultaneous" and not self.has_datetime

    def features(self, side: str) -> tuple[Feature, ...]:
        """Return the features of a side: `user`, `item` or `context`."""
        return {
            "user": self.user_features,
            "item": self.item_features,
            "context": self.context_features,
        }[side]

    def to_json(self) -> str:
        """Write canonical JSON: the same schema gives the same bytes."""
        return (
            json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True)
            + "\n"
        )

    @classmethod
    def from_json(cls, text: str) -> Schema:
        """Read the text of `to_json`; a `SchemaError` says what is wrong with another one."""
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SchemaError(f"schema.json is no JSON: {error}") from error
        if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
            raise SchemaError(
                f"schema.json is not of format {FORMAT}: export the bundle again"
            )
        lists = {
            name: tuple(value) for name, value in raw.items() if isinstance(value, list)
        }
        try:
            sides = {name: tuple(map(_read_feature, raw[name])) for name in _SIDES}
            schema = cls(**{**raw, **lists, **sides})
        except (TypeError, KeyError) as error:
            raise SchemaError(
                f"schema.json is of another program: {error}; export the bundle again"
            ) from error
        check_record(schema)
        return schema


def _read_feature(raw: dict[str, Any]) -> Feature:
    feature = Feature(**{**raw, "vocabulary": tuple(raw["vocabulary"])})
    check_record(feature)
    if (feature.width > 1 and feature.kind not in _WIDE) or (
        feature.kind == "text"
    ) is not (feature.buckets > 0):
        raise SchemaError(
            f"feature '{feature.name}': a {feature.kind} has other widths and buckets: export again"
        )
    return feature


_RULES: dict[
    str, Callable[[Any], bool]
] = {  # of fields with these names, beside their types
    **dict.fromkeys(("name", "column", "separator"), bool),
    **dict.fromkeys(
        ("vocabulary", "event_types"), lambda texts: len(set(texts)) == len(texts)
    ),
    **dict.fromkeys(
        _SIDES, lambda features: len({one.name for one in features}) == len(features)
    ),
    **dict.fromkeys(
        ("width", "history_length", "memory_length", "dim"),
        lambda size: 1 <= size <= _MAX_SIZE,
    ),
    **dict.fromkeys(("scale", "weight_scale"), lambda number: number > 0),
    **dict.fromkeys(
        ("decay_days", "popularity_days"), lambda days: all(day > 0 for day in days)
    ),
    **dict.fromkeys(
        ("popularity_dims", "neighbour_decay", "neighbour_context_gain"),
        lambda number: number >= 0,
    ),
    "buckets": lambda number: 0 <= number <= _MAX_SIZE and number & (number - 1) == 0,
    "weight_mean": lambda logarithm: (
        0 <= logarithm <= 700
    ),  # above it the weight is infinite
}


def check_record(record: Any) -> None:
    """Refuse a dataclass read from JSON if a field has a value of another type, or an impossible one."""
    for name, kind in get_type_hints(type(record)).items():
        value = getattr(record, name)
        if not (_is_of(value, kind) and _RULES.get(name, lambda _: True)(value)):
            raise SchemaError(
                f"'{name}' is {reprlib.repr(value)}, which cannot be: export the bundle again"
            )


def _is_of(value: Any, kind: Any) -> bool:
    """Tell whether a value read from JSON is of an annotated type; numbers are finite and of 64 bits."""
    origin = get_origin(kind)
    parts = get_args(kind)
    if origin is Literal:
        return value in parts
    if kind == tuple[str, ...]:  # vocabularies are long
        return type(value) is tuple and set(map(type, value)) <= {str}
    if origin is tuple:
        return type(value) is tuple and all(_is_of(one, parts[0]) for one in value)
    if origin is Mapping:
        return type(value) is dict and all(
            _is_of(one, parts[1]) for one in value.values()
        )
    if kind in (int, float):
        return type(value) in (int, kind) and -(2**63) <= value < 2**63
    return kind is Any or type(value) in (
        parts or (kind,)
    )  # parts are those of a union
