"""What requests name that the bundle does not know: no error, since the world moves on, and yet often a slip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from serve.encode import split_cell, to_text
from serve.index import Ints
from serve.profiles import Profiles
from serve.requests import Request
from serve.schema import Feature, Schema

_MOST_KEPT = 1000  # distinct values: memory does not grow with a file
_MOST_NAMED = 5
_LONGEST = 40
_WORDED = ("categorical", "multi_categorical")
"""Kinds of features that have a vocabulary of what callers write."""


class Unseen:
    """Counts over many requests; beside answering, so that a single request does not pay for it."""

    def __init__(self, schema: Schema, profiles: Profiles) -> None:
        self._schema, self._profiles = schema, profiles
        self._n_requests = self._n_naming = self._n_lacking = self._n_items = self._n_strangers = 0
        self._values: Counter[tuple[str, str]] = Counter()
        self._unread: Counter[str] = Counter()

    def watch(self, requests: Iterable[Request]) -> Iterator[Request]:
        """Pass requests on and count what they name."""
        for request in requests:
            self._n_requests += 1
            values = dict.fromkeys(self._find_values(request))
            self._n_naming += bool(values)
            self._values.update(one for one in values if one in self._values or len(self._values) < _MOST_KEPT)
            self._unread.update(self._find_unread(request))
            self._n_strangers += self._is_stranger(request)
            yield request

    def count_items(self, unknown_items: Ints) -> None:
        """Add the items that answers say are unknown, (B,)."""
        self._n_items += int(unknown_items.sum())
        self._n_lacking += int((unknown_items > 0).sum())

    def notes(self) -> list[str]:
        """Return a line for each kind of what was met."""
        notes, of_all = [], f"of {self._n_requests} requests"
        if self._values:
            most = self._values.most_common(_MOST_NAMED)
            shown = ", ".join(f"{place} {text!r} ({count} times)" for (place, text), count in most)
            more = ", and others" if len(self._values) > _MOST_NAMED else ""
            notes.append(f"{self._n_naming} {of_all} name values not seen in training: {shown}{more}; taken as unknown")
        if self._unread:
            fields = ", ".join(f"{name} ({count} times)" for name, count in sorted(self._unread.items()))
            notes.append(f"not read, since the training data has no such field: {fields}")
        if self._n_items:
            items = f"{self._n_items} items that are not in the bundle"
            notes.append(f"the histories of {self._n_lacking} {of_all} hold {items}; left out")
        if self._n_strangers:
            notes.append(
                f"{self._n_strangers} {of_all} name a user without a profile and bring no history; answered without one"
            )
        return [f"note: {note}" for note in notes]

    def _is_stranger(self, request: Request) -> bool:
        is_named = request.user_id is not None and request.history is None
        return is_named and request.user_id not in self._profiles.positions

    def _find_values(self, request: Request) -> Iterator[tuple[str, str]]:
        yield from find_unknown(self._schema, request)
        types = self._schema.event_types
        if request.history is not None and request.history.event is not None and types:
            texts = (event for event in request.history.event if event is not None and event not in types)
            yield from (("history.event", text[:_LONGEST]) for text in texts)

    def _find_unread(self, request: Request) -> Iterator[str]:
        history, schema = request.history, self._schema
        if request.datetime is not None and not schema.has_datetime:
            yield "datetime"
        if history is None:
            return
        is_read = {"datetime": schema.has_datetime, "event": bool(schema.event_types), "weight": schema.has_weight}
        yield from (f"history.{name}" for name, read in is_read.items() if not read and getattr(history, name))


def find_unknown(schema: Schema, request: Request) -> Iterator[tuple[str, str]]:
    """Yield each value of a user or a moment that training has not seen, cut short, after where it was given."""
    for place, features, given in (
        ("context", schema.context_features, request.context or {}),
        ("features", schema.user_features, request.features or {}),
    ):
        for feature in features:
            if feature.kind in _WORDED and feature.name in given:
                texts = (text for text in _read_texts(feature, given[feature.name]) if text not in feature.codes)
                yield from ((f"{place}.{feature.name}", text[:_LONGEST]) for text in texts)


def _read_texts(feature: Feature, value: Any) -> Iterable[str]:
    """Return the values as the vocabulary would have them; none where they are missing."""
    if feature.kind == "multi_categorical":
        return split_cell(value, feature.separator)
    return filter(None, [to_text(value)])
