"""The two towers side by side, with the encoded catalogue they share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datamodules.batch import RequestBatch, WindowBatch
from models.item_tower import ItemTower
from models.memory import memory_inputs
from models.user_tower import UserTower


class Towers(nn.Module):
    """Item tower, user tower and the catalogue's encoded features (buffers that no checkpoint holds)."""

    item_codes: Tensor
    item_values: Tensor
    categories: Tensor
    item_has_content: Tensor

    def __init__(
        self,
        item_tower: ItemTower,
        user_tower: UserTower,
        item_codes: Tensor,
        item_values: Tensor,
        categories: Tensor,
    ) -> None:
        super().__init__()
        self.item_tower = item_tower
        self.user_tower = user_tower
        buffers = {
            "item_codes": item_codes,  # (N, C)
            "item_values": item_values,  # (N, V)
            "categories": categories,  # (N, F)
            "item_has_content": item_tower.content.has_content(item_codes, item_values),  # (N,)
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    @property
    def n_items(self) -> int:
        return len(self.item_codes)

    def item_vectors(self, popularity: Tensor) -> Tensor:
        """Make the vectors of the whole catalogue with popularity (N, P) as of a moment, (N, W)."""
        rows = torch.arange(self.n_items, device=self.item_codes.device)  # (N,)
        return self.item_tower(  # type: ignore[no-any-return]
            rows, self.item_codes, self.item_values, self.categories, popularity, self.item_has_content
        )  # (N, W)

    def some_item_vectors(self, rows: Tensor) -> Tensor:
        """Make the vectors of some items (n,) of a catalogue without popularity, (n, W)."""
        return self.item_tower(  # type: ignore[no-any-return]
            rows,
            self.item_codes[rows],
            self.item_values[rows],
            self.categories[rows],
            self.item_values.new_zeros(len(rows), 0),
            self.item_has_content[rows],
        )  # (n, W)

    def window_vectors(self, batch: WindowBatch, items: Tensor) -> Tensor:
        """Make the user vector for every position of every window, from what stands before it, (B, L, W)."""
        tower, arrays = self.user_tower, batch.arrays
        states = tower.encode_events(items[batch.history_rows][..., : tower.dim], arrays)  # (B, T, D)
        before = torch.where(batch.sees_history.unsqueeze(-1), states[:, :-1], states[:, :1])  # (B, L, D)
        n_windows, length, dim = before.shape
        fused = tower.fuse(
            before.reshape(-1, dim),
            arrays["user_codes"].repeat_interleave(length, dim=0),
            arrays["user_values"].repeat_interleave(length, dim=0),
            batch.context_codes.flatten(0, 1),
            batch.context_values.flatten(0, 1),
            torch.where(batch.sees_history, batch.recency, 0).flatten(),
        )  # (B * L, D)
        return tower.finish(fused).view(n_windows, length, -1)  # (B, L, W)

    def request_vectors(self, batch: RequestBatch, items: Tensor) -> tuple[Tensor, Tensor]:
        """Make the user vectors (B, W) of requests and the scores (E,) of owned items beyond the product."""
        tower, arrays = self.user_tower, batch.arrays
        fused = tower.request_state(items[batch.history_rows][..., : tower.dim], arrays)  # (B, D)
        if tower.memory is None:
            return tower.finish(fused), items.new_zeros(len(batch.owned_rows))  # (B, W), (E,)
        return tower.complete(fused, memory_inputs(arrays, items[batch.owned_rows]))  # (B, W), (E,)
