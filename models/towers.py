"""Hold the two towers side by side, with the encoded catalogue that they share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from datamodules.batch import RequestBatch, WindowBatch
from datamodules.sequences import Catalogue
from models.item_tower import ItemTower
from models.memory import memory_inputs
from models.user_tower import UserTower
from serve.index import Neighbours, add_terms, join_terms


class Towers(nn.Module):
    """Hold item tower, user tower and the catalogue's encoded features (buffers that no checkpoint holds)."""

    item_codes: Tensor
    item_values: Tensor
    categories: Tensor
    item_has_content: Tensor

    def __init__(
        self, item_tower: ItemTower, user_tower: UserTower, catalogue: Catalogue
    ) -> None:
        super().__init__()
        self.item_tower = item_tower
        self.user_tower = user_tower
        self.neighbours = Neighbours.none(
            len(catalogue)
        )  # `models.refine` sets them after training
        encoded = catalogue.features
        codes = torch.from_numpy(encoded.codes)
        values = torch.from_numpy(encoded.values)
        buffers = {
            "item_codes": codes,  # (N, C)
            "item_values": values,  # (N, V)
            "categories": torch.from_numpy(
                catalogue.categories
            ),  # (N, F) rows of the affinity table
            "item_has_content": item_tower.content.has_content(codes, values),  # (N,)
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    @property
    def n_items(self) -> int:
        return len(self.item_codes)

    @property
    def no_popularity(self) -> Tensor:
        """The popularity part of vectors that have none, (N, 0)."""
        return self.item_values.new_zeros(self.n_items, 0)  # (N, 0)

    def item_vectors(self, popularity: Tensor) -> Tensor:
        """Make the vectors of the whole catalogue with popularity (N, P) as of a moment, (N, W)."""
        rows = torch.arange(self.n_items, device=self.item_codes.device)  # (N,)
        content = self.item_tower.content.embed_catalogue(
            self.item_codes, self.item_values
        )  # (N, D)
        vectors: Tensor = self.item_tower(
            rows, content, self.categories, popularity, self.item_has_content
        )
        return vectors  # (N, W)

    def some_item_vectors(self, rows: Tensor, popularity: Tensor) -> Tensor:
        """Make the vectors of some items (n,) with the popularity (N, P) of all, (n, W)."""
        content = self.item_tower.content(
            self.item_codes[rows], self.item_values[rows]
        )  # (n, D)
        has_content = self.item_has_content[rows]  # (n,)
        vectors: Tensor = self.item_tower(
            rows, content, self.categories[rows], popularity[rows], has_content
        )
        return vectors  # (n, W)

    def window_vectors(self, batch: WindowBatch, items: Tensor) -> Tensor:
        """Make the user vector of every target of the windows, from the events before it, (M, W)."""
        tower = self.user_tower
        arrays = batch.arrays
        windows, positions = targets = batch.targets  # (M,) both
        history = embedding(batch.history_rows, items)[..., : tower.dim]  # (B, L, D)
        states = tower.encode_events(history, arrays)  # (B, T, D)
        sees_history = batch.sees_history[targets]  # (M,)
        before = windows * states.shape[1] + torch.where(
            sees_history, positions, 0
        )  # (M,)
        fused = tower.fuse(
            states.flatten(0, 1).index_select(0, before),
            arrays["user_codes"][windows],
            values[targets]
            if (values := arrays["user_values"]).dim() == 3
            else values[windows],
            batch.context_codes[targets],
            batch.context_values[targets],
            torch.where(sees_history, batch.recency[targets], 0),
        )  # (M, D)
        return tower.finish(fused)  # (M, W)

    def request_vectors(
        self, batch: RequestBatch, items: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Make the user vectors (B, W) of requests and the scores (E,) of owned items beyond the product."""
        tower = self.user_tower
        arrays = batch.arrays
        history = embedding(batch.history_rows, items)[..., : tower.dim]  # (B, L, D)
        fused = tower.request_state(history, arrays)  # (B, D)
        if tower.memory is None:
            return tower.finish(fused), items.new_zeros(
                len(batch.owned_rows)
            )  # (B, W), (E,)
        return tower.remember(
            fused, memory_inputs(arrays, embedding(batch.owned_rows, items))
        )  # (B, W), (E,)

    def score_items(self, users: Tensor, items: Tensor, batch: RequestBatch) -> Tensor:
        """Score the catalogue (N, W) for the users (B, W) of requests, item-item weights included: (B, N)."""
        rows = batch.history_rows.numpy()  # (B, L), (B,)
        lengths = batch.arrays["history_lengths"].numpy()
        scores = users @ items.T  # (B, N)
        owned = (
            (batch.owned_users.numpy(), batch.owned_rows.numpy())
            if self.user_tower.memory is not None
            else None
        )
        matches = batch.arrays["history_matches"].numpy()  # (B, L)
        of_history = self.neighbours.of_histories(rows, lengths, owned, matches)
        terms = join_terms([of_history, self.neighbours.of_all(len(rows))])
        if terms is not None:
            add_terms(scores.numpy(), terms)
        return scores  # (B, N)
