"""Raw histories, from profiles or requests, as events of items that the bundle knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.events import Events, Floats, Ints
from serve.item_ids import ItemIds
from serve.profiles import History
from serve.requests import InlineHistory
from serve.schema import FIRST_CODE, UNKNOWN, Schema

Place = tuple["Histories", int]
"""A single history: among which it is, and its position there."""

NO_TIME = int(np.iinfo(np.int64).max)
"""Time of an event that has none: later than every moment, so that it counts as happening at the moment."""


@dataclass(frozen=True)
class Histories:
    """B histories; `events` holds what the bundle knows of them, each time as given or `NO_TIME`."""

    events: Events
    last_time: Ints
    """(B,) time of the last event, of a known item or not; `NO_TIME` where there is none."""
    unknown_items: Ints
    """(B,) distinct items that were left out."""


def encode_histories(history: History, offsets: Ints, item_ids: ItemIds, schema: Schema) -> Histories:
    """Encode B histories.

    Args:
        history: the events of all, each history oldest first.
        offsets: (B + 1,) history b is `offsets[b]:offsets[b + 1]`.
        item_ids: the catalogue.
        schema: codes of event types, and what stands in for a weight that is not given.
    """
    rows, time = item_ids.find(history.item_id), _times(history, schema)
    given = Events(rows, time, _event_codes(history, schema), _weights(history, schema), offsets)
    last_time = _last_times(time, offsets)
    is_known = rows >= 0
    if is_known.all():
        return Histories(given, last_time, np.zeros(len(given), dtype=np.int64))
    segment = given.segments()
    unknown = set(zip(segment[~is_known].tolist(), history.item_id[~is_known].tolist(), strict=True))
    n_unknown = np.bincount([owner for owner, _ in unknown], minlength=len(given)).astype(np.int64)
    return Histories(_keep(given, is_known), last_time, n_unknown)


def flatten_histories(inline: Sequence[InlineHistory], item_ids: ItemIds) -> tuple[History, Ints]:
    """Turn inline histories into the arrays that `encode_histories` reads, with their offsets."""
    counts = [len(one) for one in inline]
    history = History(
        np.array([*chain.from_iterable(one.item_id for one in inline)], dtype=item_ids.ids.dtype),
        _flatten([one.datetime for one in inline], counts, NO_TIME, np.int64),
        _flatten([one.event for one in inline], counts, None, np.object_),
        _flatten([one.weight for one in inline], counts, None, np.float64),  # None becomes NaN
    )
    return history, _to_offsets(counts)


def join_events(places: Sequence[Place], moment: Ints) -> Events:
    """Put the events of single histories together, at least one; later ones than its moment (B,) happen at it."""
    sources = [(part.events, slice(*part.events.offsets[i : i + 2].tolist())) for part, i in places]
    counts = [span.stop - span.start for _, span in sources]
    row, time, event, weight = (
        _join([getattr(events, name)[span] for events, span in sources])
        for name in ("item_row", "time", "event", "weight")
    )
    return Events(row, np.minimum(time, moment.repeat(counts)), event, weight, _to_offsets(counts))


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _flatten(columns: Sequence[Sequence[Any] | None], counts: Sequence[int], missing: Any, dtype: Any) -> Any:
    """Put one column of all histories in an array, `missing` where a history lacks it; None if all do."""
    if not any(columns):
        return None
    filled = ([missing] * n if column is None else column for column, n in zip(columns, counts, strict=True))
    return np.array([*chain.from_iterable(filled)], dtype=dtype)


def _to_offsets(counts: Sequence[int]) -> Ints:
    return np.array([0, *accumulate(counts)], dtype=np.int64)


def _last_times(time: Ints, offsets: Ints) -> Ints:
    """Return the time of each history's last event, `NO_TIME` of an empty one, (B,)."""
    stops = np.where(offsets[1:] > offsets[:-1], offsets[1:], 0)
    last: Ints = np.concatenate([time, [NO_TIME]])[stops - 1]
    return last


def _keep(events: Events, is_kept: NDArray[np.bool_]) -> Events:
    counts = np.bincount(events.segments()[is_kept], minlength=len(events))
    return Events(
        events.item_row[is_kept],
        events.time[is_kept],
        events.event[is_kept],
        events.weight[is_kept],
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )


def _times(history: History, schema: Schema) -> Ints:
    if not schema.has_datetime:
        return np.zeros(len(history), dtype=np.int64)
    return np.full(len(history), NO_TIME) if history.datetime is None else history.datetime


def _event_codes(history: History, schema: Schema) -> Ints:
    if history.event is None or not schema.event_types:
        return np.full(len(history), UNKNOWN, dtype=np.int64)
    codes = {name: FIRST_CODE + index for index, name in enumerate(schema.event_types)}
    return np.array([codes.get(name, UNKNOWN) for name in history.event.tolist()], dtype=np.int64)


def _weights(history: History, schema: Schema) -> Floats:
    """Return weights; the mean, which standardises to 0, where none is given."""
    mean = np.expm1(schema.weight_mean) if schema.has_weight else 1.0
    if history.weight is None:
        return np.full(len(history), mean, dtype=np.float32)
    weights = np.where(np.isnan(history.weight), mean, history.weight)
    return np.minimum(weights, np.finfo(np.float32).max).astype(np.float32)  # float64 reaches further
