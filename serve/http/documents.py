"""What OpenAPI says of answers, with examples. Answers are written as bytes: these types only describe them."""

from __future__ import annotations

from typing import Any, NotRequired

from typing_extensions import TypedDict

from serve.request_values import Id


class Head(TypedDict):
    """What every answer begins with."""

    request_id: str
    version: str
    latency_ms: float


class Because(TypedDict):
    """The item of the history that an item is most like; itself, if it is owned."""

    item_id: Id
    cosine: float


class Listed(TypedDict):
    """An item of a list; rank 1 is the best."""

    item_id: Id
    score: float
    rank: int
    columns: NotRequired[dict[str, Any]]
    because: NotRequired[Because | None]


class List_(TypedDict):
    """The answer to one request.

    `reason` says why there are fewer than k items; `unknown_values` names features and context of which the request
    gives a value that training has not seen.
    """

    items: list[Listed]
    unknown_items: int
    unknown_values: NotRequired[list[str]]
    reason: NotRequired[str]


class ListsAnswer(Head):
    """The answers in the order of the requests."""

    answers: list[List_]


class Near(TypedDict):
    """An item and its cosine to the one that was asked for."""

    item_id: Id
    cosine: float
    columns: NotRequired[dict[str, Any]]


class SimilarAnswer(Head):
    """The nearest first; `reason` says why there are fewer than k items."""

    items: list[Near]
    reason: NotRequired[str]


class Said(TypedDict):
    """What is wrong, and in which field; nothing that was sent is in it."""

    code: str
    message: str
    field: NotRequired[str]


class FaultAnswer(TypedDict):
    """Every answer that is an error."""

    error: Said
    request_id: str


class Told(Head):
    """How many events there are now of those that were sent: not those of forgotten users, nor what is too old."""

    kept: int


class Removed(Head):
    """Whether the item was there."""

    was_there: bool


class Forgotten(Head):
    """What was erased, and what is out of reach: a receipt for each folder that has profiles or state."""

    receipts: list[dict[str, Any]]


class Loaded(TypedDict):
    """The version that answers from now on."""

    request_id: str
    version: str


Faults = dict[int | str, dict[str, Any]]


def describe_faults(*statuses: int) -> Faults:
    """Say which errors a route may answer."""
    return {status: {"model": FaultAnswer} for status in statuses}


FAULTS = describe_faults(400, 404, 405, 408, 413, 415, 422, 503)
ASK_EXAMPLES: Any = {
    "known": {"summary": "A known user", "value": {"user_id": "7", "k": 5}},
    "new": {
        "summary": "Somebody new, with a history",
        "value": {"history": [{"item_id": "12"}, {"item_id": "31"}], "k": 5},
    },
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
