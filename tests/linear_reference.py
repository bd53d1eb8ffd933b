"""What the linear bundles should answer, by loops over events and items; nothing here comes from `serve`."""

from __future__ import annotations

import math

import numpy as np
from tests.linear_bundle import (
    BRANDS,
    DAY,
    DEPARTMENTS,
    DEVICES,
    GENDERS,
    REPEAT_RATES,
    UNTIL,
    D,
    N,
    P,
    W,
    category_weights,
    item_ids,
    item_values,
    vectors_of,
    weights_of,
)


def naive_scores(
    schema, seed: int, known: dict, request: dict, added: dict | None = None
) -> tuple[np.ndarray, list, set[int]]:
    """Say what a request should get: its vector (W,), a score per item, and the rows of its owned items.

    `added` are items after those of the bundle: id -> raw features.
    """
    added = added or {}
    profile = known.get(request.get("user_id"), {"features": {}, "history": []})
    features = request.get("features", profile["features"])
    history = request.get("history", profile["history"])
    context, time = request.get("context", {}), request.get("datetime")
    moment = time if time is not None else history[-1].get("datetime", UNTIL) if history else UNTIL
    rows = {item_id: row for row, item_id in enumerate([*item_ids(schema), *added])}
    events = [
        (
            rows[e["item_id"]],
            min(e.get("datetime", moment), moment),
            e.get("event"),
            e.get("weight"),
        )
        for e in history
        if e["item_id"] in rows
    ]
    items = np.array(
        [*vectors_of(seed), *(naive_item(seed, values) for values in added.values())],
        dtype=float,
    )
    user = _naive_vector(schema, weights_of(seed), items, events, moment)
    w = weights_of(seed)
    user = user + np.array([_code(GENDERS, features.get("gender"))]) @ w["user_c"]
    user = user + _number(features.get("income"), 3.0, 2.0) @ w["user_v"]
    hour = 1 if time is None else time // 3600 % 24 + 2
    user = user + np.array([_code(DEVICES, context.get("device")), hour]) @ w["context_c"]
    scores = items @ user
    if schema.repeats == "allow":
        values = [*map(item_values, range(N)), *added.values()]
        for row, extra in _naive_memory(
            schema, events[-schema.memory_length :], moment, scores, values
        ).items():
            scores[row] += extra
    return user, scores.tolist(), {event[0] for event in events}


def _naive_vector(schema, w, items, events, moment):
    recent = events[-schema.history_length :]
    state, group = np.zeros(D), 0
    for place, (row, time, event, weight) in enumerate(recent):
        if place == 0 or schema.ties == "ordered" or time != recent[place - 1][1]:
            group += 1
        code = schema.event_types.index(event) + 2 if event in schema.event_types else 1
        standard = 0.0
        if schema.has_weight and weight is not None:
            standard = (math.log1p(weight) - schema.weight_mean) / schema.weight_scale
        attention = 1 + 0.1 * code + 0.2 * standard + 1e-6 * (moment - time) + 0.05 * group
        state = state + attention * items[row, :D]
    return state / max(len(recent), 1) @ w["project"]


def _naive_memory(schema, events, moment, products, values):
    owned: dict[int, list] = {}
    for row, time, event, _ in events:
        owned.setdefault(row, []).append((max(moment - time, 0) / DAY, event))
    decayed = {row: sum(math.exp(-since / 3.0) for since, _ in of) for row, of in owned.items()}
    preference = {row: math.log1p(3 * count) for row, count in decayed.items()}
    per_category, by_category = category_weights(), 0.0
    for row, amount in preference.items():
        by_category += amount * per_category[_code(DEPARTMENTS, values[row].get("department"))]
        by_category += amount * per_category[5 + _code(BRANDS, values[row].get("brand"))]
    by_user = 0.05 * math.log1p(len(events)) + by_category
    return {
        row: 0.5 * preference[row]
        + 0.2 * math.log1p(len(of))
        + 0.1 * (REPEAT_RATES[row] if row < N else naive_rate(values[row]))
        + 0.15 * math.log1p(sum(event == "buy" for _, event in of))
        + 0.3 * products[row]
        + by_user
        for row, of in owned.items()
    }


def naive_rate(values: dict) -> float:
    """Say how often an item is bought again that nobody has bought: as the bundle's items of its categories are."""
    means = []
    for name, vocabulary in (("department", DEPARTMENTS), ("brand", BRANDS)):
        code = _code(vocabulary, values.get(name))
        alike = [
            REPEAT_RATES[row]
            for row in range(N)
            if _code(vocabulary, item_values(row)[name]) == code
        ]
        means.append(np.mean(alike or REPEAT_RATES))
    return float(np.mean(means))


def _code(vocabulary, raw):
    return vocabulary.index(raw) + 2 if raw in vocabulary else 1


def _number(raw, mean, scale):
    return np.array([0.0, 1.0]) if raw is None else np.array([(raw - mean) / scale, 0.0])


def naive_list(scores: list, rows, k: int) -> list[int]:
    """Sort rows by falling score, then by row."""
    return sorted(rows, key=lambda row: (-scores[row], row))[:k]


def naive_item(seed: int, values: dict) -> np.ndarray:
    """Place a new item by its features, (W,)."""
    w, least = weights_of(seed), vectors_of(seed)[:, W - P :].min(axis=0)
    codes = np.array(
        [
            _code(DEPARTMENTS, values.get("department")),
            _code(BRANDS, values.get("brand")),
        ]
    )
    price = _number(values.get("price"), 1.0, 4.0)
    categories = codes + np.array([0, 5])
    return (
        codes @ w["item_c"] + price @ w["item_v"] + categories @ w["item_k"] + least @ w["item_p"]
    )
