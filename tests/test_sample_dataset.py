"""The Dataset of single samples that the loader is timed beside makes the same batches."""

import numpy as np
import pytest
import torch

from datamodules.windows import WindowPlan
from tests.benchmarks.sample_dataset import SampleDataset, collate
from tests.tiny_data import EVERYTHING_SHOWN, ORDERED, L, make_data, make_world


@pytest.mark.parametrize("users", [[0, 5, 9], [3], [1, 3, 4, 6, 7, 8, 10, 11, 12]])
def test_a_collated_batch_equals_the_loaders(users):
    data = make_data(make_world(ORDERED))
    offsets = data.sequences.events.offsets
    rows = np.array(users)
    stops = offsets[rows + 1]
    starts = np.maximum(offsets[rows], stops - L)
    ours = data.examples[WindowPlan(rows, starts, stops, (1, 2, 3))]
    samples = SampleDataset(data.sequences, data.schema, EVERYTHING_SHOWN, seed=0)
    theirs = collate([samples[user] for user in users])
    for name, expected in ours.arrays.items():
        assert_equal(theirs.arrays[name], expected, name)
    assert set(theirs.arrays) == set(ours.arrays)
    for name, expected in list(ours._asdict().items())[1:]:
        assert_equal(getattr(theirs, name), expected, name, ours.is_target if name.startswith("context") else None)
    assert (stops - starts == L).any() or users == [3]


def assert_equal(found, expected, name, where=None):
    assert found.dtype == expected.dtype, name
    if name == "sees_history":  # of padding too, which nobody reads
        assert found.shape == expected.shape
        return
    assert found.shape == expected.shape, name
    if where is not None:
        found, expected = found[where], expected[where]
    assert torch.equal(found, expected), name
