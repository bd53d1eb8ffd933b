"""Describe the data of a bundle: features, types, scales and limits, fitted on training rows."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from serve.arrays import Id, IdType
from serve.arrays import Repeats as Repeats
from serve.arrays import Ties as Ties
from serve.cells import PSEUDONYM, find_keys, parse_id
from serve.clock import LAST_SECOND
from serve.errors import SchemaError
from serve.files import to_canonical_json
from serve.kinds import Feature

Similarity = Literal["dot", "cosine"]

FORMAT = 1
# A value or slice of fewer users may tell who they are, and stays when they are erased.
MIN_USERS = 5

# Of a width, a length or a number of buckets: 4 times what training gives.
_MAX_SIZE = 1 << 16
_MAX_LOG = 700  # above it the weight is infinite
_TINY = 5e-324  # the least positive number
_SIDES = ("user_features", "item_features", "context_features")
# Fields that hold names: each is there, and none twice.
_NAMES = ("name", "column", "separator", "event_types", "vocabulary", *_SIDES)
# Field name -> bounds of its numbers.
_BOUNDS: dict[str, tuple[float, float]] = {
    "buckets": (0, _MAX_SIZE),
    "weight_mean": (0, _MAX_LOG),
    "longest_gap": (0, LAST_SECOND),
}
_BOUNDS |= dict.fromkeys(
    ("width", "history_length", "memory_length", "dim", "n_probes"),
    (1, _MAX_SIZE),
)
_BOUNDS |= dict.fromkeys(
    ("scale", "weight_scale", "decay_days", "popularity_days"), (_TINY, math.inf)
)
_BOUNDS |= dict.fromkeys(
    ("popularity_dims", "neighbour_decay", "neighbour_context_gain"), (0, math.inf)
)


@dataclass(frozen=True)
class Schema:
    """The agreement of training and serving.

    Attributes:
        event_types: in code order; empty if the data has none.
        weight_mean: of log(1 + weight) over training rows.
        weight_scale: the standard deviation of log(1 + weight).
        timezone: IANA name of the zone of naive times; None is UTC.
        history_length: the most events that the attention blocks read.
        memory_length: the most events of a user that the memory reads.
        decay_days: time constants of the decayed counts of the memory, short to long.
        popularity_days: windows of recent popularity; empty: item vectors carry none.
        data_until: UTC seconds just after the last training event.
        pseudonyms: mark of the first key that names the users; None: they go by their ids.
        longest_gap: seconds between two visits of a user that nearly no gap of the training
            exceeds; by default no request is limited.
        lifts_owned: owned items gain the greatest item-item terms of another item; earlier bundles
            have no such gain.
    """

    user_features: tuple[Feature, ...]
    item_features: tuple[Feature, ...]
    context_features: tuple[Feature, ...]
    user_id_type: IdType
    item_id_type: IdType
    event_types: tuple[str, ...]
    has_datetime: bool
    has_weight: bool
    weight_mean: float
    weight_scale: float
    timezone: str | None
    ties: Ties
    repeats: Repeats
    history_length: int
    memory_length: int
    decay_days: tuple[float, ...]
    popularity_days: tuple[float, ...]
    data_until: int
    pseudonyms: str | None = None
    longest_gap: int = LAST_SECOND
    lifts_owned: bool = False

    @property
    def is_set(self) -> bool:
        """Whether a user's events have no order: the data has neither times nor positions."""
        return self.ties == "simultaneous" and not self.has_datetime

    def features(self, side: str) -> tuple[Feature, ...]:
        """Return the features of a side: `user`, `item` or `context`."""
        features: tuple[Feature, ...] = getattr(self, f"{side}_features")
        return features

    def parse_user_id(self, value: Any, where: str) -> Id:
        """Check the id of a user, and return their pseudonym: nothing behind this has the id.

        Raises:
            SchemaError: the value is no id.
            BundleError: the environment does not name the keys.
        """
        user_id = parse_id(value, self.user_id_type, where)
        if self.pseudonyms is None or PSEUDONYM.fullmatch(str(user_id)):
            return user_id
        keys = find_keys(self.pseudonyms)
        return keys.name(user_id) if keys else user_id

    def to_json(self) -> str:
        """Write canonical JSON: the same schema gives the same bytes."""
        fields = {"format": FORMAT, **asdict(self)}
        if self.pseudonyms is None:  # other bundles stay as they were
            del fields["pseudonyms"]
        return to_canonical_json(fields).decode()

    @classmethod
    def from_json(cls, text: str) -> Schema:
        """Read the text of `to_json`.

        Raises:
            SchemaError: the text is no JSON, of another format, or holds an impossible value.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SchemaError(f"schema.json is no JSON: {error}") from error

        if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
            raise SchemaError(
                f"schema.json is not of format {FORMAT}: export the bundle again"
            )

        try:
            for side in _SIDES:
                fields[side] = [_read_feature(entry) for entry in fields[side]]
            for name, value in fields.items():
                fields[name] = tuple(value) if isinstance(value, list) else value
            schema = cls(**fields)
        except (TypeError, KeyError) as error:
            raise SchemaError(
                f"schema.json is of another program: {error}; export the bundle again"
            ) from error

        check_record(schema)
        return schema


def _read_feature(fields: dict[str, Any]) -> Feature:
    feature = Feature(**{**fields, "vocabulary": tuple(fields["vocabulary"])})
    check_record(feature)
    is_wide = feature.has_several or feature.is_text or feature.is_vector
    n_buckets = feature.buckets.bit_count()  # 1 of a power of two
    period = feature.traits.period
    if (
        (feature.width > 1 and not is_wide)
        or n_buckets != int(feature.is_text)
        or period not in (0, len(feature.vocabulary))
    ):
        raise SchemaError(
            f"feature '{feature.name}' has sizes of another kind: export again"
        )

    return feature


# ---- records read from JSON


def check_record(record: Any) -> None:
    """Check the types and values of a dataclass that was read from JSON.

    Raises:
        SchemaError: a field has a value of another type, or an impossible one.
    """
    for name, annotation in get_type_hints(type(record)).items():
        value = getattr(record, name)
        if not _is_of(value, annotation) or not _is_possible(name, value):
            raise SchemaError(
                f"'{name}' is {reprlib.repr(value)}, which cannot be: export the bundle again"
            )


def _is_possible(name: str, value: Any) -> bool:
    """Tell whether names are there and distinct, and numbers within `_BOUNDS`."""
    entries = value if isinstance(value, tuple) else (value,)
    if name in _BOUNDS:
        low, high = _BOUNDS[name]
        return all(low <= number <= high for number in entries)

    if name not in _NAMES:
        return True
    names = [getattr(entry, "name", entry) for entry in entries]
    return all(names) and len(set(names)) == len(names)


def _is_of(value: Any, annotation: Any) -> bool:
    """Tell whether a value is of an annotated type; numbers are finite and of 64 bits."""
    origin = get_origin(annotation)
    parts = get_args(annotation)
    if annotation is Any:
        return True
    if origin is Literal:
        return value in parts
    if annotation == tuple[str, ...]:  # vocabularies are long
        return type(value) is tuple and {*map(type, value)} <= {str}
    if origin is tuple:
        return type(value) is tuple and all(_is_of(entry, parts[0]) for entry in value)
    if origin is Mapping:
        is_dict = type(value) is dict
        return is_dict and all(_is_of(entry, parts[1]) for entry in value.values())

    if annotation in (int, float):
        return type(value) in (int, annotation) and -(2**63) <= value < 2**63
    return type(value) in (parts or (annotation,))  # parts are those of a union
