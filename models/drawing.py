"""Items that few have taken, drawn to where content puts them, once all is trained.

An item with n events learned its place from these alone; content says what is usual for its like. As in empirical Bayes
(Efron and Morris, 1975) its place becomes (n v + s c) / (n + s): its own v counts by its events, what content says c by
the strength s, the events that content is worth, which the validation finds. Training does not find it: ids fit what
they are shown, and leave little for content to explain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from datamodules.batch import RequestBatch
from models.blending import Jury, find_judges
from models.content_places import fit_places, place_all
from models.towers import Towers

STRENGTHS = (1.0, 2.0, 4.0, 8.0)
USUAL = 4.0
"""Where nothing can be validated. With many attributes 2 to 8 ranked best (Amazon Beauty and Toys), with
a category alone none better than nothing (Grocery)."""
NEARLY_ALL, LEAST_GAIN = 0.95, 0.01
"""Of the best gain, and of NDCG without: less is often chance, and then the least strength does the least harm."""


@dataclass(frozen=True)
class Drawn:
    """How far items are drawn, and how that ranks what users of the validation took next."""

    strength: float
    """Events that content is worth; 0: items stay where they were trained."""
    ndcg: float | None = None
    """NDCG@10 with it; None: nothing could be validated."""
    ndcg_alone: float | None = None
    """NDCG@10 without."""


class Drawing:
    """The items of trained towers without popularity in their vectors, and where content puts each."""

    @torch.no_grad()
    def __init__(self, towers: Towers, n_events: Tensor, seed: int) -> None:
        """Learn what content says.

        Args:
            towers: trained, in evaluation mode; what is blended in stays as it is.
            n_events: (N,) of each item; one without events stays where it is.
            seed: draws items.
        """
        self.towers = towers
        tower, vectors = towers.item_tower, towers.item_vectors(towers.no_popularity)  # (N, W)
        self.n_events = n_events.to(vectors.dtype)  # (N,)
        self.is_known = (n_events > 0) & towers.item_has_content  # (N,)
        rows = self.is_known.nonzero().squeeze(1)  # (n,)
        places = fit_places(towers, vectors, rows, torch.Generator().manual_seed(seed))
        placed = place_all(places, towers.item_codes, towers.item_values)  # (N, D + R)
        self.trained, self.placed = vectors[:, : tower.dim], placed[:, : tower.dim]  # (N, D) each
        self.content = tower.content(towers.item_codes, towers.item_values)  # (N, D)
        self.ids = tower.id_table.weight.clone()  # (N, D)

    @torch.no_grad()
    def draw(self, strength: float) -> None:
        """Set the ids of the item tower so that items stand where they are drawn to."""
        share = torch.where(self.is_known, strength / (self.n_events + strength).clamp(min=1), 0).unsqueeze(1)  # (N, 1)
        wanted = torch.lerp(self.trained, self.placed, share)  # (N, D)
        ids = torch.where(share > 0, wanted - self.content, self.ids)  # (N, D)
        self.towers.item_tower.id_table.weight.copy_(ids)


def draw_items(towers: Towers, n_events: Tensor, strength: float, seed: int) -> None:
    """Draw the items of trained towers to content; see `Drawing`."""
    if strength:
        Drawing(towers, n_events, seed).draw(strength)


@torch.no_grad()
def choose_strength(towers: Towers, n_events: Tensor, validation: Sequence[RequestBatch], seed: int) -> Drawn:
    """Find the strength by how it ranks what users of the validation took next, and draw the items by it.

    Args:
        towers: see `Drawing`.
        n_events: see `Drawing`.
        validation: with targets, all as of one moment; of very many a part is judged by.
        seed: see `Drawing`.
    """
    judges = find_judges(validation)
    if not judges:
        draw_items(towers, n_events, USUAL, seed)
        return Drawn(USUAL)
    drawing, found = Drawing(towers, n_events, seed), {}
    for strength in (0.0, *STRENGTHS):
        drawing.draw(strength)
        found[strength] = Jury(towers, judges).judge_alone().mean
    strength = pick(found)
    drawing.draw(strength)
    return Drawn(strength, found[strength], found[0.0])


def pick(found: Mapping[float, float]) -> float:
    """Choose the least strength with which nearly all is gained that is to be gained, 0 where that is little."""
    gain = max(found.values()) - found[0.0]
    if gain < LEAST_GAIN * found[0.0]:
        return 0.0
    return min(strength for strength, ndcg in found.items() if ndcg >= found[0.0] + NEARLY_ALL * gain)
