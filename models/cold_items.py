"""Place items by their content, and choose how visible new ones are.

All is fitted after training to the finished vectors. `Shrinkage` moves items with few events
towards the place that their content gives them; `fit_cold_items` makes the module that places items
that training never saw.

Letters: N items of W = D + A + P entries (taste, affinity, popularity), n of them, s stand-ins for
new items, C codes, V values, F categories, K different contents, B users, k slots of a list.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softmax

from datamodules.batch import RequestBatch
from models.features import FeatureEmbedding
from models.item_tower import ItemTower
from models.towers import Towers
from serve.arrays import Ints

BATCH = 4096
EPOCHS = 20
MIN_STEPS = 60
LEARNING_RATE = 0.05

# Of the kernel: 20 and 40 placed new items of Amazon Beauty as well, 10 a fifth worse.
SHARPNESS = 30.0

# Weight of items with similar content beside the fitted content; .5 to .8 placed as well.
NEIGHBOUR_SHARE = 0.6

# Different contents that an item is compared with; the exported item tower holds them all.
MAX_CONTENTS = 2**12
MAX_CONTENTS_OF_SHRINKAGE = 2**15
TILE = 256  # items that are compared at once

HELD_OUT = 0.1  # share of the items that stand in for new ones
MAX_STAND_INS = 4096

# Bounds of the factor by which vectors of new items are scaled.
MIN_LENGTH = 0.5
MAX_LENGTH = 2.0

SLOTS = 10
BISECTIONS = 20


class ContentPlaces(nn.Module):
    """Place items by their content: between a fitted embedding and the mean of similar items.

    The second part is kernel regression (Nadaraya and Watson, 1964). If both disagree the vector is
    short, so that a new item is listed less often if its content says little.
    """

    def __init__(
        self,
        tower: ItemTower,
        content: FeatureEmbedding,
        keys: Tensor,
        means: Tensor,
        counts: Tensor,
    ) -> None:
        """Store the fit.

        Args:
            tower: the trained item tower.
            content: content embedding that was fitted to the trained vectors.
            keys: (K, D) unit embedding of each different content.
            means: (K, D) mean vector of the items with it.
            counts: (K,) number of these items.
        """
        super().__init__()
        self.tower = tower
        self.content = content
        self.keys = nn.Buffer(keys, persistent=False)
        self.means = nn.Buffer(means, persistent=False)
        self.log_counts = nn.Buffer(counts.log(), persistent=False)

    def forward(self, codes: Tensor, values: Tensor) -> Tensor:
        """Place items of encoded features (n, C) and (n, V), (n, D)."""
        fitted = self.tower.normalise(self.content(codes, values))  # (n, D)
        queries = SHARPNESS * normalize(fitted, dim=1)  # (n, D)
        logits = queries @ self.keys.T + self.log_counts  # (n, K)
        weights = softmax(logits, dim=1)  # (n, K)
        return torch.lerp(fitted, weights @ self.means, NEIGHBOUR_SHARE)  # (n, D)


class ColdItems(nn.Module):
    """Make the vectors of items that training never saw."""

    def __init__(
        self,
        tower: ItemTower,
        places: nn.Module,
        popularity: Tensor,
        length: float = 1.0,
    ) -> None:
        """Store what new items share.

        Args:
            tower: the trained item tower.
            places: a fitted `ContentPlaces`.
            popularity: (P,) popularity of every new item.
            length: factor of the placed vectors.
        """
        super().__init__()
        self.tower = tower
        self.places = places
        self.popularity = nn.Buffer(popularity)
        self.length = nn.Buffer(torch.tensor(length))

    def forward(self, codes: Tensor, values: Tensor, categories: Tensor) -> Tensor:
        """Make vectors of new items.

        Args:
            codes: (n, C) encoded features.
            values: (n, V) encoded features.
            categories: (n, F) rows of the affinity table.

        Returns:
            (n, W) vectors.
        """
        popularity = self.popularity.expand(codes.shape[0], -1)  # (n, P)
        taste = self.places(codes, values) * self.length  # (n, D)
        return self.tower.complete(taste, categories, popularity)  # (n, W)


@torch.no_grad()
def fit_places(
    towers: Towers,
    vectors: Tensor,
    rows: Tensor,
    generator: torch.Generator,
    max_contents: int,
) -> ContentPlaces:
    """Learn where content places items.

    Args:
        towers: trained towers.
        vectors: (N, W) vectors of their items.
        rows: (n,) items to learn from.
        generator: of the order of items, and of the lot among equally frequent contents.
        max_contents: the most frequent different contents that are kept.
    """
    tower = towers.item_tower
    taste = vectors[:, : tower.dim]  # (N, D)
    content = _fit_content(towers, taste, rows, generator)

    if not len(rows):  # one content at the origin moves nothing
        origin = taste.new_zeros(1, tower.dim)  # (1, D)
        return ContentPlaces(tower, content, origin, origin, taste.new_ones(1)).eval()

    codes = towers.item_codes[rows]  # (n, C)
    values = towers.item_values[rows].contiguous()  # (n, V)

    bits = torch.cat([codes.int(), values.view(torch.int32)], dim=1)  # (n, C + V)
    _, group, counts = torch.unique(
        bits, dim=0, return_inverse=True, return_counts=True
    )  # (n,), (K,)
    lot = torch.randperm(len(counts), generator=generator)  # (K,)
    by_count = counts[lot].argsort(descending=True, stable=True)  # (K,)
    frequent = lot[by_count][:max_contents]  # (K',)

    zeros = taste.new_zeros(len(counts), tower.dim)  # (K, D)
    means = zeros.index_add(0, group, taste[rows]) / counts.unsqueeze(1)  # (K, D)

    examples = group.new_zeros(len(counts))  # (K,)
    examples = examples.scatter(0, group, torch.arange(len(rows)))[frequent]  # (K',)
    embedded = content(codes[examples], values[examples])  # (K', D)
    keys = normalize(embedded, dim=1)  # (K', D)
    n_items = counts[frequent].to(taste.dtype)  # (K',)

    return ContentPlaces(tower, content, keys, means[frequent], n_items).eval()


@torch.no_grad()
def place_all(place: Callable[..., Tensor], *columns: Tensor) -> Tensor:
    """Place items by columns (n, ...) in tiles, since each is compared with many, (n, any)."""
    tiles = zip(*(torch.split(column, TILE) for column in columns), strict=True)
    return torch.cat([place(*tile) for tile in tiles])  # (n, any)


@torch.enable_grad()
def _fit_content(
    towers: Towers, taste: Tensor, rows: Tensor, generator: torch.Generator
) -> FeatureEmbedding:
    """Fit a copy of the content embedding to the taste (N, D) of the items `rows` (n,)."""
    tower = towers.item_tower
    content = copy.deepcopy(tower.content)
    if not len(rows):
        return content.eval()

    content.requires_grad_(True).train()  # training may have frozen it
    n_batches = math.ceil(len(rows) / BATCH)
    epochs = max(EPOCHS, math.ceil(MIN_STEPS / n_batches))
    optimizer = torch.optim.Adam(content.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * n_batches)

    for _ in range(epochs):
        shuffled = rows[torch.randperm(len(rows), generator=generator)]  # (n,)
        for batch in torch.split(shuffled, BATCH):  # (b,)
            embedded = content(towers.item_codes[batch], towers.item_values[batch])
            errors = tower.normalise(embedded) - taste[batch]  # (b, D)
            optimizer.zero_grad()
            torch.autograd.backward(errors.square().sum(dim=1).mean())
            optimizer.step()
            schedule.step()

    return content.eval()


class Shrinkage:
    """Shrink trained items towards their content: an item goes to (n v + s c) / (n + s).

    Its trained vector v counts by its n events. The place c that content gives it counts by the
    strength s, the number of events that content is worth. Items without events stay where they
    are.

    Source: empirical Bayes (Efron and Morris, 1975).
    """

    @torch.no_grad()
    def __init__(self, towers: Towers, n_events: Ints, seed: int) -> None:
        """Fit where content places the items.

        Args:
            towers: trained towers.
            n_events: (N,) times that each item was a target.
            seed: of the fit.
        """
        tower = towers.item_tower
        counts = torch.from_numpy(n_events).float()  # (N,)
        has_place = (counts > 0) & towers.item_has_content  # (N,)
        self.towers = towers
        self.rows = has_place.nonzero().squeeze(1)  # (n,)
        self.n_events = counts[self.rows]  # (n,)
        self.ids = tower.id_table.weight.clone()  # (N, D)

        if not len(self.rows):
            return

        vectors = towers.item_vectors(towers.no_popularity)  # (N, W)
        generator = torch.Generator().manual_seed(seed)
        places = fit_places(
            towers, vectors, self.rows, generator, MAX_CONTENTS_OF_SHRINKAGE
        )
        codes = towers.item_codes[self.rows]  # (n, C)
        values = towers.item_values[self.rows]  # (n, V)
        self.placed = place_all(places, codes, values)  # (n, D)
        self.trained = vectors[self.rows, : tower.dim]  # (n, D)
        self.content = tower.content(codes, values)  # (n, D)

    @torch.no_grad()
    def apply(self, strength: float) -> None:
        """Set the id embeddings so that items stand where this strength puts them."""
        ids = self.ids.clone()  # (N, D)
        if strength and len(self.rows):
            share = (strength / (self.n_events + strength)).unsqueeze(1)  # (n, 1)
            taste = torch.lerp(self.trained, self.placed, share)  # (n, D)
            ids[self.rows] = taste - self.content

        self.towers.item_tower.id_table.weight.copy_(ids)


@torch.no_grad()
def fit_cold_items(
    towers: Towers,
    popularity: Tensor,
    is_taken: Tensor,
    requests: Iterable[RequestBatch],
    seed: int,
) -> ColdItems:
    """Fit the module that places new items, as visible as an average item.

    Some items stand in for new ones. They get the popularity, or without popularity in vectors the
    length, with which they take the share of list slots that their number deserves.

    Args:
        towers: trained towers.
        popularity: (N, P) popularity of their items.
        is_taken: (N,) items that training saw; the vectors of others were never trained.
        requests: requests whose lists are compared.
        seed: of the fits.
    """
    tower = towers.item_tower
    vectors = towers.item_vectors(popularity)  # (N, W)
    generator = torch.Generator().manual_seed(seed)
    rows = (is_taken & towers.item_has_content).nonzero().squeeze(1)  # (n,)
    rows = rows[torch.randperm(len(rows), generator=generator)]  # (n,)
    n_apart = int(HELD_OUT * len(rows))
    level = popularity.amin(dim=0)  # (P,)
    length = 1.0

    if n_apart:
        places = fit_places(towers, vectors, rows[n_apart:], generator, MAX_CONTENTS)
        stand_ins = rows[: min(n_apart, MAX_STAND_INS)]  # (s,)
        if towers.user_tower.memory is not None and len(level):
            length = _match_length(towers, vectors, stand_ins, places)
        cold = ColdItems(tower, places, torch.zeros_like(level), length)
        contests = [
            Contest(towers, vectors, stand_ins, cold, batch) for batch in requests
        ]
        share = len(stand_ins) / len(vectors)

        if len(level):
            highest = popularity.amax(dim=0)  # (P,)
            bounds = (float(level.min()), float(highest.max()))
            fair = find_fair(contests, Contest.with_popularity, share, *bounds)
            level = torch.full_like(level, fair).clamp(level, highest)  # (P,)
        else:
            length = find_fair(
                contests, Contest.with_length, share, MIN_LENGTH, MAX_LENGTH
            )

    places = fit_places(towers, vectors, rows, generator, MAX_CONTENTS)
    return ColdItems(tower, places, level, length).eval()


def _match_length(
    towers: Towers, vectors: Tensor, stand_ins: Tensor, places: ContentPlaces
) -> float:
    """Return the factor that makes placed items as long on average as trained ones."""
    codes = towers.item_codes[stand_ins]  # (s, C)
    placed = place_all(places, codes, towers.item_values[stand_ins])  # (s, D)
    taste = vectors[stand_ins, : towers.item_tower.dim]  # (s, D)
    mean_length = placed.norm(dim=1).mean().clamp(min=1e-9)  # scalar
    return min(float(taste.norm(dim=1).mean() / mean_length), MAX_LENGTH)


class Contest:
    """New items against the best of the others in the lists of B users.

    Attributes:
        others: (B, k) best scores of items that are not new.
        scores: (B, s) scores of the new items, -inf where the user owns one.
        popularity_weight: (B, 1) what one unit of popularity adds to a score.
    """

    def __init__(
        self,
        towers: Towers,
        vectors: Tensor,
        stand_ins: Tensor,
        cold: ColdItems,
        batch: RequestBatch,
    ) -> None:
        """Score the items `stand_ins` (s,) as new ones, and all others by their vectors (N, W)."""
        users, _ = towers.request_vectors(batch, vectors)  # (B, W)
        is_owned = batch.mark_owned(len(vectors))  # (B, N)
        is_barred = is_owned.index_fill(1, stand_ins, True)  # (B, N)
        scores = towers.score_items(users, vectors, batch)  # (B, N)
        scores = scores.masked_fill(is_barred, -math.inf)  # (B, N)

        placed = place_all(
            cold,
            towers.item_codes[stand_ins],
            towers.item_values[stand_ins],
            towers.categories[stand_ins],
        )  # (s, W)
        new_scores = users @ placed.T  # (B, s)
        weights = users[:, users.shape[1] - len(cold.popularity) :]  # (B, P)

        self.others = scores.topk(min(SLOTS, len(vectors)), dim=1).values
        self.scores = new_scores.masked_fill(is_owned[:, stand_ins], -math.inf)
        self.popularity_weight = weights.sum(dim=1, keepdim=True)

    def with_popularity(self, level: float) -> Tensor:
        """Score the new items, placed with no popularity, with some, (B, s)."""
        return self.scores + level * self.popularity_weight  # (B, s)

    def with_length(self, length: float) -> Tensor:
        """Score the new items with vectors times a factor, (B, s)."""
        return self.scores * length  # (B, s)

    def count_slots(self, scores: Tensor) -> int:
        """Count the list slots that the new items take with these scores (B, s)."""
        k = self.others.shape[1]
        best = torch.cat([self.others, scores], dim=1).topk(k, dim=1)  # (B, k)
        return int(((best.indices >= k) & best.values.isfinite()).sum())


def find_fair(
    contests: Sequence[Contest],
    rescore: Callable[[Contest, float], Tensor],
    share: float,
    low: float,
    high: float,
) -> float:
    """Find the lowest value with which new items take a share of all slots; `high` if none does."""
    n_slots = sum(contest.others.numel() for contest in contests)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        n_new = sum(
            contest.count_slots(rescore(contest, middle)) for contest in contests
        )
        if n_new < share * n_slots:
            low = middle
        else:
            high = middle

    return high
