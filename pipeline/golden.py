"""Draw golden requests, which no person made, and write them with the answers of the export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serve.arrays import Id
from serve.clock import DAY, to_iso
from serve.files import write_json
from serve.kinds import Feature
from serve.recommender import GOLDEN_ASKS, Recommend
from serve.schema import Schema

_MAX_EVENTS = 20
_MAX_DAYS = 90


def write_golden(
    path: Path, requests: list[dict[str, Any]], recommend: Recommend, k: int
) -> None:
    """Write requests with lists of 2 k items, so that all items as good as the k-th have scores.

    Args:
        path: the file to write.
        requests: raw requests, as of `draw_requests`.
        recommend: answers them with the bundle that is exported.
        k: length of the lists that are compared.

    Raises:
        ValueError: a score is not finite.
    """
    entries = []
    asked = [request | GOLDEN_ASKS for request in requests]
    for request, answer in zip(requests, recommend(asked, 2 * k), strict=True):
        item_ids = answer.item_id.tolist()
        scores = answer.score.tolist()
        entries.append(
            {"request": request, "k": k, "item_ids": item_ids, "scores": scores}
        )

    write_json(path, entries)


# ---- synthetic requests


def draw_requests(
    schema: Schema,
    item_ids: Sequence[Id],
    n_requests: int,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Draw raw requests that no person made, with and without features, context and a time.

    Args:
        schema: the schema of the bundle: features, event types, end of the data.
        item_ids: all items that a history may hold.
        n_requests: number of requests; the r-th has r modulo 21 events.
        rng: the source of all chance.
    """
    context = [feature for feature in schema.context_features if not feature.is_derived]
    requests = []

    for number in range(n_requests):
        n_events = number % (_MAX_EVENTS + 1)
        history = _draw_history(schema, item_ids, n_events, rng)
        request: dict[str, Any] = {"history": history}

        if number % 3 < 2:
            request["features"] = _draw_values(schema.user_features, rng)
        if number % 3 > 0:
            request["context"] = _draw_values(context, rng)
            if schema.has_datetime:
                request["datetime"] = to_iso(schema.data_until)
        requests.append(request)

    return requests


def _draw_history(
    schema: Schema, item_ids: Sequence[Id], n_events: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    ages = rng.integers(1, _MAX_DAYS * DAY, size=n_events)
    times = np.sort(schema.data_until - ages).tolist()
    # From few items, so that some come again.
    rows = rng.integers(len(item_ids), size=max(1, n_events // 2)).tolist()
    drawn = [int(rng.choice(rows)) for _ in times]

    events = []
    for row, time in zip(drawn, times, strict=True):
        event: dict[str, Any] = {"item_id": item_ids[row]}
        if schema.has_datetime:
            event["datetime"] = to_iso(time)
        if schema.event_types:
            event["event"] = str(rng.choice(schema.event_types))
        if schema.has_weight:
            event["weight"] = float(rng.integers(1, 4))
        events.append(event)

    return events


def _draw_values(
    features: Sequence[Feature], rng: np.random.Generator
) -> dict[str, Any]:
    return {feature.name: feature.draw(rng) for feature in features}
