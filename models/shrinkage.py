"""Items that few have taken, shrunk towards where content puts them, once all is trained.

An item with n events learned its place v from these alone; content says what is usual for its like. As in empirical
Bayes (Efron and Morris, 1975) it goes to (n v + s c) / (n + s): v counts by its events, what content says, c, by the
strength s, the events that content is worth, which the validation finds. Under `cosine` that is the direction: all
items keep one length. c is made of all known items, the item itself among them; of very many contents, of those that
most items have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.batch import RequestBatch
from models.content_places import fit_places, place_all
from models.jury import NEARLY_ALL, Jury, find_judges
from models.towers import Towers

STRENGTHS = (1.0, 2.0, 4.0, 8.0)
USUAL = 4.0
"""Where nothing can be validated. With many attributes 2 to 8 ranked best (Amazon Beauty and Toys, in their order; as
pairs 8, of up to 32 that were tried), with a category alone none better than nothing (Grocery)."""
MOST_CONTENTS = 2**15
"""That items are compared with: with all of very many, such as titles, that would take the square of their number."""
LEAST_GAIN = 0.01
"""Of NDCG without: less is often chance, and then the least strength does the least harm."""


@dataclass(frozen=True)
class Shrunk:
    """How far items are shrunk, and how that ranks what users of the validation took next."""

    strength: float
    """Events that content is worth; 0: items stay where they were trained."""
    ndcg: float | None = None
    """NDCG@10 with it; None: nothing could be validated."""
    ndcg_alone: float | None = None
    """NDCG@10 without."""


class Shrinkage:
    """The items of trained towers without popularity in their vectors, and where content puts each."""

    @torch.no_grad()
    def __init__(self, towers: Towers, n_events: Tensor, seed: int) -> None:
        """Learn what content says.

        Args:
            towers: trained, in evaluation mode; what is blended in stays as it is.
            n_events: (N,) events of each item that are targets. One without any stays where it is: nobody of the
                validation took it, so that nothing says how visible it should be.
            seed: of what is fitted to content.
        """
        self.towers = towers
        tower, vectors = towers.item_tower, towers.item_vectors(towers.no_popularity)  # (N, W)
        self.rows = ((n_events > 0) & towers.item_has_content).nonzero().squeeze(1)  # (n,)
        self.n_events = n_events[self.rows].to(vectors.dtype)  # (n,)
        places = fit_places(towers, vectors, self.rows, torch.Generator().manual_seed(seed), MOST_CONTENTS)
        codes, values = towers.item_codes[self.rows], towers.item_values[self.rows]  # (n, C), (n, V)
        self.placed = place_all(places, codes, values)[:, : tower.dim]  # (n, D)
        self.trained = vectors[self.rows, : tower.dim]  # (n, D)
        self.content = tower.content(codes, values)  # (n, D)
        self.ids = tower.id_table.weight.clone()  # (N, D)

    @torch.no_grad()
    def apply(self, strength: float) -> None:
        """Set the ids of the item tower so that items stand where this strength puts them."""
        ids = self.ids.clone()  # (N, D)
        if strength:
            share = (strength / (self.n_events + strength)).unsqueeze(1)  # (n, 1)
            ids[self.rows] = torch.lerp(self.trained, self.placed, share) - self.content  # (n, D)
        self.towers.item_tower.id_table.weight.copy_(ids)


def shrink_items(towers: Towers, n_events: Tensor, strength: float, seed: int) -> None:
    """Shrink the items of trained towers towards their content; see `Shrinkage`."""
    if strength:
        Shrinkage(towers, n_events, seed).apply(strength)


@torch.no_grad()
def choose_strength(towers: Towers, n_events: Tensor, validation: Sequence[RequestBatch], seed: int) -> Shrunk:
    """Find the strength by how it ranks what users of the validation took next, and shrink the items by it.

    Args:
        towers: see `Shrinkage`.
        n_events: see `Shrinkage`.
        validation: with targets, all as of one moment; of very many a part is judged by.
        seed: see `Shrinkage`.
    """
    judges = find_judges(validation)
    if not judges:
        shrink_items(towers, n_events, USUAL, seed)
        return Shrunk(USUAL)
    shrinkage, found = Shrinkage(towers, n_events, seed), {}
    for strength in (0.0, *STRENGTHS):
        shrinkage.apply(strength)
        found[strength] = Jury(towers, judges).judge_alone().mean
    strength = pick(found)
    shrinkage.apply(strength)
    return Shrunk(strength, found[strength], found[0.0])


def pick(found: Mapping[float, float]) -> float:
    """Choose the least strength with which nearly all is gained that is to be gained, 0 where that is little."""
    gain = max(found.values()) - found[0.0]
    if gain < LEAST_GAIN * found[0.0]:
        return 0.0
    return min(strength for strength, ndcg in found.items() if ndcg >= found[0.0] + NEARLY_ALL * gain)
