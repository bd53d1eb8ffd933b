"""What a user was shown: the items of one answer, with all that learning from it needs later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from serve.requests import Id, check_id, check_seconds


@dataclass(frozen=True)
class Impressions:
    """The items of one answer, best first: the item at index i was shown at position i + 1."""

    request_id: str
    """One call may ask for many users: its answers share it."""
    user_id: Id | None
    datetime: int
    """UTC seconds."""
    bundle_version: str
    policy: str
    """How the order came about, such as `greedy`: by falling score."""
    item_ids: Sequence[Id]
    scores: Sequence[float]


def check_impressions(one: Impressions) -> None:
    """Refuse an answer that `expire` or `forget` would not find again.

    Raises:
        SchemaError: a user or a time of another type or out of range.
    """
    if one.user_id is not None:
        check_id(one.user_id, "user_id")
    check_seconds(one.datetime, "datetime")
