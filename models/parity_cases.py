"""Inputs that no person made, over the shapes that serving meets: to export with and to compare with."""

from __future__ import annotations

import numpy as np

from serve.encode import EncodedFeatures, code_slices, count_categories, value_slices
from serve.events import DAY, Events, Floats, Ints, history_arrays, owned_arrays, request_arrays, summarise_owned
from serve.schema import FIRST_CODE, PADDING, UNKNOWN, Feature, Schema
from serve.tower import Arrays

BATCHES = (1, 7, 256)


def user_cases(schema: Schema, vectors: Floats, taste_dim: int, categories: Ints, seed: int) -> dict[str, Arrays]:
    """Make the user tower's inputs for each batch size, for histories of 0, 1, any and the most events.

    Args:
        schema: of the data.
        vectors: (N, W) item vectors.
        taste_dim: D + R, the part that histories are read by.
        categories: (N, F) category rows of the items.
        seed: of the random choices.
    """
    rng = np.random.default_rng(seed)
    longest = schema.history_length
    cases: dict[str, Arrays] = {}
    for batch in BATCHES:
        lengths = {
            "0": [0] * batch,
            "1": [1] * batch,
            "max": [longest] * batch,
            "any": rng.integers(0, longest, batch),
        }
        for name, counts in lengths.items():
            events = draw_events(np.asarray(counts, dtype=np.int64), schema, len(vectors), rng)
            cases[f"batch {batch}, history {name}"] = user_case(events, schema, vectors, taste_dim, categories, rng)
    return cases


def draw_events(counts: Ints, schema: Schema, n_items: int, rng: np.random.Generator) -> Events:
    """Draw histories of the given lengths from few items, so that some come again."""
    total, segment = int(counts.sum()), np.repeat(np.arange(len(counts)), counts)
    times = schema.data_until - (rng.integers(0, 300, total) * DAY).astype(np.int64)
    return Events(
        item_row=rng.integers(0, max(1, n_items // 3), total),
        time=times[np.lexsort((times, segment))] if schema.has_datetime else np.zeros(total, dtype=np.int64),
        event=rng.integers(1, FIRST_CODE + len(schema.event_types), total),
        weight=rng.integers(1, 5, total).astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )


def user_case(
    events: Events,
    schema: Schema,
    vectors: Floats,
    taste_dim: int,
    categories: Ints,
    rng: np.random.Generator,
) -> Arrays:
    """Make the user tower's inputs for drawn histories, with drawn features."""
    n = len(events)
    moment = np.full(n, schema.data_until, dtype=np.int64)
    arrays, rows = history_arrays(events, schema)
    arrays["history_vectors"] = vectors[rows][..., :taste_dim]
    user, context = (draw_features(schema.features(side), n, rng) for side in ("user", "context"))
    arrays |= request_arrays(moment, user, context)
    if schema.repeats == "allow":
        rates = rng.normal(size=len(vectors)).astype(np.float32)
        owned = summarise_owned(events, moment, schema.decay_days, len(schema.event_types), rates)
        arrays |= owned_arrays(owned, categories, count_categories(schema.item_features))
        arrays["owned_vectors"] = vectors[owned.item_row]
    return arrays


def item_case(schema: Schema, n: int, rng: np.random.Generator) -> Arrays:
    """Make the item tower's inputs for n drawn items."""
    features = draw_features(schema.item_features, n, rng)
    n_categories = count_categories(schema.item_features)
    width = sum(feature.kind == "categorical" for feature in schema.item_features)
    return {
        "item_codes": features.codes,
        "item_values": features.values,
        "categories": rng.integers(0, max(1, n_categories), (n, width)),
    }


def draw_features(features: tuple[Feature, ...], n: int, rng: np.random.Generator) -> EncodedFeatures:
    """Draw codes within each vocabulary, unknown among them, and numbers and vectors with some missing.

    Of several codes a row has at least one; the rest is padding.
    """
    codes, values = [np.zeros((n, 0), dtype=np.int64)], [np.zeros((n, 0))]
    for feature, _ in code_slices(features):
        drawn = rng.integers(UNKNOWN, feature.n_codes, (n, feature.width))
        counts = rng.integers(1, feature.width + 1, (n, 1))
        codes.append(np.where(np.arange(feature.width) < counts, drawn, PADDING))
    for feature, _ in value_slices(features):
        is_missing = rng.random((n, 1)) < 0.2
        drawn = rng.normal(size=(n, feature.width)) / feature.width**0.5
        values += [np.where(is_missing, 0.0, drawn), is_missing.astype(np.float64)]
    return EncodedFeatures(np.concatenate(codes, axis=1), np.concatenate(values, axis=1).astype(np.float32))
