"""The columns that are read of each table, and how: role, limits, and what needs them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from datamodules.config import Column, DataConfig, FeatureConfig, Role, TableConfig
from serve.clock import parse_times
from serve.errors import SchemaError, name_nearest
from serve.kinds import IS_UNLISTED

REPEAT_RATE = "repeat_rate"  # column of the items of a bundle where repeats are allowed
EVENT_ROLES: dict[str, Role] = {
    "user_id": "id",
    "item_id": "id",
    "datetime": "time",
    "position": "order",
    "event": "text",
    "weight": "number",
}  # the columns of interactions that have a meaning of their own, in their order
_PRECEDENCE: tuple[Role, ...] = ("vector", "date", "number", "category", "value")
_UNFIT: dict[Role, tuple[Role, ...]] = {
    "id": ("vector", "date", "number"),
    "text": ("vector", "date", "number"),
    "time": ("vector", "date"),
    "order": ("vector", "date"),
    "number": ("vector", "date"),
}  # role of a column of ours -> how no feature reads it


def columns_of_table(table: str, config: DataConfig) -> tuple[Column, ...]:
    """Return the columns that are read of a table.

    Args:
        table: "users", "items" or "interactions"; the files of a split have the columns of the
            interactions.
        config: names, features, limits and columns to audit.

    Raises:
        SchemaError: a column cannot be read as it is declared.
    """
    side = {"users": "user", "items": "item"}.get(table, "context")
    layout: TableConfig = getattr(config, table) or TableConfig()
    roles = EVENT_ROLES
    if side != "context":
        roles = {f"{side}_id": "id"}

    for name in layout.columns:
        if name not in roles:
            raise SchemaError(
                f"data.{table}.columns: '{name}' is no column of ours; {name_nearest(name, roles)}"
            )

    readers = _list_readers(side, config, roles, layout.columns.get("user_id"))
    required = {"user_id", "item_id", *layout.columns, *readers}
    if config.split.kind == "time":
        required.add("datetime")
    columns = []
    for name in dict.fromkeys((*roles, *readers)):
        features = readers.get(name, [])
        lows = [feature.min for feature in features]
        highs = [feature.max for feature in features]
        if name in roles:
            role = roles[name]
            source = layout.columns.get(name, name)
            reason = f"which is read as data.{table}.columns.{name}"
        else:
            readings = {feature.traits.role for feature in features}
            role = min(readings, key=_PRECEDENCE.index)
            source = name
            reason = f"read by data.features.{side}"
        if role == "time":
            lows = [layout.min_datetime]
            highs = [layout.max_datetime]
        if name not in required:
            reason = ""
        may_be_empty = name == "event" or name not in roles
        low = max(_read_limits(lows, config.timezone), default=None)
        high = min(_read_limits(highs, config.timezone), default=None)
        columns.append(Column(name, source, role, reason, may_be_empty, low, high))

    audited = config.audit_only if side == "user" else []
    rates = [REPEAT_RATE] if config.repeats == "allow" else []
    reserved = [*audited, IS_UNLISTED, *rates]
    if any(column.name in reserved for column in columns):
        raise SchemaError(
            f"data.features.{side} has one of {', '.join(reserved)}: they are reserved, or in "
            "data.audit_only"
        )
    reason = "named in data.audit_only"
    columns += [Column(name, name, "value", reason) for name in dict.fromkeys(audited)]
    return tuple(columns)


def _list_readers(
    side: str, config: DataConfig, roles: Mapping[str, Role], user_column: str | None
) -> dict[str, list[FeatureConfig]]:
    """Return column -> the features that read it."""
    readers: dict[str, list[FeatureConfig]] = {}
    for name, feature in config.features.of(side).items():
        key = f"data.features.{side}.{name}"
        column = str(feature.column)
        role = feature.traits.role
        if side != "item" and column in ("user_id", user_column):
            raise SchemaError(
                f"{key} reads '{column}', and ids of users are no feature: nothing is learned for "
                "others"
            )
        if role == "date" and side == "context":
            raise SchemaError(
                f"{key} is a date; allowed: of users and items, whose age it gives"
            )
        if feature.traits.period and (side, column) != ("context", "datetime"):
            raise SchemaError(
                f"{key} is taken from '{column}'; allowed: a feature of the context of 'datetime'"
            )
        if role in _UNFIT.get(roles.get(column, "value"), ()):
            raise SchemaError(
                f"{key} reads '{column}' as {role}; allowed: categorical, or another column"
            )
        readers.setdefault(column, []).append(feature)
        roles_of_column = {reader.traits.role for reader in readers[column]}
        if len(roles_of_column) > 1 and roles_of_column & {"vector", "date"}:
            raise SchemaError(
                f"{key}: column '{column}' is read as {' and '.join(roles_of_column)}; allowed: "
                "as one kind alone"
            )
    return readers


def _read_limits(
    limits: Iterable[float | str | None], timezone: str | None
) -> Iterator[float]:
    """Yield the limits as numbers, those of times in UTC seconds."""
    for limit in limits:
        if isinstance(limit, str):
            moments = parse_times([limit], timezone, lambda _: "a limit of times")
            yield float(moments[0])
        elif limit is not None:
            yield limit
