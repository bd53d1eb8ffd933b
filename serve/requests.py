"""Requests and the one place where they and their values are checked: here, and not again after it.

    {user_id?, features?: {name: value}, history?: [{item_id, datetime?, event?, weight?, context?}] (oldest first),
     context?: {name: value}, datetime?, exclude?: [item_id],
     filters?: {where?: text, only?: [item_id], at_most?: {column: n}}}

None counts as not given. Messages show at most 40 characters of a value, since requests come from strangers.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.clock import DAY, FIRST_SECOND, LAST_SECOND, to_seconds
from serve.encode import (
    TIME,
    context_keys,
    encode_rows,
    keyed_by_name,
    to_text,
    to_vectors,
)
from serve.errors import SchemaError, name_nearest
from serve.kinds import Vector
from serve.schema import DERIVED, SEVERAL, Feature, IdType, Schema

Id = str | int

MAX_SHOWN = 40  # characters of a value in a message
MINUTE = 60  # within which a request is answered alike
MAX_PAUSE = (
    30 * DAY
)  # in which nobody's events arrive: after a longer one popularity and memory would have faded
INTEGER = re.compile(
    r"0|-?[1-9][0-9]{0,18}"
)  # how an id that is a whole number is written: "007" is a text

_REQUEST_FIELDS = (
    "user_id",
    "features",
    "history",
    "context",
    "datetime",
    "exclude",
    "filters",
)
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = MAX_SHOWN


@dataclass(frozen=True, eq=False)
class History:
    """Events of a user or of several, oldest first, as columns of one length; None for what the data does not have."""

    item_id: NDArray[np.generic]  # int64, or object with texts
    datetime: NDArray[np.int64] | None = None  # UTC seconds
    event: NDArray[np.object_] | None = None  # texts, None where there is none
    weight: NDArray[np.float64] | None = None  # NaN where there is none
    context: NDArray[np.int64] | None = (
        None  # keys as of `serve.encode.context_keys`, 0 where there is none
    )

    def __len__(self) -> int:
        return len(self.item_id)

    def take(self, index: slice | NDArray[np.generic]) -> History:
        """Return some of the events: a view for a slice."""
        return History(
            **{name: values[index] for name, values in self.columns().items()}
        )

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that there are, by name."""
        return {
            name: values for name, values in vars(self).items() if values is not None
        }


@dataclass(frozen=True)
class Filters:
    """Which items may be listed. It is checked against the columns of the catalogue when it is applied."""

    where: str | None = None  # an expression on item columns
    only: tuple[Id, ...] | None = None
    at_most: tuple[
        tuple[str, int], ...
    ] = ()  # by column: how many items of one list may share a value of it


@dataclass(frozen=True)
class Request:
    """A checked request; a field that is None was not given."""

    user_id: Id | None = None
    features: Mapping[str, Any] | None = (
        None  # feature name -> raw value, None where it is said to be missing
    )
    history: History | None = None
    context: Mapping[str, Any] | None = None
    datetime: int | None = None  # UTC seconds
    exclude: tuple[Id, ...] = ()
    filters: Filters | None = None
    user_known: bool | None = (
        None  # whether there is anything about the user; None where nobody looked
    )


_EVENT_FIELDS = frozenset(field.name for field in fields(History))


def parse_request(raw: Mapping[str, Any], schema: Schema) -> Request:
    """Check a request against the schema of a bundle; a `SchemaError` names the first fault."""
    given = check_fields(raw, _REQUEST_FIELDS, "request")
    user_id, time, exclude, filters = map(
        given.get, ("user_id", "datetime", "exclude", "filters")
    )
    return Request(
        user_id=None
        if user_id is None
        else parse_id(user_id, schema.user_id_type, "user_id"),
        features=_parse_features(given.get("features"), "features", schema),
        history=_parse_history(given.get("history"), schema),
        context=_parse_features(given.get("context"), "context", schema),
        datetime=None
        if time is None
        else parse_times([time], schema.timezone, lambda _: "datetime")[0],
        exclude=parse_distinct_ids(
            () if exclude is None else exclude, schema.item_id_type, "exclude"
        ),
        filters=None
        if filters is None
        else parse_filters(filters, schema.item_id_type),
    )


def fit_request(request: Request, schema: Schema) -> Request:
    """Check the ids and the time of a request that was made by hand; 7 and "7" are the same id."""
    user_id = request.user_id
    filters = request.filters
    if filters is not None and filters.only is not None:
        filters = replace(
            filters,
            only=parse_distinct_ids(filters.only, schema.item_id_type, "filters.only"),
        )
    if request.datetime is not None:
        check_seconds(request.datetime, "datetime")
    user_id = (
        None if user_id is None else parse_id(user_id, schema.user_id_type, "user_id")
    )
    exclude = parse_distinct_ids(request.exclude, schema.item_id_type, "exclude")
    return replace(request, user_id=user_id, exclude=exclude, filters=filters)


def ask_now(request: Request, data_until: int | None, now: int) -> Request:
    """Return a request that is asked now: at the beginning of this minute, or at the latest event if that came later.

    If the end of the data is given, the first pause of more than `MAX_PAUSE` after it is left out: data that ended long
    ago is asked at its end, and later events follow it, as far from one another and from now as they are.
    """
    moment = now - now % MINUTE
    history = request.history
    times = (
        np.empty(0, np.int64)
        if history is None or history.datetime is None
        else history.datetime
    )
    past = times[times <= now]
    moment = max([moment, *past[-1:].tolist()])
    if data_until is None or moment - data_until <= MAX_PAUSE:
        return replace(request, datetime=moment)
    known = [data_until, *past[past > data_until].tolist(), moment]
    last, first = next(
        (pair for pair in pairwise(known) if pair[1] - pair[0] > MAX_PAUSE), (0, 0)
    )
    if history is not None and len(times):
        history = replace(
            history, datetime=np.where(times < first, times, times - (first - last))
        )
    return replace(request, history=history, datetime=moment - (first - last))


def parse_filters(raw: Any, item_id_type: IdType) -> Filters | None:
    """Check the shape of filters; None if they filter nothing."""
    given = check_fields(raw, [field.name for field in fields(Filters)], "filters")
    where = given.get("where")
    only = given.get("only")
    limits = given.get("at_most") or {}
    if not isinstance(where, str | None):
        raise SchemaError(
            f"filters.where is {show(where)}; expected a text, as in \"price <= 20 and brand = 'x'\""
        )
    if not isinstance(limits, Mapping):
        raise SchemaError(
            f"filters.at_most is {show(limits)}; expected a mapping of columns to numbers"
        )
    if only is not None:
        only = parse_distinct_ids(only, item_id_type, "filters.only")
    at_most = sorted(
        (name, parse_limit(name, most))
        for name, most in limits.items()
        if most is not None
    )
    filters = Filters(where, only, tuple(at_most))
    return None if filters == Filters() else filters


def parse_limit(column: Any, most: Any) -> int:
    """Return how many items of one list may share a value of a column: at least 1."""
    if not isinstance(column, str) or type(most) is not int or most < 1:
        raise SchemaError(
            f"filters.at_most of {show(column)} is {show(most)}; expected a whole number, 1 or more"
        )
    return most


def join_filters(one: Filters, other: Filters) -> Filters:
    """Return the filters that admit what both admit."""
    where = (
        f"({one.where}) and ({other.where})"
        if one.where and other.where
        else one.where or other.where
    )
    only = one.only if other.only is None else other.only
    if one.only is not None and other.only is not None:
        only = tuple(item_id for item_id in one.only if item_id in set(other.only))
    limits = sorted(
        (*one.at_most, *other.at_most), reverse=True
    )  # of one column, the least comes last
    return Filters(where, only, tuple(sorted(dict(limits).items())))


def check_fields(raw: Any, allowed: Collection[str], where: str) -> Mapping[Any, Any]:
    """Refuse what is no mapping, or has another name than those allowed."""
    if not isinstance(raw, Mapping):
        raise SchemaError(
            f"{where} is {show(raw)}; expected a mapping of names to values"
        )
    for name in raw:
        if name not in allowed:
            raise SchemaError(
                f"{where}: unknown name {show(name)}; {name_nearest(str(name)[:MAX_SHOWN], allowed)}"
            )
    return raw


def _parse_features(raw: Any, where: str, schema: Schema) -> dict[str, Any] | None:
    if raw is None:
        return None
    side = "user" if where == "features" else where
    allowed = {
        one.name: one for one in schema.features(side) if one.kind not in DERIVED
    }
    given = check_fields(raw, allowed, where)
    return {
        name: parse_value(given[name], allowed[name], f"{where}.{name}")
        for name in given
    }


# ---- histories


def _parse_history(raw: Any, schema: Schema) -> History | None:
    """Check events column by column."""
    if raw is None:
        return None
    entries = check_list(raw, "history")
    if not all(type(one) is dict and one.keys() <= _EVENT_FIELDS for one in entries):
        for i, entry in enumerate(entries):
            check_fields(entry, _EVENT_FIELDS, f"history[{i}]")
    ids = parse_ids(
        [one.get("item_id") for one in entries],
        schema.item_id_type,
        lambda i: f"history[{i}].item_id",
    )
    columns = (
        [entry.get(name) for entry in entries]
        for name in ("datetime", "event", "weight")
    )
    times, events, weights = (
        None if values.count(None) == len(values) else values for values in columns
    )
    if events is not None:
        events = [
            to_text(parse_label(value, f"history[{i}].event"))
            for i, value in enumerate(events)
        ]
    if weights is not None:
        weights = [
            parse_weight(value, f"history[{i}].weight")
            for i, value in enumerate(weights)
        ]
    seconds = None if times is None else _parse_history_times(times, schema.timezone)
    return History(
        np.array(
            ids, dtype=np.int64 if schema.item_id_type == "integer" else np.object_
        ),
        seconds,
        None if events is None else np.array(events, dtype=np.object_),
        None
        if weights is None
        else np.array(weights, dtype=np.float64),  # None becomes NaN
        _key_contexts(entries, seconds, schema) if schema.context_features else None,
    )


def _key_contexts(
    events: Sequence[Any], seconds: NDArray[np.int64] | None, schema: Schema
) -> NDArray[np.int64] | None:
    times = [None] * len(events) if seconds is None else seconds.tolist()
    given = [
        _parse_features(one.get("context"), "context", schema) or {} for one in events
    ]
    rows = [{**one, TIME: time} for one, time in zip(given, times, strict=True)]
    features = keyed_by_name(schema.context_features)
    keys = context_keys(features, encode_rows(features, rows, schema.timezone).codes)
    return keys if keys.any() else None


def _parse_history_times(values: list[Any], timezone: str | None) -> NDArray[np.int64]:
    if None in values:
        raise SchemaError(
            "history: some events have a datetime and some have none; give all or none"
        )
    times = np.array(
        parse_times(values, timezone, lambda index: f"history[{index}].datetime")
    )
    if len(earlier := np.flatnonzero(np.diff(times) < 0)):
        raise SchemaError(
            f"history[{earlier[0] + 1}] is earlier than the event before it; give the oldest first"
        )
    return times


# ---- single values


def parse_id(value: Any, id_type: IdType, where: str) -> Id:
    """Check an id and return it in the type of the bundle: 7 and "7" are the same id."""
    value = to_plain(value)
    if id_type == "integer" and isinstance(value, str) and INTEGER.fullmatch(value):
        value = int(value)
    if type(value) is int and -(2**63) <= value < (
        2**63 if id_type == "integer" else 2**64
    ):
        return value if id_type == "integer" else str(value)
    if (
        id_type == "string"
        and isinstance(value, str)
        and value.strip()
        and is_writable(value)
    ):
        return value
    kind = (
        "a whole number of 64 bits"
        if id_type == "integer"
        else "a text that is not empty"
    )
    raise SchemaError(
        f"{where} is {show(value)}; expected {kind}, as in the training data"
    )


def parse_ids(
    values: list[Any], id_type: IdType, name_of: Callable[[int], str]
) -> list[Id]:
    """Check ids as `parse_id` does; `name_of` says where the value at an index stands."""
    return [
        parse_id(value, id_type, name_of(index)) for index, value in enumerate(values)
    ]


def parse_distinct_ids(raw: Any, id_type: IdType, where: str) -> tuple[Id, ...]:
    """Check a list of ids and return each once."""
    return tuple(
        dict.fromkeys(
            parse_ids(
                [*check_list(raw, where)], id_type, lambda index: f"{where}[{index}]"
            )
        )
    )


def check_list(raw: Any, where: str) -> Sequence[Any]:
    if not isinstance(raw, (list, tuple, np.ndarray)):
        raise SchemaError(f"{where} is {show(raw)}; expected a list")
    return raw.tolist() if isinstance(raw, np.ndarray) else raw


def parse_value(value: Any, feature: Feature, where: str) -> Any:
    """Check the value of a feature: of its kind, finite, a vector of its width; None is missing."""
    value = to_plain(value)
    if value is None:
        return None
    if feature.kind == "numeric":
        return parse_number(value, where)
    if feature.kind == "vector":
        (vector,) = to_vectors(feature, [value])
        return None if np.isnan(vector).all() else Vector(vector.tobytes())
    if (
        feature.kind == "date"
    ):  # a number as a text: its unit would be that of its column
        (seconds,) = parse_times([value], None, lambda _: where)
        return (
            value
            if isinstance(value, str) and "-" in value
            else f"{np.datetime64(seconds, 's')}Z"
        )
    if feature.kind in (*SEVERAL, "text") and isinstance(
        value, (list, tuple, np.ndarray)
    ):
        return [
            parse_label(part, f"{where}[{index}]") for index, part in enumerate(value)
        ]
    return parse_label(value, where)


def parse_number(value: Any, where: str) -> float:
    value = to_plain(value)
    if type(value) in (int, float, Decimal) and abs(value) < 2**1023:
        return float(value)
    raise SchemaError(f"{where} is {show(value)}; expected a number, finite or null")


def check_number(
    value: Any, where: str, low: float, high: float, kind: type = float
) -> float:
    """Return a number within its bounds, a whole one if `kind` is int."""
    if type(value := to_plain(value)) not in (int, kind) or not low <= value <= high:
        raise SchemaError(
            f"{where} is {show(value)}; expected a number from {low:g} to {high:g}"
        )
    return float(value)


def parse_weight(value: Any, where: str) -> float | None:
    weight = None if value is None else parse_number(value, where)
    if weight is not None and weight < 0:
        raise SchemaError(f"{where} is {weight}; expected 0 or more")
    return weight


def parse_label(value: Any, where: str) -> Any:
    """Return a text, number or bool as it is: `to_text` makes them equal to the vocabulary's."""
    value = to_plain(value)
    if value is not None and not isinstance(value, (str, bool)):
        parse_number(value, where)
    return value


def parse_times(
    values: list[Any], timezone: str | None, name_of: Callable[[int], str]
) -> list[int]:
    """Return UTC seconds; all values are read in one unit. `name_of` says where the value at an index stands."""
    try:
        seconds, is_valid = to_seconds(values, timezone)
    except SchemaError as error:
        raise SchemaError(f"{name_of(0)}: {error}") from error
    if not is_valid.all():
        index = int(np.argmin(is_valid))
        raise SchemaError(
            f"{name_of(index)} is {show(values[index])}; expected an ISO time, or seconds since 1970"
        )
    return list(seconds.tolist())


def check_id(value: Id, where: str) -> None:
    """Refuse what is no id of any bundle, of texts or of integers."""
    parse_id(value, "string" if isinstance(value, str) else "integer", where)


def check_seconds(value: Any, where: str) -> None:
    """Refuse what is no whole UTC seconds of the years 1 to 9999: milliseconds of today are not among these."""
    if type(to_plain(value)) is not int or not FIRST_SECOND <= value <= LAST_SECOND:
        raise SchemaError(
            f"{where} is {show(value)}; expected whole UTC seconds since 1970, of the years 1 to 9999"
        )


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
