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
UNSEEN, FARTHEST = 0, 64


class Relations(NamedTuple):
    """How Q tokens that ask stand to all T tokens."""

    pieces: Tensor
    """(B, Q, T) int64: the piece of log time in which the gap between them lies; `NO_GAP` to the start token."""
    log_places: Tensor
    """(B, Q, T): where it lies, counted in knots."""
    distance: Tensor
    """(B, Q, T) int64: `UNSEEN`, or 1 + groups in between; (1, Q, T) if alike in all rows."""

    def take(self, places: Tensor) -> Relations:
        """Leave the tokens at places (B, Q), of T that ask."""
        pieces, log_places, distance = (take_tokens(part.expand(places.shape[0], -1, -1), places) for part in self)
        return Relations(pieces, log_places, distance)


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
        places = places.unsqueeze(1)  # (B, 1)
        if len(self.blocks) > 1:
            whole = self.relate(times, groups, times, groups)
            for block in self.blocks[:-1]:
                tokens = block(tokens, whole)  # (B, T, D)
            relations = whole.take(places)
        else:
            asking = groups.expand(places.shape[0], -1).gather(1, places)  # (B, 1)
            relations = self.relate(times.gather(1, places), asking, times, groups)
        return self.norm(self.blocks[-1](tokens, relations, places)).squeeze(1)  # type: ignore[no-any-return]  # (B, D)

    def relate(self, query_times: Tensor, query_groups: Tensor, times: Tensor, groups: Tensor) -> Relations:
        """Relate tokens that ask, of times and groups (B, Q), to all (B, T), of which the first is the start token."""
        pieces, log_places = self.gap_basis.locate(query_times.unsqueeze(2) - times[:, 1:].unsqueeze(1))  # (B, Q, L)
        pieces = functional.pad(pieces, (1, 0), value=NO_GAP)  # (B, Q, T)
        distance = query_groups.unsqueeze(2) - groups.unsqueeze(1)  # (B, Q, T)
        return Relations(pieces, functional.pad(log_places, (1, 0)), distance.clamp(UNSEEN - 1, FARTHEST) + 1)


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
        bias = self.weigh_distances(relations.distance)  # (B, H, Q, T)
        bias = bias + self.weigh_gaps(relations.pieces, relations.log_places)  # (B, H, Q, T)
        mixed = self.attend(self.attention_norm(tokens), bias, places)  # (B, Q, D)
        asking = tokens if places is None else take_tokens(tokens, places)  # (B, Q, D)
        asking = asking + self.dropout(mixed)  # (B, Q, D)
        result: Tensor = asking + self.dropout(self.feed_forward(asking))  # (B, Q, D)
        return result

    def weigh_distances(self, distance: Tensor) -> Tensor:
        """Look up the bias of each distance (B, Q, T), -inf where a token is not seen: (B, H, Q, T)."""
        tables = functional.pad(self.distance_bias.weight.T, (1, 0), value=float("-inf"))  # (H, UNSEEN and distances)
        return self.look_up(tables, distance)  # (B, H, Q, T)

    def weigh_gaps(self, pieces: Tensor, log_places: Tensor) -> Tensor:
        """Interpolate the bias of each gap, given by piece and place (B, Q, T), between knots: (B, H, Q, T)."""
        values = self.gap_bias.weight  # (H, K)
        slopes = values.diff(dim=1)  # (H, pieces)
        starts = values[:, :-1] - slopes * torch.arange(slopes.shape[1], device=slopes.device)  # (H, pieces)
        lines = functional.pad(torch.cat([starts, slopes]), (0, 1))  # (2 H, K): no gap weighs nothing
        starts, slopes = self.look_up(lines, pieces).chunk(2, dim=1)  # (B, H, Q, T) both
        return starts + slopes * log_places.unsqueeze(1)  # (B, H, Q, T)

    def look_up(self, tables: Tensor, index: Tensor) -> Tensor:
        """Look up (B, Q, T) in each of H tables (H, K), (B, H, Q, T).

        By a gather: in torch, on a CPU, an embedding of one or two numbers takes thirty times as long.
        """
        n_batch, n_asking, _ = index.shape
        spread = tables.unsqueeze(0).unsqueeze(2).expand(n_batch, -1, n_asking, -1)  # (B, H, Q, K)
        return spread.gather(3, index.unsqueeze(1).expand(-1, len(tables), -1, -1))  # (B, H, Q, T)

    def attend(self, tokens: Tensor, bias: Tensor, places: Tensor | None) -> Tensor:
        """Mix the values of the tokens (B, T, D) for those at `places` (B, Q) under a bias (B, H, Q, T): (B, Q, D)."""
        query, key, value = self.project_in(tokens).chunk(3, dim=-1)  # (B, T, D) each
        if places is not None:
            query = take_tokens(query, places)  # (B, Q, D)
        query, key, value = map(self.split_heads, (query, key, value))  # (B, H, Q, D / H), (B, H, T, D / H) both
        query = query / math.sqrt(query.shape[-1])  # before the product: of float16 it could be too large
        scores = query @ key.transpose(2, 3) + bias.to(query.dtype)  # (B, H, Q, T)
        mixed = scores.softmax(dim=-1) @ value  # (B, H, Q, D / H)
        result: Tensor = self.project_out(self.join_heads(mixed))  # (B, Q, D)
        return result

    def split_heads(self, tokens: Tensor) -> Tensor:
        """Give each head its part of the tokens (B, T, D): (B, H, T, D / H)."""
        if self.n_heads == 1:
            return tokens.unsqueeze(1)  # (B, 1, T, D)
        n_batch, n_tokens, dim = tokens.shape
        return tokens.reshape(n_batch, n_tokens, self.n_heads, dim // self.n_heads).transpose(1, 2)  # (B, H, T, D / H)

    def join_heads(self, heads: Tensor) -> Tensor:
        """Undo `split_heads`: (B, H, T, D / H) to (B, T, D); a reshape would not export with several heads."""
        return heads.squeeze(1) if self.n_heads == 1 else torch.cat(heads.unbind(1), dim=-1)  # (B, T, D)


def take_tokens(tokens: Tensor, places: Tensor) -> Tensor:
    """Take the tokens (B, T, D) at places (B, Q): (B, Q, D)."""
    return tokens.gather(1, places.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))  # (B, Q, D)
