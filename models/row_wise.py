"""Update tables of sparse gradients row by row: a step costs what the rows that it needs do.

An optimiser of dense gradients reads and writes every row of a table of items in each step, with
two moments of the same size. Row-wise Adagrad touches the rows that a step needs, and keeps one
number a row.

Letters: R rows of a table, D entries of a row, n distinct rows that a step needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

# Rate of row-wise Adagrad, as a multiple of AdamW's: its steps get shorter with each one of a row.
ROW_RATE = 20.0
SUMMED_SQUARES = "summed_squares"
MIN_ROOT = 1e-10


class RowWiseAdamW(AdamW):
    """AdamW of dense gradients, row-wise Adagrad of sparse ones, whose weights do not decay.

    Source: Duchi et al., JMLR 2011, with one sum of squares a row as in FBGEMM's
    `EXACT_ROWWISE_ADAGRAD`.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is not None and gradient.is_sparse:
                    self._update_rows(parameter, gradient.coalesce(), group["lr"])
                    parameter.grad = None

        super().step()
        return loss

    @torch.no_grad()
    def _update_rows(self, table: Tensor, gradient: Tensor, rate: float) -> None:
        """Update the rows of a table (R, D) that a coalesced gradient names."""
        rows = gradient.indices()[0]  # (n,)
        values = gradient.values()  # (n, D)
        state = self.state[table]
        if not state:
            state["step"] = torch.zeros(())  # AdamW looks for one when it is loaded
            state[SUMMED_SQUARES] = table.new_zeros(len(table))  # (R,)

        summed = state[SUMMED_SQUARES]  # (R,)
        summed.index_add_(0, rows, values.square().mean(dim=1))
        roots = summed[rows].sqrt().clamp(min=MIN_ROOT)  # (n,)
        table.index_add_(0, rows, values / roots.unsqueeze(1), alpha=-rate)


def clip_norm(module: nn.Module, max_norm: float) -> None:
    """Clip the gradients of a module by their norm, sparse ones by that of their rows."""
    clipped = []
    for parameter in module.parameters():
        gradient = parameter.grad
        if gradient is not None and gradient.is_sparse:
            parameter.grad = gradient.coalesce()
            # stands for the parameter; its gradient shares the memory
            parameter = nn.Parameter(parameter.grad.values())  # (n, D)
            parameter.grad = parameter.data
        clipped.append(parameter)

    nn.utils.clip_grad_norm_(clipped, max_norm)
