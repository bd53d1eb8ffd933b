"""Sums over the items of each user, which lie one after the other: users own very unlike numbers of them."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_by_user(values: Tensor, users: Tensor, n_users: int) -> Tensor:
    """Sum values (E, any) over the rows of each user, whom users (E,) name: (B, any).

    An exported graph multiplies by who has which row. `scatter_add` becomes a node of ONNX Runtime that adds number by
    number (.17 ms for 300 rows of 128 numbers, the product takes .007), `index_add` one that loses rows where a session
    has several threads.
    """
    if torch.compiler.is_exporting():
        is_hers = torch.arange(n_users, device=users.device).unsqueeze(1) == users  # (B, E)
        return is_hers.to(values.dtype) @ values  # (B, any)
    return values.new_zeros(n_users, values.shape[1]).index_add(0, users, values)  # (B, any)
