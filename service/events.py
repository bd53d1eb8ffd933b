"""The records of a state: events, impressions of answers, and what is recalled of a user.

An event has one record on its way from the body of a request over the log to the table that
training reads. A new field goes into `Observation`, the body in `service/http/schemas.py`, and the
tables and columns of `service/log.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from serve.clock import DAY
from serve.encode import to_text
from serve.errors import SchemaError
from serve.requests import (
    History,
    Id,
    check_id,
    check_seconds,
    parse_id,
    parse_label,
    parse_times,
    parse_weight,
    show,
)
from serve.schema import Schema

DISMISS = "dismiss"  # hides an item and, like its opposite, is no part of a history
UNDISMISS = "undismiss"
_CLOCK_TOLERANCE = DAY  # seconds that a caller's clock or time zone may be ahead
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Observation:
    """An event of a user. The bundle need not know the item: a later one may.

    Raises:
        SchemaError: the state could not read the event again, such as a time in milliseconds.
    """

    user_id: Id
    item_id: Id
    event: str | None  # type, such as `purchase` or `DISMISS`
    datetime: int  # UTC seconds
    weight: float | None = None  # NaN is None, too
    request_id: str | None = None  # the answer that the user reacted to

    def __post_init__(self) -> None:
        check_id(self.user_id, "user_id")
        check_id(self.item_id, "item_id")
        check_seconds(self.datetime, "datetime")

        is_nan = self.weight != self.weight
        if not is_nan:
            parse_weight(self.weight, "weight")

        if not isinstance(self.event, str | None):
            raise SchemaError(f"event is {show(self.event)}; expected a text, or None")


@dataclass(frozen=True)
class Impressions:
    """The items of one answer, best first: the item at index i was shown at position i + 1."""

    request_id: str  # a request for many users has many answers
    user_id: Id | None
    datetime: int  # UTC seconds
    bundle_version: str
    policy: str  # how the order came about, such as `greedy`: by falling score
    item_ids: Sequence[Id]
    scores: Sequence[float]
    propensities: Sequence[float]  # P(item at its position | request), 1 if not drawn
    arm: str | None = None

    def __post_init__(self) -> None:
        check_seconds(self.datetime, "datetime")
        if self.user_id is not None:
            check_id(self.user_id, "user_id")


@dataclass(frozen=True)
class Recalled:
    """The live events of a user, oldest first, and their dismissed items."""

    history: History = field(
        default_factory=lambda: History(np.empty(0, dtype=np.object_))
    )
    dismissed: tuple[Id, ...] = ()
    is_forgotten: bool = False


def parse_observations(
    raw: Sequence[Mapping[str, Any]], schema: Schema, now: int
) -> list[Observation]:
    """Read events as a caller sends them, with ids of the types of the bundle.

    Args:
        raw: mappings with user_id, item_id and, optionally, event, datetime, weight, request_id.
        schema: the schema of the bundle that answers.
        now: UTC seconds, the time of events without one.

    Raises:
        SchemaError: names the first event and field that cannot be read, as `events[3].weight`.
    """
    return [
        _parse(event, f"events[{index}]", schema, now)
        for index, event in enumerate(raw)
    ]


def _parse(raw: Mapping[str, Any], where: str, schema: Schema, now: int) -> Observation:
    moment = raw.get("datetime")
    seconds = now
    if moment is not None:
        times = parse_times([moment], schema.timezone, lambda _: f"{where}.datetime")
        seconds = times[0]
    if seconds > now + _CLOCK_TOLERANCE:
        raise SchemaError(
            f"{where}.datetime is {show(moment)}; expected the time when it happened, "
            "not one to come"
        )

    request_id = raw.get("request_id")
    is_text = isinstance(request_id, str)
    if request_id is not None and not (is_text and _REQUEST_ID.fullmatch(request_id)):
        raise SchemaError(
            f"{where}.request_id is {show(request_id)}; expected the request_id of an "
            "answer"
        )

    return Observation(
        user_id=parse_id(raw.get("user_id"), schema.user_id_type, f"{where}.user_id"),
        item_id=parse_id(raw.get("item_id"), schema.item_id_type, f"{where}.item_id"),
        event=to_text(parse_label(raw.get("event"), f"{where}.event")),
        datetime=seconds,
        weight=parse_weight(raw.get("weight"), f"{where}.weight"),
        request_id=request_id,
    )
