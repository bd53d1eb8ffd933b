"""Attention over the events of a history, by order and by the gap between two events."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.dropout import Dropout
from models.time_basis import LogTimeBasis

N_GAP_FUNCTIONS = 12
FARTHEST = 64


class EventBlocks(nn.Module):
    """Pre-norm transformer blocks in which token i sees token j where group j <= group i.

    The score of a pair adds two learned functions to the product of query and key: one of the distance in
    groups, one of log(1 + gap in seconds). Nothing depends on the target, so every position is a state; nor on the
    order within a group, so a basket is a set. Without blocks a token is its own state, as it is.
    """

    def __init__(self, dim: int, n_blocks: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.gap_basis = LogTimeBasis(N_GAP_FUNCTIONS)
        self.blocks = nn.ModuleList([EventBlock(dim, n_heads, dropout) for _ in range(n_blocks)])
        self.norm = nn.LayerNorm(dim) if n_blocks else nn.Identity()

    def forward(self, tokens: Tensor, times: Tensor, groups: Tensor) -> Tensor:
        """Encode tokens.

        Args:
            tokens: (B, T, D), the start token first.
            times: (B, T) int64 seconds; the start token's is not read.
            groups: (B, T) int64: 0 for the start token, rising by order, above all others where padded.

        Returns:
            (B, T, D), normalised if there is a block.
        """
        if not len(self.blocks):
            return tokens  # (B, T, D)
        is_seen = groups.unsqueeze(1) <= groups.unsqueeze(2)  # (B, T, T) query, key
        gaps = self.gap_basis(times.unsqueeze(2) - times.unsqueeze(1))  # (B, T, T, K)
        not_start = (groups > 0).to(tokens.dtype)  # (B, T)
        gaps = gaps * (not_start.unsqueeze(1) * not_start.unsqueeze(2)).unsqueeze(-1)  # (B, T, T, K)
        distance = (groups.unsqueeze(2) - groups.unsqueeze(1)).clamp(0, FARTHEST)  # (B, T, T)
        for block in self.blocks:
            tokens = block(tokens, gaps, distance, is_seen)  # (B, T, D)
        return self.norm(tokens)  # type: ignore[no-any-return]  # (B, T, D)


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
        self.gap_bias = nn.Linear(N_GAP_FUNCTIONS, n_heads, bias=False)
        self.distance_bias = nn.Embedding(FARTHEST + 1, n_heads)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, 2 * dim),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(2 * dim, dim),
        )
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor, gaps: Tensor, distance: Tensor, is_seen: Tensor) -> Tensor:
        bias = self.gap_bias(gaps).permute(0, 3, 1, 2)  # (B, H, T, T)
        bias = bias + self.look_up(distance)  # (B, H, T, T)
        bias = bias.masked_fill(~is_seen.unsqueeze(1), float("-inf"))  # (B, H, T, T)
        tokens = tokens + self.dropout(self.attend(self.attention_norm(tokens), bias))  # (B, T, D)
        result: Tensor = tokens + self.dropout(self.feed_forward(tokens))  # (B, T, D)
        return result

    def look_up(self, distance: Tensor) -> Tensor:
        """Look up the bias of each distance (B, T, T), (B, H, T, T): a gather, whose gradient is the cheaper one."""
        n_batch, n_tokens, _ = distance.shape
        table = self.distance_bias.weight.T.unsqueeze(0).unsqueeze(2)  # (1, H, 1, distances)
        table = table.expand(n_batch, -1, n_tokens, -1)  # (B, H, T, distances)
        return table.gather(3, distance.unsqueeze(1).expand(-1, self.n_heads, -1, -1))  # (B, H, T, T)

    def attend(self, tokens: Tensor, bias: Tensor) -> Tensor:
        n_batch, n_tokens, dim = tokens.shape
        heads = self.project_in(tokens).view(n_batch, n_tokens, 3, self.n_heads, dim // self.n_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, T, D / H)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        joined = torch.cat(mixed.unbind(1), dim=-1)  # (B, T, D); a reshape would not export with several heads
        result: Tensor = self.project_out(joined)  # (B, T, D)
        return result
