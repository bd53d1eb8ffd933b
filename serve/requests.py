"""Requests and the one place where they and their values are checked: here, and not again after it.

    {user_id?, features?: {name: value}, history?: [{item_id, datetime?, event?, weight?}] (oldest first),
     context?: {name: value}, datetime?, exclude?: [item_id],
     filters?: {where?: text, only?: [item_id], at_most?: {column: n}}}

None counts as not given. Messages show at most 40 characters of a value, since requests come from strangers.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.clock import FIRST_SECOND, LAST_SECOND, to_seconds
from serve.encode import Vector, read_vector, to_text
from serve.errors import SchemaError, name_nearest
from serve.schema import DERIVED, Feature, IdType, Schema

Id = str | int

MAX_SHOWN = 40
"""Characters of a value in a message."""
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
"""How an id that is a whole number is written: "007" is a text."""

_REQUEST_FIELDS = ("user_id", "features", "history", "context", "datetime", "exclude", "filters")
_SIDES = {"features": "user", "context": "context"}
"""Field of a request -> the side whose features it holds."""
_KINDS: dict[IdType, type] = {"string": str, "integer": int}
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = MAX_SHOWN


@dataclass(frozen=True, eq=False)
class History:
    """Events of a user or of several, oldest first, as columns of one length; None for what the data does not have."""

    item_id: NDArray[np.generic]
    """int64, or object with texts."""
    datetime: NDArray[np.int64] | None = None
    """UTC seconds."""
    event: NDArray[np.object_] | None = None
    """Texts, None where there is none."""
    weight: NDArray[np.float64] | None = None
    """NaN where there is none."""

    def __len__(self) -> int:
        return len(self.item_id)

    def take(self, index: slice | NDArray[np.generic]) -> History:
        """Return some of the events: a view for a slice."""
        return History(**{name: values[index] for name, values in self.columns().items()})

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that there are, by name."""
        return {name: values for name, values in vars(self).items() if values is not None}


@dataclass(frozen=True)
class Filters:
    """Which items may be listed. It is checked against the columns of the catalogue when it is applied."""

    where: str | None = None
    """An expression on item columns."""
    only: tuple[Id, ...] | None = None
    """The items that may be listed; those that the catalogue does not have are passed over."""
    at_most: tuple[tuple[str, int], ...] = ()
    """Column -> how many items of one list may share a value of it, ordered by column."""


@dataclass(frozen=True)
class Request:
    """A checked request; a field that is None was not given."""

    user_id: Id | None = None
    features: Mapping[str, Any] | None = None
    """Feature name -> raw value, None where it is said to be missing."""
    history: History | None = None
    context: Mapping[str, Any] | None = None
    datetime: int | None = None
    """UTC seconds."""
    exclude: tuple[Id, ...] = ()
    filters: Filters | None = None


_EVENT_FIELDS = frozenset(field.name for field in fields(History))


def parse_request(raw: Mapping[str, Any], schema: Schema) -> Request:
    """Check a request against the schema of a bundle.

    Raises:
        SchemaError: an unknown field or feature, a value of the wrong type, a number that is not finite, or a
            history that is not oldest first.
    """
    given = _check_fields(raw, _REQUEST_FIELDS, "request", schema)
    user_id, time, exclude = given.get("user_id"), given.get("datetime"), given.get("exclude")
    filters = given.get("filters")
    return Request(
        user_id=None if user_id is None else parse_id(user_id, schema.user_id_type, "user_id"),
        features=_parse_features(given.get("features"), "features", schema),
        history=_parse_history(given.get("history"), schema),
        context=_parse_features(given.get("context"), "context", schema),
        datetime=None if time is None else parse_times([time], schema.timezone, lambda _: "datetime")[0],
        exclude=parse_distinct_ids(() if exclude is None else exclude, schema.item_id_type, "exclude"),
        filters=None if filters is None else parse_filters(filters, schema.item_id_type),
    )


def fit_request(request: Request, schema: Schema) -> Request:
    """Fit a request that was made by hand: ids of the other type become those of the bundle.

    Raises:
        SchemaError: no id of the bundle's type, or a time that is not in seconds.
    """
    fitted: dict[str, Any] = {}
    if request.user_id is not None and type(request.user_id) is not _KINDS[schema.user_id_type]:
        fitted["user_id"] = parse_id(request.user_id, schema.user_id_type, "user_id")
    if not _are_of_type(request.exclude, schema.item_id_type):
        fitted["exclude"] = parse_distinct_ids(request.exclude, schema.item_id_type, "exclude")
    filters = request.filters
    if filters is not None and filters.only is not None and not _are_of_type(filters.only, schema.item_id_type):
        only = parse_distinct_ids(filters.only, schema.item_id_type, "filters.only")
        fitted["filters"] = replace(filters, only=only)
    if request.datetime is not None and not FIRST_SECOND <= request.datetime <= LAST_SECOND:
        raise SchemaError(f"datetime is {show(request.datetime)}; expected UTC seconds of the years 1 to 9999")
    return replace(request, **fitted) if fitted else request


def parse_filters(raw: Any, item_id_type: IdType) -> Filters | None:
    """Check the shape of the filters of a request; None if they filter nothing.

    Raises:
        SchemaError: an unknown name, or a value of the wrong type.
    """
    given = _check_mapping(raw, "filters", "'where', 'only' and 'at_most'")
    names = [field.name for field in fields(Filters)]
    for name in given:
        if name not in names:
            raise SchemaError(f"filters: unknown name {show(name)}; {name_nearest(str(name)[:MAX_SHOWN], names)}")
    where, only, limits = (given.get(name) for name in names)
    if where is not None and not isinstance(where, str):
        raise SchemaError(f"filters.where is {show(where)}; expected a text, as in \"price <= 20 and brand = 'x'\"")
    filters = Filters(
        where=where,
        only=None if only is None else parse_distinct_ids(only, item_id_type, "filters.only"),
        at_most=() if limits is None else _parse_limits(limits),
    )
    return None if filters == Filters() else filters


def _parse_limits(raw: Any) -> tuple[tuple[str, int], ...]:
    given = _check_mapping(raw, "filters.at_most", "a column with a number")
    return tuple(sorted((column, parse_limit(column, most)) for column, most in given.items() if most is not None))


def parse_limit(column: Any, most: Any) -> int:
    """Return how many items of one list may share a value of a column.

    Raises:
        SchemaError: no name of a column, or no whole number above 0: with 0 no search for what may be listed would end.
    """
    if not isinstance(column, str):
        raise SchemaError(f"filters.at_most names {show(column)}; expected a column")
    most = to_plain(most)
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        where = f"filters.at_most of {column[:MAX_SHOWN]!r}"
        raise SchemaError(f"{where} is {show(most)}; expected a whole number, 1 or more")
    return most


def _are_of_type(ids: Collection[Id], id_type: IdType) -> bool:
    return isinstance(ids, tuple) and set(map(type, ids)) <= {_KINDS[id_type]}


def _check_mapping(raw: Any, where: str, expected: str) -> Mapping[Any, Any]:
    if not isinstance(raw, Mapping):
        raise SchemaError(f"{where} is {show(raw)}; expected a mapping: {expected}")
    return raw


def _check_fields(raw: Any, allowed: Collection[str], where: str, schema: Schema) -> Mapping[str, Any]:
    given = _check_mapping(raw, where, "names to values")
    for name in given:
        if name not in allowed:
            meant = _place_feature(name, schema) or name_nearest(str(name)[:MAX_SHOWN], allowed)
            raise SchemaError(f"{where}: unknown name {show(name)}; {meant}")
    return given


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
    allowed = {one.name: one for one in schema.features(_SIDES[where]) if one.kind not in DERIVED}
    given = _check_fields(raw, allowed, where, schema)
    return {name: parse_value(given[name], allowed[name], f"{where}.{name}") for name in given}


# ---- histories


def _parse_history(raw: Any, schema: Schema) -> History | None:
    """Check events column by column."""
    if raw is None:
        return None
    entries = check_list(raw, "history")
    if not all(type(one) is dict and one.keys() <= _EVENT_FIELDS for one in entries):
        for i, entry in enumerate(entries):
            _check_fields(entry, _EVENT_FIELDS, f"history[{i}]", schema)
    ids = parse_ids([one.get("item_id") for one in entries], schema.item_id_type, lambda i: f"history[{i}].item_id")
    times, events, weights = (_read_column(entries, name) for name in ("datetime", "event", "weight"))
    if events is not None:
        events = [to_text(parse_label(value, f"history[{i}].event")) for i, value in enumerate(events)]
    if weights is not None:
        weights = [parse_weight(value, f"history[{i}].weight") for i, value in enumerate(weights)]
    return History(
        np.array(ids, dtype=np.int64 if schema.item_id_type == "integer" else np.object_),
        None if times is None else _parse_history_times(times, schema.timezone),
        None if events is None else np.array(events, dtype=np.object_),
        None if weights is None else np.array(weights, dtype=np.float64),  # None becomes NaN
    )


def _read_column(entries: Sequence[Mapping[str, Any]], name: str) -> list[Any] | None:
    """Return one field of all events, None where no event has it."""
    values = [entry.get(name) for entry in entries]
    return None if set(map(type, values)) <= {type(None)} else values


def _parse_history_times(values: list[Any], timezone: str | None) -> NDArray[np.int64]:
    if type(None) in map(type, values):
        n_given = sum(value is not None for value in values)
        raise SchemaError(f"history: {n_given} of {len(values)} events have a datetime; give all or none")
    times = np.array(parse_times(values, timezone, lambda index: f"history[{index}].datetime"))
    is_earlier = times[1:] < times[:-1]
    if is_earlier.any():
        index = int(is_earlier.argmax()) + 1
        raise SchemaError(f"history[{index}] is earlier than the event before it; give the oldest first")
    return times


# ---- single values


def parse_id(value: Any, id_type: IdType, where: str) -> Id:
    """Check an id and return it in the type of the bundle: 7 and "7" are the same id.

    Raises:
        SchemaError: the value is no id of that type.
    """
    value = _to_whole(to_plain(value))
    most = 2**63 if id_type == "integer" else 2**64  # unsigned ids above are texts in a bundle
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < most:
        return value if id_type == "integer" else str(value)
    if isinstance(value, str) and id_type == "integer" and INTEGER.fullmatch(value):
        return parse_id(int(value), id_type, where)
    if isinstance(value, str) and id_type == "string" and value.strip() and is_writable(value):
        return value
    kinds = {"integer": "a whole number of 64 bits", "string": "a text that is not empty"}
    raise SchemaError(f"{where} is {show(value)}; expected {kinds[id_type]}, as the ids of the training data")


def parse_ids(values: list[Any], id_type: IdType, name_of: Callable[[int], str]) -> list[Id]:
    """Check ids as `parse_id` does; `name_of` says where the value at an index stands."""
    kinds = set(map(type, values))
    if kinds == {int} and id_type == "integer" and min(values) >= -(2**63) and max(values) < 2**63:
        return values
    if kinds == {str} and id_type == "string" and all(map(str.strip, values)) and "".join(values).isascii():
        return values
    return [parse_id(value, id_type, name_of(index)) for index, value in enumerate(values)]


def parse_distinct_ids(raw: Any, id_type: IdType, where: str) -> tuple[Id, ...]:
    """Check a list of ids and return each once."""
    values = enumerate(check_list(raw, where))
    return tuple(dict.fromkeys(parse_id(value, id_type, f"{where}[{index}]") for index, value in values))


def check_list(raw: Any, where: str) -> Sequence[Any]:
    if isinstance(raw, np.ndarray):
        raw = raw.tolist()
    if not isinstance(raw, (list, tuple)):
        raise SchemaError(f"{where} is {show(raw)}; expected a list")
    return raw


def parse_value(value: Any, feature: Feature, where: str) -> Any:
    """Check the value of a feature; None is missing.

    Raises:
        SchemaError: the value is of another kind, not finite, or a vector of another width; the message names `where`.
    """
    value = to_plain(value)
    if value is None:
        return None
    if feature.kind == "numeric":
        return parse_number(value, where)
    if feature.kind == "vector":
        return _parse_vector(value, feature, where)
    if feature.kind in ("multi_categorical", "text") and isinstance(value, (list, tuple, np.ndarray)):
        return [parse_label(part, f"{where}[{index}]") for index, part in enumerate(value)]
    return parse_label(value, where)


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


def parse_number(value: Any, where: str) -> float:
    """Return a finite float; a bool or a text is no number."""
    value = to_plain(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise SchemaError(f"{where} is {show(value)}; expected a number")
    if (isinstance(value, int) and abs(value) >= 2**1023) or not math.isfinite(value):
        raise SchemaError(f"{where} is {show(value)}; expected a finite number, or null if missing")
    return float(value)


def parse_weight(value: Any, where: str) -> float | None:
    weight = None if value is None else parse_number(value, where)
    if weight is not None and weight < 0:
        raise SchemaError(f"{where} is {weight}; expected 0 or more")
    return weight


def parse_label(value: Any, where: str) -> Any:
    """Return a text, number or bool as it is: `to_text` makes them equal to the vocabulary's."""
    value = to_plain(value)
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, (float, Decimal)) and math.isfinite(value):
        return value
    raise SchemaError(f"{where} is {show(value)}; expected a text or finite number, or null")


def parse_times(values: list[Any], timezone: str | None, name_of: Callable[[int], str]) -> list[int]:
    """Return UTC seconds; all values are read in one unit."""
    if Decimal in map(type, values):
        values = list(map(_to_whole, values))
    for index, value in enumerate(values):
        if not _is_time(value):
            message = f"{name_of(index)} is {show(value)}; expected an ISO date or time, or seconds since 1970"
            raise SchemaError(message)
    try:
        seconds, is_valid = to_seconds(values, timezone)
    except SchemaError as error:
        raise SchemaError(f"{name_of(0)}: {error}") from error
    if not is_valid.all():
        index = int(np.argmin(is_valid))
        raise SchemaError(f"{name_of(index)} is {show(values[index])}; it cannot be read as a date or time")
    times: list[int] = seconds.tolist()
    return times


def check_id(value: Id, where: str) -> None:
    """Refuse what is no id of any bundle, of texts or of integers."""
    parse_id(value, "string" if isinstance(value, str) else "integer", where)


def check_seconds(value: Any, where: str) -> None:
    """Refuse what is no whole UTC seconds of the years 1 to 9999: milliseconds of today are not among these."""
    seconds = to_plain(value)
    if type(seconds) is not int or not FIRST_SECOND <= seconds <= LAST_SECOND:
        raise SchemaError(f"{where} is {show(value)}; expected whole UTC seconds since 1970, of the years 1 to 9999")


def show(value: Any) -> str:
    """Describe a value for a message, with its type: escaped, and cut so that nothing long is echoed."""
    if isinstance(value, int) and abs(value) >= 2**63:
        return "an integer of more than 64 bits"
    return f"{_SHORT.repr(value)[: MAX_SHOWN + 2]} ({type(value).__name__})"


def to_plain(value: Any) -> Any:
    """Return the Python value of a numpy scalar."""
    return value.item() if isinstance(value, np.generic) else value


def is_writable(text: str) -> bool:
    """Tell a text from one with half a surrogate pair, which no file or answer can hold."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _is_time(value: Any) -> bool:
    if isinstance(value, (str, date, datetime)):
        return True
    if isinstance(value, (bool, np.bool_)):
        return False
    if isinstance(value, (int, np.integer)):
        return abs(int(value)) < 2**63
    return isinstance(value, np.datetime64) or (
        isinstance(value, (float, np.floating, Decimal)) and math.isfinite(value)
    )


def _to_whole(value: Any) -> Any:
    """Return a decimal without a fraction, as databases write keys and times, as the integer that training reads."""
    if not isinstance(value, Decimal) or not value.is_finite() or abs(value) >= 2**64:
        return value
    return int(value) if value == value.to_integral_value() else value
