"""Taking rows is indexing, and so is its gradient."""

from __future__ import annotations

import pytest
import torch

from models.rows import take_rows


@pytest.mark.parametrize("shape", [(6,), (3, 5), (0,), (2, 0)])
def test_rows_are_those_of_indexing(shape: tuple[int, ...]) -> None:
    table = torch.randn(4, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rows = torch.randint(4, shape, generator=torch.Generator().manual_seed(1))
    taken, indexed = take_rows(table, rows), table[rows]
    assert torch.equal(taken, indexed)
    change = torch.randn(indexed.shape, generator=torch.Generator().manual_seed(2))
    (of_taken,) = torch.autograd.grad(taken, table, change)
    (of_indexed,) = torch.autograd.grad(indexed, table, change)
    assert torch.equal(of_taken, of_indexed)
