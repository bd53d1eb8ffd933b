"""Popularity beside what towers say whose vectors hold none, once all is trained.

Towers of events in an order tell each target from what stands before it, whenever that was. They do not know what is
popular these days, and where there are few events hardly what always is. So each item vector gets one more entry, the
popularity of one window, and every user vector the same weight for it: a score is still one product. The validation
chooses both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datamodules.batch import RequestBatch
from models.jury import Figures, Jury, Views, find_judges, pick_least
from models.towers import Towers
from models.validation import rank_views
from models.yardstick import Yardstick

WINDOWS = (1.0, 1 / 4, 1 / 16, 1 / 64, 1 / 256)
"""Shares of the time of all events, up to its end: the last week of a year, or the last hours of a month of news."""
SHARES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
ERRORS = 3.0
"""Standard errors by which the gain must be above nothing: the best of many gains something by chance alone."""
MOST_JUDGES = 16
"""Batches of the validation: every window and share is ranked anew."""


@dataclass(frozen=True)
class Popularity:
    """How popularity counts, and how that ranks what users of the validation took next."""

    window: float
    """Share of the time of all events, in the end of which it is counted."""
    share: float
    """How much it varies, as a share of how much the scores of the towers do; 0: it is left out."""
    ndcg: float | None = None
    """NDCG@10 with it; None: there is nothing to validate it by."""
    ndcg_alone: float | None = None
    """NDCG@10 without."""


@torch.no_grad()
def weigh_popularity(towers: Towers, share: float, requests: Sequence[RequestBatch]) -> None:
    """Let users weigh popularity, as a share of how much the products of their vectors vary."""
    towers.user_tower.weigh_popularity(share * Yardstick(towers, requests).spread)


@torch.no_grad()
def choose_popularity(
    towers: Towers,
    by_window: Mapping[float, Tensor],
    requests: Sequence[RequestBatch],
    validation: Sequence[RequestBatch],
) -> Popularity:
    """Find the window and the share by how they rank what users of the validation took next.

    Args:
        towers: without popularity in their vectors; what is blended in stays as it is.
        by_window: popularity (N, 1) in each window.
        requests: of some users who have events, to see how much scores vary.
        validation: with targets, all as of one moment; of very many a part is judged by.
    """
    judges, none = find_judges(validation, MOST_JUDGES), Popularity(1.0, 0.0)
    if not judges:
        return none
    spread = Yardstick(towers, requests).spread
    added = {Popularity(window, share): share * spread * by_window[window] for window in by_window for share in SHARES}
    return pick(_judge(towers, {none: torch.zeros(1, 1)} | added, judges), none)


def _judge(
    towers: Towers, added: Mapping[Popularity, Tensor], judges: Sequence[RequestBatch]
) -> dict[Popularity, Figures]:
    """Judge the towers with what popularity adds to each item, (N, 1)."""
    ranked: dict[Popularity, list[Views]] = {one: [] for one in added}
    jury = Jury(towers, judges)
    room = jury.items.new_empty(max(len(users) for users, _ in jury.alone), len(jury.items))  # (B, N)
    for batch, (users, _) in zip(jury.batches, jury.alone, strict=True):
        scores = towers.score_items(users, jury.items, batch)  # (B, N)
        for one, more in added.items():
            changed = torch.add(scores, more.T, out=room[: len(scores)])  # (B, N)
            ranked[one].append(rank_views(changed, None, batch))
    return {one: Figures.join(views) for one, views in ranked.items()}


def pick(found: Mapping[Popularity, Figures], none: Popularity) -> Popularity:
    """Choose the longest window with which nearly all is gained, there the least share.

    Of many events less is chance, and for longer it stays true.
    """
    chosen = pick_least(found, none, ERRORS, lambda one: (-one.window, one.share))
    return replace(chosen, ndcg=found[chosen].mean, ndcg_alone=found[none].mean)
