"""What a request is, and the one place where it is checked: here, and not again after it.

    {user_id?, features?: {name: value}, history?: [{item_id, datetime?, event?, weight?}] (oldest first),
     context?: {name: value}, datetime?, exclude?: [item_id],
     filters?: {where?: text, only?: [item_id], at_most?: {column: n}}}

None counts as not given.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from serve.clock import FIRST_SECOND, LAST_SECOND
from serve.encoding import to_text
from serve.errors import SchemaError, name_nearest
from serve.feature_values import parse_value
from serve.filters.filters import Filters, parse_filters
from serve.request_values import (
    MOST_SHOWN,
    Id,
    check_list,
    parse_distinct_ids,
    parse_id,
    parse_ids,
    parse_label,
    parse_times,
    parse_weight,
    show,
)
from serve.schema import IdType, Schema

DERIVED = ("hour_of_day", "day_of_week")
"""Kinds that are taken from the datetime of a request and never given."""

_REQUEST_FIELDS = ("user_id", "features", "history", "context", "datetime", "exclude", "filters")
_SIDES = {"features": "user", "context": "context"}
"""Field of a request -> the side whose features it holds."""
_NOTHING = {type(None)}
_KINDS: dict[IdType, type] = {"string": str, "integer": int}


@dataclass(frozen=True)
class InlineHistory:
    """The events of a request, oldest first, a column per field; None where no event has it."""

    item_id: Sequence[Id]
    datetime: Sequence[int] | None = None
    """UTC seconds."""
    event: Sequence[str | None] | None = None
    weight: Sequence[float | None] | None = None

    def __len__(self) -> int:
        return len(self.item_id)


_EVENT_FIELDS = frozenset(field.name for field in fields(InlineHistory))


@dataclass(frozen=True)
class Request:
    """A checked request; a field that is None was not given."""

    user_id: Id | None = None
    features: Mapping[str, Any] | None = None
    """Feature name -> raw value, None where it is said to be missing."""
    history: InlineHistory | None = None
    context: Mapping[str, Any] | None = None
    datetime: int | None = None
    """UTC seconds."""
    exclude: tuple[Id, ...] = ()
    filters: Filters | None = None
    """What may be listed at all; checked against the columns of the catalogue when it is applied."""


def parse_request(raw: Mapping[str, Any], schema: Schema) -> Request:
    """Check a request against what the bundle knows.

    Raises:
        SchemaError: an unknown field or feature, a value of the wrong type, a number that is not finite, a
            history that is not oldest first, or an expression that cannot be read.
    """
    fields = _check_fields(raw, _REQUEST_FIELDS, "request", schema)
    user_id, time, exclude = fields.get("user_id"), fields.get("datetime"), fields.get("exclude")
    filters = fields.get("filters")
    return Request(
        user_id=None if user_id is None else parse_id(user_id, schema.user_id_type, "user_id"),
        features=_parse_features(fields.get("features"), "features", schema),
        history=_parse_history(fields.get("history"), schema),
        context=_parse_features(fields.get("context"), "context", schema),
        datetime=None if time is None else parse_times([time], schema.timezone, lambda _: "datetime")[0],
        exclude=parse_distinct_ids(() if exclude is None else exclude, schema.item_id_type, "exclude"),
        filters=None if filters is None else parse_filters(filters, schema.item_id_type),
    )


def fit_request(request: Request, schema: Schema) -> Request:
    """Read what is not from `parse_request`, but made by hand: ids of the other type are those of the bundle, too.

    Raises:
        SchemaError: no id of the bundle's type, or a time that is not in seconds.
    """
    fitted: dict[str, Any] = {}
    if request.user_id is not None and type(request.user_id) is not _KINDS[schema.user_id_type]:
        fitted["user_id"] = parse_id(request.user_id, schema.user_id_type, "user_id")
    if not _are_of_type(request.exclude, schema.item_id_type):
        fitted["exclude"] = parse_distinct_ids(request.exclude, schema.item_id_type, "exclude")
    filters = request.filters
    if filters is not None and filters.only is not None:
        only = filters.only
        if not isinstance(only, tuple) or not _are_of_type(only, schema.item_id_type):
            only = parse_distinct_ids(only, schema.item_id_type, "filters.only")
            fitted["filters"] = replace(filters, only=only)
    if request.datetime is not None and not FIRST_SECOND <= request.datetime <= LAST_SECOND:
        raise SchemaError(f"datetime is {show(request.datetime)}; expected UTC seconds of the years 1 to 9999")
    return replace(request, **fitted) if fitted else request


def _are_of_type(ids: Collection[Id], id_type: IdType) -> bool:
    return not isinstance(ids, str) and set(map(type, ids)) <= {_KINDS[id_type]}  # a text's characters are no ids


def _check_fields(raw: Any, allowed: Collection[str], where: str, schema: Schema) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise SchemaError(f"{where} is {show(raw)}; expected a mapping of names to values")
    for name in raw:
        if name not in allowed:
            meant = _place_feature(name, schema) or name_nearest(str(name)[:MOST_SHOWN], allowed)
            raise SchemaError(f"{where}: unknown name {show(name)}; {meant}")
    return raw


def _place_feature(name: Any, schema: Schema) -> str | None:
    """Say where a feature belongs that stands in another place; None where it is no feature of a request."""
    found = {field: one for field, side in _SIDES.items() for one in schema.features(side) if one.name == name}
    if not found:
        return None
    if any(feature.kind in DERIVED for feature in found.values()):
        return f"'{name}' is taken from datetime: give that instead"
    sides = " and ".join(_SIDES[field] for field in found)
    places = " or ".join(f'"{field}": {{"{name}": ...}}' for field in found)
    return f"'{name}' is a {sides} feature: put it in {places}"


def _parse_features(raw: Any, where: str, schema: Schema) -> dict[str, Any] | None:
    if raw is None:
        return None
    features = schema.features(_SIDES[where])
    given = {feature.name: feature for feature in features if feature.kind not in DERIVED}
    for feature in features:
        if feature.kind in DERIVED and isinstance(raw, Mapping) and feature.name in raw:
            raise SchemaError(f"{where}: '{feature.name}' is taken from datetime; give that instead")
    fields = _check_fields(raw, given, where, schema)
    return {name: parse_value(fields[name], given[name], f"{where}.{name}") for name in fields}


def _parse_history(raw: Any, schema: Schema) -> InlineHistory | None:
    """Check events column by column, since most columns are seen to be in order at one look."""
    if raw is None:
        return None
    entries = check_list(raw, "history")
    names = set().union(*entries) if set(map(type, entries)) <= {dict} else None
    if names is None or not names <= _EVENT_FIELDS:
        for i, entry in enumerate(entries):
            _check_fields(entry, _EVENT_FIELDS, f"history[{i}]", schema)
    ids = parse_ids([one.get("item_id") for one in entries], schema.item_id_type, lambda i: f"history[{i}].item_id")
    times, events, weights = (_read_column(entries, name, names) for name in ("datetime", "event", "weight"))
    if events is not None:
        events = [to_text(parse_label(value, f"history[{i}].event")) for i, value in enumerate(events)]
    if weights is not None:
        weights = [parse_weight(value, f"history[{i}].weight") for i, value in enumerate(weights)]
    return InlineHistory(ids, None if times is None else _parse_history_times(times, schema.timezone), events, weights)


def _read_column(entries: Sequence[Mapping[str, Any]], name: str, names: Collection[str] | None) -> list[Any] | None:
    """Return one field of all events; `names` are those that any of them has, None if that is not known."""
    if names is not None and name not in names:
        return None
    values = [entry.get(name) for entry in entries]
    return None if set(map(type, values)) <= _NOTHING else values


def _parse_history_times(values: list[Any], timezone: str | None) -> list[int]:
    if type(None) in map(type, values):
        n_given = sum(value is not None for value in values)
        raise SchemaError(f"history: {n_given} of {len(values)} events have a datetime; give all or none")
    times = parse_times(values, timezone, lambda index: f"history[{index}].datetime")
    if times != sorted(times):
        index = next(index for index in range(1, len(times)) if times[index] < times[index - 1])
        raise SchemaError(f"history[{index}] is earlier than the event before it; give the oldest first")
    return times
