"""The bodies and answers of the interface: strict types, no unknown names, every length bounded.

Typed dictionaries rather than models: what is checked here is the raw request that `serve.requests` reads, and
the raw event that `service.state` reads: a new field of an event also goes into its `Observation` and tables.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StringConstraints, with_config
from typing_extensions import TypedDict

from serve.recommendations import DueItem, Reason, Segment

MAX_REQUESTS = 256  # of a body (events too), of a history, of excluded items
MAX_EVENTS = 500
MAX_IDS = 10_000
MAX_ITEMS = 1000  # of a list (k), of all lists of an answer
MAX_LISTED = 32_000
MAX_TEXT = 4096  # characters of a text, features or columns
MAX_NAMES = 64

Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
ItemId = (
    Annotated[str, StringConstraints(min_length=1, max_length=256)]
    | Annotated[int, Field(ge=-(2**63), lt=2**64)]
)
Number = int | float
Value = Text | int | float | bool | None
# the first fault of a list ends its check: a body of faults alone would take a minute to list
Cells = Annotated[list[Value], Field(max_length=MAX_TEXT, fail_fast=True)]
Values = Annotated[dict[Name, Value | Cells], Field(max_length=MAX_NAMES)]
Ids = Annotated[list[ItemId], Field(max_length=MAX_IDS, fail_fast=True)]
Length = Annotated[
    int,
    Field(
        ge=1,
        le=MAX_ITEMS,
        description=f"Items of a list; of all in a body {MAX_LISTED:,} at most.",
    ),
]
Repeats = Literal["allow", "exclude"] | None
Explain = Annotated[
    bool,
    Field(
        description="Give each item's columns and the reasons for it, and the user's segment."
    ),
]
Dial = Annotated[float, Field(ge=0, le=1)]
_strict = with_config(strict=True, extra="forbid", allow_inf_nan=False)


@_strict
class PastEvent(TypedDict, total=False):
    item_id: Annotated[
        ItemId,
        Field(
            description="As in the data; an item that the bundle does not know is skipped."
        ),
    ]
    datetime: Text | Number | None
    event: Text | None
    weight: Number | None
    context: Annotated[
        Values | None, Field(description="As of a request: of the event.")
    ]


@_strict
class FilterBody(TypedDict, total=False):
    """Conditions that an item must meet to be listed."""

    where: Annotated[
        Text | None, Field(description="A condition on the columns of the items.")
    ]
    only: Annotated[Ids | None, Field(description="Only these items.")]
    at_most: Annotated[
        dict[Name, Annotated[int, Field(ge=1, le=MAX_ITEMS)]] | None,
        Field(
            max_length=MAX_NAMES, description="Column -> how many items of one value."
        ),
    ]


@_strict
class RequestBody(TypedDict, total=False):
    """A user and a moment: all of it may be left out."""

    user_id: ItemId | None
    features: Annotated[
        Values | None, Field(description="Of the user, by name; null is missing.")
    ]
    history: (
        Annotated[
            list[PastEvent],
            Field(max_length=MAX_EVENTS, fail_fast=True, description="Oldest first."),
        ]
        | None
    )
    context: Values | None
    datetime: Annotated[
        Text | Number | None,
        Field(
            description="By default the beginning of this minute, the latest event if that came later, or the end "
            "of data that ended long ago, with what happened since then after it."
        ),
    ]
    exclude: Annotated[
        Ids | None, Field(description="Items that are not to be listed.")
    ]
    filters: FilterBody | None


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
class AskOne(RequestBody, DialsBody, total=False):
    k: Length
    repeats: Repeats
    explain: Explain


@_strict
class AskMany(DialsBody):
    """Many requests with one length of lists."""

    requests: Annotated[
        list[RequestBody], Field(min_length=1, max_length=MAX_REQUESTS, fail_fast=True)
    ]
    k: NotRequired[Length]
    repeats: NotRequired[Repeats]


@_strict
class AskSimilar(TypedDict):
    item_id: ItemId
    k: NotRequired[Length]
    explain: NotRequired[Explain]


@_strict
class AskDue(RequestBody, total=False):
    k: Length


@_strict
class EventBody(TypedDict):
    """An event of a user; `dismiss` keeps the item away from them from now on, until `undismiss`."""

    user_id: ItemId
    item_id: ItemId
    event: NotRequired[Text | None]
    datetime: NotRequired[
        Annotated[Text | Number | None, Field(description="By default now.")]
    ]
    weight: NotRequired[Number | None]
    request_id: NotRequired[
        Annotated[
            Text | None, Field(description="Of the answer that the event follows.")
        ]
    ]


@_strict
class EventsBody(TypedDict):
    """Many events: all are kept or none."""

    events: Annotated[
        list[EventBody], Field(min_length=1, max_length=MAX_REQUESTS, fail_fast=True)
    ]


@_strict
class ItemBody(TypedDict):
    columns: Annotated[
        Values,
        Field(
            description="Column -> value; one that is not given stays, null is missing."
        ),
    ]


@_strict
class ForgetBody(TypedDict):
    user_id: ItemId


_BODIES = (
    PastEvent,
    FilterBody,
    AskOne,
    AskMany,
    AskSimilar,
    EventBody,
    EventsBody,
    ItemBody,
)
FIELDS = frozenset({"search"}).union(
    RequestBody.__annotations__, *(body.__annotations__ for body in _BODIES)
)
"""Names that an error may repeat: ours, not a caller's."""


class ReloadAnswer(TypedDict):
    request_id: str
    version: str


class PutAnswer(ReloadAnswer):
    latency_ms: float


class ListedItem(TypedDict):
    item_id: str | int
    score: float
    rank: int
    columns: NotRequired[dict[str, Any]]
    reasons: NotRequired[list[Reason]]


class ShortSegment(TypedDict):
    id: int
    size: int
    text: str


class ItemList(TypedDict):
    """`reason` is why there are fewer than k items; `unknown_values` names features with a value new to the bundle.

    `moment` is when it was asked, in UTC seconds; `user_known` is false of a `user_id` about whom there is nothing. In
    an experiment, `arm` is that of the user, and `version` the one that gave this list.
    """

    items: list[ListedItem]
    unknown_items: int
    moment: int
    user_known: NotRequired[bool]
    unknown_values: NotRequired[list[str]]
    segment: NotRequired[ShortSegment]
    reason: NotRequired[str]
    arm: NotRequired[str]
    version: NotRequired[str]


class ListsAnswer(PutAnswer):
    """`clock` is `data` where requests without a datetime are asked at the end of data that ended long ago."""

    clock: Literal["data", "now"]
    answers: list[ItemList]


class SegmentsAnswer(PutAnswer):
    """The largest first; none where there were too few users, or no stable ones."""

    segments: list[Segment]


class SimilarItem(TypedDict):
    item_id: str | int
    cosine: float
    columns: NotRequired[dict[str, Any]]


class SimilarAnswer(PutAnswer):
    """The nearest first; `reason` says why there are fewer than k items."""

    items: list[SimilarItem]
    reason: NotRequired[str]


class DueAnswer(PutAnswer):
    """The likeliest first: items taken on two days or more; `reason` says why there are fewer than k."""

    items: list[DueItem]
    moment: int
    user_known: NotRequired[bool]
    reason: NotRequired[str]


class FoundAnswer(PutAnswer):
    """Listed items with their ids and columns, what is popular first."""

    items: list[dict[str, Any]]


class Fault(TypedDict):
    """A fault: its code, a sentence and the field; no value that was sent is in it."""

    code: str
    message: str
    field: NotRequired[str]


class FaultAnswer(TypedDict):
    error: Fault
    request_id: str


class EventsAnswer(PutAnswer):
    """The number of events that were kept: not those of forgotten users, nor those that are too old."""

    kept: int


class DeleteAnswer(PutAnswer):
    was_there: bool


class ForgetAnswer(PutAnswer):
    """A receipt for each folder that has profiles or state: what was erased, and what is out of reach."""

    receipts: list[dict[str, Any]]
    user_known: bool


# ---- the document of the interface

_KEYED = (400, 401, 403, 404, 421, 429, 500, 503)
ASKING = (405, 408, 413, 415, 422)
_FAULTS = {
    400: "The body is no JSON, or its length is given twice.",
    401: "The key is missing or unknown.",
    403: "The role of the key does not admit this call, or the service only reads.",
    404: "There is no such path, or not at this port.",
    405: "The path has other methods.",
    408: "The body arrived too slowly.",
    409: "What is current cannot be loaded: the version before answers on.",
    413: "The body is too long.",
    415: "The content-type is not application/json.",
    422: "A value does not fit; `field` says where it stands.",
    421: "The host is not one of this service.",
    429: "The key has asked too often; come back after the seconds of `retry-after`.",
    500: "The service failed; its log says where.",
    503: "Too many requests wait, or the disk fails; come back after the seconds of `retry-after`.",
}


class Role(IntEnum):
    """The role of a key, and the one that a path needs; each includes those before it."""

    OPEN, ASK, WRITE, ADMIN = range(4)


ROLES = {  # every other path is for admins
    **dict.fromkeys(
        ("/", "/docs", "/page.css", "/page.js", "/health", "/ready"), Role.OPEN
    ),
    **dict.fromkeys(
        (
            "/v1/recommend",
            "/v1/similar",
            "/v1/due",
            "/v1/segments",
            "/v1/page",
            "/v1/items",
            "/openapi.json",
        ),
        Role.ASK,
    ),
    "/v1/events": Role.WRITE,
}
_KEY = {
    "type": "http",
    "scheme": "bearer",
    "description": "A key with one of the roles ask, write and admin.",
}


def describe_errors(*more: int) -> dict[int | str, dict[str, Any]]:
    """Describe the error answers of a route: those that every route may give, and more."""
    return {
        status: {"model": FaultAnswer, "description": _FAULTS[status]}
        for status in sorted((*_KEYED, *more))
    }


def describe(
    write: Callable[[], dict[str, Any]], list_ids: Callable[[], NDArray[np.generic]]
) -> dict[str, Any]:
    """Complete the document of the routes, which `write` gives: the roles of keys, and examples with ids of items."""
    document = write()
    ids = list_ids()
    document["components"]["securitySchemes"] = {"key": _KEY}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            role = ROLES.get(path, Role.ADMIN)
            operation["security"] = [{"key": [role.name.lower()]}] if role else []
            if found := _write_examples(*ids[[0, -1]].tolist()).get((method, path)):
                (content,) = operation["requestBody"]["content"].values()
                content["examples"] = {
                    name: {"summary": name, "value": value}
                    for name, value in found.items()
                }
            if method == "put":
                operation["parameters"][0]["example"] = str(ids[0])
    return document


def _write_examples(
    first: str | int, last: str | int
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return bodies by method and path, each with a summary, of a catalogue with these two items."""
    event = {"user_id": "7", "item_id": first}
    return {
        ("post", "/v1/recommend"): {
            "A known user": {"user_id": "7", "k": 5},
            "Somebody new, with a history": {
                "history": [{"item_id": first}, {"item_id": last}],
                "k": 5,
            },
            "Many at once": {"requests": [{"user_id": "7"}, {"user_id": "8"}], "k": 5},
        },
        ("post", "/v1/similar"): {"The nearest five": {"item_id": first, "k": 5}},
        ("post", "/v1/due"): {
            "What a known user takes again": {"user_id": "7", "k": 5}
        },
        ("post", "/v1/events"): {
            "A user took an item": event,
            "Never again": event | {"item_id": last, "event": "dismiss"},
            "Many at once": {"events": [event | {"weight": 2}]},
        },
        ("put", "/v1/items/{item_id}"): {
            "Out of stock": {"columns": {"in_stock": False}}
        },
        ("post", "/v1/users/forget"): {"Erase a user": {"user_id": "7"}},
    }
