"""The bodies and answers of the interface: strict types, no unknown names, every length bounded.

Typed dictionaries rather than models: what is checked here is the raw request that `serve.requests` reads, and
the raw event that `serve.state` reads: a new field of an event also goes into its `Observation` and tables.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, StringConstraints, with_config
from typing_extensions import TypedDict

MAX_REQUESTS, MAX_EVENTS, MAX_IDS = 256, 500, 10_000  # of a body (events too), of a history, of excluded items
MAX_ITEMS, MAX_LISTED = 1000, 32_000  # of a list (k), of all lists of an answer
MAX_TEXT, MAX_NAMES = 4096, 64  # characters of a text, features or columns

Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
ItemId = Annotated[str, StringConstraints(min_length=1, max_length=256)] | int
Number = int | float
Value = Text | int | float | bool | None
# the first fault of a list ends its check: a body of faults alone would take a minute to list
Cells = Annotated[list[Value], Field(max_length=MAX_TEXT, fail_fast=True)]
Values = Annotated[dict[Name, Value | Cells], Field(max_length=MAX_NAMES)]
Ids = Annotated[list[ItemId], Field(max_length=MAX_IDS, fail_fast=True)]
Length = Annotated[
    int, Field(ge=1, le=MAX_ITEMS, description=f"Items of a list at most; of all lists of a body {MAX_LISTED}.")
]
Repeats = Literal["allow", "exclude"] | None
Explain = Annotated[bool, Field(description="Give each item's columns, and the item of the history nearest to it.")]
_strict = with_config(strict=True, extra="forbid", allow_inf_nan=False)


@_strict
class PastEvent(TypedDict, total=False):
    item_id: Annotated[ItemId, Field(description="As in the data; an item that the bundle does not know is skipped.")]
    datetime: Text | Number | None
    event: Text | None
    weight: Number | None


@_strict
class FilterBody(TypedDict, total=False):
    """Conditions that an item must meet to be listed."""

    where: Annotated[Text | None, Field(description="A condition on the columns of the items.")]
    only: Annotated[Ids | None, Field(description="Only these items.")]
    at_most: Annotated[
        dict[Name, Annotated[int, Field(ge=1, le=MAX_ITEMS)]] | None,
        Field(max_length=MAX_NAMES, description="Column -> how many items of one value."),
    ]


@_strict
class RequestBody(TypedDict, total=False):
    """A user and a moment: all of it may be left out."""

    user_id: ItemId | None
    features: Annotated[Values | None, Field(description="Of the user, by name; null is missing.")]
    history: (
        Annotated[list[PastEvent], Field(max_length=MAX_EVENTS, fail_fast=True, description="Oldest first.")] | None
    )
    context: Values | None
    datetime: Annotated[
        Text | Number | None,
        Field(description="By default the beginning of this minute, or the latest event if that came later."),
    ]
    exclude: Annotated[Ids | None, Field(description="Items that are not to be listed.")]
    filters: FilterBody | None


@_strict
class AskOne(RequestBody, total=False):
    k: Length
    repeats: Repeats
    explain: Explain


@_strict
class AskMany(TypedDict):
    """Many requests with one length of lists."""

    requests: Annotated[list[RequestBody], Field(min_length=1, max_length=MAX_REQUESTS, fail_fast=True)]
    k: NotRequired[Length]
    repeats: NotRequired[Repeats]


@_strict
class AskSimilar(TypedDict):
    item_id: ItemId
    k: NotRequired[Length]
    explain: NotRequired[Explain]


@_strict
class EventBody(TypedDict):
    """An event of a user; `dismiss` keeps the item away from them from now on, until `undismiss`."""

    user_id: ItemId
    item_id: ItemId
    event: NotRequired[Text | None]
    datetime: NotRequired[Annotated[Text | Number | None, Field(description="By default now.")]]
    weight: NotRequired[Number | None]
    request_id: NotRequired[Annotated[Text | None, Field(description="Of the answer that the event follows.")]]


@_strict
class EventsBody(TypedDict):
    """Many events: all are kept or none."""

    events: Annotated[list[EventBody], Field(min_length=1, max_length=MAX_REQUESTS, fail_fast=True)]


@_strict
class ItemBody(TypedDict):
    columns: Annotated[Values, Field(description="Column -> value; one that is not given stays, null is missing.")]


@_strict
class ForgetBody(TypedDict):
    user_id: ItemId


_BODIES = (PastEvent, FilterBody, AskOne, AskMany, AskSimilar, EventBody, EventsBody, ItemBody)
FIELDS = frozenset().union(*(body.__annotations__ for body in _BODIES)) | frozenset(RequestBody.__annotations__)
"""Names that an error may repeat: ours, not a caller's."""


class Loaded(TypedDict):
    request_id: str
    version: str


class Head(Loaded):
    latency_ms: float


class Because(TypedDict):
    item_id: str | int
    cosine: float


class Listed(TypedDict):
    item_id: str | int
    score: float
    rank: int
    columns: NotRequired[dict[str, Any]]
    because: NotRequired[Because | None]


class List_(TypedDict):
    """`reason` is why there are fewer than k items; `unknown_values` names features with a value new to the bundle."""

    items: list[Listed]
    unknown_items: int
    unknown_values: NotRequired[list[str]]
    reason: NotRequired[str]


class ListsAnswer(Head):
    answers: list[List_]


class Near(Because):
    columns: NotRequired[dict[str, Any]]


class SimilarAnswer(Head):
    """The nearest first; `reason` says why there are fewer than k items."""

    items: list[Near]
    reason: NotRequired[str]


class Said(TypedDict):
    """A fault: its code, a sentence and the field; no value that was sent is in it."""

    code: str
    message: str
    field: NotRequired[str]


class FaultAnswer(TypedDict):
    error: Said
    request_id: str


class Told(Head):
    """The number of events that were kept: not those of forgotten users, nor those that are too old."""

    kept: int


class Removed(Head):
    was_there: bool


class Forgotten(Head):
    """A receipt for each folder that has profiles or state: what was erased, and what is out of reach."""

    receipts: list[dict[str, Any]]


_Faults = dict[int | str, dict[str, Any]]
ERRORS: _Faults = {status: {"model": FaultAnswer} for status in (400, 404, 405, 413, 415, 422, 503)}
REFUSED: _Faults = {status: {"model": FaultAnswer} for status in (401, 403, 409)}
_NEW: Any = {"history": [{"item_id": "12"}, {"item_id": "31"}], "k": 5}
ASK_EXAMPLES: Any = {
    "known": {"summary": "A known user", "value": {"user_id": "7", "k": 5}},
    "new": {"summary": "Somebody new, with a history", "value": _NEW},
    "many": {"summary": "Many at once", "value": {"requests": [{"user_id": "7"}, {"user_id": "8"}], "k": 5}},
}
SIMILAR_EXAMPLES: Any = {"near": {"summary": "The nearest five", "value": {"item_id": "12", "k": 5}}}
EVENT_EXAMPLES: Any = {
    "one": {"summary": "A user took an item", "value": {"user_id": "7", "item_id": "12"}},
    "dismiss": {"summary": "Never again", "value": {"user_id": "7", "item_id": "31", "event": "dismiss"}},
    "many": {"summary": "Many at once", "value": {"events": [{"user_id": "7", "item_id": "12", "weight": 2}]}},
}
ITEM_EXAMPLES: Any = {"stock": {"summary": "Out of stock", "value": {"columns": {"in_stock": False}}}}
FORGET_EXAMPLES: Any = {"one": {"summary": "Erase a user", "value": {"user_id": "7"}}}
