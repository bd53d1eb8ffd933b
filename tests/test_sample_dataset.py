"""The Dataset of single samples that the loader is timed beside makes the same batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from datamodules.batch import FeatureDropout
from datamodules.config import FeaturesConfig
from datamodules.sliding_windows import WindowPlan
from tests.benchmarks.sample_dataset import SampleDataset, collate
from tests.tiny_data import EVERYTHING_SHOWN, ORDERED, L, make_data, make_world

BARE = replace(ORDERED, features=FeaturesConfig())
NOTHING_SHOWN = FeatureDropout(1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("config", [ORDERED, BARE], ids=["features", "bare"])
@pytest.mark.parametrize("withheld", [EVERYTHING_SHOWN, NOTHING_SHOWN], ids=["shown", "withheld"])
@pytest.mark.parametrize("users", [[0, 5, 9], [3], [1, 3, 4, 6, 7, 8, 10, 11, 12]])
def test_a_collated_batch_equals_the_loaders(users, withheld, config):
    data = make_data(make_world(config), withheld)
    offsets, rows = data.sequences.events.offsets, np.array(users)
    stops = offsets[rows + 1]
    starts = np.maximum(offsets[rows], stops - L)
    assert (starts > offsets[rows]).any() or users == [3]  # one whose first event is no target
    ours = data.examples[WindowPlan(rows, starts, stops, (1, 2, 3))]
    samples = SampleDataset(data.sequences, data.schema, withheld, seed=0)
    theirs = collate([samples[user] for user in users])
    assert set(theirs.arrays) == set(ours.arrays)
    for name, expected in ours.arrays.items():
        assert_equal(theirs.arrays[name], expected, name)
    is_event = torch.arange(ours.history_rows.shape[1]) < ours.arrays["history_lengths"].unsqueeze(1)
    for name, expected in list(ours._asdict().items())[1:]:
        assert_equal(getattr(theirs, name), expected, name, is_event)


def assert_equal(found, expected, name, where=...):
    """Compare what is read: what stands in the padding of context and of what is withheld is not."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
    assert torch.equal(found[where], expected[where]), name
