"""What a user declares about the data: tables, features, split. Parsed by jsonargparse, checked once here."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from serve.declared_types import take_declared_types
from serve.errors import SchemaError, passes
from serve.schema import Kind, Repeats, Ties
from serve.zones import find_zone

_ENCODINGS = ("utf-8", "latin-1")
_SPLIT_KEYS = {"at": "time", "strict": "leave_one_out", "share": "pairs", "validation": "files", "test": "files"}
"""Key of the split -> the one kind that it belongs to."""
_SPLIT_FILES = ("validation", "test")
_TABLES = ("interactions", "users", "items")
_SIDES = ("user", "item", "context")
_LONGEST_DELIMITER = 4  # bytes, that DuckDB reads
MOST_ENCODED = 10_000
"""Events of a history. Memory grows with them, however short the histories of the data are: a million took 20 GB."""
STAND_IN = "\x1f"
"""For a delimiter of several characters where only one is understood."""


@dataclass(frozen=True)
class TableConfig:
    """One table in a file."""

    path: str | None = None
    """CSV, TSV, JSON Lines or Parquet, by suffix, all but Parquet also compressed, as `events.csv.gz`; * and ? name
    several files, ** those of all folders below. Relative to the working directory."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our name -> name in the file, for `user_id`, `item_id`, `datetime`, `position`, `event`, `weight`."""
    names: list[str] | None = None
    """All columns, in order, of a text file without a header line. With them its suffix may be any."""
    delimiter: str | None = None
    """Between the cells of a text file: one character, or several such as `::`. Default: told from the first line."""
    encoding: str = "utf-8"
    """Of a text file: utf-8 or latin-1."""
    missing: list[str] = field(default_factory=list)
    """Texts that stand for a missing value in any column, such as NA. Default: the empty cell alone does."""

    def __post_init__(self) -> None:
        take_declared_types(self, "table")

    @property
    def declares_text(self) -> bool:
        """Whether something is declared that only a text file has."""
        return (self.names, self.delimiter, self.encoding) != (None, None, _ENCODINGS[0])


@dataclass(frozen=True)
class FeatureConfig:
    """One feature, where its kind alone does not say enough."""

    kind: Kind
    column: str | None = None
    """Column of the table; default: the name of the feature."""
    separator: str = "|"
    """Between the values of a `multi_categorical` cell."""
    min: float | None = None
    """A `numeric` value below it is impossible: its row is rejected. Default: no limit."""
    max: float | None = None
    """A `numeric` value above it is impossible: its row is rejected. Default: no limit."""

    def __post_init__(self) -> None:
        take_declared_types(self, "feature")


@dataclass(frozen=True)
class FeaturesConfig:
    """The features of the three sides: name -> kind, or name -> {kind, column, ...}."""

    user: dict[str, Kind | FeatureConfig] = field(default_factory=dict)
    item: dict[str, Kind | FeatureConfig] = field(default_factory=dict)
    context: dict[str, Kind | FeatureConfig] = field(default_factory=dict)
    """Columns of the interactions that are known when a request comes. Never a fact of the chosen item."""

    def __post_init__(self) -> None:
        take_declared_types(self, "data.features")

    def of(self, side: str) -> dict[str, FeatureConfig]:
        """Return the features of `user`, `item` or `context`, each with its column filled in."""
        declared: dict[str, Kind | FeatureConfig] = getattr(self, side)
        return {name: _complete(name, value) for name, value in declared.items()}


@dataclass(frozen=True)
class SplitConfig:
    """How test and validation events are set apart, before anything is fitted."""

    kind: Literal["leave_one_out", "time", "pairs", "files", "none"] = "leave_one_out"
    """leave_one_out: each user's last event or time group. time: all from `at` on. pairs: a random share of each
    user's items, with all events on them. files: given. none: all trains."""
    at: str | None = None
    """For `time`: first moment of the test, as an ISO date or time."""
    strict: bool = False
    """For `leave_one_out`: never train on any user's second-last event. Else the last training sees it."""
    share: float | None = None
    """For `pairs`: share of each user's items that is the test. Default: 0.2."""
    validation: str | None = None
    """For `files`: a file laid out as the interactions, to stop training by. Default: as with `none`, the last event
    or time group of up to 2,048 users, in a set a fifth of their items, which the last training sees too."""
    test: str | None = None
    """For `files`: a file laid out as the interactions, to measure on."""

    def __post_init__(self) -> None:
        take_declared_types(self, "data.split")
        for name, kind in _SPLIT_KEYS.items():
            value = getattr(self, name)
            if value is not None and value is not False and self.kind != kind:
                raise SchemaError(
                    f"data.split.{name} is {value!r} and data.split.kind is '{self.kind}'; allowed: {name} with kind "
                    f"{kind} alone: take it out or change the kind"
                )
        if self.kind == "time" and self.at is None:
            raise SchemaError("data.split.kind is 'time' but data.split.at is not set: give the first test moment")
        if self.kind == "files" and self.test is None:
            raise SchemaError("data.split.kind is 'files' but data.split.test is not set: give the file to measure on")
        if self.share is not None and not passes(self.share, lambda share: 0 < share < 1):
            raise SchemaError(f"data.split.share is {self.share}; allowed: more than 0 and less than 1")


@dataclass(frozen=True)
class TargetsConfig:
    """Which events are predicted; the others stay evidence in histories."""

    events: list[str] | None = None
    """Types of events. Default: all."""
    min_weight: float | None = None
    """The least weight, such as a rating. Default: any."""

    def __post_init__(self) -> None:
        take_declared_types(self, "data.targets")
        if self.events == []:
            raise SchemaError("data.targets.events is []; allowed: one kind of event or more, or null for every kind")
        if not _is_limit(self.min_weight):
            raise SchemaError(f"data.targets.min_weight is {self.min_weight}; allowed: a number")


@dataclass(frozen=True)
class DataConfig:
    """Tables, features and split."""

    interactions: TableConfig = field(default_factory=TableConfig)
    users: TableConfig | None = None
    items: TableConfig | None = None
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    audit_only: list[str] = field(default_factory=list)
    """Columns of the users table that results are sliced by and that are never a feature."""
    events: dict[str, float] = field(default_factory=dict)
    """Type of event -> weight of its loss as a target. Default: 1 each."""
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    leaks: Literal["warn", "stop"] = "warn"
    """What to do where a column seems to give the target away, or the test stands in training."""
    ties: Ties = "ordered"
    """Events of a user at one time: in their order, or a set that came at once (baskets)."""
    repeats: Repeats = "exclude"
    """May an item that the user already has be recommended?"""
    timezone: str | None = None
    """IANA name; where hours and weekdays are taken and naive times are read. Default: times as given."""
    history_length: int | None = None
    """The most events of a history that are encoded, up to 10,000. Default: the 99th percentile, at most 100 (20 with
    repeats, 500 of a set)."""
    max_reject_rate: float = 0.01
    """Stop if a larger share of a table's records is rejected."""

    def declared(self) -> dict[str, Any]:
        """Return what is declared about the data, without anything of this machine: no path."""
        declared = {name: value for name, value in asdict(self).items() if name not in _TABLES}
        declared["split"] = {name: value for name, value in declared["split"].items() if name not in _SPLIT_FILES}
        return declared

    def __post_init__(self) -> None:
        take_declared_types(self, "data")
        if not passes(self.max_reject_rate, lambda rate: 0 <= rate <= 1):
            raise SchemaError(f"data.max_reject_rate is {self.max_reject_rate}; allowed: 0 to 1")
        longest = self.history_length
        if longest is not None and not passes(longest, lambda length: 2 <= length <= MOST_ENCODED):
            raise SchemaError(f"data.history_length is {longest}; allowed: 2 to {MOST_ENCODED:,}, or leave it out")
        for name in _TABLES:
            _check_text_layout(f"data.{name}", getattr(self, name) or TableConfig())
        _check_timezone(self.timezone)
        for name in self.audit_only:
            if self.audit_only.count(name) > 1:
                raise SchemaError(f"data.audit_only names '{name}' more than once; keep one of them")
        for side in _SIDES:
            _check_keys(f"data.features.{side}", getattr(self.features, side))
        _check_keys("data.events", self.events)
        for name, weight in self.events.items():
            if not passes(weight, lambda one: 0 < one < math.inf):
                raise SchemaError(f"data.events: '{name}' is {weight}; allowed: a finite number above 0")


def _check_keys(name: str, keys: Iterable[Any]) -> None:
    """Refuse keys that YAML reads as something else than the text that a file has there."""
    for key in keys:
        if not isinstance(key, str):
            raise SchemaError(
                f"{name}: the key {key!r} is {type(key).__name__}; allowed: a text; put it in quotes, as also yes, no, "
                "on, off and null"
            )


def _check_text_layout(name: str, table: TableConfig) -> None:
    if table.encoding not in _ENCODINGS:
        raise SchemaError(
            f"{name}.encoding is '{table.encoding}'; allowed: {', '.join(_ENCODINGS)}; save the file as UTF-8"
        )
    if table.delimiter is not None and not _is_delimiter(table.delimiter):
        raise SchemaError(
            f"{name}.delimiter is {table.delimiter!r}; allowed: one character, or several of {_LONGEST_DELIMITER} "
            "bytes together, no quote and no line end; leave it out to have it told from the first line"
        )


def _is_delimiter(text: str) -> bool:
    forbidden = '"\r\n' if len(text) == 1 else f'"\r\n{STAND_IN}'
    return 0 < len(text.encode(errors="surrogatepass")) <= _LONGEST_DELIMITER and not set(text) & set(forbidden)


def _check_timezone(timezone: str | None) -> None:
    try:
        find_zone(timezone)
    except SchemaError as error:
        raise SchemaError(f"data.timezone: {error}") from error


def _is_limit(value: float | None) -> bool:
    """Say whether values can be compared with it, as they cannot with NaN."""
    return value is None or passes(value, lambda limit: limit == limit)


def _complete(name: str, value: Kind | FeatureConfig) -> FeatureConfig:
    feature = value if isinstance(value, FeatureConfig) else FeatureConfig(kind=value)
    if feature.kind != "numeric" and (feature.min, feature.max) != (None, None):
        raise SchemaError(f"feature '{name}' is {feature.kind} and has min or max; allowed: with kind numeric alone")
    if not feature.separator:
        raise SchemaError(f"feature '{name}' has an empty separator; allowed: one character or more")
    for limit in ("min", "max"):
        if not _is_limit(getattr(feature, limit)):
            raise SchemaError(f"feature '{name}' has {limit} {getattr(feature, limit)}; allowed: a number")
    if feature.column is not None:
        return feature
    column = "datetime" if feature.kind in ("hour_of_day", "day_of_week") else name
    return FeatureConfig(feature.kind, column, feature.separator, feature.min, feature.max)
