"""Sums of table rows by codes, with a gradient that is one more such sum.

torch adds up the gradient of `embedding_bag` code by code and sorts all codes anew in each step: where items have
titles that took most of the time. Here they are sorted once, which pays where they come again.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class CodeBags:
    """The codes of B rows, each with its weight, padding left out."""

    def __init__(self, codes: Tensor, weights: Tensor, counts: Tensor) -> None:
        """Keep what is summed.

        Args:
            codes: (K,) rows of the table, those of a bag one after the other.
            weights: (K,), to which there is no gradient.
            counts: (B,) codes of each bag.
        """
        self.codes = codes
        self.weights = weights
        self.counts = counts
        self.starts = counts.cumsum(dim=0) - counts  # (B,) where each bag begins

    def sum(self, table: Tensor) -> Tensor:
        """Sum weighted rows of a table (n, D) in each bag, (B, D)."""
        summed: Tensor = _SumBags.apply(table, self)  # type: ignore[no-untyped-call]
        return summed  # (B, D)

    def add_up(self, table: Tensor) -> Tensor:
        """Do as `sum`, without a gradient."""
        return functional.embedding_bag(
            self.codes, table, self.starts, mode="sum", per_sample_weights=self.weights.to(table.dtype)
        )  # (B, D)

    @cached_property
    def turned(self) -> tuple[Tensor, CodeBags]:
        """Which codes there are, (U,), and in which bags each is, ascending: what the gradient is summed by."""
        order = self.codes.argsort(stable=True)  # (K,)
        bags = torch.arange(len(self.counts), device=order.device).repeat_interleave(self.counts)  # (K,)
        distinct, counts = torch.unique_consecutive(self.codes[order], return_counts=True)  # (U,), (U,)
        return distinct, CodeBags(bags[order], self.weights[order], counts)


class _SumBags(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, bags: CodeBags) -> Tensor:
        ctx.bags, ctx.n_rows = bags, len(table)
        return bags.add_up(table)  # (B, D)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        distinct, turned = ctx.bags.turned
        of_table = gradient.new_zeros(ctx.n_rows, gradient.shape[1])  # (n, D)
        of_table[distinct] = turned.add_up(gradient.contiguous())  # (U, D)
        return of_table, None
