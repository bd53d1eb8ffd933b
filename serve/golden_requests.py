"""Requests that no person made: catalogue ids and vocabulary values, drawn by seed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from serve.requests import DERIVED
from serve.schema import Feature, Schema

_LONGEST = 20  # events
_WORDS = 5  # of a text: any are as good, since they are hashed
_DAY = 86_400


def draw_requests(
    schema: Schema, item_ids: Sequence[str | int], n_requests: int, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Draw raw requests: histories of 0 events and more, with and without features, context and a time."""
    return [_draw_request(number, schema, item_ids, rng) for number in range(n_requests)]


def _draw_request(
    number: int, schema: Schema, item_ids: Sequence[str | int], rng: np.random.Generator
) -> dict[str, Any]:
    request: dict[str, Any] = {"history": _draw_history(number % (_LONGEST + 1), schema, item_ids, rng)}
    if number % 3 < 2:
        request["features"] = {feature.name: _draw_value(feature, rng) for feature in schema.user_features}
    if number % 3 > 0:
        given = [feature for feature in schema.context_features if feature.kind not in DERIVED]
        request["context"] = {feature.name: _draw_value(feature, rng) for feature in given}
        if schema.has_datetime:
            request["datetime"] = _write_time(schema.data_until)
    return request


def _draw_history(
    length: int, schema: Schema, item_ids: Sequence[str | int], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Draw events, oldest first; from few items, so that some come again."""
    few = rng.integers(len(item_ids), size=max(1, length // 2))
    times = schema.data_until - np.sort(rng.integers(1, 90 * _DAY, size=length))[::-1]
    events = []
    for row, time in zip(rng.choice(few, size=length), times, strict=True):
        event: dict[str, Any] = {"item_id": item_ids[int(row)]}
        if schema.has_datetime:
            event["datetime"] = _write_time(int(time))
        if schema.event_types:
            event["event"] = str(rng.choice(schema.event_types))
        if schema.has_weight:
            event["weight"] = float(rng.integers(1, 4))
        events.append(event)
    return events


def _draw_value(feature: Feature, rng: np.random.Generator) -> str | float | list[str] | list[float] | None:
    if feature.is_numeric:
        return float(feature.mean + feature.scale * rng.standard_normal())
    if feature.kind == "vector":
        entries = rng.standard_normal(feature.width) * feature.scale / feature.width**0.5
        return [float(f"{entry:.4g}") for entry in entries]
    if feature.kind == "text":
        return " ".join(f"word{number}" for number in rng.integers(feature.buckets, size=_WORDS))
    if not feature.vocabulary:
        return None
    if feature.kind == "multi_categorical":
        return [str(value) for value in rng.choice(feature.vocabulary, size=feature.width)]
    return str(rng.choice(feature.vocabulary))


def _write_time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
