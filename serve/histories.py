"""Raw histories, from profiles or requests, as events of items that the bundle knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
from numpy.typing import NDArray

from serve.events import Events, Floats, Ints
from serve.item_ids import ItemIds
from serve.profiles import History
from serve.requests import Event
from serve.schema import FIRST_CODE, UNKNOWN, Schema

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
    last_time = np.append(time, NO_TIME)[np.where(given.counts > 0, offsets[1:] - 1, len(time))]
    is_known = rows >= 0
    if is_known.all():
        return Histories(given, last_time, np.zeros(len(given), dtype=np.int64))
    segment = given.segments()
    unknown = set(zip(segment[~is_known].tolist(), history.item_id[~is_known].tolist(), strict=True))
    n_unknown = np.bincount([owner for owner, _ in unknown], minlength=len(given)).astype(np.int64)
    return Histories(_keep(given, is_known), last_time, n_unknown)


def flatten_events(histories: Sequence[Sequence[Event]], item_ids: ItemIds) -> tuple[History, Ints]:
    """Turn inline histories into the arrays that `encode_histories` reads, with their offsets."""
    ids, times, types, weights = zip(*chain.from_iterable(histories), strict=True) if any(histories) else [()] * 4
    history = History(
        np.array(ids, dtype=item_ids.ids.dtype),
        np.array([NO_TIME if time is None else time for time in times] if None in times else times, dtype=np.int64),
        np.array(types, dtype=np.object_) if any(types) else None,
        None
        if weights.count(None) == len(weights)
        else np.array(weights, dtype=np.float64),  # a None among them is NaN
    )
    return history, np.array([*accumulate(map(len, histories), initial=0)], dtype=np.int64)


def pick_histories(parts: Sequence[tuple[Histories, int]]) -> Histories:
    """Join single histories, each named by where it is and its position there; at least one."""
    sources = [(part.events, *part.events.offsets[i : i + 2].tolist()) for part, i in parts]
    counts = [stop - start for _, start, stop in sources]
    events = Events(
        np.concatenate([events.item_row[start:stop] for events, start, stop in sources]),
        np.concatenate([events.time[start:stop] for events, start, stop in sources]),
        np.concatenate([events.event[start:stop] for events, start, stop in sources]),
        np.concatenate([events.weight[start:stop] for events, start, stop in sources]),
        np.array([*accumulate(counts, initial=0)], dtype=np.int64),
    )
    last_time = np.array([part.last_time[i] for part, i in parts], dtype=np.int64)
    unknown_items = np.array([part.unknown_items[i] for part, i in parts], dtype=np.int64)
    return Histories(events, last_time, unknown_items)


def limit_times(events: Events, moment: Ints) -> Events:
    """Let events later than the moment (B,) of their segment happen at it."""
    time = np.minimum(events.time, np.repeat(moment, events.counts))
    return Events(events.item_row, time, events.event, events.weight, events.offsets)


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
