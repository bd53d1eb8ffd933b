"""The two towers side by side, with the encoded catalogue that they share.

A user u, in a context at a time, and an item i have the score

    score(u, i) = u . v_i  +  sum over j in history of w_j B[j, i]  +  m_u(i)

**u . v_i** is the product of the two towers, and all that is trained by gradients. The item tower
(`models.item_tower`) maps an item to v_i: an id embedding plus embedded content, so that content
places items that training never saw. The user tower (`models.user_tower`) maps a history to u. It
reads the *vectors* of the items in it, with kind, weight and time of each event, through a few
blocks of attention (`models.attention`) or, of a set, by a weighted sum. Last it joins
demographics, request context and recency. No part of it belongs to a user, so that it serves people
and histories that training never saw; an empty history is the state of a start token.

**B** is a sparse matrix (N, N) of item-item weights in closed form (`models.item_item`): what a
product of rank D cannot say of rare pairs of items. B is fitted after the towers, and the
validation chooses how much it counts (`models.refine`). The weight w_j of an event falls with the
number of events after it.

**m_u(i)** is the memory (`models.memory`), where items are consumed again: a learned score of the
items that the user owns, 0 for all others.

Training minimises the cross entropy of the next item, or of the items of the next basket, against
the whole catalogue (`models.losses`) or a sample of it (`models.sampled_softmax`). The same item
vectors serve histories, targets and the search index.

Letters: B requests (or windows), L history positions, T = L + 1 tokens, N items, n of them, M
targets, E owned items of all requests, D + A + P = W entries of a vector (taste, category affinity,
popularity), C code columns and V value columns of encoded features, F single-valued item features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from datamodules.batch import RequestBatch, WindowBatch
from datamodules.sequences import Catalogue
from models.item_tower import ItemTower
from models.user_tower import UserTower
from serve.index import Neighbours, add_terms, join_terms


class Towers(nn.Module):
    """Both towers and the catalogue's encoded features, which are in no checkpoint.

    Args:
        item_tower: maps items to vectors.
        user_tower: maps requests to vectors.
        catalogue: N items with encoded features.
    """

    def __init__(
        self, item_tower: ItemTower, user_tower: UserTower, catalogue: Catalogue
    ) -> None:
        super().__init__()
        self.item_tower = item_tower
        self.user_tower = user_tower

        # `models.refine` sets the item-item weights, and the limit of variants, after training.
        self.neighbours = Neighbours.none(len(catalogue))
        self.variants: Mapping[str, int] = {}
        codes = torch.from_numpy(catalogue.features.codes)  # (N, C)
        values = torch.from_numpy(catalogue.features.values)  # (N, V)
        categories = torch.from_numpy(catalogue.categories)  # (N, F)
        has_content = item_tower.content.has_content(codes, values)  # (N,)
        self.item_codes = nn.Buffer(codes, persistent=False)
        self.item_values = nn.Buffer(values, persistent=False)
        self.categories = nn.Buffer(categories, persistent=False)
        self.item_has_content = nn.Buffer(has_content, persistent=False)
        self.id_rows = nn.Buffer(torch.arange(len(codes)), persistent=False)  # (N,)

    @property
    def n_items(self) -> int:
        return len(self.item_codes)

    @property
    def no_popularity(self) -> Tensor:
        """The popularity part of vectors without one, (N, 0)."""
        return self.item_values.new_zeros(self.n_items, 0)  # (N, 0)

    def item_vectors(self, popularity: Tensor) -> Tensor:
        """Make the vectors of the whole catalogue.

        Args:
            popularity: (N, P) popularity as of a moment.

        Returns:
            (N, W) vectors.
        """
        content = self.item_tower.content.embed_catalogue(
            self.item_codes, self.item_values
        )  # (N, D)
        vectors: Tensor = self.item_tower(
            self.id_rows, content, self.categories, popularity, self.item_has_content
        )
        return vectors  # (N, W)

    def some_item_vectors(self, rows: Tensor, popularity: Tensor) -> Tensor:
        """Make the vectors of some items (n,) with the popularity (N, P) of all, (n, W)."""
        codes = self.item_codes[rows]  # (n, C)
        content = self.item_tower.content(codes, self.item_values[rows])  # (n, D)
        has_content = self.item_has_content[rows]  # (n,)
        vectors: Tensor = self.item_tower(
            self.id_rows[rows],
            content,
            self.categories[rows],
            popularity[rows],
            has_content,
        )

        return vectors  # (n, W)

    @torch.no_grad()
    def fold(self, id_rows: Tensor, n_rows: int) -> None:
        """Let items share rows of the id table, each the mean of theirs; checkpoints say which.

        Args:
            id_rows: (N,) row of each item.
            n_rows: rows of the new table.
        """
        ids = self.item_tower.id_table.weight  # (N, D)
        sums = ids.new_zeros(n_rows, ids.shape[1]).index_add_(0, id_rows, ids)
        sharing = torch.bincount(id_rows, minlength=n_rows).clamp(min=1)  # (n_rows,)
        ids.data = sums / sharing.unsqueeze(1)  # (n_rows, D)
        self.id_rows = nn.Buffer(id_rows)

    @torch.no_grad()
    def unfold(self) -> None:
        """Give each item a row of its own again, for what follows a training."""
        ids = self.item_tower.id_table.weight  # (rows, D)
        if len(ids) < self.n_items:
            ids.data = ids[self.id_rows]  # (N, D)
            self.id_rows = nn.Buffer(torch.arange(self.n_items), persistent=False)

    def window_vectors(self, batch: WindowBatch, items: Tensor) -> Tensor:
        """Make the user vector of every target of the windows, from the events before it.

        Args:
            batch: B windows with M targets.
            items: (N, W) item vectors.

        Returns:
            (M, W) vectors.
        """
        tower = self.user_tower
        arrays = batch.arrays
        targets = batch.targets  # (M,) both
        windows, positions = targets  # (M,) both

        history = embedding(batch.history_rows, items)[..., : tower.dim]  # (B, L, D)
        states = tower.encode_events(history, arrays)  # (B, T, D)

        sees_history = batch.sees_history[targets]  # (M,)
        tokens = torch.where(sees_history, positions, 0)  # (M,), 0 is the start token
        places = windows * states.shape[1] + tokens  # (M,)
        state = states.flatten(0, 1).index_select(0, places)  # (M, D)

        user_values = arrays["user_values"]  # (B, V), or (B, L, V) if they change
        rows = targets if user_values.dim() == 3 else windows
        recency = torch.where(sees_history, batch.recency[targets], 0)  # (M,)
        user_codes = arrays["user_codes"][windows]  # (M, C)
        fused = tower.fuse(
            state,
            user_codes,
            user_values[rows],
            batch.context_codes[targets],
            batch.context_values[targets],
            recency,
        )  # (M, D)

        return tower.finish(fused)  # (M, W)

    def request_vectors(
        self, batch: RequestBatch, items: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Make the user vectors of requests.

        Args:
            batch: B requests with E owned items.
            items: (N, W) item vectors.

        Returns:
            (B, W) vectors and, with a memory, (E,) what it adds to the scores of owned items.
        """
        tower = self.user_tower
        history = embedding(batch.history_rows, items)[..., : tower.dim]  # (B, L, D)
        fused = tower.request_state(history, batch.arrays)  # (B, D)
        if tower.memory is None:
            return tower.finish(fused), None  # (B, W)
        owned_vectors = embedding(batch.owned_rows, items)  # (E, W)
        return tower.remember(fused, batch.arrays | {"owned_vectors": owned_vectors})

    def score_items(self, users: Tensor, items: Tensor, batch: RequestBatch) -> Tensor:
        """Score the catalogue for requests on the CPU, without the memory m_u(i).

        Args:
            users: (B, W) user vectors.
            items: (N, W) item vectors.
            batch: B requests; with a memory, item-item weights add nothing to owned items.

        Returns:
            (B, N) scores u . v_i + sum of w_j B[j, i].
        """
        rows = batch.history_rows.numpy()  # (B, L)
        lengths = batch.arrays["history_lengths"].numpy()  # (B,)
        matches = batch.arrays["history_matches"].numpy()  # (B, L)

        owned = None
        if self.user_tower.memory is not None:
            owned = (batch.owned_users.numpy(), batch.owned_rows.numpy())  # (E,) both
        scores = users @ items.T  # (B, N)
        of_history = self.neighbours.of_histories(rows, lengths, owned, matches)
        of_all = self.neighbours.of_all(len(rows))
        add_terms(scores.numpy(), join_terms([of_history, of_all]))
        return scores  # (B, N)
