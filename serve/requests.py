"""What a request is, and the one place where it is checked: nothing after `parse_request` checks again.

    {user_id?, features?: {name: value}, history?: [{item_id, datetime?, event?, weight?}] (oldest first),
     context?: {name: value}, datetime?, exclude?: [item_id]}

None counts as not given. Messages show at most 40 characters of a value, since requests come from strangers.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np

from serve.clock import to_seconds
from serve.encoding import to_text
from serve.errors import SchemaError, name_nearest
from serve.schema import Feature, IdType, Schema
from serve.vectors import Vector, read_vector

Id = str | int

DERIVED = ("hour_of_day", "day_of_week")
"""Kinds that are taken from the datetime of a request and never given."""

_REQUEST_FIELDS = ("user_id", "features", "history", "context", "datetime", "exclude")
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_NOTHING = {type(None)}
_MOST_SHOWN = 40
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _MOST_SHOWN


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


def parse_request(raw: Mapping[str, Any], schema: Schema) -> Request:
    """Check a request against what the bundle knows.

    Raises:
        SchemaError: an unknown field or feature, a value of the wrong type, a number that is not finite, or a
            history that is not oldest first.
    """
    fields = _check_fields(raw, _REQUEST_FIELDS, "request")
    user_id, time, exclude = fields.get("user_id"), fields.get("datetime"), fields.get("exclude")
    return Request(
        user_id=None if user_id is None else parse_id(user_id, schema.user_id_type, "user_id"),
        features=_parse_features(fields.get("features"), schema.user_features, "features"),
        history=_parse_history(fields.get("history"), schema),
        context=_parse_features(fields.get("context"), schema.context_features, "context"),
        datetime=None if time is None else _parse_times([time], schema.timezone, lambda _: "datetime")[0],
        exclude=_parse_ids(() if exclude is None else exclude, schema.item_id_type, "exclude"),
    )


def parse_id(value: Any, id_type: IdType, where: str) -> Id:
    """Check an id and return it in the type of the bundle: 7 and "7" are the same id.

    Raises:
        SchemaError: the value is no id of that type.
    """
    value = _plain(value)
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return value if id_type == "integer" else str(value)
    if isinstance(value, str) and id_type == "integer" and _INTEGER.fullmatch(value):
        return parse_id(int(value), id_type, where)
    if isinstance(value, str) and id_type == "string" and value.strip() and _is_writable(value):
        return value
    kinds = {"integer": "a whole number of 64 bits", "string": "a text that is not empty"}
    raise SchemaError(f"{where} is {show(value)}; expected {kinds[id_type]}, as the ids of the training data")


def show(value: Any) -> str:
    """Describe a value for a message, with its type: escaped, and cut so that nothing long is echoed."""
    if isinstance(value, int) and abs(value) >= 2**63:
        return "an integer of more than 64 bits"
    return f"{_SHORT.repr(value)[: _MOST_SHOWN + 2]} ({type(value).__name__})"


def _check_fields(raw: Any, allowed: Collection[str], where: str) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise SchemaError(f"{where} is {show(raw)}; expected a mapping of names to values")
    for name in raw:
        if name not in allowed:
            nearest = name_nearest(str(name)[:_MOST_SHOWN], allowed)
            raise SchemaError(f"{where}: unknown name {show(name)}; {nearest}")
    return raw


def _check_list(raw: Any, where: str) -> Sequence[Any]:
    if isinstance(raw, np.ndarray):
        raw = raw.tolist()
    if not isinstance(raw, (list, tuple)):
        raise SchemaError(f"{where} is {show(raw)}; expected a list")
    return raw


def _parse_ids(raw: Any, id_type: IdType, where: str) -> tuple[Id, ...]:
    values = enumerate(_check_list(raw, where))
    return tuple(dict.fromkeys(parse_id(value, id_type, f"{where}[{index}]") for index, value in values))


def _parse_features(raw: Any, features: Iterable[Feature], where: str) -> dict[str, Any] | None:
    if raw is None:
        return None
    given = {feature.name: feature for feature in features if feature.kind not in DERIVED}
    for feature in features:
        if feature.kind in DERIVED and isinstance(raw, Mapping) and feature.name in raw:
            raise SchemaError(f"{where}: '{feature.name}' is taken from datetime; give that instead")
    fields = _check_fields(raw, given, where)
    return {name: _parse_value(fields[name], given[name], f"{where}.{name}") for name in fields}


def _parse_value(value: Any, feature: Feature, where: str) -> Any:
    value = _plain(value)
    if value is None:
        return None
    if feature.kind == "numeric":
        return _parse_number(value, where)
    if feature.kind == "vector":
        return _parse_vector(value, feature, where)
    if feature.kind in ("multi_categorical", "text") and isinstance(value, (list, tuple, np.ndarray)):
        return [_parse_label(part, f"{where}[{index}]") for index, part in enumerate(value)]
    return _parse_label(value, where)


def _parse_number(value: Any, where: str) -> float:
    """Return a finite float; a bool or a text is no number."""
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise SchemaError(f"{where} is {show(value)}; expected a number")
    if (isinstance(value, int) and abs(value) >= 2**1023) or not math.isfinite(value):
        raise SchemaError(f"{where} is {show(value)}; expected a finite number, or null if missing")
    return float(value)


def _parse_vector(value: Any, feature: Feature, where: str) -> Vector | None:
    """Read a list of numbers, or the text that a CSV cell holds; None if it is empty, which is missing."""
    try:
        entries = read_vector(value)
    except ValueError as error:
        raise SchemaError(f"{where} is {show(value)}: {error}; expected {feature.width} finite numbers") from error
    if entries is None:
        return None
    if len(entries) != feature.width:
        raise SchemaError(f"{where} has {len(entries)} numbers; expected {feature.width}, as in the training data")
    return Vector.pack(entries)


def _parse_label(value: Any, where: str) -> Any:
    """Return a text, number or bool as it is: `to_text` makes them equal to the vocabulary's."""
    value = _plain(value)
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, (float, Decimal)) and math.isfinite(value):
        return value
    raise SchemaError(f"{where} is {show(value)}; expected a text or finite number, or null")


def _parse_history(raw: Any, schema: Schema) -> InlineHistory | None:
    """Check events column by column, since most columns are seen to be in order at one look."""
    if raw is None:
        return None
    entries = _check_list(raw, "history")
    names = set().union(*entries) if set(map(type, entries)) <= {dict} else None
    if names is None or not names <= _EVENT_FIELDS:
        for i, entry in enumerate(entries):
            _check_fields(entry, _EVENT_FIELDS, f"history[{i}]")
    ids = parse_ids([one.get("item_id") for one in entries], schema.item_id_type, lambda i: f"history[{i}].item_id")
    times, events, weights = (_read_column(entries, name, names) for name in ("datetime", "event", "weight"))
    if events is not None:
        events = [to_text(_parse_label(value, f"history[{i}].event")) for i, value in enumerate(events)]
    if weights is not None:
        weights = [_parse_weight(value, f"history[{i}].weight") for i, value in enumerate(weights)]
    return InlineHistory(ids, None if times is None else _parse_history_times(times, schema.timezone), events, weights)


def _read_column(entries: Sequence[Mapping[str, Any]], name: str, names: Collection[str] | None) -> list[Any] | None:
    """Return one field of all events; `names` are those that any of them has, None if that is not known."""
    if names is not None and name not in names:
        return None
    values = [entry.get(name) for entry in entries]
    return None if set(map(type, values)) <= _NOTHING else values


def parse_ids(values: list[Any], id_type: IdType, name_of: Callable[[int], str]) -> list[Id]:
    """Check ids as `parse_id` does.

    Args:
        values: of one column.
        id_type: of the bundle.
        name_of: says where the value at an index stands.

    Raises:
        SchemaError: a value is no id of that type.
    """
    if _are_plain_ids(values, id_type):
        return values
    return [parse_id(value, id_type, name_of(index)) for index, value in enumerate(values)]


def _are_plain_ids(values: list[Any], id_type: IdType) -> bool:
    """Tell at one look that `parse_id` would return every value as it is; False where it takes a second look."""
    kinds = set(map(type, values))
    if id_type == "integer":
        return kinds == {int} and min(values) >= -(2**63) and max(values) < 2**63
    return kinds == {str} and all(map(str.strip, values)) and "".join(values).isascii()


def _parse_weight(value: Any, where: str) -> float | None:
    weight = None if value is None else _parse_number(value, where)
    if weight is not None and weight < 0:
        raise SchemaError(f"{where} is {weight}; expected 0 or more")
    return weight


def _parse_history_times(values: list[Any], timezone: str | None) -> list[int]:
    if type(None) in map(type, values):
        n_given = sum(value is not None for value in values)
        raise SchemaError(f"history: {n_given} of {len(values)} events have a datetime; give all or none")
    times = _parse_times(values, timezone, lambda index: f"history[{index}].datetime")
    if times != sorted(times):
        index = next(index for index in range(1, len(times)) if times[index] < times[index - 1])
        raise SchemaError(f"history[{index}] is earlier than the event before it; give the oldest first")
    return times


def _parse_times(values: list[Any], timezone: str | None, name_of: Callable[[int], str]) -> list[int]:
    """Return UTC seconds; all values are read in one unit."""
    kinds = set(map(type, values))
    if not kinds <= {str, date, datetime}:
        for index, value in enumerate(values):
            if not _is_time(value):
                message = f"{name_of(index)} is {show(value)}; expected an ISO date or time, or seconds since 1970"
                raise SchemaError(message)
    try:
        seconds, is_valid = to_seconds(np.array(values, dtype=np.int64) if kinds == {int} else values, timezone)
    except SchemaError as error:
        raise SchemaError(f"{name_of(0)}: {error}") from error
    if not is_valid.all():
        index = int(np.argmin(is_valid))
        raise SchemaError(f"{name_of(index)} is {show(values[index])}; it cannot be read as a date or time")
    times: list[int] = seconds.tolist()
    return times


def _is_time(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return False
    if isinstance(value, (int, float, np.integer, np.floating)):
        return math.isfinite(value) if isinstance(value, (float, np.floating)) else abs(int(value)) < 2**63
    return isinstance(value, (str, date, np.datetime64))


def _plain(value: Any) -> Any:
    """Return the Python value of a numpy scalar."""
    return value.item() if isinstance(value, np.generic) else value


def _is_writable(text: str) -> bool:
    """Tell a text from one with half a surrogate pair, which no file or answer can hold."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)
