"""What the memory reads of each catalogue item, from `items.parquet`: its rate of repeats, its categories."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from serve.bundle import ITEMS
from serve.encode import category_features, category_rows, count_categories, encode_features
from serve.errors import BundleError
from serve.events import Floats, Ints
from serve.recommendations import to_numpy
from serve.schema import Feature, Schema

REPEAT_RATE = "repeat_rate"
"""Reserved column of `items.parquet` where repeats are allowed."""


@dataclass(frozen=True)
class ItemFacts:
    """Facts of N items."""

    repeat_rate: Floats
    """(N,)."""
    categories: Ints
    """(N, F), each within [0, `n_categories`)."""
    n_categories: int


def read_item_facts(items: pa.Table, schema: Schema) -> ItemFacts:
    """Read the facts of the catalogue.

    Raises:
        BundleError: a column is missing.
    """
    features = tuple(feature for feature, _ in category_features(schema.item_features))
    for name in (REPEAT_RATE, *(feature.column for feature in features)):
        if name not in items.column_names:
            raise BundleError(f"{ITEMS} has no column '{name}', which the memory reads: export the bundle again")
    codes = [_codes(feature, items.column(feature.column)) for feature in features]
    codes.append(np.empty((items.num_rows, 0), dtype=np.int64))  # so that no feature is no special case
    return ItemFacts(
        to_numpy(items.column(REPEAT_RATE)).astype(np.float32),
        category_rows(features, np.concatenate(codes, axis=1)),
        count_categories(features),
    )


def _codes(feature: Feature, column: pa.ChunkedArray) -> Ints:
    """Encode a column through its distinct values, (N, 1)."""
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    values = encoded.dictionary.to_pylist()
    index = to_numpy(pa.chunked_array([encoded.indices]))
    codes: Ints = encode_features((feature,), {feature.column: values}, len(values)).codes[index]
    return codes
