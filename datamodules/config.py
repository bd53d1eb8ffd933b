"""The data section of a configuration: tables, features and split."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, get_args, get_origin, get_type_hints

from serve.arrays import Repeats, Ties
from serve.cells import Pseudonyms, read_keys
from serve.clock import find_zone
from serve.errors import SchemaError
from serve.kinds import KINDS, Kind, Traits

MAX_HISTORY = 10_000  # events of a history; a million took 20 GB of memory
Unlisted = Literal["exclude", "list"]
Role = Literal[
    "id", "time", "date", "order", "number", "text", "vector", "category", "value"
]
_LIMITS: dict[Role, tuple[type, ...]] = {"number": (int, float), "date": (str,)}
_A_DAY = datetime(2003, 11, 22, tzinfo=UTC)
# key of the split -> the one kind that it belongs to
_SPLIT_KEYS = {
    "at": "time",
    "strict": "leave_one_out",
    "share": "pairs",
    "validation": "files",
    "test": "files",
}
IN_MEMORY = (
    "repeats",
    "ties",
    "feedback",
    "targets",
    "events",
    "exclude_users",
)
"""Keys that only a run with all events in memory knows."""
_PATHS = (
    "interactions",
    "users",
    "items",
    "feedback",
    "pseudonyms",
    "validation",
    "test",
)


def _check_choices(config: Any, name: str) -> None:
    """Refuse a value that its `Literal` does not list: a typo would change the meaning."""
    for key, annotation in get_type_hints(type(config)).items():
        value = getattr(config, key)
        allowed = get_args(annotation)
        if get_origin(annotation) is Literal and value not in allowed:
            listed = ", ".join(map(repr, allowed))
            raise SchemaError(f"{name}.{key} is {value!r}; allowed: {listed}")


@dataclass(frozen=True)
class TableConfig:
    """One table in a file."""

    path: str | None = None
    """CSV, TSV, JSON Lines or Parquet, by suffix, or `events.csv.gz`; * and ? name several files,
    ** those of all folders below. With a `query`: a database that DuckDB attaches."""
    columns: dict[str, str] = field(default_factory=dict)
    """Our name -> name in the file, for `user_id`, `item_id`, `datetime`, `position`, `event`,
    `weight`."""
    names: list[str] | None = None
    """All columns, in order, of a text file without a header line, or with one that has a name
    twice. With them its suffix may be any."""
    delimiter: str | None = None
    """Between the cells of a text file: one character, or several such as `::`. Default: the
    first line shows it."""
    encoding: Literal["utf-8", "utf-16", "cp1252", "latin-1"] = "utf-8"
    """Of a text file."""
    missing: list[str] = field(default_factory=list)
    """Texts that stand for a missing value in any column, such as NA. Default: the empty cell
    alone does."""
    decimal: Literal[".", ","] = "."
    """Between whole and fraction of a number that is written as text. With a comma, 1.234,5 is
    1234.5."""
    time_formats: list[str] = field(default_factory=list)
    """How times and dates are written, in signs of strptime such as %d.%m.%Y %H:%M. Default, and
    beside them: ISO."""
    min_datetime: str | None = None
    """An event before this ISO date or time is rejected. Default: one that lies years from nearly
    all others is."""
    max_datetime: str | None = None
    """An event after it is rejected. Default: as for `min_datetime`."""
    keep: Literal["first", "last"] | None = None
    """Of several rows of one id of `users` or `items`. Default: rows that differ are refused."""
    query: str | None = None
    """SQL for DuckDB, whose last statement gives the table; tables of the database at `path` go
    by their names."""

    def __post_init__(self) -> None:
        _check_choices(self, "table")


def _check_time_format(form: str, key: str) -> None:
    """Refuse a format without a whole date, or whose meaning depends on the machine."""
    if not _is_whole_date(form):
        raise SchemaError(
            f"{key} has {form!r}; allowed: signs of strptime for a whole date, such as "
            "'%d.%m.%Y %H:%M:%S', with %z for an offset such as +02:00"
        )


def _is_whole_date(form: str) -> bool:
    if "%Z" in form or not re.search("%[YyGcx]", form):
        return False
    try:
        return datetime.strptime(_A_DAY.strftime(form), form).date() == _A_DAY.date()
    except ValueError:
        return False


@dataclass(frozen=True)
class FeatureConfig:
    """One feature, where its kind alone does not say enough."""

    kind: Kind
    column: str | None = None
    """Column of the table; default: the name of the feature."""
    separator: str | None = None
    """Between the values of a `multi_categorical` cell, by default |, or the levels of a
    `hierarchical` one, >."""
    min: float | str | None = None
    """A `numeric` value, or a `date`, below it is impossible, and a bad cell. Default: no limit."""
    max: float | str | None = None
    """A `numeric` value, or a `date`, above it is impossible, and a bad cell. Default: no limit."""

    def __post_init__(self) -> None:
        _check_choices(self, "feature")
        types = (*_LIMITS.get(self.traits.role, ()), type(None))
        if not isinstance(self.min, types) or not isinstance(self.max, types):
            raise SchemaError(
                f"min {self.min!r} or max {self.max!r} of kind {self.kind}; allowed: numbers with "
                "kind numeric, "
                'dates such as "2024-05-31" with kind date'
            )
        if self.separator is not None and not self.separator.strip():
            raise SchemaError(
                f"separator is {self.separator!r}; allowed: one character or more, and no blank "
                "alone"
            )

    @property
    def traits(self) -> Traits:
        """What all features of its kind have in common."""
        return KINDS[self.kind]

    def fill(self, name: str) -> FeatureConfig:
        """Return the feature of a name with its column and separator filled in."""
        column = self.column or ("datetime" if self.traits.period else name)
        separator = self.separator or self.traits.separator
        return replace(self, column=column, separator=separator)


def _read_feature(key: str, declared: Any) -> Any:
    """Check a feature, and name it in the error, as jsonargparse would not."""
    if isinstance(declared, FeatureConfig):
        return declared
    keys = declared if isinstance(declared, Mapping) else {"kind": declared}
    where = f"data.features.{key}"
    try:
        feature = FeatureConfig(**keys)
    except SchemaError as error:
        raise SchemaError(f"{where}: {error}") from error
    except TypeError as error:
        raise SchemaError(
            f"{where} is {declared!r}; allowed: keys are kind, which is needed, column, "
            "separator, min, max"
        ) from error
    return feature if isinstance(declared, Mapping) else declared


@dataclass(frozen=True)
class FeaturesConfig:
    """The features of the three sides: name -> kind, or name -> {kind, column, ...}."""

    user: dict[str, Any] = field(default_factory=dict)
    item: dict[str, Any] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)
    """Columns of the interactions that are known when a request comes. Never a fact of the chosen
    item."""

    def __post_init__(self) -> None:
        for side in ("user", "item", "context"):
            features = {}
            for name, declared in getattr(self, side).items():
                features[name] = _read_feature(f"{side}.{name}", declared)
            object.__setattr__(self, side, features)

    def of(self, side: str) -> dict[str, FeatureConfig]:
        """Return the features of `user`, `item` or `context` with their columns filled in."""
        features = {}
        for name, declared in getattr(self, side).items():
            is_whole = isinstance(declared, FeatureConfig)
            feature = declared if is_whole else FeatureConfig(declared)
            features[name] = feature.fill(name)
        return features

    def kinds_of(self, side: str) -> dict[str, Kind]:
        """Return column -> kind of the last feature that reads it."""
        features = self.of(side).values()
        return {str(feature.column): feature.kind for feature in features}


@dataclass(frozen=True)
class SplitConfig:
    """How test and validation events are set apart, before anything is fitted."""

    kind: Literal["leave_one_out", "time", "pairs", "files", "none"] = "leave_one_out"
    """leave_one_out: each user's last event or time group. time: all from `at` on. pairs: a
    random share of each user's items, with all events on them. files: given. none: all trains."""
    at: str | None = None
    """For `time`: first moment of the test, as an ISO date or time."""
    strict: bool = False
    """For `leave_one_out`: never train on a user's second-last event; else the last run does."""
    share: float | None = None
    """For `pairs`: share of each user's items that is the test. Default: 0.2."""
    validation: str | None = None
    """For `files`: a file laid out as the interactions, to stop training by. Default: as with
    `none`, the last event or time group of up to 2,048 users, in a set a fifth of their items,
    which the last training sees too."""
    test: str | None = None
    """For `files`: a file laid out as the interactions, to measure on."""

    def __post_init__(self) -> None:
        _check_choices(self, "data.split")
        kind = self.kind

        for name, only_kind in _SPLIT_KEYS.items():
            value = getattr(self, name)
            if value not in (None, False) and kind != only_kind:
                raise SchemaError(
                    f"data.split.{name} is {value!r}; allowed: with kind {only_kind}, not {kind}"
                )

        needed = {"time": "at", "files": "test"}.get(kind)
        if needed is not None and getattr(self, needed) is None:
            raise SchemaError(
                f"data.split.kind is '{kind}' but data.split.{needed} is not set"
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


@dataclass(frozen=True)
class DataConfig:
    """Tables, features and split."""

    interactions: TableConfig = field(default_factory=TableConfig)
    users: TableConfig | None = None
    items: TableConfig | None = None
    feedback: str | None = None
    """File of events that a service logged, as `bascule feedback` writes it; they are appended to
    the interactions. Default: none."""
    pseudonyms: str | None = None
    """File of keys, by which users go under pseudonyms in everything that a run writes; only its
    owner may read it. Default: users go by their ids."""
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    audit_only: list[str] = field(default_factory=list)
    """Columns of the users table that results are sliced by and that are never a feature."""
    events: dict[str, float] = field(default_factory=dict)
    """Type of event -> weight of its loss as a target. Default: 1 each."""
    exclude_users: list[str | int] = field(default_factory=list)
    """Ids of users, such as bots and test accounts, whose events are left out and counted."""
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    leaks: Literal["warn", "stop"] = "warn"
    """What to do where a column seems to give the target away, or the test stands in training."""
    ties: Ties = "ordered"
    """Events of a user at one time: in their order, or a set that came at once (baskets)."""
    repeats: Repeats = "exclude"
    """May an item that the user already has be recommended?"""
    unlisted: Unlisted = "exclude"
    """Are items without a row in the items table, if there is one, recommended, as `list` says?"""
    timezone: str | None = None
    """IANA name; where hours and weekdays are taken and naive times are read. Default: times as
    given."""
    history_length: int | None = None
    """The most events of a history that are encoded, up to 10,000. Default: the 99th percentile,
    at most 100 (20 with repeats, 500 of a set)."""
    max_reject_rate: float = 0.01
    """Stop if a larger share of a table's records is rejected."""
    on_disk: bool = False
    """Sort the interactions on disk, and work on them from there, in bounded memory?"""

    def __post_init__(self) -> None:
        _check_choices(self, "data")
        if (
            self.history_length is not None
            and not 2 <= self.history_length <= MAX_HISTORY
        ):
            raise SchemaError(
                f"data.history_length is {self.history_length}; allowed: 2 to {MAX_HISTORY:,}"
            )

        for name, weight in self.events.items():
            if not 0 < weight < float("inf"):
                raise SchemaError(
                    f"data.events: '{name}' is {weight}; allowed: a finite number above 0"
                )
        if not 0 <= self.max_reject_rate <= 1:
            rate = self.max_reject_rate
            raise SchemaError(f"data.max_reject_rate is {rate}; allowed: 0 to 1")
        for name in ("interactions", "users", "items"):
            layout: TableConfig = getattr(self, name) or TableConfig()
            for form in layout.time_formats:
                _check_time_format(form, f"data.{name}.time_formats")
        find_zone(self.timezone)
        if self.on_disk:
            self._check_on_disk()
        if self.interactions.keep is not None:
            raise SchemaError(
                "data.interactions.keep is set; allowed: in data.users and data.items, whose rows "
                "have one id each"
            )

    def _check_on_disk(self) -> None:
        """Refuse what needs all events in memory."""
        nothing = DataConfig()
        keys = [
            f"data.{name}"
            for name in IN_MEMORY
            if getattr(self, name) != getattr(nothing, name)
        ]
        if asdict(self.split)["kind"] in ("pairs", "files"):
            keys.append("data.split.kind: pairs or files")
        if self.features.context:
            keys.append("data.features.context")
        if self.interactions.query is not None:
            keys.append("data.interactions.query")
        if "position" in self.interactions.columns:
            keys.append("data.interactions.columns.position")

        if keys:
            raise SchemaError(
                f"data.on_disk is true, and {', '.join(keys)} needs all events in memory: leave "
                "it out, or set data.on_disk: false where the memory suffices"
            )

    @property
    def keys(self) -> Pseudonyms | None:
        """The keys of pseudonyms, if there are to be any."""
        return read_keys(self.pseudonyms) if self.pseudonyms else None

    def declared(self) -> dict[str, Any]:
        """Return what is declared about the data, without paths and without ids of users."""
        declared = asdict(self)
        del declared["exclude_users"]
        del declared["on_disk"]
        for keys in (declared, declared["split"]):
            for name in keys.keys() & _PATHS:
                del keys[name]
        return declared


@dataclass(frozen=True)
class Column:
    """One column that is read."""

    name: str  # ours
    source: str  # in the file
    role: Role
    reason: str  # which key of the configuration needs it; empty: the table may lack it
    may_be_empty: bool = True  # an empty cell is a missing value, no fault of its row
    low: float | None = None  # of times and dates in UTC seconds
    high: float | None = None
