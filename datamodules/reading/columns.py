"""Which columns of each table are read, as what, and which of them must be there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from datamodules.config import DataConfig, FeatureConfig, FeaturesConfig, TableConfig
from serve.errors import SchemaError, name_nearest
from serve.item_facts import REPEAT_RATE
from serve.schema import Kind

Role = Literal["id", "time", "order", "number", "text", "vector", "category", "value"]

EVENT_ROLES: dict[str, Role] = {
    "user_id": "id",
    "item_id": "id",
    "datetime": "time",
    "position": "order",
    "event": "text",
    "weight": "number",
}
"""The columns of interactions that have a meaning of their own, in their order."""
_DERIVED_KINDS = ("hour_of_day", "day_of_week")
_CELLS: dict[Role, str] = {"id": "ids", "time": "times", "order": "numbers", "number": "numbers", "text": "texts"}
"""What the columns with a meaning of their own hold."""


@dataclass(frozen=True)
class Column:
    """One column that is read."""

    name: str
    """Ours."""
    source: str
    """In the file."""
    role: Role
    reason: str
    """Which key of the configuration asks for it, in words."""
    is_declared: bool = True
    """The table is refused without it."""
    may_be_empty: bool = True
    """An empty cell is a missing value, not a fault of its row."""
    low: float | None = None
    high: float | None = None


def interaction_columns(config: DataConfig) -> tuple[Column, ...]:
    """Return user_id and item_id, what else of an event is there, then the context features."""
    features = list(config.features.of("context").values())
    mapped = _check_mapping("interactions", config.interactions, EVENT_ROLES)
    _refuse_user_ids("context", config.features, mapped)
    reasons = _explain_events(config)
    events = tuple(
        Column(
            name,
            mapped.get(name, name),
            role,
            reasons.get(name, ""),
            name in reasons,
            name == "event",
            *_limits(features, name),
        )
        for name, role in EVENT_ROLES.items()
    )
    return events + _feature_columns("context", config.features, EVENT_ROLES)


def user_columns(config: DataConfig) -> tuple[Column, ...]:
    """Return user_id, the user features, then the columns kept for audits alone."""
    columns = _side_columns("user", config.users or TableConfig(), config.features)
    for name in config.audit_only:
        if name in {column.name for column in columns}:
            raise SchemaError(f"data.audit_only: column '{name}' is a feature as well; take it out of one of them")
    return columns + tuple(Column(name, name, "value", "named in data.audit_only") for name in config.audit_only)


def item_columns(config: DataConfig) -> tuple[Column, ...]:
    """Return item_id, then the item features."""
    columns = _side_columns("item", config.items or TableConfig(), config.features)
    if config.repeats == "allow" and REPEAT_RATE in {column.name for column in columns}:
        raise SchemaError(
            f"data.features.item: column '{REPEAT_RATE}' is reserved where repeats are allowed: rename yours"
        )
    return columns


def _side_columns(side: str, table: TableConfig, features: FeaturesConfig) -> tuple[Column, ...]:
    id_name = f"{side}_id"
    mapped = _check_mapping(f"{side}s", table, {id_name})
    if side == "user":
        _refuse_user_ids(side, features, mapped)
    reason = _explain_name(f"{side}s", id_name, mapped)
    id_column = Column(id_name, mapped.get(id_name, id_name), "id", reason, may_be_empty=False)
    return (id_column, *_feature_columns(side, features, {id_name: "id"}))


def _refuse_user_ids(side: str, features: FeaturesConfig, mapped: Mapping[str, str]) -> None:
    """Refuse a feature that reads the ids of users, by our name or by that of the file."""
    for name in ("user_id", mapped.get("user_id", "user_id")):
        if name in _list_readers(side, features):
            raise SchemaError(
                f"data.features.{side}: column '{name}' holds ids, which are no feature: what is learned of one user "
                "by it says nothing of another, and the bundle would list all users; take it out"
            )


def _check_mapping(table: str, config: TableConfig, allowed: dict[str, Role] | set[str]) -> dict[str, str]:
    for name in config.columns:
        if name not in allowed:
            nearest = name_nearest(name, allowed)
            raise SchemaError(f"data.{table}.columns: '{name}' is no column of ours; {nearest}")
    return config.columns


def _explain_events(config: DataConfig) -> dict[str, str]:
    """Say of each column of an event that must be there what asks for it."""
    mapped = config.interactions.columns
    reasons = {}
    if config.split.kind == "time":
        reasons["datetime"] = f"needed by data.split.kind 'time'; {_say_where('datetime')}"
    for name, key in _list_readers("context", config.features).items():
        if name in EVENT_ROLES:
            reasons[name] = f"read by {key}; {_say_where(name)}"
    for name in ("user_id", "item_id", *mapped):
        reasons[name] = _explain_name("interactions", name, mapped)
    return reasons


def _say_where(name: str) -> str:
    return f"what it is called is said in data.interactions.columns.{name}"


def _explain_name(table: str, name: str, mapped: dict[str, str]) -> str:
    key = f"data.{table}.columns.{name}"
    return f"named in {key}" if name in mapped else f"the default of {key}"


def _list_readers(side: str, features: FeaturesConfig) -> dict[str, str]:
    """Return column -> key of the first feature that reads it."""
    readers: dict[str, str] = {}
    declared = getattr(features, side)
    for name, feature in features.of(side).items():
        has_column = isinstance(declared[name], FeatureConfig) and declared[name].column is not None
        readers.setdefault(str(feature.column), f"data.features.{side}.{name}" + ".column" * has_column)
    return readers


def _feature_columns(side: str, declared: FeaturesConfig, taken: Mapping[str, Role]) -> tuple[Column, ...]:
    """Return one column for each that the features read, apart from those taken already."""
    features = list(declared.of(side).values())
    readers = _list_readers(side, declared)
    names = dict.fromkeys(str(feature.column) for feature in features)
    for name in names:
        _check_readers(side, name, features)
        if name in taken:
            _check_taken(name, taken[name], readers[name], {one.kind for one in features if one.column == name})
    for feature in features:
        if feature.kind in _DERIVED_KINDS and (side, feature.column) != ("context", "datetime"):
            raise SchemaError(
                f"data.features.{side}: kind {feature.kind} of column '{feature.column}'; allowed: a feature "
                "of the context that reads 'datetime'"
            )
    return tuple(
        Column(name, name, _role(features, name), f"read by {readers[name]}", True, True, *_limits(features, name))
        for name in names
        if name not in taken
    )


def _check_readers(side: str, name: str, features: list[FeatureConfig]) -> None:
    """Refuse a column that is read as a vector and as something else."""
    kinds = {feature.kind for feature in features if feature.column == name}
    if "vector" in kinds and len(kinds) > 1:
        others = ", ".join(sorted(kinds - {"vector"}))
        raise SchemaError(
            f"data.features.{side}: column '{name}' is read as vector and as {others}; allowed: as vector alone"
        )


def _check_taken(name: str, role: Role, reader: str, kinds: set[Kind]) -> None:
    """Refuse a kind whose cells those of a column with a meaning of its own cannot be."""
    others: set[Kind] = {"vector", "numeric"} if role in ("id", "text") else {"vector"}
    for kind in sorted(kinds & others):
        raise SchemaError(
            f"column '{name}', read by {reader} as {kind}, holds {_CELLS[role]}; allowed: categorical, or another "
            "column"
        )


def _role(features: list[FeatureConfig], name: str) -> Role:
    kinds = {feature.kind for feature in features if feature.column == name}
    if "vector" in kinds:
        return "vector"
    if "numeric" in kinds:
        return "number"
    return "category" if "categorical" in kinds else "value"


def _limits(features: list[FeatureConfig], name: str) -> tuple[float | None, float | None]:
    """Return the limits declared for a column, the narrowest if several features read it."""
    readers = [feature for feature in features if feature.column == name]
    lows = [feature.min for feature in readers if feature.min is not None]
    highs = [feature.max for feature in readers if feature.max is not None]
    return max(lows, default=None), min(highs, default=None)
