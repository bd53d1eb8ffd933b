from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.blocks import EventBlocks
from models.user_tower import PADDING_GROUP


@pytest.mark.parametrize("n_heads", [1, 2])
def test_a_gap_weighs_what_hat_functions_of_it_weigh(n_heads):
    torch.manual_seed(3)
    blocks = EventBlocks(8, 1, n_heads, 0.0)
    (block,) = blocks.blocks
    times = torch.tensor([[0, 50, 50, 51, 10**4, 3 * 10**9], [0, 0, 1, 2, 3, 10**12]])
    groups = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 1, 2, PADDING_GROUP, PADDING_GROUP]])
    relations = blocks.relate(times, groups, times, groups)
    weighed = block.weigh_gaps(relations.pieces, relations.log_places)
    for row, asking, asked in np.ndindex(2, 6, 6):
        expected = torch.zeros(n_heads)
        if asking and asked:
            gap = max(0, int(times[row, asking] - times[row, asked]))
            place = min(math.log1p(gap), 20.0) / (20.0 / 11)
            expected = sum(max(0.0, 1 - abs(place - knot)) * block.gap_bias.weight[:, knot] for knot in range(12))
        torch.testing.assert_close(weighed[row, :, asking, asked], expected, atol=1e-6, rtol=0)
