"""Give the page at `/` what it shows beside lists: its form, users to try, items found by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, cast

import numpy as np

from serve.arrays import Id
from serve.catalogue import name_columns
from serve.cells import to_text
from serve.kinds import Feature
from serve.profiles import Profile
from serve.recommender import Recommender
from serve.requests import Filters, Request
from serve.rerank import RECOMMENDED
from serve.sentences import say_past
from service.answers import show_items

_MAX_VALUES = 200  # of a vocabulary, as it is offered
_MAX_MATCHES = 1000  # items that are ranked
_MAX_USERS = 5  # users to try
_N_CANDIDATES = 20  # for each of them
_MAX_RECENT = 4  # distinct items that a user took last
_MAX_EVENTS = 100  # events among which they are looked for


def describe_form(current: Recommender) -> dict[str, Any]:
    """Return what the form of the page offers to everybody."""
    schema = current.bundle.schema
    user_features = [part for part in schema.user_features if not part.is_derived]
    data_until = schema.data_until if schema.has_datetime else None
    target = find_target(current)

    return {
        "names": name_columns(current.catalogue.table, schema.item_features),
        "features": _describe_features(user_features),
        "context": _describe_features(schema.context_features),
        "dials": asdict(RECOMMENDED),
        "events": list(schema.event_types),
        "tested": current.bundle.manifest.metrics.get("test", {}),
        "target": target,
        "verb": say_past(target),
        "verbs": {event: say_past(event) for event in schema.event_types},
        "repeats": schema.repeats,
        "timezone": schema.timezone,
        "data_until": data_until,
        "items": current.catalogue.n_listed,
        "known_users": len(current.profiles),
    }


def find_target(current: Recommender) -> str | None:
    """Return the type of event that training predicts: of several the first that is a purchase."""
    events = current.just_taken.events
    purchases = [event for event in events if say_past(event) == say_past("purchase")]
    return next(iter([*purchases, *events]), None)


def _describe_features(features: Sequence[Feature]) -> list[dict[str, Any]]:
    return [
        {
            "name": feature.name,
            "kind": feature.kind,
            "values": list(feature.vocabulary[:_MAX_VALUES]),
        }
        for feature in features
    ]


def choose_users(current: Recommender) -> list[dict[str, Any]]:
    """Choose known users of short to long histories, of whom much is known."""
    profiles = current.profiles
    order = np.argsort(np.diff(profiles.offsets), kind="stable")

    users = []
    for group in np.array_split(order, _MAX_USERS):
        middle = group[len(group) // 2 :][:_N_CANDIDATES]
        candidates = [
            _describe_user(current, user_id)
            for user_id in profiles.user_ids[middle].tolist()
        ]
        users += sorted(candidates, key=lambda user: -len(user["features"]))[:1]

    return users


def _describe_user(current: Recommender, user_id: Id) -> dict[str, Any]:
    """Return the words and numbers that are known of a user, and what they took last."""
    profile = cast(Profile, current.profiles.get(user_id))
    latest = profile.history.item_id[: -_MAX_EVENTS - 1 : -1].tolist()
    known = current.catalogue.item_ids
    recent = [item_id for item_id in dict.fromkeys(latest) if item_id in known]

    texts = {}
    for name, value in profile.features.items():
        text = None if isinstance(value, np.ndarray) else to_text(value)
        if text is not None:
            texts[name] = text

    return {
        "user_id": user_id,
        "events": len(profile.history),
        "features": texts,
        "recent": current.name(recent[:_MAX_RECENT]),
    }


def search_items(current: Recommender, text: str, k: int) -> list[dict[str, Any]]:
    """Return up to k listed items whose texts hold all words, the popular first."""
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

    columns = show_items(current.catalogue.table, ids.find(answer.item_id))
    return [
        {"item_id": item_id, "columns": values}
        for item_id, values in zip(answer.item_id.tolist(), columns, strict=True)
    ]
