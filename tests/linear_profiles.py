"""Users and requests of the two worlds of `linear_bundle`, as dictionaries."""

from __future__ import annotations

import numpy as np
from serve.profiles import Profiles, settle_profiles, stage_profiles
from serve.requests import History
from serve.schema import Schema
from tests.linear_bundle import DAY, UNTIL, item_ids


def write_profiles(folder, profiles):
    """Write or replace the profiles in a folder, as a training does."""
    stage_profiles(folder, [profiles], "of a bundle")
    settle_profiles(folder, "of a bundle")


def draw_history(schema, length, rng):
    """Draw events that repeat items, share times and have items that no bundle knows."""
    ids = [*item_ids(schema)[:9], 7 if schema.item_id_type == "integer" else "gone"]
    times = UNTIL - np.sort(rng.integers(0, 4, length))[::-1] * DAY - 77
    return [
        {
            "item_id": ids[int(rng.integers(len(ids)))],
            "datetime": int(time),
            **(
                {"event": ["view", "buy", "other"][int(rng.integers(3))]}
                if schema.event_types
                else {}
            ),
            **({"weight": float(rng.integers(0, 4))} if schema.has_weight else {}),
        }
        for time in times
    ]


def known_users(schema):
    rng = np.random.default_rng(5)
    features = [
        {"gender": "f", "income": 4.0},
        {"gender": "x"},
        {},
        {"income": -1.5},
        {"gender": "m"},
    ]
    names = range(5) if schema.user_id_type == "integer" else [f"u{number}" for number in range(5)]
    lengths = (3, 13, 0, 1, 8)
    return {
        name: {"features": given, "history": draw_history(schema, length, rng)}
        for name, given, length in zip(names, features, lengths, strict=True)
    }


def requests_of(schema):
    """Return requests of every kind: known, unknown, anonymous, with and without each field."""
    rng, ids = np.random.default_rng(6), item_ids(schema)
    first, second, third, *_ = known_users(schema)
    return [
        *({"user_id": user_id} for user_id in known_users(schema)),
        {"user_id": 99 if schema.user_id_type == "integer" else "nobody"},
        {},
        {
            "user_id": first,
            "datetime": UNTIL + 5 * DAY + 3700,
            "context": {"device": "web"},
        },
        {"user_id": second, "datetime": UNTIL - 2 * DAY},
        {
            "user_id": second,
            "features": {"income": 2.0},
            "exclude": [ids[0], ids[3], ids[20]],
        },
        {"user_id": second, "history": []},
        {
            "user_id": third,
            "history": draw_history(schema, 4, rng),
            "exclude": ids[5:19],
        },
        {
            "history": draw_history(schema, 11, rng),
            "context": {"device": "tv"},
            "exclude": ids[:4],
        },
        {
            "history": [{"item_id": ids[2]}, {"item_id": ids[4]}, {"item_id": ids[2]}],
            "datetime": UNTIL,
        },
        {"history": [{"item_id": ids[8]}], "exclude": ids},
    ]


def make_profiles(schema: Schema, known: dict) -> Profiles:
    """Build profiles from {user_id: {features, history}}, written like requests, times in seconds."""
    events = [event for user in known.values() for event in user["history"]]
    features = [user["features"] for user in known.values()]
    texts = schema.item_id_type == "string"
    columns = {
        "item_id": np.array([e["item_id"] for e in events], dtype=object if texts else np.int64)
    }
    columns["datetime"] = np.array([event["datetime"] for event in events], dtype=np.int64)
    if schema.event_types:
        columns["event"] = np.array([event.get("event") for event in events], dtype=object)
    if schema.has_weight:
        columns["weight"] = np.array([event["weight"] for event in events], dtype=np.float64)
    return Profiles(
        user_ids=np.array(
            list(known), dtype=object if schema.user_id_type == "string" else np.int64
        ),
        features={
            "gender": np.array([given.get("gender") for given in features], dtype=object),
            "income": np.array(
                [user["features"].get("income", np.nan) for user in known.values()],
                dtype=float,
            ),
        },
        history=History(**columns),
        offsets=np.cumsum([0, *(len(user["history"]) for user in known.values())]),
    )
