"""New items: where content puts them among the items that were trained, and how popular they are taken to be.

Both are fitted after training to the finished vectors, so that no item of the catalogue moves for it. The content part
that was trained beside ids explains what ids leave over, which is less than what content can tell.

Letters: N items of W = D + A + P entries (taste, affinity, popularity), n or s of them, B users.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from datamodules.batch import RequestBatch
from models.features import FeatureEmbedding
from models.item_tower import ItemTower
from models.towers import Towers

BATCH, EPOCHS, FEWEST_STEPS, RATE = 4096, 20, 60, 0.05
HELD_OUT = 0.1
"""Of the items, placed without having been learned from, to see how popular a new one must be to be found."""
MOST_STAND_INS = 4096
PLACES = 10
"""Of a list: an item that stands among them is visible."""


class Newcomers(nn.Module):
    """Make the vectors of items that nobody has taken yet."""

    popularity: Tensor

    def __init__(self, tower: ItemTower, content: FeatureEmbedding, popularity: Tensor) -> None:
        """Put together what new items share.

        Args:
            tower: whose items they stand among.
            content: places them.
            popularity: (P,) what they are taken to have.
        """
        super().__init__()
        self.tower = tower
        self.content = content
        self.register_buffer("popularity", popularity)

    def forward(self, codes: Tensor, values: Tensor, categories: Tensor) -> Tensor:
        """Make vectors (n, W) from encoded features (n, C), (n, V) and rows of the affinity table (n, F)."""
        popularity = self.popularity.expand(codes.shape[0], -1)  # (n, P)
        return self.tower.join(self.content(codes, values), categories, popularity)  # (n, W)


@torch.no_grad()
def fit_newcomers(
    towers: Towers, popularity: Tensor, is_taken: Tensor, requests: Iterable[RequestBatch], seed: int
) -> Newcomers:
    """Fit what places new items.

    A new item is taken to be as popular as makes it as visible as an average item: how popular it will be is not
    known, and with the least popularity there is nobody would ever see it.

    Args:
        towers: trained, in evaluation mode.
        popularity: (N, P) of the catalogue.
        is_taken: (N,) bool; where the other items stand was never learned.
        requests: of some users with all that is known of them; read where P > 0.
        seed: draws items.
    """
    tower, vectors = towers.item_tower, towers.item_vectors(popularity)  # (N, W)
    generator = torch.Generator().manual_seed(seed)
    known = (is_taken & towers.item_has_content).nonzero().squeeze(1)  # (n,)
    known = known[torch.randperm(len(known), generator=generator)]  # (n,)
    level = popularity.amin(dim=0)  # (P,)
    apart, rest = known[: int(HELD_OUT * len(known))], known[int(HELD_OUT * len(known)) :]
    if len(level) and len(apart):
        newcomers = Newcomers(tower, fit_content(towers, vectors, rest, generator), torch.zeros_like(level))
        stand_ins = apart[:MOST_STAND_INS]  # (s,)
        level = level.clone().fill_(find_level(towers, vectors, stand_ins, newcomers, requests))  # (P,)
        level = torch.minimum(torch.maximum(level, popularity.amin(dim=0)), popularity.amax(dim=0))  # (P,)
    return Newcomers(tower, fit_content(towers, vectors, known, generator), level).eval()


@torch.enable_grad()
def fit_content(towers: Towers, vectors: Tensor, rows: Tensor, generator: torch.Generator) -> FeatureEmbedding:
    """Fit a copy of the content part to where the items `rows` (n,) stand in `vectors` (N, W)."""
    tower = towers.item_tower
    content = copy.deepcopy(tower.content).train()
    n_batches = math.ceil(len(rows) / BATCH)
    epochs = max(EPOCHS, math.ceil(FEWEST_STEPS / max(n_batches, 1)))
    optimizer = torch.optim.Adam(content.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(epochs * n_batches, 1))
    for _ in range(epochs):
        order = torch.randperm(len(rows), generator=generator)  # (n,)
        for start in range(0, len(rows), BATCH):
            chosen = rows[order[start : start + BATCH]]  # (b,)
            taste = tower.normalise(content(towers.item_codes[chosen], towers.item_values[chosen]))  # (b, D)
            error = (taste - vectors[chosen, : tower.dim]).square().sum(dim=1).mean()  # scalar
            optimizer.zero_grad()
            error.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return content.eval()


def find_level(
    towers: Towers, vectors: Tensor, stand_ins: Tensor, newcomers: Newcomers, requests: Iterable[RequestBatch]
) -> float:
    """Find the popularity, one for all windows, with which an average stand-in is as visible as an average item.

    Args:
        towers: trained.
        vectors: (N, W).
        stand_ins: (s,) rows of items to be taken for new ones.
        newcomers: place them, with popularity 0.
        requests: of the users that they are to be visible to.
    """
    columns = (towers.item_codes[stand_ins], towers.item_values[stand_ins], towers.categories[stand_ins])
    placed, n_windows = newcomers(*columns), len(newcomers.popularity)  # (s, W)
    needed = torch.cat([_needed(towers, vectors, stand_ins, placed, n_windows, batch).flatten() for batch in requests])
    n_visible = round(len(needed) * min(PLACES / len(vectors), 1.0))
    return float(needed.sort().values[max(n_visible, 1) - 1])


def _needed(
    towers: Towers, vectors: Tensor, stand_ins: Tensor, placed: Tensor, n_windows: int, batch: RequestBatch
) -> Tensor:
    """Return the popularity from which on each user sees each stand-in, (B, s); infinite where she has it."""
    users, _ = towers.request_vectors(batch, vectors)  # (B, W)
    is_owned = torch.zeros(len(users), len(vectors), dtype=torch.bool)  # (B, N)
    is_owned[batch.owned_users, batch.owned_rows] = True
    others = (users @ vectors.T).masked_fill(is_owned, float("-inf"))  # (B, N)
    last = others.topk(min(PLACES, len(vectors)), dim=1).values[:, -1:]  # (B, 1) of the visible ones
    weight = users[:, -n_windows:].sum(dim=1, keepdim=True)  # (B, 1) of popularity in this user's scores
    needed = (last - users @ placed.T) / weight  # (B, s)
    return needed.masked_fill(is_owned[:, stand_ins] | (weight <= 0), float("inf"))  # (B, s)
