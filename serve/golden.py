"""Golden requests: synthetic ones, with the answers that they had when the bundle was exported."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serve.arrays import Id
from serve.clock import DAY, to_iso
from serve.errors import BundleError
from serve.files import write_file
from serve.kinds import Feature
from serve.schema import Schema

# Of a score on another machine, per unit of the k-th score where that is above 1.
TOLERANCE = 2e-4

_FILE = "golden.json"
_MAX_EVENTS = 20
_MAX_DAYS = 90
_MAX_GOLDEN = 1000

# Item ids and their falling scores.
GoldenList = tuple[Sequence[Id], Sequence[float]]
# (raw requests, k) -> the list of each request.
GoldenAnswer = Callable[[list[dict[str, Any]], int], list[GoldenList]]


def write_golden(
    path: Path, requests: list[dict[str, Any]], answer: GoldenAnswer, k: int
) -> None:
    """Write requests with lists of 2 k items, so that all items as good as the k-th have scores.

    Args:
        path: the file to write.
        requests: raw requests, as of `draw_requests`.
        answer: answers them with the bundle that is exported.
        k: length of the lists that are compared.

    Raises:
        ValueError: a score is not finite.
    """
    entries = []
    for request, answered in zip(requests, answer(requests, 2 * k), strict=True):
        item_ids, scores = answered
        entry = {"request": request, "k": k, "item_ids": list(item_ids)}
        entry["scores"] = [float(score) for score in scores]
        entries.append(entry)

    text = json.dumps(entries, indent=1, allow_nan=False)
    write_file(path, f"{text}\n".encode())


def replay(content: bytes, answer: GoldenAnswer) -> int:
    """Answer golden requests again: an item must score as it did and be as good as the k-th was.

    Args:
        content: the file that `write_golden` wrote.
        answer: answers the requests with the bundle as it was loaded.

    Returns:
        The number of requests.

    Raises:
        BundleError: the file cannot be read, or a list differs.
    """
    try:
        entries = json.loads(content or b"[]")
        if not 0 < len(entries) <= _MAX_GOLDEN:
            raise ValueError(f"it holds no request, or more than {_MAX_GOLDEN}")
        requests = [entry["request"] for entry in entries]
        answers = answer(requests, entries[0]["k"])
        differences = []
        for entry, (item_ids, scores) in zip(entries, answers, strict=True):
            differences.append(_find_difference(entry, list(item_ids), list(scores)))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BundleError(
            f"{_FILE} cannot be answered: {error}; export again"
        ) from error

    for number, difference in enumerate(differences):
        if difference:
            raise BundleError(
                f"{_FILE}, request {number}: {difference}; it answers differently here"
            )
    return len(entries)


def _find_difference(
    entry: Mapping[str, Any], item_ids: list[Id], scores: list[float]
) -> str:
    """Say how a list differs from its reference, "" if it does not."""
    reference = dict(zip(entry["item_ids"], entry["scores"], strict=True))
    length = min(entry["k"], len(reference))
    n_distinct = len(set(item_ids))
    if len(item_ids) != length or n_distinct != length:
        return f"{n_distinct} different items of {len(item_ids)}; expected {length}"

    kth = entry["scores"][length - 1] if length else 0.0
    tolerance = TOLERANCE * max(1.0, abs(kth))
    for item_id, score in zip(item_ids, scores, strict=True):
        expected = reference.get(item_id, -math.inf)
        is_as_good = expected >= kth - tolerance
        if not is_as_good or not abs(score - expected) <= tolerance:
            return (
                f"item {item_id!r} scores {score:.6g}; "
                f"expected {expected:.6g}, and {kth:.6g} or more"
            )
    return ""


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
