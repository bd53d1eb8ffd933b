"""Attention over the events of a history, by order and by the gap between two events."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.dropout import Dropout
from models.time_basis import LogTimeBasis

N_GAP_KNOTS = 12
NO_GAP = N_GAP_KNOTS - 1  # one more than there are pieces between knots
FARTHEST = 64


class Relations(NamedTuple):
    """How Q tokens that ask stand to all T tokens."""

    pieces: Tensor
    """(B, Q, T) int64: the piece of log time in which the gap between them lies; `NO_GAP` of the start token."""
    log_places: Tensor
    """(B, Q, T): where it lies, counted in knots."""
    distance: Tensor
    """(B, Q, T) int64 in groups, or (1, Q, T) if alike in all rows."""
    is_seen: Tensor
    """(B, Q, T) bool, or (1, Q, T)."""


class EventBlocks(nn.Module):
    """Pre-norm transformer blocks in which token i sees token j where group j <= group i.

    The score of a pair adds two learned functions to the product of query and key: one of the distance in
    groups, one of log(1 + gap in seconds). Nothing depends on the target, so every position is a state; nor on the
    order within a group, so a basket is a set. Without blocks a token is its own state, as it is.
    """

    def __init__(self, dim: int, n_blocks: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.gap_basis = LogTimeBasis(N_GAP_KNOTS)
        self.blocks = nn.ModuleList([EventBlock(dim, n_heads, dropout) for _ in range(n_blocks)])
        self.norm = nn.LayerNorm(dim) if n_blocks else nn.Identity()

    def forward(self, tokens: Tensor, times: Tensor, groups: Tensor) -> Tensor:
        """Encode tokens.

        Args:
            tokens: (B, T, D), the start token first.
            times: (B, T) int64 seconds; the start token's is not read.
            groups: (B, T) int64: 0 for the start token, rising by order, above all others where padded; (1, T) if
                alike in all rows.

        Returns:
            (B, T, D), normalised if there is a block.
        """
        if not len(self.blocks):
            return tokens  # (B, T, D)
        relations = self.relate(times, groups, times, groups)
        for block in self.blocks:
            tokens = block(tokens, relations)  # (B, T, D)
        return self.norm(tokens)  # type: ignore[no-any-return]  # (B, T, D)

    def encode_at(self, tokens: Tensor, times: Tensor, groups: Tensor, places: Tensor) -> Tensor:
        """Encode one token of each row: what `forward` gives at its place (B,), without the last block of the others.

        Returns:
            (B, D).
        """
        if len(self.blocks) > 1:
            relations = self.relate(times, groups, times, groups)
            for block in self.blocks[:-1]:
                tokens = block(tokens, relations)  # (B, T, D)
        places = places.unsqueeze(1)  # (B, 1)
        asking = groups.expand(len(places), -1).gather(1, places)  # (B, 1)
        relations = self.relate(times.gather(1, places), asking, times, groups)
        return self.norm(self.blocks[-1](tokens, relations, places)).squeeze(1)  # type: ignore[no-any-return]  # (B, D)

    def relate(self, query_times: Tensor, query_groups: Tensor, times: Tensor, groups: Tensor) -> Relations:
        """Relate the tokens that ask, of times and groups (B, Q), to all tokens, of times and groups (B, T)."""
        pieces, log_places = self.gap_basis.locate(query_times.unsqueeze(2) - times.unsqueeze(1))  # (B, Q, T) each
        is_start = (query_groups == 0).unsqueeze(2) | (groups == 0).unsqueeze(1)  # (B, Q, T)
        pieces = pieces.masked_fill(is_start, NO_GAP)  # (B, Q, T)
        distance = (query_groups.unsqueeze(2) - groups.unsqueeze(1)).clamp(0, FARTHEST)  # (B, Q, T)
        return Relations(pieces, log_places, distance, groups.unsqueeze(1) <= query_groups.unsqueeze(2))


class EventBlock(nn.Module):
    """One attention layer and one feed-forward layer, each with a residual connection."""

    def __init__(self, dim: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        if dim % n_heads:
            raise ValueError(f"dim ({dim}) must be divisible by n_heads ({n_heads})")
        self.n_heads = n_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.project_in = nn.Linear(dim, 3 * dim)
        self.project_out = nn.Linear(dim, dim)
        self.gap_bias = nn.Linear(N_GAP_KNOTS, n_heads, bias=False)  # of the hats on the knots: their values there
        self.distance_bias = nn.Embedding(FARTHEST + 1, n_heads)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, 2 * dim),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(2 * dim, dim),
        )
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor, relations: Relations, places: Tensor | None = None) -> Tensor:
        """Let the tokens at `places` (B, Q), all of them by default, look at the tokens (B, T, D): (B, Q, D)."""
        bias = look_up(self.distance_bias.weight.T, relations.distance)  # (B, H, Q, T)
        bias = bias + self.weigh_gaps(relations.pieces, relations.log_places)  # (B, H, Q, T)
        bias = bias.masked_fill(~relations.is_seen.unsqueeze(1), float("-inf"))  # (B, H, Q, T)
        mixed = self.attend(self.attention_norm(tokens), bias, places)  # (B, Q, D)
        asking = tokens if places is None else take_tokens(tokens, places)  # (B, Q, D)
        asking = asking + self.dropout(mixed)  # (B, Q, D)
        result: Tensor = asking + self.dropout(self.feed_forward(asking))  # (B, Q, D)
        return result

    def weigh_gaps(self, pieces: Tensor, log_places: Tensor) -> Tensor:
        """Interpolate the bias of each gap, given by piece and place (B, Q, T), between knots: (B, H, Q, T)."""
        values = self.gap_bias.weight  # (H, K)
        slopes = values.diff(dim=1)  # (H, pieces)
        starts = values[:, :-1] - slopes * torch.arange(slopes.shape[1], device=slopes.device)  # (H, pieces)
        starts, slopes = (functional.pad(table, (0, 1)) for table in (starts, slopes))  # (H, K): none weighs nothing
        return look_up(starts, pieces) + look_up(slopes, pieces) * log_places.unsqueeze(1)  # (B, H, Q, T)

    def attend(self, tokens: Tensor, bias: Tensor, places: Tensor | None) -> Tensor:
        """Mix the values of the tokens (B, T, D) for those at `places` (B, Q) under a bias (B, H, Q, T): (B, Q, D)."""
        n_batch, n_tokens, dim = tokens.shape
        width = dim // self.n_heads
        heads = self.project_in(tokens).view(n_batch, n_tokens, 3, self.n_heads, width)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, T, D / H)
        if places is not None:
            index = places.unsqueeze(1).unsqueeze(-1).expand(-1, self.n_heads, -1, width)  # (B, H, Q, D / H)
            query = query.gather(2, index)  # (B, H, Q, D / H)
        query = query / math.sqrt(width)  # before the product: of float16 it could be too large
        scores = query @ key.transpose(2, 3) + bias.to(query.dtype)  # (B, H, Q, T)
        mixed = scores.softmax(dim=-1) @ value  # (B, H, Q, D / H)
        joined = torch.cat(mixed.unbind(1), dim=-1)  # (B, Q, D); a reshape would not export with several heads
        result: Tensor = self.project_out(joined)  # (B, Q, D)
        return result


def look_up(tables: Tensor, index: Tensor) -> Tensor:
    """Look up (B, Q, T) in a table of each head (H, K), (B, H, Q, T): a gather, whose gradient is the cheaper one."""
    n_batch, n_asking, _ = index.shape
    spread = tables.unsqueeze(0).unsqueeze(2).expand(n_batch, -1, n_asking, -1)  # (B, H, Q, K)
    return spread.gather(3, index.unsqueeze(1).expand(-1, len(tables), -1, -1))  # (B, H, Q, T)


def take_tokens(tokens: Tensor, places: Tensor) -> Tensor:
    """Take the tokens (B, T, D) at places (B, Q): (B, Q, D)."""
    return tokens.gather(1, places.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))  # (B, Q, D)
