"""What the page at `/` shows beside lists: its form, users to try, and items found by name."""

from __future__ import annotations

from collections.abc import Sequence
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
_MAX_MATCHES = 1000  # items that are ranked
_MAX_USERS = 5  # users to try
_N_CANDIDATES = 20  # for each of them
_N_SAMPLED = 100  # users whose segment is looked up
_MAX_RECENT = 4  # distinct items that a user took last
_MAX_EVENTS = 100  # events among which they are looked for
_USERS: WeakKeyDictionary[Recommender, list[dict[str, Any]]] = WeakKeyDictionary()


def describe_form(current: Recommender) -> dict[str, Any]:
    """Return what the form of the page offers to everybody."""
    schema = current.bundle.schema
    return {
        "names": name_columns(current.catalogue.table, schema.item_features),
        "features": _describe_features(
            [part for part in schema.user_features if part.kind not in DERIVED]
        ),
        "context": _describe_features(schema.context_features),
        "dials": asdict(RECOMMENDED),
        "events": list(schema.event_types),
        "repeats": schema.repeats,
        "timezone": schema.timezone,
        "data_until": schema.data_until if schema.has_datetime else None,
        "items": current.catalogue.n_listed,
        "known_users": len(current.profiles),
    }


def _describe_features(features: Sequence[Feature]) -> list[dict[str, Any]]:
    described = []
    for feature in features:
        values = list(feature.vocabulary[:_MAX_VALUES])
        one = {"name": feature.name, "kind": feature.kind, "values": values}
        described.append(one)
    return described


def choose_users(current: Recommender) -> list[dict[str, Any]]:
    """Choose known users of different segments, or else of short to long histories."""
    if current not in _USERS:
        user_ids = current.profiles.user_ids
        users: list[dict[str, Any]] = []
        for group in _group_users(current):
            candidates = [
                _describe_user(current, user_id)
                for user_id in user_ids[group[:_N_CANDIDATES]].tolist()
            ]
            if candidates and len(users) < _MAX_USERS:
                users.append(max(candidates, key=lambda user: len(user["features"])))
        _USERS[current] = users
    return _USERS[current]


def _group_users(current: Recommender) -> list[Ints]:
    """Group positions of profiles by segment, or else by length, each from its middle on."""
    profiles = current.profiles
    segments = current.bundle.segments
    order = np.argsort(np.diff(profiles.offsets), kind="stable")
    if segments is None or not len(order):
        return [group[len(group) // 2 :] for group in np.array_split(order, _MAX_USERS)]
    places = np.linspace(0.5 * len(order), len(order) - 1, _N_SAMPLED).astype(int)
    sample = order[places]
    requests = [{"user_id": user_id} for user_id in profiles.user_ids[sample].tolist()]
    labels = segments.of(current.encode_users(requests))
    n_segments = len(segments.segments)
    return [np.unique(sample[labels == label]) for label in range(n_segments)]


def _describe_user(current: Recommender, user_id: Id) -> dict[str, Any]:
    """Return the words and numbers that are known of a user, and what they took last."""
    profile = current.profiles.get(user_id)
    if profile is None:
        raise KeyError(user_id)
    latest = profile.history.item_id[: -_MAX_EVENTS - 1 : -1].tolist()
    rows = current.catalogue.item_ids.find([*dict.fromkeys(latest)])
    rows = rows[rows != UNKNOWN_ROW][:_MAX_RECENT]
    recent = current.catalogue.table.take(to_arrow(rows))

    features = {}
    for name, value in profile.features.items():
        text = None if isinstance(value, np.ndarray) else to_text(value)
        if text is not None:
            features[name] = text
    return {
        "user_id": user_id,
        "events": len(profile.history),
        "features": features,
        "recent": name_items(recent, current.bundle.schema.item_features),
    }


def search_items(current: Recommender, text: str, k: int) -> list[Id]:
    """Return the ids of up to k listed items whose texts hold all words, the popular first."""
    ids = current.catalogue.item_ids
    words = text.casefold().split()
    matches = (
        row
        for row, item_text in enumerate(current.catalogue.texts)
        if all(word in item_text for word in words)
    )
    rows = [*islice(matches, _MAX_MATCHES)]
    request = Request(
        filters=Filters(only=tuple(ids.ids[rows].tolist())),
        datetime=current.bundle.schema.data_until,
    )
    (answer,) = current.recommend([request], k, filter_viewed=False)
    return answer.item_id.tolist()  # type: ignore[no-any-return]
