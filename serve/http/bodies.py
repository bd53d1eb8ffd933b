"""The bodies of the interface: strict types, nothing unknown, every length bounded.

Typed dictionaries rather than models: what is checked here goes on as the raw request that `serve.requests` reads.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag, with_config
from typing_extensions import TypedDict

from serve.http.limits import MOST_EVENTS, MOST_IDS, MOST_ITEMS, MOST_LISTED, MOST_NAMES, MOST_REQUESTS, MOST_TEXT

Text = Annotated[str, StringConstraints(max_length=MOST_TEXT)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
ItemId = Annotated[str, StringConstraints(min_length=1, max_length=256)] | int
Number = int | float
Value = Text | int | float | bool | None
# the first fault of a list ends its check: a body of faults alone would take a minute to list
Cells = Annotated[list[Value], Field(max_length=MOST_TEXT, fail_fast=True)]
Values = Annotated[dict[Name, Value | Cells], Field(max_length=MOST_NAMES)]
Ids = Annotated[list[ItemId], Field(max_length=MOST_IDS, fail_fast=True)]
Length = Annotated[
    int,
    Field(ge=1, le=MOST_ITEMS, description=f"Items of a list at most; of all lists of a body {MOST_LISTED}."),
]
Explain = Annotated[
    bool, Field(description="Say of each item its columns, and the item of the history it is most like.")
]
_strict = with_config(strict=True, extra="forbid", allow_inf_nan=False)


@_strict
class PastEvent(TypedDict, total=False):
    """An event of a history."""

    item_id: Annotated[ItemId, Field(description="As in the data; an item that the bundle does not know is skipped.")]
    datetime: Text | Number | None
    event: Text | None
    weight: Number | None


@_strict
class FilterBody(TypedDict, total=False):
    """What an item must be to be listed."""

    where: Annotated[Text | None, Field(description="A condition on the columns of the items.")]
    only: Annotated[Ids | None, Field(description="Only these items.")]
    at_most: Annotated[
        dict[Name, Annotated[int, Field(ge=1, le=MOST_ITEMS)]] | None,
        Field(max_length=MOST_NAMES, description="Column -> how many items of one value."),
    ]


@_strict
class RequestBody(TypedDict, total=False):
    """Who asks, and when: all of it may be left out."""

    user_id: ItemId | None
    features: Annotated[Values | None, Field(description="Of the user, by name; null is missing.")]
    history: (
        Annotated[list[PastEvent], Field(max_length=MOST_EVENTS, fail_fast=True, description="Oldest first.")] | None
    )
    context: Values | None
    datetime: Annotated[
        Text | Number | None,
        Field(description="By default the beginning of this minute, or her latest event where that came later."),
    ]
    exclude: Annotated[Ids | None, Field(description="Items that are not to be listed.")]
    filters: FilterBody | None


@_strict
class AskOne(RequestBody, total=False):
    """One request."""

    k: Length
    repeats: Literal["allow", "exclude"] | None
    explain: Explain


@_strict
class _AskMany(TypedDict):
    requests: Annotated[list[RequestBody], Field(min_length=1, max_length=MOST_REQUESTS, fail_fast=True)]


@_strict
class AskMany(_AskMany, total=False):
    """Many requests with one length of lists."""

    k: Length
    repeats: Literal["allow", "exclude"] | None


@_strict
class _AskSimilar(TypedDict):
    item_id: ItemId


@_strict
class AskSimilar(_AskSimilar, total=False):
    """The items that are nearest to an item."""

    k: Length
    explain: Explain


@_strict
class _EventBody(TypedDict):
    user_id: ItemId
    item_id: ItemId


@_strict
class EventBody(_EventBody, total=False):
    """What a user did; `dismiss` keeps the item away from her from now on, until `undismiss`."""

    event: Text | None
    datetime: Annotated[Text | Number | None, Field(description="By default now.")]
    weight: Number | None
    request_id: Annotated[Text | None, Field(description="Of the answer that she reacted to.")]


@_strict
class EventsBody(TypedDict):
    """Many events: all are kept or none."""

    events: Annotated[list[EventBody], Field(min_length=1, max_length=MOST_REQUESTS, fail_fast=True)]


@_strict
class ItemBody(TypedDict):
    """What is known of an item."""

    columns: Annotated[Values, Field(description="Column -> value; one that is not given stays, null is missing.")]


@_strict
class ForgetBody(TypedDict):
    """Who is to be forgotten."""

    user_id: ItemId


def _tell_many(name: str) -> Discriminator:
    return Discriminator(lambda body: "many" if isinstance(body, dict) and name in body else "one")


Ask = Annotated[Annotated[AskOne, Tag("one")] | Annotated[AskMany, Tag("many")], _tell_many("requests")]
Tell = Annotated[Annotated[EventBody, Tag("one")] | Annotated[EventsBody, Tag("many")], _tell_many("events")]

_BODIES = (PastEvent, FilterBody, RequestBody, AskOne, _AskMany, AskMany, _AskSimilar, AskSimilar)
_CHANGES = (_EventBody, EventBody, EventsBody, ItemBody, ForgetBody)
FIELDS = frozenset().union(*(body.__annotations__ for body in (*_BODIES, *_CHANGES)))
"""Names that may be said in an error: ours, not a caller's."""
