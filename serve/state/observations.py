"""What a user did while a bundle serves: one event, checked where it comes in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any

from serve.declared_types import check_declared_types
from serve.encode import to_text
from serve.errors import SchemaError, name_nearest
from serve.requests import (
    MAX_SHOWN,
    Id,
    check_id,
    check_list,
    check_seconds,
    parse_id,
    parse_label,
    parse_times,
    parse_weight,
    show,
)
from serve.schema import Schema

DISMISS = "dismiss"
"""Type of the event that keeps its item away from the user; it is no part of her history."""
UNDISMISS = "undismiss"
"""Type of the event that takes dismissals before it back; no part of her history either."""

_CLOCK_TOLERANCE = 86_400  # seconds that a caller's clock, or its time zone, may be ahead of ours
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Observation:
    """An event of a user; of an item that the bundle does not know too, since it may come to know it."""

    user_id: Id
    item_id: Id
    event: str | None
    """Type, such as `purchase` or `DISMISS`."""
    datetime: int
    """UTC seconds."""
    weight: float | None = None
    request_id: str | None = None
    """Of the answer that she reacted to."""


_FIELDS = tuple(field.name for field in fields(Observation))
_ID, _TEXT, _NUMBER = (str, int), (str, NoneType), (float, NoneType)
_PLAIN: tuple[tuple[type, ...], ...] = (_ID, _ID, _TEXT, (int,), _NUMBER, _TEXT)
"""What the values of most events are, field by field: seen at one look."""


def check_observation(one: Observation) -> None:
    """Refuse an event that nobody could read again; a weight of NaN is none.

    Raises:
        SchemaError: a value of another type, an id or a number out of range, or a time that is not in seconds.
    """
    if not all(type(value) in kinds for value, kinds in zip(vars(one).values(), _PLAIN, strict=True)):
        check_declared_types(one, "")
    for name, value in (("user_id", one.user_id), ("item_id", one.item_id)):
        check_id(value, name)
    check_seconds(one.datetime, "datetime")
    if one.weight == one.weight:
        parse_weight(one.weight, "weight")


def parse_observations(raw: Any, schema: Schema, now: int) -> list[Observation]:
    """Check a list of {user_id, item_id, event?, datetime?, weight?, request_id?}.

    Args:
        raw: as it came.
        schema: of the bundle, for the types of ids and the time zone.
        now: UTC seconds, the time of events that have none.

    Raises:
        SchemaError: an unknown field, a value of the wrong type, or a time to come; names the event.
    """
    return [_parse(event, f"events[{index}]", schema, now) for index, event in enumerate(check_list(raw, "events"))]


def _parse(raw: Any, where: str, schema: Schema, now: int) -> Observation:
    if not isinstance(raw, Mapping):
        raise SchemaError(f"{where} is {show(raw)}; expected a mapping of names to values")
    for name in raw:
        if name not in _FIELDS:
            nearest = name_nearest(str(name)[:MAX_SHOWN], _FIELDS)
            raise SchemaError(f"{where}: unknown name {show(name)}; {nearest}")
    return Observation(
        user_id=parse_id(raw.get("user_id"), schema.user_id_type, f"{where}.user_id"),
        item_id=parse_id(raw.get("item_id"), schema.item_id_type, f"{where}.item_id"),
        event=to_text(parse_label(raw.get("event"), f"{where}.event")),
        datetime=_parse_time(raw.get("datetime"), f"{where}.datetime", schema.timezone, now),
        weight=parse_weight(raw.get("weight"), f"{where}.weight"),
        request_id=_parse_request_id(raw.get("request_id"), f"{where}.request_id"),
    )


def _parse_time(value: Any, where: str, timezone: str | None, now: int) -> int:
    if value is None:
        return now
    (seconds,) = parse_times([value], timezone, lambda _: where)
    if seconds > now + _CLOCK_TOLERANCE:
        raise SchemaError(f"{where} is {show(value)}, more than a day to come; give the time when it happened")
    return seconds


def _parse_request_id(value: Any, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _REQUEST_ID.fullmatch(value):
        raise SchemaError(f"{where} is {show(value)}; expected the request_id of an answer")
    return value
