"""The data section of a configuration: tables, features and split, and the columns that are read for them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, get_args, get_origin, get_type_hints

from serve.clock import find_zone, to_seconds
from serve.errors import SchemaError, name_nearest
from serve.schema import DERIVED, Kind, Repeats, Ties

MAX_HISTORY = 10_000  # events of a history; a million took 20 GB of memory, however short the histories of the data
REPEAT_RATE = "repeat_rate"  # column that the items of a bundle have of their own where repeats are allowed
MAX_DELIMITER = 4  # bytes of the text between two cells
_SEPARATORS = {"multi_categorical": "|", "hierarchical": ">"}  # by default
GROUPS = "[. \xa0\u202f]"  # between thousands where the decimal sign is a comma
COMMA_NUMBER = rf"[+-]?(?:\d+|\d{{1,3}}(?:{GROUPS}\d{{3}})+)(?:,\d*)?(?:[eE][+-]?\d+)?"
_A_DAY = datetime(2003, 11, 22, tzinfo=UTC)
# key of the split -> the one kind that it belongs to
_SPLIT_KEYS = {
    "at": "time",
    "strict": "leave_one_out",
    "share": "pairs",
    "validation": "files",
    "test": "files",
}
_PATHS = ("interactions", "users", "items", "feedback", "validation", "test")


def _check_choices(config: Any, name: str) -> None:
    """Refuse a value that the `Literal` of its field does not list: a typo in Python would change the meaning."""
    for key, annotation in get_type_hints(type(config)).items():
        value = getattr(config, key)
        if get_origin(annotation) is Literal and value not in get_args(annotation):
            raise SchemaError(
                f"{name}.{key} is {value!r}; allowed: {', '.join(map(repr, get_args(annotation)))}"
            )


@dataclass(frozen=True)
class TableConfig:
    """One table in a file."""

    path: str | None = None
    """CSV, TSV, JSON Lines or Parquet, by suffix, also compressed, as `events.csv.gz`; * and ? name several files, **
    those of all folders below. Relative to the working directory. With a `query`: a database that DuckDB attaches."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our name -> name in the file, for `user_id`, `item_id`, `datetime`, `position`, `event`, `weight`."""
    names: list[str] | None = None
    """All columns, in order, of a text file without a header line. With them its suffix may be any."""
    delimiter: str | None = None
    """Between the cells of a text file: one character, or several such as `::`. Default: that of the first line."""
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    """Of a text file."""
    missing: list[str] = field(default_factory=list)
    """Texts that stand for a missing value in any column, such as NA. Default: the empty cell alone does."""
    decimal: Literal[".", ","] = "."
    """Between whole and fraction of a number that is written as text. With a comma, 1.234,5 is 1234.5."""
    time_formats: list[str] = field(default_factory=list)
    """How times and dates are written, in signs of strptime such as %d.%m.%Y %H:%M. Default, and beside them: ISO."""
    min_datetime: str | None = None
    """An event before this ISO date or time is rejected. Default: one that lies years from nearly all others is."""
    max_datetime: str | None = None
    """An event after it is rejected. Default: as for `min_datetime`."""
    query: str | None = None
    """SQL for DuckDB, whose last statement gives the table; tables of the database at `path` go by their names."""

    def __post_init__(self) -> None:
        _check_choices(self, "table")
        for one in self.time_formats:
            _check_time_format(one)
        text = self.delimiter
        if text is not None and (
            not 0 < len(text.encode()) <= MAX_DELIMITER or set(text) & set('"\r\n')
        ):
            raise SchemaError(
                f"delimiter is {text!r}; allowed: 1 to {MAX_DELIMITER} bytes, no quote and no line end"
            )


def _check_time_format(form: str) -> None:
    """Refuse a format that leaves a part of the date open, or whose meaning depends on the machine."""
    try:
        is_whole = (
            "%Z" not in form
            and datetime.strptime(_A_DAY.strftime(form), form).date() == _A_DAY.date()
        )
    except ValueError:
        is_whole = False
    if not is_whole:
        example = "'%d.%m.%Y %H:%M:%S', with %z for an offset such as +02:00"
        raise SchemaError(
            f"time_formats has {form!r}; allowed: signs of strptime for a whole date, such as {example}"
        )


@dataclass(frozen=True)
class FeatureConfig:
    """One feature, where its kind alone does not say enough."""

    kind: Kind
    column: str | None = None
    """Column of the table; default: the name of the feature."""
    separator: str | None = None
    """Between the values of a `multi_categorical` cell, by default |, or the levels of a `hierarchical` one, >."""
    min: float | str | None = None
    """A `numeric` value, or a `date`, below it is impossible, and a bad cell. Default: no limit."""
    max: float | str | None = None
    """A `numeric` value, or a `date`, above it is impossible, and a bad cell. Default: no limit."""

    def __post_init__(self) -> None:
        _check_choices(self, "feature")
        types: dict[str, tuple[type, ...]] = {"numeric": (int, float), "date": (str,)}
        if not all(
            isinstance(limit, (*types.get(self.kind, ()), type(None)))
            for limit in (self.min, self.max)
        ):
            allowed = (
                'numbers with kind numeric, dates such as "2024-05-31" with kind date'
            )
            raise SchemaError(
                f"min {self.min!r} or max {self.max!r} of kind {self.kind}; allowed: {allowed}"
            )
        if self.separator is not None and not self.separator.strip():
            raise SchemaError(
                f"separator is {self.separator!r}; allowed: one character or more, and no blank alone"
            )


def _read_feature(key: str, given: Any) -> Any:
    """Return a kind as it is and keys as a `FeatureConfig`; jsonargparse would not name the feature at fault."""
    keys = given if isinstance(given, Mapping) else {"kind": given}
    try:
        feature = given if isinstance(given, FeatureConfig) else FeatureConfig(**keys)
    except (SchemaError, TypeError) as error:
        raise SchemaError(
            f"data.features.{key}: {error}; keys are kind, column, separator, min, max"
        ) from error
    return feature if isinstance(given, Mapping) else given


@dataclass(frozen=True)
class FeaturesConfig:
    """The features of the three sides: name -> kind, or name -> {kind, column, separator, min, max}."""

    user: dict[str, Any] = field(default_factory=dict)
    item: dict[str, Any] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)
    """Columns of the interactions that are known when a request comes. Never a fact of the chosen item."""

    def __post_init__(self) -> None:
        for side in ("user", "item", "context"):
            given = getattr(self, side).items()
            object.__setattr__(
                self,
                side,
                {name: _read_feature(f"{side}.{name}", one) for name, one in given},
            )

    def of(self, side: str) -> dict[str, FeatureConfig]:
        """Return the features of `user`, `item` or `context`, each with its column filled in."""
        features = {}
        for name, value in getattr(self, side).items():
            feature = (
                value if isinstance(value, FeatureConfig) else FeatureConfig(kind=value)
            )
            default = "datetime" if feature.kind in DERIVED else name
            separator = feature.separator or _SEPARATORS.get(feature.kind)
            features[name] = replace(
                feature, column=feature.column or default, separator=separator
            )
        return features


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
        _check_choices(self, "data.split")
        for name, kind in _SPLIT_KEYS.items():
            value = getattr(self, name)
            if value not in (None, False) and self.kind != kind:
                raise SchemaError(
                    f"data.split.{name} is {value!r}; allowed: with kind {kind}, not {self.kind}"
                )
        for kind, name in (("time", "at"), ("files", "test")):
            if self.kind == kind and getattr(self, name) is None:
                raise SchemaError(
                    f"data.split.kind is '{kind}' but data.split.{name} is not set"
                )
        if self.share is not None and not 0 < self.share < 1:
            raise SchemaError(
                f"data.split.share is {self.share}; allowed: more than 0 and less than 1"
            )


@dataclass(frozen=True)
class TargetsConfig:
    """Which events are predicted; the others stay evidence in histories."""

    events: list[str] | None = None
    """Types of events. Default: all."""
    min_weight: float | None = None
    """The least weight, such as a rating. Default: any."""

    def __post_init__(self) -> None:
        if self.events == []:
            raise SchemaError(
                "data.targets.events is []; allowed: one kind of event or more, or null for every kind"
            )


@dataclass(frozen=True)
class DataConfig:
    """Tables, features and split."""

    interactions: TableConfig = field(default_factory=TableConfig)
    users: TableConfig | None = None
    items: TableConfig | None = None
    feedback: str | None = None
    """File of events that a service logged, as `python -m evaluation.feedback` writes it; they are appended to the
    interactions. Default: none."""
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

    def __post_init__(self) -> None:
        _check_choices(self, "data")
        if not 0 <= self.max_reject_rate <= 1:
            raise SchemaError(
                f"data.max_reject_rate is {self.max_reject_rate}; allowed: 0 to 1"
            )
        if (
            self.history_length is not None
            and not 2 <= self.history_length <= MAX_HISTORY
        ):
            raise SchemaError(
                f"data.history_length is {self.history_length}; allowed: 2 to {MAX_HISTORY:,}"
            )
        if len(set(self.audit_only)) < len(self.audit_only):
            raise SchemaError(
                f"data.audit_only is {self.audit_only}; keep each column once"
            )
        for name, weight in self.events.items():
            if not 0 < weight < float("inf"):
                raise SchemaError(
                    f"data.events: '{name}' is {weight}; allowed: a finite number above 0"
                )
        find_zone(self.timezone)

    def declared(self) -> dict[str, Any]:
        """Return what is declared about the data, without anything of this machine: no path."""
        declared = {
            name: value for name, value in asdict(self).items() if name not in _PATHS
        }
        declared["split"] = {
            name: value
            for name, value in declared["split"].items()
            if name not in _PATHS
        }
        return declared


def say_missing(path: str, setting: str) -> str:
    """Say that a path leads nowhere, and which file beside it may be meant."""
    folder, name = os.path.split(path)
    near = difflib.get_close_matches(
        name, os.listdir(folder or ".") if os.path.isdir(folder or ".") else [], n=1
    )
    meant = f"; did you mean '{os.path.join(folder, near[0])}'?" if near else ""
    return f"{path} matches no file; {setting} is relative to {os.getcwd()}{meant}"


Role = Literal[
    "id", "time", "date", "order", "number", "text", "vector", "category", "value"
]
EVENT_ROLES: dict[str, Role] = {
    "user_id": "id",
    "item_id": "id",
    "datetime": "time",
    "position": "order",
    "event": "text",
    "weight": "number",
}  # the columns of interactions that have a meaning of their own, in their order


@dataclass(frozen=True)
class Column:
    """One column that is read."""

    name: str  # ours
    source: str  # in the file
    role: Role
    reason: str  # which key of the configuration asks for it, in words; empty: the table may lack it
    may_be_empty: bool = (
        True  # an empty cell is a missing value, not a fault of its row
    )
    low: float | None = None  # of times and dates in UTC seconds
    high: float | None = None


def columns_of_table(table: str, config: DataConfig) -> tuple[Column, ...]:
    """Return the columns of `users`, `items`, or of interactions, which the files of a split hold too."""
    side = {"users": "user", "items": "item"}.get(table, "context")
    layout = {
        "user": config.users,
        "item": config.items,
        "context": config.interactions,
    }[side] or TableConfig()
    roles: Mapping[str, Role] = (
        EVENT_ROLES if side == "context" else {f"{side}_id": "id"}
    )
    for name in layout.columns:
        if name not in roles:
            raise SchemaError(
                f"data.{table}.columns: '{name}' is no column of ours; {name_nearest(name, roles)}"
            )
    readers = _list_readers(side, config, roles, layout.columns)
    needed = {
        "user_id",
        "item_id",
        *layout.columns,
        *readers,
        *(["datetime"] * (config.split.kind == "time")),
    }
    columns = []
    for name in dict.fromkeys((*roles, *readers)):
        features = readers.get(name, [])
        is_ours = name in roles
        reason = (
            f"which is read as data.{table}.columns.{name}"
            if is_ours
            else f"read by data.features.{side}"
        )
        role, source = (
            (roles[name], layout.columns.get(name, name))
            if is_ours
            else (_role(features), name)
        )
        may_be_empty = name == "event" or not is_ours
        of_features = [(one.min, one.max) for one in features]
        limits = (
            [(layout.min_datetime, layout.max_datetime)]
            if role == "time"
            else of_features
        )
        low = max(
            (_read_limit(one, config.timezone) for one, _ in limits if one is not None),
            default=None,
        )
        high = min(
            (_read_limit(one, config.timezone) for _, one in limits if one is not None),
            default=None,
        )
        columns.append(
            Column(
                name, source, role, reason * (name in needed), may_be_empty, low, high
            )
        )
    audited = config.audit_only if side == "user" else []
    if {column.name for column in columns} & {
        *audited,
        *([REPEAT_RATE] if config.repeats == "allow" else []),
    }:
        raise SchemaError(
            f"data.features.{side} has '{REPEAT_RATE}', which is reserved, or one of data.audit_only"
        )
    return (
        *columns,
        *(Column(name, name, "value", "named in data.audit_only") for name in audited),
    )


def _list_readers(
    side: str, config: DataConfig, roles: Mapping[str, Role], mapped: Mapping[str, str]
) -> dict[str, list[FeatureConfig]]:
    """Return column -> the features that read it."""
    readers: dict[str, list[FeatureConfig]] = {}
    for name, feature in config.features.of(side).items():
        key = f"data.features.{side}.{name}"
        column = str(feature.column)
        kind = feature.kind
        readers.setdefault(column, []).append(feature)
        if side != "item" and column in ("user_id", mapped.get("user_id")):
            raise SchemaError(
                f"{key} reads '{column}', and ids of users are no feature: nothing is learned for others"
            )
        if kind == "date" and side == "context":
            raise SchemaError(
                f"{key} is a date; allowed: of users and items, whose age it gives"
            )
        if kind in DERIVED and (side, column) != ("context", "datetime"):
            raise SchemaError(
                f"{key} is {kind} of '{column}'; allowed: a feature of the context of 'datetime'"
            )
        if column in roles and (
            kind in ("vector", "date")
            or (kind == "numeric" and roles[column] in ("id", "text"))
        ):
            raise SchemaError(
                f"{key} reads '{column}' as {kind}; allowed: categorical, or another column"
            )
        kinds = {one.kind for one in readers[column]}
        if len(kinds) > 1 and kinds & {"vector", "date"}:
            raise SchemaError(
                f"{key}: column '{column}' is read as {' and '.join(kinds)}; allowed: as one kind alone"
            )
    return readers


def _read_limit(limit: float | str, timezone: str | None) -> float:
    """Return a limit as a number, that of a time in UTC seconds."""
    if not isinstance(limit, str):
        return limit
    (seconds,), (is_valid,) = to_seconds([limit], timezone)
    if not is_valid:
        raise SchemaError(
            f"the limit '{limit}' is no ISO date or time; allowed: one such as 2024-05-31"
        )
    return float(seconds)


def _role(features: Sequence[FeatureConfig]) -> Role:
    roles: dict[str, Role] = {
        "vector": "vector",
        "date": "date",
        "numeric": "number",
        "categorical": "category",
    }
    kinds = {feature.kind for feature in features}
    return next((role for kind, role in roles.items() if kind in kinds), "value")
