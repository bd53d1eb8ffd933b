"""Golden requests: synthetic ones, with the answers that they had when the bundle was exported."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from serve.bundle import GOLDEN, MANIFEST, Bundle
from serve.clock import DAY
from serve.errors import BundleError
from serve.files import write_file
from serve.schema import Feature, Schema

TOLERANCE = 2e-4  # of a golden score on another machine, per unit of the k-th score where that is above 1


_MAX_EVENTS = 20
_WORDS = 5
_MAX_GOLDEN = 1000


# (raw requests, k) -> item ids and falling scores of each request
GoldenAnswer = Callable[
    [list[dict[str, Any]], int], list[tuple[Sequence[str | int], Sequence[float]]]
]


def verify(
    path: Path,
    answer_with: Callable[[Bundle], GoldenAnswer],
    trusted: Path | None = None,
) -> list[str]:
    """Load a bundle, replay its golden requests and return lines to print."""
    bundle = Bundle.load(path, trusted=trusted)
    manifest = bundle.manifest
    sizes = [entry.size for entry in bundle.manifest.files.values()]
    return [
        f"files: {len(sizes)} with {sum(sizes)} bytes as {MANIFEST} says",
        f"space_id: {manifest.space_id} in towers, index and schema",
        f"golden: {replay(bundle.golden, answer_with(bundle))} requests answered as when exported",
        f"version: {manifest.version}",
        *([] if trusted is None else [f"signature: by a key of {trusted}"]),
    ]


def write_golden(
    path: Path, requests: list[dict[str, Any]], answer: GoldenAnswer, k: int
) -> None:
    """Write requests with lists of 2 k items, so that an item which is as good as the k-th has its score in it."""
    entries = [
        {
            "request": request,
            "k": k,
            "item_ids": list(item_ids),
            "scores": [float(score) for score in scores],
        }
        for request, (item_ids, scores) in zip(
            requests, answer(requests, 2 * k), strict=True
        )
    ]
    write_file(path, (json.dumps(entries, indent=1, allow_nan=False) + "\n").encode())


def replay(content: bytes, answer: GoldenAnswer) -> int:
    """Answer golden requests again and count them: each item must score as it did and have been as good as the k-th."""
    try:
        entries = json.loads(content or b"[]")
        if not 0 < len(entries) <= _MAX_GOLDEN:
            raise ValueError(f"it holds no request, or more than {_MAX_GOLDEN}")
        answers = zip(
            entries,
            answer([one["request"] for one in entries], entries[0]["k"]),
            strict=True,
        )
        differences = [
            _find_difference(entry, list(item_ids), list(scores))
            for entry, (item_ids, scores) in answers
        ]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BundleError(
            f"{GOLDEN} cannot be answered: {error}; export again"
        ) from error
    for number, difference in enumerate(differences):
        if difference:
            raise BundleError(
                f"{GOLDEN}, request {number}: {difference}; it answers differently here"
            )
    return len(entries)


def _find_difference(
    entry: dict[str, Any], item_ids: list[str | int], scores: list[float]
) -> str:
    """Say how a list differs from its reference, "" if it does not."""
    reference = dict(zip(entry["item_ids"], entry["scores"], strict=True))
    length = min(entry["k"], len(reference))
    if len(item_ids) != length or len(set(item_ids)) != length:
        return f"{len(set(item_ids))} different items of {len(item_ids)}; expected {length}"
    kth = entry["scores"][length - 1] if length else 0.0
    tolerance = TOLERANCE * max(1.0, abs(kth))
    for item_id, score in zip(item_ids, scores, strict=True):
        expected = reference.get(item_id, -math.inf)
        if (
            expected < kth - tolerance
            or not abs(score - expected) <= tolerance < math.inf
        ):
            return f"item {item_id!r} scores {score:.6g}; expected {expected:.6g}, and {kth:.6g} or more"
    return ""


def draw_requests(
    schema: Schema,
    item_ids: Sequence[str | int],
    n_requests: int,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Draw raw requests that no person made: of 0 events and more, with and without features, context and a time."""
    requests = []
    context_features = [
        feature for feature in schema.context_features if not feature.is_derived
    ]
    for number in range(n_requests):
        times = np.sort(
            schema.data_until
            - rng.integers(1, 90 * DAY, size=number % (_MAX_EVENTS + 1))
        )
        few = rng.integers(
            len(item_ids), size=max(1, len(times) // 2)
        ).tolist()  # so that some items come again
        drawn = [(item_ids[int(rng.choice(few))], time) for time in times.tolist()]
        request: dict[str, Any] = {
            "history": [
                _draw_event(schema, item_id, time, rng) for item_id, time in drawn
            ]
        }
        if number % 3 < 2:
            request["features"] = {
                feature.name: _draw_value(feature, rng)
                for feature in schema.user_features
            }
        if number % 3 > 0:
            request["context"] = {
                feature.name: _draw_value(feature, rng) for feature in context_features
            }
            request |= (
                {"datetime": _to_iso(schema.data_until)} if schema.has_datetime else {}
            )
        requests.append(request)
    return requests


def _draw_event(
    schema: Schema, item_id: str | int, time: int, rng: np.random.Generator
) -> dict[str, Any]:
    event = {"item_id": item_id} | (
        {"datetime": _to_iso(time)} if schema.has_datetime else {}
    )
    event |= (
        {"event": str(rng.choice(schema.event_types))} if schema.event_types else {}
    )
    return event | ({"weight": float(rng.integers(1, 4))} if schema.has_weight else {})


def _draw_value(
    feature: Feature, rng: np.random.Generator
) -> str | float | list[float] | None:
    if feature.is_numeric:
        return float(feature.mean + feature.scale * rng.standard_normal())
    if feature.kind == "date":  # the mean is that of the age less the end of the data
        return _to_iso(
            int(DAY * (-feature.mean + feature.scale * rng.standard_normal()))
        )
    if feature.kind == "vector":
        return [
            float(f"{entry:.4g}")
            for entry in feature.scale * rng.standard_normal(feature.width)
        ]
    if feature.kind == "text":
        return " ".join(
            f"word{number}" for number in rng.integers(feature.buckets, size=_WORDS)
        )
    return str(rng.choice(feature.vocabulary)) if feature.vocabulary else None


def _to_iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
