"""From events and encoded features to the named arrays that the user tower reads: shared by training and serving.

The tower reads item *vectors*; here stand item rows, which training gathers from its table and serving from
the bundle's vectors. Letters: B requests, L history positions, E owned items of all requests, C codes, V values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from serve.encoding import EncodedFeatures
from serve.events import Events, Floats, Ints
from serve.owned import Owned
from serve.schema import Schema

Arrays = dict[str, np.ndarray]

HISTORY_INPUTS = ("history_events", "history_weights", "history_times", "history_groups", "history_lengths")
REQUEST_INPUTS = ("request_times", "user_codes", "user_values", "context_codes", "context_values")
OWNED_INPUTS = (
    "owned_users",
    "owned_statistics",
    "owned_preferences",
    "user_statistics",
    "category_preferences",
)
_SCATTER, _SCATTERED = 2654435761, 1 << 32  # multiplicative hashing (Knuth, TAOCP 3, 6.4)
VECTOR_INPUTS = ("history_vectors", "owned_vectors")


@dataclass(frozen=True)
class TowerInputs:
    """`arrays` by name, and the item rows whose vectors complete them: history (B, L), owned (E,)."""

    arrays: Arrays
    history_rows: Ints
    owned_rows: Ints


def history_arrays(events: Events, schema: Schema) -> tuple[Arrays, Ints]:
    """Pad the last `history_length` events of each request to a rectangle.

    Returns:
        arrays: `history_events` and `_groups` (B, L) int64, `history_times` (B, L) int64 seconds,
            `history_weights` (B, L) float32 standardised log, `history_lengths` (B,). Groups count from 1:
            events of one group see each other. L is at least 1.
        rows: (B, L) item rows, 0 where padded.
    """
    recent = (as_sets(events) if schema.is_set else events).last(schema.history_length)
    pad = _make_pad(recent)
    arrays = {
        "history_events": pad(recent.event),
        "history_weights": pad(standardise_weight(recent.weight, schema)),
        "history_times": pad(recent.time),
        "history_groups": pad(number_groups(recent, schema)),
        "history_lengths": recent.counts,
    }
    return arrays, pad(recent.item_row)


def _make_pad(events: Events) -> Callable[[np.ndarray], np.ndarray]:
    """Return what lays a value of each event out as (B, L), 0 where there is no event."""
    shape = (len(events), max(1, int(events.counts.max(initial=0))))
    if len(events.item_row) == shape[0] * shape[1]:  # nothing to pad, as in a single request
        return lambda values: values.reshape(shape)
    is_event = np.arange(shape[1]) < events.counts[:, None]  # (B, L)

    def pad(values: np.ndarray) -> np.ndarray:
        padded = np.zeros(shape, dtype=values.dtype)
        padded[is_event] = values
        return padded

    return pad


def as_sets(events: Events) -> Events:
    """Keep one event of each item, the heaviest, in an order that depends on the items alone, not on that of the ids.

    An item that stands in many rows is still one preference. The last events are as good as any part of a set.
    """
    segment = events.segments()
    order = np.lexsort((events.event, events.weight, events.item_row * _SCATTER % _SCATTERED, segment))
    segment, row = segment[order], events.item_row[order]
    is_last = np.ones(len(order), dtype=bool)
    is_last[:-1] = (segment[1:] != segment[:-1]) | (row[1:] != row[:-1])
    counts = np.bincount(segment[is_last], minlength=len(events))
    return events.pick(order[is_last], np.concatenate([[0], np.cumsum(counts)]))


def number_groups(events: Events, schema: Schema) -> Ints:
    """Number the groups of events that see each other, from 1 in each segment: each alone, or all of one time."""
    segment = events.segments()
    if schema.ties == "ordered":
        return np.arange(1, len(segment) + 1) - events.offsets[segment]
    running = events.is_first_of_time.cumsum()
    numbers: Ints = running - running[events.offsets[segment]] + 1
    return numbers


def standardise_weight(weight: np.ndarray, schema: Schema) -> Floats:
    """Scale log(1 + weight) by its mean and deviation over training rows; 0 where the data has no weight."""
    if not schema.has_weight:
        return np.zeros(len(weight), dtype=np.float32)
    standard = (np.log1p(np.maximum(weight, 0)) - schema.weight_mean) / schema.weight_scale
    clipped: Floats = np.clip(standard, -10, 10).astype(np.float32)
    return clipped


def request_arrays(moment: Ints, user: EncodedFeatures, context: EncodedFeatures) -> Arrays:
    """Name the request's own arrays."""
    return {
        "request_times": moment,
        "user_codes": user.codes,
        "user_values": user.values,
        "context_codes": context.codes,
        "context_values": context.values,
    }


def owned_arrays(owned: Owned, categories: Ints, n_categories: int) -> Arrays:
    """Name the memory's arrays and sum each user's preference by category.

    Args:
        owned: E owned items of B users.
        categories: (N, F) category rows of the catalogue.
        n_categories: Q, categories in all.
    """
    n_users = len(owned.user_statistics)
    cell = owned.user[:, None] * n_categories + categories[owned.item_row]  # (E, F)
    weights = owned.preference.repeat(cell.shape[1])
    summed = np.bincount(cell.ravel(), weights, minlength=n_users * n_categories)
    return {
        "owned_users": owned.user,
        "owned_statistics": owned.statistics,
        "owned_preferences": owned.preference,
        "user_statistics": owned.user_statistics,
        "category_preferences": summed.reshape(n_users, n_categories).astype(np.float32),
    }


def last_moments(events: Events) -> Ints:
    """Return the time of each segment's last event, 0 for an empty one, (B,)."""
    last = np.maximum(events.offsets[1:] - 1, 0)
    times = np.append(events.time, 0)
    return np.where(events.counts > 0, times[last], 0)
