"""The bodies and answers of the interface: strict types, no unknown names, every length bounded.

Bodies are typed dictionaries rather than models: `serve.requests` and `service.state` read the
same raw dictionaries from Python callers. A new field of an event also goes into the
`Observation` and the tables of `service.state`.
"""

from __future__ import annotations

import json
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    TypeAdapter,
    ValidationError,
    with_config,
)
from typing_extensions import TypedDict

from serve.errors import SchemaError
from serve.recommendations import DueItem, Reason, Segment
from serve.requests import Again, Variants
from service.event_log import REQUEST_ID

MAX_REQUESTS = 256  # requests or events of a body
MAX_EVENTS = 500  # of a history
MAX_IDS = 10_000  # excluded items
MAX_ITEMS = 1000  # k, the items of a list
MAX_LISTED = 32_000  # items of all lists of an answer
MAX_TEXT = 4096  # characters of a text, and cells of a list
MAX_NAMES = 64  # features or columns

Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
ItemId = Name | Annotated[int, Field(ge=-(2**63), lt=2**64)]
Number = int | float
Value = Text | int | float | bool | None
# the first fault of a list ends its check: a body of faults alone would take a minute to list
Cells = Annotated[list[Value], Field(max_length=MAX_TEXT, fail_fast=True)]
Values = Annotated[dict[Name, Value | Cells], Field(max_length=MAX_NAMES)]
Ids = Annotated[list[ItemId], Field(max_length=MAX_IDS, fail_fast=True)]
Limit = Annotated[int, Field(ge=1, le=MAX_ITEMS)]
Length = Annotated[
    int,
    Field(
        ge=1,
        le=MAX_ITEMS,
        description=f"Items of a list; all lists of a body hold {MAX_LISTED:,} at most.",
    ),
]
Repeats = Literal["allow", "exclude"] | None
Explain = Annotated[
    bool,
    Field(
        description="Also give each item's columns and reasons, and the user's segment."
    ),
]
Dial = Annotated[float, Field(ge=0, le=1)]
_strict = with_config(
    strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
)


@_strict
class PastEvent(TypedDict, total=False):
    item_id: ItemId
    """As in the data; items that the bundle does not know are skipped."""
    datetime: Text | Number | None
    event: Text | None
    weight: Number | None
    context: Values | None
    """The context of the event."""


@_strict
class FilterBody(TypedDict, total=False):
    """Conditions that an item must meet to be listed."""

    where: Text | None
    """A condition on the columns of the items."""
    only: Ids | None
    """Only these items."""
    at_most: Annotated[dict[Name, Limit] | None, Field(max_length=MAX_NAMES)]
    """Column -> most items of one value."""


# fields that other bodies inherit have a description: a docstring would not be inherited
@_strict
class RequestBody(TypedDict, total=False):
    """A user and a moment: all of it may be left out."""

    user_id: ItemId | None
    features: Annotated[
        Values | None, Field(description="Features of the user; null is missing.")
    ]
    history: (
        Annotated[
            list[PastEvent | ItemId],
            Field(
                max_length=MAX_EVENTS,
                fail_fast=True,
                description="Events, or ids of items; the oldest first.",
            ),
        ]
        | None
    )
    context: Values | None
    datetime: Annotated[
        Text | Number | None,
        Field(
            description="By default the beginning of this minute, the latest event if that came "
            "later, or the end of data that ended long ago, with what happened since then after it."
        ),
    ]
    exclude: Annotated[Ids | None, Field(description="Items that must not be listed.")]
    filters: FilterBody | None
    again: Annotated[
        Again | None,
        Field(description="`any` lists what was just taken, though not due yet."),
    ]
    variants: Annotated[
        Variants | None,
        Field(description="`any` lifts the limit of variants in the first rows."),
    ]
    profile: Annotated[
        bool | None,
        Field(description="`false`: nothing personal is read, and nothing is kept."),
    ]


@_strict
class DialsBody(TypedDict, total=False):
    """The order of a list; 0, the default, leaves it as it is."""

    diversity: Annotated[
        Dial, Field(description="Weight of an item's likeness to those above it.")
    ]
    novelty: Annotated[
        Dial, Field(description="Weight of an item's likeness to the user's own past.")
    ]
    new_share: Annotated[
        Dial, Field(description="The least share of new items among the first places.")
    ]


@_strict
class RecommendBody(RequestBody, DialsBody, total=False):
    k: Length
    repeats: Repeats
    explain: Explain


@_strict
class RecommendManyBody(DialsBody):
    """Many requests with one length of lists."""

    requests: Annotated[
        list[RequestBody], Field(min_length=1, max_length=MAX_REQUESTS, fail_fast=True)
    ]
    k: NotRequired[Length]
    repeats: NotRequired[Repeats]


@_strict
class SimilarBody(TypedDict):
    item_id: ItemId
    k: NotRequired[Length]
    explain: NotRequired[Explain]


@_strict
class DueBody(RequestBody, total=False):
    k: Length


@_strict
class EventBody(TypedDict):
    """An event of a user; `dismiss` keeps the item away from them until `undismiss`."""

    user_id: ItemId
    item_id: ItemId
    event: NotRequired[Text | None]
    datetime: NotRequired[Text | Number | None]
    """By default now."""
    weight: NotRequired[Number | None]
    request_id: NotRequired[Text | None]
    """Id of the answer that the event follows."""
    context: NotRequired[Values | None]
    """In which it happened, as requests have it."""


@_strict
class EventsBody(TypedDict):
    """Many events: all are kept or none."""

    events: Annotated[
        list[EventBody], Field(min_length=1, max_length=MAX_REQUESTS, fail_fast=True)
    ]


def find_tag(body: Any, name: str) -> str:
    """Tell a body of many requests or events by the name of their list."""
    return "many" if isinstance(body, dict) and name in body else "one"


EventBodies = Annotated[
    Annotated[EventBody, Tag("one")] | Annotated[EventsBody, Tag("many")],
    Discriminator(lambda body: find_tag(body, "events")),
]
_EVENTS: TypeAdapter[Any] = TypeAdapter(EventBodies)


def read_events(text: bytes) -> list[dict[str, Any]]:
    """Read the body of the route of events where it comes another way, such as by a stream.

    Raises:
        SchemaError: names the first field that the route would refuse.
    """
    try:
        body = _EVENTS.validate_json(text)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        raise SchemaError(f"{fault['loc']}: {fault['msg']}") from error

    events: list[dict[str, Any]] = body.get("events", [body])
    return events


@_strict
class ShownBody(TypedDict):
    """Only lists that are confirmed, or named by an event, count in figures."""

    request_id: Annotated[str, Field(pattern=REQUEST_ID)]
    """Id of the answer that was shown."""


@_strict
class ItemBody(TypedDict):
    columns: Values
    """Column -> value; a column that is not named stays, null is missing."""


@_strict
class ForgetBody(TypedDict):
    user_id: ItemId


# names that an error may repeat: ours, not a caller's
_BODIES = (PastEvent, FilterBody, RecommendBody, RecommendManyBody)
_CHANGES = (EventBody, EventsBody, ShownBody, ItemBody)
FIELDS = frozenset({"search"}).union(
    *(body.__annotations__ for body in (*_BODIES, *_CHANGES))
)


class ReloadAnswer(TypedDict):
    request_id: str
    version: str


class PutAnswer(ReloadAnswer):
    latency_ms: float


class ListedItem(TypedDict):
    item_id: str | int
    name: str
    score: float
    rank: int
    columns: NotRequired[dict[str, Any]]
    reasons: NotRequired[list[Reason]]


class ShortSegment(TypedDict):
    id: int
    size: int
    text: str


class ItemList(TypedDict):
    """The list of one request.

    `reason` says why there are fewer than k items; `unknown_values` names features with a value
    that is new to the bundle; `moment` is the time of the request in UTC seconds; `user_known` is
    false if nothing is known of a `user_id`; `held_back` counts the items that are not listed since
    they were just taken. In an experiment, `arm` is that of the user, and `version` the one that
    gave this list. `profile` is false without personal data; `weights` are shares of reasons.
    """

    items: list[ListedItem]
    unknown_items: int
    moment: int
    user_known: NotRequired[bool]
    held_back: NotRequired[int]
    unknown_values: NotRequired[list[str]]
    profile: NotRequired[bool]
    segment: NotRequired[ShortSegment]
    weights: NotRequired[dict[str, float]]
    reason: NotRequired[str]
    arm: NotRequired[str]
    version: NotRequired[str]


class ListsAnswer(PutAnswer):
    """`clock` is `data` if requests without a datetime are asked at the end of old data."""

    clock: Literal["data", "now"]
    answers: list[ItemList]


class SegmentsAnswer(PutAnswer):
    """The largest first; none where there were too few users, or no stable ones."""

    segments: list[Segment]


class SimilarItem(TypedDict):
    item_id: str | int
    name: str
    cosine: float
    columns: NotRequired[dict[str, Any]]


class SimilarAnswer(PutAnswer):
    """The nearest first; `reason` says why there are fewer than k items."""

    items: list[SimilarItem]
    reason: NotRequired[str]


class DueAnswer(PutAnswer):
    """Items taken on two days or more, the likeliest first; `reason` is why there are few."""

    items: list[DueItem]
    moment: int
    user_known: NotRequired[bool]
    reason: NotRequired[str]


class FoundAnswer(PutAnswer):
    """Listed items with their ids and columns, the popular first."""

    items: list[dict[str, Any]]


class Fault(TypedDict):
    """A code, a sentence and the field; no value that was sent."""

    code: str
    message: str
    field: NotRequired[str]


class FaultAnswer(TypedDict):
    error: Fault
    request_id: str


class EventsAnswer(PutAnswer):
    """The number of events that were kept; old ones, and those of users who left, are not."""

    kept: int
    left_out: NotRequired[str]
    """How many were not kept, and why."""


class DeleteAnswer(PutAnswer):
    was_there: bool


class ForgetAnswer(PutAnswer):
    """A receipt for each folder of profiles or state: what was erased, what is out of reach."""

    receipts: list[dict[str, Any]]
    user_known: bool


# ---- the document of the interface

_KEYED = (400, 401, 403, 404, 421, 429, 500, 503)
ASKING = (405, 408, 413, 415, 422)
_DOCUMENT = Path(__file__).with_name("document.json").read_text()
_FAULTS = json.loads(_DOCUMENT)["faults"]


class Role(IntEnum):
    """The role of a key, and the one that a path needs; each includes those before it."""

    OPEN, ASK, WRITE, ADMIN = range(4)


_OPEN = ("/", "/docs", "/page.css", "/page.js", "/health", "/ready")
_ASK = ("/v1/recommend", "/v1/similar", "/v1/due", "/v1/segments", "/v1/page")
PROFILING = "/v1/users/profiling"
_WRITE = ("/v1/events", "/v1/shown", PROFILING)
ROLES = {  # every other path is for admins
    **dict.fromkeys(_OPEN, Role.OPEN),
    **dict.fromkeys((*_ASK, "/v1/items", "/openapi.json"), Role.ASK),
    **dict.fromkeys(_WRITE, Role.WRITE),
}
_KEY = {
    "type": "http",
    "scheme": "bearer",
    "description": "A key with one of the roles ask, write and admin.",
}


def describe_errors(*more: int) -> dict[int | str, dict[str, Any]]:
    """Describe the error answers of a route: those that every route may give, and more."""
    return {
        status: {"model": FaultAnswer, "description": _FAULTS[str(status)]}
        for status in sorted((*_KEYED, *more))
    }


def describe(document: dict[str, Any], item_ids: NDArray[np.generic]) -> dict[str, Any]:
    """Complete the OpenAPI document by the roles of keys and by examples.

    Args:
        document: of the routes.
        item_ids: (N,) the ids of the catalogue.
    """
    document["components"]["securitySchemes"] = {"key": _KEY}
    first, last = item_ids[[0, -1]].tolist()
    text = _DOCUMENT.replace('"FIRST"', json.dumps(first))
    examples = json.loads(text.replace('"LAST"', json.dumps(last)))["examples"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            role = ROLES.get(path, Role.ADMIN)
            operation["security"] = [{"key": [role.name.lower()]}] if role else []
            if method == "put":
                operation["parameters"][0]["example"] = str(first)
            if method != "delete" and path in examples:
                (content,) = operation["requestBody"]["content"].values()
                content["examples"] = {
                    summary: {"summary": summary, "value": value}
                    for summary, value in examples[path].items()
                }

    return document
