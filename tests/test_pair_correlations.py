"""What items of a set say of each other, pair by pair, against dense algebra."""

from __future__ import annotations

import numpy as np
import pytest

from models import pair_correlations
from models.pair_correlations import correlate_pairs
from tests.test_item_correlations import RIDGE, N, correlations, draw


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.parametrize(("most", "wanted"), [(N, 3), (9, 3), (9, 50)])
def test_neighbours_are_the_largest_numbers_of_an_item_among_those_that_are_correlated(
    monkeypatch, most, wanted, power
):
    monkeypatch.setattr(pair_correlations, "CHUNK", 4)
    owned = draw(seed=6)
    made = correlate_pairs(*owned.nonzero(), owned.shape, RIDGE, most)
    found = made.find_neighbours(power, wanted)
    core = np.argsort(-owned.sum(axis=0), kind="stable")[:most]
    precision = np.linalg.inv(owned[:, core].T @ owned[:, core] + RIDGE * np.eye(most))
    spread = np.diag(precision) ** -0.5
    numbers = correlations(owned[:, core], RIDGE) * np.outer(spread, spread) ** power / spread.mean() ** (2 * power)
    assert found.n_items == N
    for item in range(N):
        part = slice(found.offsets[item], found.offsets[item + 1])
        if item not in core:
            assert part.start == part.stop
            continue
        told = dict(zip(found.rows[part].tolist(), found.weights[part].tolist(), strict=True))
        row = numbers[core.tolist().index(item)]
        assert len(told) == min(wanted, most - 1)
        assert item not in told or told[item] == 0
        for neighbour, number in told.items():
            assert number == pytest.approx(row[core.tolist().index(neighbour)], rel=1e-3, abs=1e-5)
        others = [abs(number) for place, number in enumerate(row) if core[place] not in told]
        assert max(others, default=0) <= min(map(abs, told.values())) + 1e-5
