"""The two towers side by side, with the encoded catalogue they share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datamodules.batch import RequestBatch, WindowBatch
from models.correlated_scores import ByNeighbours
from models.item_tower import ItemTower
from models.memory import memory_inputs
from models.rows import take_rows
from models.user_tower import UserTower
from serve.index import Neighbours


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
        self.neighbours = Neighbours.none(len(item_codes))
        """What items of a history add to the scores of others; `models.blending` sets it, once all is trained."""
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

    @property
    def no_popularity(self) -> Tensor:
        """Of a catalogue whose vectors have no such part, (N, 0)."""
        return self.item_values.new_zeros(self.n_items, 0)  # (N, 0)

    def item_vectors(self, popularity: Tensor) -> Tensor:
        """Make the vectors of the whole catalogue with popularity (N, P) as of a moment, (N, W)."""
        rows = torch.arange(self.n_items, device=self.item_codes.device)  # (N,)
        content = self.item_tower.content.embed_catalogue(self.item_codes, self.item_values)  # (N, D)
        return self.item_tower(  # type: ignore[no-any-return]
            rows, content, self.categories, popularity, self.item_has_content
        )  # (N, W)

    def some_item_vectors(self, rows: Tensor, popularity: Tensor) -> Tensor:
        """Make the vectors of some items (n,) with the popularity (N, P) of all, (n, W)."""
        content = self.item_tower.content(self.item_codes[rows], self.item_values[rows])  # (n, D)
        return self.item_tower(  # type: ignore[no-any-return]
            rows, content, self.categories[rows], popularity[rows], self.item_has_content[rows]
        )  # (n, W)

    def window_vectors(self, batch: WindowBatch, items: Tensor) -> Tensor:
        """Make the user vector of every target of the windows, from what stands before it, (M, W)."""
        tower, arrays = self.user_tower, batch.arrays
        windows, places = targets = batch.targets  # (M,) both
        states = tower.encode_events(take_rows(items, batch.history_rows)[..., : tower.dim], arrays)  # (B, T, D)
        sees = batch.sees_history[targets]  # (M,)
        before = windows * states.shape[1] + torch.where(sees, places, 0)  # (M,)
        fused = tower.fuse(
            states.flatten(0, 1).index_select(0, before),
            arrays["user_codes"][windows],
            arrays["user_values"][windows],
            batch.context_codes[targets],
            batch.context_values[targets],
            torch.where(sees, batch.recency[targets], 0),
        )  # (M, D)
        return tower.finish(fused)  # (M, W)

    def request_vectors(self, batch: RequestBatch, items: Tensor) -> tuple[Tensor, Tensor]:
        """Make the user vectors (B, W) of requests and the scores (E,) of owned items beyond the product."""
        tower, arrays = self.user_tower, batch.arrays
        history = take_rows(items, batch.history_rows)[..., : self.item_tower.history_dim]  # (B, L, D + R)
        if tower.memory is None:
            return tower.request_vectors(history, arrays), items.new_zeros(len(batch.owned_rows))  # (B, W), (E,)
        fused = tower.request_state(history[..., : tower.dim], arrays)  # (B, D)
        return tower.complete(fused, memory_inputs(arrays, take_rows(items, batch.owned_rows)))  # (B, W), (E,)

    def score_items(self, users: Tensor, items: Tensor, batch: RequestBatch) -> Tensor:
        """Score the catalogue `items` (N, W) for the users (B, W) of requests, without memory: (B, N)."""
        added = ByNeighbours(self.neighbours).sum_batch(batch)  # (B, N)
        return users @ items.T + added  # (B, N)
