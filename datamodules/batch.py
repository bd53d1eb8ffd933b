"""The two kinds of training batch, as tensors: whole windows of a sequence, and requests with their targets."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


class WindowBatch(NamedTuple):
    """B windows of L consecutive events in which every event may be a target, predicted from those before it."""

    arrays: Tensors
    """The history arrays of `serve.tower_inputs` and `user_codes`, `user_values`."""
    history_rows: Tensor
    """(B, L) item rows, 0 where padded."""
    context_codes: Tensor
    """(B, L, C) context of each event as a target."""
    context_values: Tensor
    """(B, L, V)."""
    target_weights: Tensor
    """(B, L) float32; 0 where the event is no target."""
    sees_history: Tensor
    """(B, L) bool; the others are predicted from the empty history."""
    recency: Tensor
    """(B, L) int64 seconds from the event before to the target; 0 where the target's time is withheld."""

    @property
    def is_target(self) -> Tensor:
        return self.target_weights > 0  # (B, L)

    @property
    def targets(self) -> tuple[Tensor, Tensor]:
        """Window and place of each of the M targets, (M,) both, ascending."""
        return self.is_target.nonzero(as_tuple=True)  # type: ignore[return-value]


class RequestBatch(NamedTuple):
    """B requests, each with the items that followed."""

    arrays: Tensors
    """Everything the user tower reads but vectors, named as in `serve.tower_inputs`."""
    history_rows: Tensor
    """(B, L)."""
    owned_rows: Tensor
    """(E,) distinct items of each request's past, ordered by request and row."""
    owned_users: Tensor
    """(E,) request of each."""
    target_users: Tensor
    """(M,) request of each target, ascending."""
    target_rows: Tensor
    """(M,) item row of each target."""
    target_weights: Tensor
    """(M,)."""
    target_owned: Tensor
    """(M,) position of the target among `owned_rows`, -1 if novel."""
    popularity: Tensor
    """(N, P) of the catalogue, as of a moment not after any request of the batch."""

    def mark_owned(self, n_items: int) -> Tensor:
        """Say of each of N items whether the user has it, (B, N)."""
        shape = (len(self.history_rows), n_items)
        is_owned = torch.zeros(shape, dtype=torch.bool, device=self.owned_rows.device)  # (B, N)
        is_owned[self.owned_users, self.owned_rows] = True
        return is_owned
