"""Place items by their content, and find how visible new ones should be.

All is fitted after training to the finished vectors. `Shrinkage` moves items with few events towards the place that
their content gives them; `fit_cold_items` makes what places items that training never saw.

Letters: N items of W = D + A + P entries (taste, affinity, popularity), n of them, C codes, V values, F categories,
K different contents, B users, k slots of a list.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from datamodules.batch import RequestBatch
from models.features import FeatureEmbedding
from models.item_tower import ItemTower
from models.towers import Towers

BATCH = 4096
EPOCHS = 20
MIN_STEPS = 60
LEARNING_RATE = 0.05
SHARPNESS = 30.0  # of the kernel: 20 and 40 placed new items of Amazon Beauty as well, 10 a fifth worse
NEIGHBOUR_SHARE = 0.6  # weight of items with similar content beside the fitted content; .5 to .8 placed as well
MAX_CONTENTS = (
    2**12
)  # different contents that an item is compared with: the exported item tower holds them all
MAX_CONTENTS_OF_SHRINKAGE = 2**15
TILE = 256
HELD_OUT = 0.1  # share and number of the items that stand in for new ones
MAX_STAND_INS = 4096
MIN_LENGTH = 0.5  # bounds of the factor by which vectors of new items are scaled
MAX_LENGTH = 2.0
SLOTS = 10
BISECTIONS = 20


class ContentPlaces(nn.Module):
    """Place items by their content: between a fitted embedding and the mean of items with similar content.

    The second part is kernel regression (Nadaraya and Watson, 1964). Where both disagree the vector is short, so that a
    new item of which content says little is listed less often.
    """

    keys: Tensor
    means: Tensor
    log_counts: Tensor

    def __init__(
        self,
        tower: ItemTower,
        content: FeatureEmbedding,
        keys: Tensor,
        means: Tensor,
        counts: Tensor,
    ) -> None:
        """Keep what was fitted: unit keys (K, D) of contents, means (K, D) and counts (K,) of the items with each."""
        super().__init__()
        self.tower = tower
        self.content = content
        for name, values in {
            "keys": keys,
            "means": means,
            "log_counts": counts.log(),
        }.items():
            self.register_buffer(name, values, persistent=False)

    def forward(self, codes: Tensor, values: Tensor) -> Tensor:
        """Place items of encoded features (n, C) and (n, V), (n, D)."""
        fitted = self.tower.normalise(self.content(codes, values))  # (n, D)
        similarity = (
            SHARPNESS * functional.normalize(fitted, dim=1) @ self.keys.T
        )  # (n, K)
        weights = functional.softmax(similarity + self.log_counts, dim=1)  # (n, K)
        return torch.lerp(fitted, weights @ self.means, NEIGHBOUR_SHARE)  # (n, D)


class ColdItems(nn.Module):
    """Make the vectors of items that training never saw."""

    popularity: Tensor
    length: Tensor

    def __init__(
        self,
        tower: ItemTower,
        places: nn.Module,
        popularity: Tensor,
        length: float = 1.0,
    ) -> None:
        """Keep what new items share: `ContentPlaces`, popularity (P,), and the factor of the placed vectors."""
        super().__init__()
        self.tower = tower
        self.places = places
        self.register_buffer("popularity", popularity)
        self.register_buffer("length", torch.tensor(length))

    def forward(self, codes: Tensor, values: Tensor, categories: Tensor) -> Tensor:
        """Make vectors (n, W) from encoded features (n, C), (n, V) and rows of the affinity table (n, F)."""
        popularity = self.popularity.expand(codes.shape[0], -1)  # (n, P)
        return self.tower.complete(
            self.places(codes, values) * self.length, categories, popularity
        )  # (n, W)


@torch.no_grad()
def fit_places(
    towers: Towers, vectors: Tensor, rows: Tensor, generator: torch.Generator, most: int
) -> ContentPlaces:
    """Learn where the `most` frequent contents (ties by lot) place items from the vectors (N, W) of `rows` (n,)."""
    tower = towers.item_tower  # (N, D)
    taste = vectors[:, : towers.item_tower.dim]
    content = _fit_content(towers, taste, rows, generator)
    if not len(rows):  # one content at the origin moves nothing
        origin = taste.new_zeros(1, tower.dim)  # (1, D)
        return ContentPlaces(tower, content, origin, origin, taste.new_ones(1)).eval()
    codes = towers.item_codes[rows]  # (n, C), (n, V)
    values = towers.item_values[rows]
    bits = torch.cat(
        [codes.int(), values.contiguous().view(torch.int32)], dim=1
    )  # (n, C + V)
    _, group, counts = torch.unique(
        bits, dim=0, return_inverse=True, return_counts=True
    )  # (n,), (K,)
    lot = torch.randperm(len(counts), generator=generator)  # (K,)
    kept = lot[counts[lot].argsort(descending=True, stable=True)][:most]  # (K',)
    means = taste.new_zeros(len(counts), tower.dim).index_add(
        0, group, taste[rows]
    ) / counts.unsqueeze(1)  # (K, D)
    example = group.new_zeros(len(counts)).scatter(0, group, torch.arange(len(rows)))[
        kept
    ]  # (K',)
    keys = functional.normalize(
        content(codes[example], values[example]), dim=1
    )  # (K', D)
    return ContentPlaces(
        tower, content, keys, means[kept], counts[kept].to(taste.dtype)
    ).eval()


@torch.no_grad()
def place_all(place: Callable[..., Tensor], *columns: Tensor) -> Tensor:
    """Place items by columns (n, ...) in tiles, since each is compared with many others, (n, any)."""
    tiles = zip(*(torch.split(column, TILE) for column in columns), strict=True)
    return torch.cat([place(*tile) for tile in tiles])  # (n, any)


@torch.enable_grad()
def _fit_content(
    towers: Towers, taste: Tensor, rows: Tensor, generator: torch.Generator
) -> FeatureEmbedding:
    """Fit a copy of the content embedding to the taste (N, D) of the items `rows` (n,)."""
    content = (
        copy.deepcopy(towers.item_tower.content).requires_grad_(True).train()
    )  # training may have frozen it
    n_batches = math.ceil(len(rows) / BATCH)
    epochs = max(EPOCHS, math.ceil(MIN_STEPS / max(n_batches, 1)))
    optimizer = torch.optim.Adam(content.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, max(epochs * n_batches, 1)
    )
    for _ in range(epochs if len(rows) else 0):
        for batch in torch.split(
            rows[torch.randperm(len(rows), generator=generator)], BATCH
        ):  # (b,)
            placed = towers.item_tower.normalise(
                content(towers.item_codes[batch], towers.item_values[batch])
            )  # (b, D)
            optimizer.zero_grad()
            torch.autograd.backward((placed - taste[batch]).square().sum(dim=1).mean())
            optimizer.step()
            schedule.step()
    return content.eval()


class Shrinkage:
    """Shrink trained items towards their content: an item with n events goes to (n v + s c) / (n + s).

    Its trained vector v counts by its events, the place c that content gives it by the strength s, the number of events
    that content is worth: empirical Bayes (Efron and Morris, 1975). Items without events stay where they are.
    """

    @torch.no_grad()
    def __init__(self, towers: Towers, n_events: Tensor, seed: int) -> None:
        """Fit where content places the items of trained towers; n_events: (N,) times that each was a target."""
        tower = towers.item_tower  # (N, 0)
        popularity = towers.item_values.new_zeros(towers.n_items, 0)
        self.towers = towers
        self.rows = (
            ((n_events > 0) & towers.item_has_content).nonzero().squeeze(1)
        )  # (n,)
        self.n_events = n_events[self.rows].to(popularity.dtype)  # (n,)
        self.ids = tower.id_table.weight.clone()  # (N, D)
        if not len(self.rows):
            return
        vectors = towers.item_vectors(popularity)  # (N, W)
        generator = torch.Generator().manual_seed(seed)
        places = fit_places(
            towers, vectors, self.rows, generator, MAX_CONTENTS_OF_SHRINKAGE
        )
        codes = towers.item_codes[self.rows]  # (n, C), (n, V)
        values = towers.item_values[self.rows]
        self.placed = place_all(places, codes, values)  # (n, D)
        self.trained = vectors[self.rows, : tower.dim]  # (n, D) both
        self.content = tower.content(codes, values)

    @torch.no_grad()
    def apply(self, strength: float) -> None:
        """Set the ids of the item tower so that items stand where this strength puts them."""
        ids = self.ids.clone()  # (N, D)
        if strength and len(self.rows):
            share = (strength / (self.n_events + strength)).unsqueeze(1)  # (n, 1)
            ids[self.rows] = (
                torch.lerp(self.trained, self.placed, share) - self.content
            )  # (n, D)
        self.towers.item_tower.id_table.weight.copy_(ids)


@torch.no_grad()
def fit_cold_items(
    towers: Towers,
    popularity: Tensor,
    is_taken: Tensor,
    requests: Iterable[RequestBatch],
    seed: int,
) -> ColdItems:
    """Fit what places new items, as visible as an average one.

    Some known items are placed as if they were new. They get the popularity, or without popularity in vectors the
    length, with which they take the share of list slots that their number deserves in the lists of the requests.
    The popularity is (N, P), and `is_taken` (N,): the vectors of other items were never trained.
    """
    tower = towers.item_tower  # (N, W)
    vectors = towers.item_vectors(popularity)
    generator = torch.Generator().manual_seed(seed)
    known = (is_taken & towers.item_has_content).nonzero().squeeze(1)  # (n,)
    known = known[torch.randperm(len(known), generator=generator)]  # (n,)
    apart = known[: int(HELD_OUT * len(known))]
    rest = known[int(HELD_OUT * len(known)) :]
    level = popularity.amin(dim=0)  # (P,)
    length = 1.0
    if len(apart):
        stand_ins = apart[:MAX_STAND_INS]  # (s,)
        cold = ColdItems(
            tower,
            fit_places(towers, vectors, rest, generator, MAX_CONTENTS),
            torch.zeros_like(level),
        )
        if towers.user_tower.memory is not None and len(
            level
        ):  # placed items as long on average as trained ones
            placed = (
                _place(towers, stand_ins, cold)[:, : tower.dim]
                .norm(dim=1)
                .mean()
                .clamp(min=1e-9)
            )  # scalar
            length = min(
                float(vectors[stand_ins, : tower.dim].norm(dim=1).mean() / placed),
                MAX_LENGTH,
            )
            cold = ColdItems(tower, cold.places, cold.popularity, length)
        contests = [
            Contest.hold(towers, vectors, stand_ins, cold, batch) for batch in requests
        ]
        fair_share = len(stand_ins) / len(vectors)
        if len(level):
            low = popularity.amin(dim=0)  # (P,) both
            high = popularity.amax(dim=0)
            found = find_level(
                contests, fair_share, float(low.min()), float(high.max())
            )
            level = torch.full_like(level, found).clamp(low, high)  # (P,)
        else:
            length = find_length(contests, fair_share)
    return ColdItems(
        tower,
        fit_places(towers, vectors, known, generator, MAX_CONTENTS),
        level,
        length,
    ).eval()


@dataclass(frozen=True)
class Contest:
    """Compare new items with the best of the others in the lists of B users."""

    others: Tensor  # (B, k) best scores of items that are not new
    scores: Tensor  # (B, s) scores of the new items, -inf where the user owns one
    popularity_weight: Tensor  # (B, 1) what one unit of popularity adds to a score

    @classmethod
    def hold(
        cls,
        towers: Towers,
        vectors: Tensor,
        stand_ins: Tensor,
        cold: ColdItems,
        batch: RequestBatch,
    ) -> Contest:
        """Score the items `stand_ins` (s,) as new ones, and all others by their vectors (N, W)."""
        users, _ = towers.request_vectors(batch, vectors)  # (B, W)
        is_owned = batch.mark_owned(len(vectors))  # (B, N)
        scores = towers.score_items(users, vectors, batch)  # (B, N)
        scores = scores.masked_fill(
            is_owned.index_fill(1, stand_ins, True), -math.inf
        )  # (B, N)
        others = scores.topk(min(SLOTS, len(vectors)), dim=1).values  # (B, k)
        new = users @ _place(towers, stand_ins, cold).T  # (B, s)
        weight = users[:, users.shape[1] - len(cold.popularity) :].sum(
            dim=1, keepdim=True
        )  # (B, 1)
        return cls(others, new.masked_fill(is_owned[:, stand_ins], -math.inf), weight)

    def count_slots(self, scores: Tensor) -> int:
        """Count the list slots that the new items take with these scores (B, s)."""
        k = self.others.shape[1]
        best = torch.cat([self.others, scores], dim=1).topk(k, dim=1)  # (B, k)
        return int(((best.indices >= k) & best.values.isfinite()).sum())


def find_level(
    contests: Sequence[Contest], fair_share: float, low: float, high: float
) -> float:
    """Find the popularity with which new items, placed with none, take a share of all slots."""
    return _bisect(
        contests,
        lambda one, level: one.scores + level * one.popularity_weight,
        fair_share,
        low,
        high,
    )


def find_length(contests: Sequence[Contest], fair_share: float) -> float:
    """Find the factor of their vectors with which new items take a share of all slots."""
    return _bisect(
        contests,
        lambda one, length: one.scores * length,
        fair_share,
        MIN_LENGTH,
        MAX_LENGTH,
    )


def _bisect(
    contests: Sequence[Contest],
    rescore: Callable[[Contest, float], Tensor],
    share: float,
    low: float,
    high: float,
) -> float:
    """Find the value from which on new items, scored anew by it, take a share of all slots; `high` if none does."""
    wanted = share * sum(contest.others.numel() for contest in contests)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if (
            sum(contest.count_slots(rescore(contest, middle)) for contest in contests)
            < wanted
        ):
            low = middle
        else:
            high = middle
    return high


def _place(towers: Towers, rows: Tensor, cold: ColdItems) -> Tensor:
    """Place items of the catalogue (n,) as if they were new, (n, W)."""
    return place_all(
        cold, towers.item_codes[rows], towers.item_values[rows], towers.categories[rows]
    )  # (n, W)
