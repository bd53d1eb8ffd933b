"""Requests and the one place where they are checked: here, and not again after it.

    {user_id?, features?: {name: value}, context?: {name: value}, datetime?, exclude?: [item_id],
     history?: [item_id | {item_id, datetime?, event?, weight?, context?}] (oldest first),
     filters?: {where?: text, only?: [item_id], at_most?: {column: n}}, again?: "due" or "any",
     variants?: "few" or "any", profile?: true or false}

None counts as not given. Single values are checked in `cells`, those of features by their `kinds`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from serve.arrays import Doubles, Id, IdType, Ints, Objects
from serve.cells import (
    check_list,
    parse_distinct_ids,
    parse_ids,
    parse_label,
    parse_weight,
    to_text,
)
from serve.clock import DAY, check_seconds, parse_times
from serve.encode import TIME, context_keys, encode_rows, keyed_by_name
from serve.errors import MAX_SHOWN, SchemaError, name_nearest, show
from serve.kinds import Feature
from serve.schema import Schema

# What was just taken is listed again when it may be due, or at any time.
Again = Literal["due", "any"]
Variants = Literal["few", "any"]  # of a thing, in the first rows of a list

MINUTE = 60  # within which a request is answered alike
# Without events for longer, popularity and memory would have faded.
MAX_PAUSE = 30 * DAY


@dataclass(frozen=True, eq=False)
class History:
    """Events of a user or of several, oldest first; None for what the data does not have.

    Attributes:
        item_id: (n,) int64, or object with texts.
        datetime: (n,) UTC seconds.
        event: (n,) texts, None where there is none.
        weight: (n,) NaN where there is none.
        context: (n,) keys as of `serve.encode.context_keys`, 0 where there is none.
    """

    item_id: NDArray[np.generic]
    datetime: Ints | None = None
    event: Objects | None = None
    weight: Doubles | None = None
    context: Ints | None = None

    def __len__(self) -> int:
        return len(self.item_id)

    def take(self, index: slice | NDArray[np.generic]) -> History:
        """Return some of the events: a view for a slice."""
        columns = self.columns()
        return History(**{name: values[index] for name, values in columns.items()})

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that there are, by name."""
        columns = vars(self)
        return {name: array for name, array in columns.items() if array is not None}


@dataclass(frozen=True)
class Filters:
    """Which items may be listed; checked against the columns of the catalogue when applied.

    Attributes:
        where: an expression on item columns.
        only: the ids that may be listed.
        at_most: (column, how many items of one list may share a value of it).
    """

    where: str | None = None
    only: tuple[Id, ...] | None = None
    at_most: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Request:
    """A checked request; a field that is None was not given.

    Attributes:
        features: name -> value of user features, None where it is said to be missing.
        context: name -> value of context features.
        datetime: UTC seconds.
        again: whether items that were just taken are listed before they may be due again.
        variants: whether those of a thing are few in the first rows, where the bundle limits them.
        n_fresh: how many events at the end of the history count as just now; None: those of the
            last day, and all that have no time.
        held: items of the profile's last day, each with the UTC second from which it may be due.
        user_known: whether there is anything about the user; None where nobody looked.
        profile: whether personal data may be used: who they are, their history and features.
    """

    user_id: Id | None = None
    features: Mapping[str, Any] | None = None
    history: History | None = None
    context: Mapping[str, Any] | None = None
    datetime: int | None = None
    exclude: tuple[Id, ...] = ()
    filters: Filters | None = None
    again: Again = "due"
    variants: Variants = "few"
    n_fresh: int | None = None
    held: tuple[tuple[Id, int], ...] = ()
    user_known: bool | None = None
    profile: bool = True


_EVENT_FIELDS = frozenset(field.name for field in fields(History))
_FILTER_FIELDS = frozenset(field.name for field in fields(Filters))


def parse_request(raw: Mapping[str, Any], schema: Schema) -> Request:
    """Check a request against the schema of a bundle.

    Args:
        raw: the request as it came, of the form that the module shows.
        schema: the schema of the bundle that is to answer.

    Raises:
        SchemaError: names the first field that is wrong.
    """
    parsed = {}
    for name, value in check_fields(raw, _PARSERS, "request").items():
        if value is not None:
            parsed[name] = _PARSERS[name](value, schema)

    request = Request(**parsed)
    return request if request.profile else without_profile(request)


def without_profile(request: Request) -> Request:
    """Return a request of nobody: moment, context and conditions stay, personal data does not."""
    return replace(
        request,
        user_id=None,
        features=None,
        history=None,
        n_fresh=None,
        held=(),
        user_known=None,
        profile=False,
    )


def fit_request(request: Request, schema: Schema) -> Request:
    """Check the ids and the time of a request that was made by hand."""
    if not request.profile:
        request = without_profile(request)
    item_type = schema.item_id_type
    user_id = request.user_id
    if user_id is not None:
        user_id = schema.parse_user_id(user_id, "user_id")

    filters = request.filters
    if filters is not None and filters.only is not None:
        only = parse_distinct_ids(filters.only, item_type, "filters.only")
        filters = replace(filters, only=only)

    if request.datetime is not None:
        check_seconds(request.datetime, "datetime")

    exclude = parse_distinct_ids(request.exclude, item_type, "exclude")
    return replace(request, user_id=user_id, exclude=exclude, filters=filters)


def ask_now(request: Request, data_until: int | None, now: int) -> Request:
    """Return a request that is asked now, or at the end of data that ended long ago.

    The moment is the beginning of this minute, or the latest event if that came later. If the end
    of the data is given, the first pause of more than `MAX_PAUSE` after it is left out: the moment
    and the events after the pause move back by it. A datetime of the request itself stays; one in
    the pause is how long after the data, and after the events that follow it, the request is asked.

    Args:
        request: what is asked.
        data_until: UTC seconds just after the last training event; None: no pause is left out.
        now: UTC seconds.
    """
    history = request.history
    times = np.empty(0, np.int64)
    if history is not None and history.datetime is not None:
        times = history.datetime

    past = times[times <= now]
    moment = max([now - now % MINUTE, *past[-1:].tolist()])
    asked = request.datetime
    if data_until is None:
        return replace(request, datetime=moment if asked is None else asked)

    moments = np.array([data_until, *past[past > data_until], moment])
    pauses = np.diff(moments)
    for place in np.flatnonzero(pauses > MAX_PAUSE)[:1]:
        pause = int(pauses[place])
        moment -= pause
        resumed = moments[place + 1]
        if history is not None and len(times) and (asked is None or asked < resumed):
            moved = times - pause * (times >= resumed)
            history = replace(history, datetime=moved)

    moment = moment if asked is None else asked
    return replace(request, history=history, datetime=moment)


def check_fields(raw: Any, allowed: Collection[str], where: str) -> Mapping[Any, Any]:
    """Refuse what is no mapping, or has another name than those allowed."""
    if not isinstance(raw, Mapping):
        raise SchemaError(
            f"{where} is {show(raw)}; expected a mapping of names to values"
        )

    for name in raw:
        if name not in allowed:
            nearest = name_nearest(str(name)[:MAX_SHOWN], allowed)
            raise SchemaError(f"{where}: unknown name {show(name)}; {nearest}")

    return raw


# ---- filters


def parse_filters(raw: Any, item_id_type: IdType) -> Filters | None:
    """Check the shape of filters; None if they filter nothing.

    Raises:
        SchemaError: a part of the filters is of another type.
    """
    parts = check_fields(raw, _FILTER_FIELDS, "filters")
    where = parts.get("where")
    if not isinstance(where, str | None):
        raise SchemaError(
            f"filters.where is {show(where)}; "
            "expected a text, as in \"price <= 20 and brand = 'x'\""
        )

    limits = parts.get("at_most") or {}
    if not isinstance(limits, Mapping):
        raise SchemaError(
            f"filters.at_most is {show(limits)}; expected a mapping of columns to numbers"
        )

    only = parts.get("only")
    if only is not None:
        only = parse_distinct_ids(only, item_id_type, "filters.only")

    at_most = []
    for column, limit in limits.items():
        if limit is None:
            continue
        if not isinstance(column, str) or type(limit) is not int or limit < 1:
            raise SchemaError(
                f"filters.at_most of {show(column)} is {show(limit)}; "
                "expected a whole number, 1 or more"
            )
        at_most.append((column, limit))

    filters = Filters(where, only, tuple(sorted(at_most)))
    return None if filters == Filters() else filters


def join_filters(first: Filters, second: Filters) -> Filters:
    """Return the filters that admit what both admit."""
    where = first.where or second.where
    if first.where and second.where:
        where = f"({first.where}) and ({second.where})"

    only = first.only if second.only is None else second.only
    if first.only is not None and second.only is not None:
        admitted = set(second.only)
        only = tuple(item_id for item_id in first.only if item_id in admitted)

    # Of one column, the least limit comes last and stays.
    limits = dict(sorted((*first.at_most, *second.at_most), reverse=True))
    return Filters(where, only, tuple(sorted(limits.items())))


# ---- fields of a request


def _parse_again(raw: Any) -> Any:
    if raw not in get_args(Again):
        raise SchemaError(
            f"again is {show(raw)}; allowed: 'due' holds back what was just taken until it may "
            "be due again, 'any' lists it"
        )
    return raw


def _parse_profile(raw: Any) -> bool:
    if not isinstance(raw, bool):
        raise SchemaError(
            f"profile is {show(raw)}; allowed: true, or false for a list without personal data"
        )
    return raw


def parse_context(raw: Any, schema: Schema, where: str = "context") -> dict[str, Any]:
    """Check the context of a request or an event."""
    return _parse_values(raw, schema.context_features, where)


def _parse_values(raw: Any, side: Sequence[Feature], where: str) -> dict[str, Any]:
    features = {feature.name: feature for feature in side if not feature.is_derived}
    values = {}
    for name, value in check_fields(raw, features, where).items():
        values[name] = features[name].parse(value, f"{where}.{name}")
    return values


# ---- histories


def _parse_history(raw: Any, schema: Schema) -> History:
    """Check events column by column; an id stands for an event of that item."""
    entries = [
        entry if isinstance(entry, Mapping) else {"item_id": entry}
        for entry in check_list(raw, "history")
    ]
    for i, entry in enumerate(entries):
        if type(entry) is not dict or not entry.keys() <= _EVENT_FIELDS:
            check_fields(entry, _EVENT_FIELDS, f"history[{i}]")

    raw_ids = [entry.get("item_id") for entry in entries]
    id_type = schema.item_id_type
    ids = parse_ids(raw_ids, id_type, lambda i: f"history[{i}].item_id")
    item_ids = np.array(ids, np.int64 if id_type == "integer" else np.object_)
    times = _parse_history_times(entries, schema.timezone)
    events = _parse_column(entries, "event", _parse_event, np.object_)
    weights = _parse_column(entries, "weight", parse_weight, np.float64)
    contexts = [parse_context(entry.get("context") or {}, schema) for entry in entries]
    keys = key_contexts(contexts, times, schema)
    return History(item_ids, times, events, weights, keys)


def _list_values(entries: Sequence[Any], name: str) -> list[Any] | None:
    """Return the values of a field of all events; None if no event has it."""
    values = [entry.get(name) for entry in entries]
    return None if values.count(None) == len(values) else values


def _parse_history_times(entries: Sequence[Any], timezone: str | None) -> Ints | None:
    values = _list_values(entries, "datetime")
    if values is None:
        return None
    if None in values:
        raise SchemaError(
            "history: some events have a datetime and some have none; give all or none"
        )

    times = np.array(parse_times(values, timezone, lambda i: f"history[{i}].datetime"))
    earlier = np.flatnonzero(np.diff(times) < 0)
    if len(earlier):
        raise SchemaError(
            f"history[{earlier[0] + 1}] is earlier than the event before it; "
            "give the oldest first"
        )

    return times


def _parse_column(
    entries: Sequence[Any], name: str, parse: Callable[[Any, str], Any], dtype: type
) -> NDArray[Any] | None:
    """Return the checked values of a field of all events; None if no event has it."""
    values = _list_values(entries, name)
    if values is None:
        return None
    checked = [parse(value, f"history[{i}].{name}") for i, value in enumerate(values)]
    return np.array(checked, dtype)


def _parse_event(value: Any, where: str) -> str | None:
    return to_text(parse_label(value, where))


def key_contexts(
    contexts: Sequence[Mapping[str, Any]], times: Ints | None, schema: Schema
) -> Ints | None:
    """Return the keys of the contexts of n events, (n,); None if nothing is known.

    Args:
        contexts: (n,) name -> value as it was checked.
        times: (n,) UTC seconds, None where events have none.
        schema: of the bundle that answers.
    """
    if not schema.context_features:
        return None

    seconds = [None] * len(contexts) if times is None else times.tolist()
    rows = [
        {**context, TIME: time} for context, time in zip(contexts, seconds, strict=True)
    ]
    features = keyed_by_name(schema.context_features)
    codes = encode_rows(features, rows, schema.timezone).codes
    keys = context_keys(features, codes)
    return keys if keys.any() else None


def _parse_variants(raw: Any) -> Any:
    if raw not in get_args(Variants):
        raise SchemaError(
            f"variants is {show(raw)}; allowed: 'few' lists few of one thing in the first rows "
            "where the bundle limits them, 'any' lists all"
        )
    return raw


# Field of a request -> how it is checked.
_PARSERS: dict[str, Callable[[Any, Schema], Any]] = {
    "user_id": lambda raw, schema: schema.parse_user_id(raw, "user_id"),
    "features": lambda raw, schema: _parse_values(
        raw, schema.user_features, "features"
    ),
    "history": _parse_history,
    "context": parse_context,
    "datetime": lambda raw, schema: parse_times(
        [raw], schema.timezone, lambda _: "datetime"
    )[0],
    "exclude": lambda raw, schema: parse_distinct_ids(
        raw, schema.item_id_type, "exclude"
    ),
    "filters": lambda raw, schema: parse_filters(raw, schema.item_id_type),
    "again": lambda raw, _: _parse_again(raw),
    "variants": lambda raw, _: _parse_variants(raw),
    "profile": lambda raw, _: _parse_profile(raw),
}
