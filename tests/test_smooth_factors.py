"""The leading factors of who has what, and the products that they are found by."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from models import eigenvectors, smooth_factors
from models.smooth_factors import Gram, find_smooth_factors
from tests.test_low_pass import draw_pairs

K = 5


@pytest.mark.parametrize("ratio", [0, 3], ids=["krylov", "whole"])
def test_who_has_what_is_scaled_by_the_roots_of_its_sums_and_has_these_factors(ratio, monkeypatch):
    monkeypatch.setattr(eigenvectors, "LEAST_KRYLOV_RATIO", ratio)
    owned = draw_pairs(60, 40)
    found = find_smooth_factors(*owned.nonzero(), owned.shape, K, seed=1)
    users, items = np.maximum(owned.sum(axis=1), 1), np.maximum(owned.sum(axis=0), 1)
    scaled = owned / np.sqrt(users)[:, None] / np.sqrt(items)
    assert np.allclose(found.scaled.toarray(), scaled, atol=1e-6)
    assert found.n_users.tolist() == items.tolist()
    right = np.linalg.svd(scaled)[2][:K]
    assert np.allclose(found.vectors @ found.vectors.T, right.T @ right, atol=1e-4)
    assert not found.vectors[4].any()  # nobody has it


def test_many_factors_are_multiplied_a_block_at_a_time(monkeypatch):
    """Users may be so many that their products with all columns at once fill the memory."""
    monkeypatch.setattr(smooth_factors, "KRYLOV_BLOCK", 2)
    owned = sp.csr_array(draw_pairs(60, 40).astype(np.float32))
    widths, columns = [], np.random.default_rng(3).standard_normal((40, K)).astype(np.float32)
    gram = Gram(owned)

    class Watched:
        def __matmul__(self, block):
            widths.append(block.shape[1])
            return owned @ block

    gram.matrix = Watched()
    assert np.allclose(gram @ columns, owned.T @ (owned @ columns), atol=1e-4)
    assert widths == [2, 2, 1]
