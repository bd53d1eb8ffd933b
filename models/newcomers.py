"""New items: where content puts them among the items that were trained, and how visible they are there.

Where vectors hold popularity, they are taken to have some, and with a memory they are made as long as the others;
elsewhere all are made shorter or longer by the same factor, until they take their share of places. All is fitted after
training to the finished vectors, so that no item of the catalogue moves for it. The content part that was trained
beside ids explains what ids leave over, which is less than what content can tell.

Letters: N items of W = D + R + A + P entries (taste, correlations, affinity, popularity), n or s of them, B users.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datamodules.batch import RequestBatch
from models.content_places import fit_places, place_all
from models.halving import halve
from models.item_tower import ItemTower
from models.places import best_scores, count_places
from models.towers import Towers

HELD_OUT = 0.1
"""Of the items, placed without having been learned from, to see how visible new ones are."""
MOST_STAND_INS = 4096
SHORTEST = 0.5
"""Where lists are longer than what there is to like, even vectors of no length at all would be listed too often."""
LONGEST = 2.0
"""Times the length that content gives."""
MOST_CONTENTS = 2**12
"""That new items are compared with: the exported tower holds them all, and reads them for each item."""


class Newcomers(nn.Module):
    """Make the vectors of items that nobody has taken yet."""

    popularity: Tensor
    length: Tensor

    def __init__(self, tower: ItemTower, places: nn.Module, popularity: Tensor, length: float = 1.0) -> None:
        """Put together what new items share.

        Args:
            tower: whose items they stand among.
            places: encoded features (n, C) and (n, V) -> where they go, (n, D + R); `ContentPlaces`.
            popularity: (P,) what they are taken to have.
            length: times which taste and correlations are as long as content makes them.
        """
        super().__init__()
        self.tower = tower
        self.places = places
        self.register_buffer("popularity", popularity)
        self.register_buffer("length", torch.tensor(length))

    def forward(self, codes: Tensor, values: Tensor, categories: Tensor) -> Tensor:
        """Make vectors (n, W) from encoded features (n, C), (n, V) and rows of the affinity table (n, F)."""
        popularity = self.popularity.expand(codes.shape[0], -1)  # (n, P)
        placed = self.places(codes, values) * self.length  # (n, D + R)
        return self.tower.complete(placed, categories, popularity)  # (n, W)


@torch.no_grad()
def fit_newcomers(
    towers: Towers, popularity: Tensor, is_taken: Tensor, requests: Iterable[RequestBatch], seed: int
) -> Newcomers:
    """Fit what places new items.

    A new item is made as visible as an average one: how popular it will be is not known. With the least popularity
    there is nobody would ever see it; elsewhere the length of its vector says how often it is listed.

    Args:
        towers: trained, in evaluation mode.
        popularity: (N, P) of the catalogue.
        is_taken: (N,) bool; where the other items stand was never learned.
        requests: of some users with all that is known of them.
        seed: draws items.
    """
    tower, vectors = towers.item_tower, towers.item_vectors(popularity)  # (N, W)
    generator = torch.Generator().manual_seed(seed)
    known = (is_taken & towers.item_has_content).nonzero().squeeze(1)  # (n,)
    known = known[torch.randperm(len(known), generator=generator)]  # (n,)
    level, length = popularity.amin(dim=0), 1.0  # (P,)
    apart, rest = known[: int(HELD_OUT * len(known))], known[int(HELD_OUT * len(known)) :]
    if len(apart):
        places = fit_places(towers, vectors, rest, generator, MOST_CONTENTS)
        newcomers = Newcomers(tower, places, torch.zeros_like(level))
        stand_ins = apart[:MOST_STAND_INS]  # (s,)
        if len(level) and towers.user_tower.memory is not None:
            length = match_length(towers, vectors, stand_ins, newcomers)
            newcomers = Newcomers(tower, places, newcomers.popularity, length)
        if len(level):
            found = find_level(towers, vectors, stand_ins, newcomers, requests)
            level = torch.full_like(level, found).clamp(popularity.amin(dim=0), popularity.amax(dim=0))  # (P,)
        else:
            length = find_length(towers, vectors, stand_ins, newcomers, requests)
    return Newcomers(tower, fit_places(towers, vectors, known, generator, MOST_CONTENTS), level, length).eval()


def place(towers: Towers, rows: Tensor, newcomers: Newcomers) -> Tensor:
    """Place items of the catalogue (n,) as if they were new, (n, W)."""
    return place_all(newcomers, towers.item_codes[rows], towers.item_values[rows], towers.categories[rows])  # (n, W)


def match_length(towers: Towers, vectors: Tensor, stand_ins: Tensor, newcomers: Newcomers) -> float:
    """Find times which new items are as long on average as the stand-ins (s,) are in `vectors` (N, W).

    What is fitted to noisy vectors is shorter than they are: its products with users vary less, and those whom a new
    item suits best would find it behind many that suit them less. At most `LONGEST`: where content says next to nothing
    of an item that would be noise made loud.
    """
    stop = towers.item_tower.history_dim
    placed = place(towers, stand_ins, newcomers)[:, :stop].norm(dim=1).mean()  # scalar
    return min(float(vectors[stand_ins, :stop].norm(dim=1).mean() / placed.clamp(min=1e-9)), LONGEST)


def find_level(
    towers: Towers, vectors: Tensor, stand_ins: Tensor, newcomers: Newcomers, requests: Iterable[RequestBatch]
) -> float:
    """Find the popularity, one for all windows, with which new items take the share of places that is their number's.

    Args:
        towers: trained.
        vectors: (N, W).
        stand_ins: (s,) rows of items that are taken out and come in again as new ones.
        newcomers: place them, with popularity 0.
        requests: of the users whose lists are looked at.
    """
    n_windows = len(newcomers.popularity)
    contests = _hold_contests(towers, vectors, stand_ins, newcomers, requests)
    popularity = vectors[:, -n_windows:]  # (N, P)
    weights = [contest.users[:, -n_windows:].sum(dim=1, keepdim=True) for contest in contests]  # (B, 1) each

    def count(level: float) -> int:
        pairs = zip(contests, weights, strict=True)
        return sum(contest.places(contest.scores + level * weight) for contest, weight in pairs)

    return halve(count, _fair(contests, len(stand_ins), len(vectors)), float(popularity.min()), float(popularity.max()))


def find_length(
    towers: Towers, vectors: Tensor, stand_ins: Tensor, newcomers: Newcomers, requests: Iterable[RequestBatch]
) -> float:
    """Find how long taste and correlations must be for new items to take their share of places; see `find_level`."""
    contests = _hold_contests(towers, vectors, stand_ins, newcomers, requests)

    def count(length: float) -> int:
        return sum(contest.places(contest.scores * length) for contest in contests)

    return halve(count, _fair(contests, len(stand_ins), len(vectors)), SHORTEST, LONGEST)


@dataclass(frozen=True)
class Contest:
    """What stands against each other for the places of B lists."""

    others: Tensor
    """(B, k) the best scores of items that are not new."""
    scores: Tensor
    """(B, s) of the new items as they were placed."""
    is_owned: Tensor
    """(B, s) the new items that the user has."""
    users: Tensor
    """(B, W) vectors."""

    def places(self, scores: Tensor) -> int:
        """Count the places that the new items take with these scores (B, s)."""
        return count_places(scores.masked_fill(self.is_owned, float("-inf")), self.others)


def _hold_contests(
    towers: Towers, vectors: Tensor, stand_ins: Tensor, newcomers: Newcomers, requests: Iterable[RequestBatch]
) -> list[Contest]:
    placed = place(towers, stand_ins, newcomers)  # (s, W)
    return [_contest(towers, vectors, stand_ins, placed, batch) for batch in requests]


def _fair(contests: list[Contest], n_new: int, n_items: int) -> float:
    """Return the places that new items would have if all items had equally many."""
    return n_new / n_items * sum(contest.others.numel() for contest in contests)


def _contest(towers: Towers, vectors: Tensor, stand_ins: Tensor, placed: Tensor, batch: RequestBatch) -> Contest:
    users, _ = towers.request_vectors(batch, vectors)  # (B, W)
    is_owned = batch.mark_owned(len(vectors))  # (B, N)
    scores = towers.score_items(users, vectors, batch)  # (B, N)
    best = best_scores(scores, ~is_owned.index_fill(1, stand_ins, True))  # (B, k)
    return Contest(best, users @ placed.T, is_owned[:, stand_ins], users)
