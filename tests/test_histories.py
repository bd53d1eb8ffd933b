from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from serve.histories import encode_histories, flatten_events
from serve.item_ids import ItemIds
from serve.requests import Event
from serve.tower_inputs import standardise_weight
from tests.tiny_bundle import SCHEMA


@pytest.mark.parametrize("weight", [1e308, float(np.finfo(np.float32).max), 1e39])
def test_a_weight_beyond_float32_is_clipped(weight):
    schema = replace(SCHEMA, has_weight=True, weight_mean=1.5, weight_scale=0.5)
    items = ItemIds(np.array(["p", "q", "r"], dtype=object))
    history, offsets = flatten_events([[Event("q", None, None, weight), Event("p", None, None, 3.0)]], items)
    got = encode_histories(history, offsets, items, schema).events.weight
    assert got.tolist() == [float(np.finfo(np.float32).max), 3.0]
    assert np.isfinite(standardise_weight(got, schema)).all()
