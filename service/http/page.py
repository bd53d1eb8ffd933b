"""Answer what the page at `/` asks for beside lists: its form, users to try, and items by a part of their name."""

from __future__ import annotations

from dataclasses import asdict
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from serve.arrays import Ints, to_arrow
from serve.catalogue import name_columns, name_items
from serve.encode import to_text
from serve.index import UNKNOWN_ROW
from serve.recommender import Recommender
from serve.requests import Filters, Id, Request
from serve.rerank import RECOMMENDED
from serve.schema import DERIVED, Feature

_MAX_VALUES = 200  # of a vocabulary, as it is offered
_MAX_MATCHES = 1000  # items that are put in order
_MAX_USERS = 5  # users to try, of so many each; of so many the segments are looked up
_TRIED = 20
_SAMPLE = 100
_MAX_RECENT = 4  # distinct items that a user took last, and events among which they are looked for
_MAX_EVENTS = 100
_USERS: WeakKeyDictionary[Recommender, list[dict[str, Any]]] = WeakKeyDictionary()


def describe_form(current: Recommender) -> dict[str, Any]:
    """Return what the form of the page offers to everybody."""
    schema = current.bundle.schema
    return {
        "names": name_columns(current.catalogue.table, schema.item_features),
        "features": [
            _describe_feature(one)
            for one in schema.user_features
            if one.kind not in DERIVED
        ],
        "context": [_describe_feature(one) for one in schema.context_features],
        "dials": asdict(RECOMMENDED),
        "events": list(schema.event_types),
        "repeats": schema.repeats,
        "timezone": schema.timezone,
        "data_until": schema.data_until if schema.has_datetime else None,
        "items": current.catalogue.n_listed,
        "known_users": len(current.profiles),
    }


def _describe_feature(feature: Feature) -> dict[str, Any]:
    return {
        "name": feature.name,
        "kind": feature.kind,
        "values": list(feature.vocabulary[:_MAX_VALUES]),
    }


def choose_users(current: Recommender) -> list[dict[str, Any]]:
    """Choose a known user of each segment, or else of short to long histories: one each of whom much is known."""
    if current not in _USERS:
        tried = [
            current.profiles.user_ids[group[:_TRIED]].tolist()
            for group in _group_users(current)
            if len(group)
        ]
        found = (
            [_describe_user(current, one) for one in some]
            for some in tried[:_MAX_USERS]
        )
        _USERS[current] = [
            max(some, key=lambda one: len(one["features"])) for some in found
        ]
    return _USERS[current]


def _group_users(current: Recommender) -> list[Ints]:
    """Return positions of profiles by segment, or else by the number of events, of each group the middle first."""
    profiles = current.profiles
    segments = current.bundle.segments
    order = np.argsort(np.diff(profiles.offsets), kind="stable")
    if segments is None or not len(order):
        return [group[len(group) // 2 :] for group in np.array_split(order, _MAX_USERS)]
    drawn = order[np.linspace(0.5 * len(order), len(order) - 1, _SAMPLE).astype(int)]
    labels = segments.of(
        current.encode_users(
            [{"user_id": one} for one in profiles.user_ids[drawn].tolist()]
        )
    )
    return [
        np.unique(drawn[labels == place]) for place in range(len(segments.segments))
    ]


def _describe_user(current: Recommender, user_id: Id) -> dict[str, Any]:
    """Return the words and numbers that are known of a user, and what they took last."""
    profile = current.profiles.get(user_id)
    if profile is None:
        raise KeyError(user_id)
    latest = dict.fromkeys(profile.history.item_id[: -_MAX_EVENTS - 1 : -1].tolist())
    rows = current.catalogue.item_ids.find([*latest])
    taken = current.catalogue.table.take(
        to_arrow(rows[rows != UNKNOWN_ROW][:_MAX_RECENT])
    )
    words = {
        name: to_text(value)
        for name, value in profile.features.items()
        if not isinstance(value, np.ndarray)
    }
    return {
        "user_id": user_id,
        "events": len(profile.history),
        "features": {name: text for name, text in words.items() if text is not None},
        "recent": name_items(taken, current.bundle.schema.item_features),
    }


def search_items(current: Recommender, text: str, k: int) -> list[Id]:
    """Return the ids of up to k listed items of which the texts hold all words: what is popular first."""
    ids = current.catalogue.item_ids
    words = text.casefold().split()
    matches = (
        row
        for row, one in enumerate(current.catalogue.texts)
        if all(word in one for word in words)
    )
    rows = [*islice(matches, _MAX_MATCHES)]
    asked = Request(
        filters=Filters(only=tuple(ids.ids[rows].tolist())),
        datetime=current.bundle.schema.data_until,
    )
    (found,) = current.recommend([asked], k, filter_viewed=False)
    return found.item_id.tolist()  # type: ignore[no-any-return]
