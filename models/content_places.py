"""Where content puts an item: between what was fitted to content and what stands there already.

What is fitted adds up what features say one by one. Which of them come together says more, so that an item goes more
than halfway to the mean of those whose content is most alike (kernel regression of Nadaraya and Watson, 1964). Where
these disagree their mean is short, and a new item of which content says little is listed less often; with all vectors
of one length those of Amazon Beauty were found a third less well in as many places.

Letters: n items, N of the catalogue, D + R entries of taste and correlations, A different contents.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.directions import normalise
from models.features import FeatureEmbedding
from models.item_tower import ItemTower
from models.towers import Towers

BATCH, EPOCHS, FEWEST_STEPS, RATE = 4096, 20, 60, 0.05
SHARPNESS = 30.0
"""Of likeness: 20 and 40 placed new items of Amazon Beauty as well, 10 a fifth worse."""
LIKES = 0.6
"""How much those like an item count; .5 to .8 placed as well."""
TILE = 256


class ContentPlaces(nn.Module):
    """Place items by their content."""

    keys: Tensor
    means: Tensor
    log_counts: Tensor

    def __init__(
        self, tower: ItemTower, content: FeatureEmbedding, keys: Tensor, means: Tensor, counts: Tensor
    ) -> None:
        """Put together what places items.

        Args:
            tower: normalises.
            content: fitted, D + R entries.
            keys: (A, D + R) where it puts the contents of known items, of length 1.
            means: (A, D + R) of where the items with this content stand.
            counts: (A,) of these items.
        """
        super().__init__()
        self.tower = tower
        self.content = content
        for name, values in {"keys": keys, "means": means, "log_counts": counts.log()}.items():
            self.register_buffer(name, values, persistent=False)

    def forward(self, codes: Tensor, values: Tensor) -> Tensor:
        """Place items of encoded features (n, C) and (n, V): (n, D + R).

        One whose features are all unknown, where training saw none that were, is like every other: it goes towards the
        mean of all.
        """
        fitted = normalise_taste(self.tower, self.content(codes, values))  # (n, D + R)
        likeness = SHARPNESS * normalise(fitted) @ self.keys.T  # (n, A)
        weights = functional.softmax(likeness + self.log_counts, dim=1)  # (n, A)
        return torch.lerp(fitted, weights @ self.means, LIKES)  # (n, D + R)


@torch.no_grad()
def place_all(places: Callable[..., Tensor], *columns: Tensor) -> Tensor:
    """Place many items by columns (n, ...), a tile after the other: each is compared with many others; (n, ...)."""
    tiles = zip(*(torch.split(column, TILE) for column in columns), strict=True)
    return torch.cat([places(*tile) for tile in tiles])  # (n, ...)


@torch.no_grad()
def fit_places(
    towers: Towers, vectors: Tensor, rows: Tensor, generator: torch.Generator, most: int | None = None
) -> ContentPlaces:
    """Learn where content puts items from where the items `rows` (n,) stand in `vectors` (N, W).

    Of more contents than `most`, where that is given, those that most items have are kept, by lot among equals.
    """
    tower, content = towers.item_tower, fit_content(towers, vectors, rows, generator)
    if not len(rows):  # nothing is known: one content at the origin, which moves nothing
        nothing = vectors.new_zeros(1, tower.history_dim)  # (1, D + R)
        return ContentPlaces(tower, content, nothing, nothing, vectors.new_ones(1)).eval()
    codes, values = towers.item_codes[rows], towers.item_values[rows]  # (n, C), (n, V)
    bits = torch.cat([codes.int(), values.contiguous().view(torch.int32)], dim=1)  # (n, C + V)
    _, place, counts = torch.unique(bits, dim=0, return_inverse=True, return_counts=True)  # (n,), (A,)
    lot = torch.randperm(len(counts), generator=generator)  # (A,)
    kept = lot[counts[lot].argsort(descending=True, stable=True)][:most]  # (A',)
    means = vectors.new_zeros(len(counts), tower.history_dim)  # (A, D + R)
    means = means.index_add(0, place, vectors[rows, : tower.history_dim]) / counts.unsqueeze(1)  # (A, D + R)
    some = place.new_zeros(len(counts)).scatter(0, place, torch.arange(len(rows)))  # (A,) an item of each content
    chosen = some[kept]  # (A',)
    keys = normalise(normalise_taste(tower, content(codes[chosen], values[chosen])))  # (A', D + R)
    return ContentPlaces(tower, content, keys, means[kept], counts[kept].to(vectors.dtype)).eval()


@torch.enable_grad()
def fit_content(towers: Towers, vectors: Tensor, rows: Tensor, generator: torch.Generator) -> FeatureEmbedding:
    """Fit a copy of the content part to where the items `rows` (n,) stand in `vectors` (N, W)."""
    tower = towers.item_tower
    content = tower.content.widen(tower.history_dim).requires_grad_(True).train()  # training may have held it fixed
    n_batches = math.ceil(len(rows) / BATCH)
    epochs = max(EPOCHS, math.ceil(FEWEST_STEPS / max(n_batches, 1)))
    optimizer = torch.optim.Adam(content.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(epochs * n_batches, 1))
    for _ in range(epochs):
        order = rows[torch.randperm(len(rows), generator=generator)]  # (n,)
        for start in range(0, len(rows), BATCH):
            chosen = order[start : start + BATCH]  # (b,)
            placed = content(towers.item_codes[chosen], towers.item_values[chosen])  # (b, D + R)
            placed = normalise_taste(tower, placed)  # (b, D + R)
            error = (placed - vectors[chosen, : tower.history_dim]).square().sum(dim=1).mean()  # scalar
            optimizer.zero_grad()
            torch.autograd.backward(error)
            optimizer.step()
            schedule.step()
    return content.eval()


def normalise_taste(tower: ItemTower, placed: Tensor) -> Tensor:
    """Bring the taste of `placed` (n, D + R) to the length that it has in the tower."""
    return torch.cat([tower.normalise(placed[:, : tower.dim]), placed[:, tower.dim :]], dim=1)  # (n, D + R)
