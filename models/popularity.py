"""Popularity beside what towers say whose vectors hold none, once all is trained.

Towers of events in an order tell each target from what stands before it, whenever that was. They do not know what is
popular these days, and where there are few events hardly what always is. So each item vector gets one more entry, the
popularity of one window, and every user vector the same weight for it: a score is still one product. The validation
chooses both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datamodules.batch import RequestBatch
from models.blending import Jury, find_judges
from models.towers import Towers
from models.validation import rank_views
from models.yardstick import Yardstick

WINDOWS = (1.0, 1 / 4, 1 / 16, 1 / 64, 1 / 256)
"""Shares of the time of all events, up to its end: the last week of a year, or the last hours of a month of news."""
SHARES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
NEARLY_ALL, LEAST_GAIN = 0.95, 3.0
"""Of the best gain, and of its standard error: the best of many gains something by chance alone."""
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
    """Let users weigh popularity, as a share of how much the scores of towers vary without what is blended in."""
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
    judges, none = find_judges(validation), Popularity(1.0, 0.0)
    if not judges:
        return none
    judges = judges[:: math.ceil(len(judges) / MOST_JUDGES)]
    spread = Yardstick(towers, requests).spread
    added = {Popularity(window, share): share * spread * by_window[window] for window in by_window for share in SHARES}
    return pick(_judge(towers, {none: torch.zeros(1, 1)} | added, judges), none)


def _judge(
    towers: Towers, added: Mapping[Popularity, Tensor], judges: Sequence[RequestBatch]
) -> dict[Popularity, np.ndarray]:
    """Return NDCG@10 of each user, (R,), with what popularity adds to each item, (N, 1)."""
    found: dict[Popularity, list[np.ndarray]] = {one: [] for one in added}
    jury = Jury(towers, judges)
    room = jury.items.new_empty(max(len(users) for users, _ in jury.alone), len(jury.items))  # (B, N)
    for batch, (users, _) in zip(jury.batches, jury.alone, strict=True):
        scores = towers.score_items(users, jury.items, batch)  # (B, N)
        for one, more in added.items():
            changed = torch.add(scores, more.T, out=room[: len(scores)])  # (B, N)
            found[one].append(rank_views(changed, None, batch)["novel"])
    return {one: np.concatenate(parts) for one, parts in found.items()}


def pick(found: Mapping[Popularity, np.ndarray], none: Popularity) -> Popularity:
    """Choose by NDCG@10 of each user, (R,): the longest window with which nearly all is gained, there the least share.

    Of many events less is chance, and for longer it stays true.
    """
    gains = {one: float((values - found[none]).mean()) for one, values in found.items()}
    best = max(gains, key=lambda one: gains[one])
    error = (found[best] - found[none]).std() / len(found[none]) ** 0.5
    enough = NEARLY_ALL * gains[best] if gains[best] > LEAST_GAIN * error else 0.0
    able = [one for one in gains if gains[one] >= enough] if enough else [none]
    chosen = min(able, key=lambda one: (-one.window, one.share))
    ndcg, alone = float(found[chosen].mean()), float(found[none].mean())
    return Popularity(chosen.window, chosen.share, ndcg, alone)
