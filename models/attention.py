"""Attention over the events of a history, biased by order and by the time between two events.

Letters: B rows, T = L + 1 tokens (the start token and L events), Q query tokens, D entries of a
token, H heads, K basis functions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

N_GAP_KNOTS = 12
NO_GAP = N_GAP_KNOTS - 1  # one more than there are pieces between knots
MASKED = 0
FARTHEST = 64
LONGEST_TIME = 20.0  # log(1 + seconds): 15 years
DROPOUT_LEVELS = 256


class Dropout(nn.Module):
    """Dropout by random bytes, of a probability rounded to 1 / 256.

    torch's dropout draws a float per entry. With it, a step of `EventBlocks` on one core takes a
    fifth to a third longer.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.n_dropped = min(round(p * DROPOUT_LEVELS), DROPOUT_LEVELS - 1)

    def forward(self, values: Tensor) -> Tensor:
        """Drop entries of a tensor of any shape (...) while training."""
        if not self.training or not self.n_dropped:
            return values

        n = values.numel()
        highest = (1 << 63) - 1
        words = torch.randint(
            -highest - 1, highest, (-(-n // 8),), device=values.device
        )  # (words,)
        levels = words.view(torch.uint8)[:n].view(values.shape)  # (...)
        mask = torch.ge(levels, self.n_dropped, out=torch.empty_like(values))  # (...)
        scale = DROPOUT_LEVELS / (DROPOUT_LEVELS - self.n_dropped)

        return values * mask.mul_(scale)  # (...)


class LogTimeBasis(nn.Module):
    """Map seconds to K hat functions of log(1 + seconds), evenly spaced from 0 s to 15 years.

    Between two knots exactly two functions are non-zero and sum to 1, so that a linear layer on top
    is a piecewise linear function of log time.
    """

    def __init__(self, n_functions: int) -> None:
        super().__init__()
        self.n_functions = n_functions
        self.step = LONGEST_TIME / (n_functions - 1)
        knots = torch.arange(n_functions) * self.step  # (K,)
        self.knots = nn.Buffer(knots, persistent=False)

    def forward(self, seconds: Tensor) -> Tensor:
        """Map int64 seconds of any shape (...) to float (..., K); negative ones count as 0."""
        gaps = _log(seconds).unsqueeze(-1) - self.knots  # (..., K)
        return (1.0 - gaps.abs() / self.step).clamp(min=0.0)  # (..., K)

    def locate(self, seconds: Tensor) -> tuple[Tensor, Tensor]:
        """Find seconds among the knots.

        Args:
            seconds: (...) int64.

        Returns:
            (...) piece i (int64) and (...) position (float), which lies between i and i + 1.
        """
        positions = _log(seconds) / self.step  # (...)
        pieces = positions.long().clamp(max=self.n_functions - 2)  # (...)
        return pieces, positions  # (...), (...)


def _log(seconds: Tensor) -> Tensor:
    logs = torch.log1p(seconds.clamp(min=0).to(torch.float32))  # (...)
    return logs.clamp(max=LONGEST_TIME)  # (...)


class Relations(NamedTuple):
    """How Q query tokens stand to all T tokens."""

    pieces: Tensor  # (B, Q, T) int64: piece of log time of the gap; `NO_GAP` to the start token
    log_positions: Tensor  # (B, Q, T): the gap, counted in knots
    distance: Tensor  # (B or 1, Q, T) int64: `MASKED`, or 1 + groups in between

    def take(self, positions: Tensor) -> Relations:
        """Keep the query tokens at positions (B, Q)."""
        n_rows = positions.shape[0]
        parts = (part.expand(n_rows, -1, -1) for part in self)
        return Relations(*(take_tokens(part, positions) for part in parts))


class EventBlocks(nn.Module):
    """Pre-norm transformer blocks in which token i sees token j where group j <= group i.

    The logit of a pair adds two learned functions to the product of query and key: one of the
    distance in groups, one of log(1 + gap in seconds). Nothing depends on the target, so that every
    position is a state; nor on the order within a group, so that a basket is a set.
    """

    def __init__(self, dim: int, n_blocks: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.gap_basis = LogTimeBasis(N_GAP_KNOTS)
        blocks = [EventBlock(dim, n_heads, dropout) for _ in range(n_blocks)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim) if n_blocks else nn.Identity()

    def forward(self, tokens: Tensor, times: Tensor, groups: Tensor) -> Tensor:
        """Encode tokens; without blocks, return them.

        Args:
            tokens: (B, T, D), the start token first.
            times: (B, T) seconds.
            groups: (B, T), or (1, T) if alike in all rows: 0 of the start token, rising by order,
                above all others where padded.

        Returns:
            (B, T, D) states.
        """
        if not len(self.blocks):
            return tokens  # (B, T, D)
        relations = self.relate(times, groups, times, groups)
        for block in self.blocks:
            tokens = block(tokens, relations)  # (B, T, D)
        return self.norm(tokens)  # type: ignore[no-any-return]  # (B, T, D)

    def encode_at(
        self, tokens: Tensor, times: Tensor, groups: Tensor, positions: Tensor
    ) -> Tensor:
        """Encode the token at one position (B,) of each row, (B, D).

        The last block leaves out the other tokens.
        """
        positions = positions.unsqueeze(1)  # (B, 1)
        if len(self.blocks) > 1:
            relations = self.relate(times, groups, times, groups)
            for block in self.blocks[:-1]:
                tokens = block(tokens, relations)  # (B, T, D)
            relations = relations.take(positions)
        else:
            groups_of_rows = groups.expand(positions.shape[0], -1)  # (B, T)
            query_groups = groups_of_rows.gather(1, positions)  # (B, 1)
            query_times = times.gather(1, positions)  # (B, 1)
            relations = self.relate(query_times, query_groups, times, groups)

        last = self.blocks[-1](tokens, relations, positions)  # (B, 1, D)
        return self.norm(last).squeeze(1)  # type: ignore[no-any-return]  # (B, D)

    def relate(
        self, query_times: Tensor, query_groups: Tensor, times: Tensor, groups: Tensor
    ) -> Relations:
        """Relate query tokens (B, Q) to all tokens (B, T); the first is the start token."""
        gaps = query_times.unsqueeze(2) - times[:, 1:].unsqueeze(1)  # (B, Q, L)
        pieces, log_positions = self.gap_basis.locate(gaps)  # (B, Q, L) both
        pieces = pad(pieces, (1, 0), value=NO_GAP)  # (B, Q, T)
        distance = query_groups.unsqueeze(2) - groups.unsqueeze(1)  # (B, Q, T)
        log_positions = pad(log_positions, (1, 0))  # (B, Q, T)
        distance = distance.clamp(MASKED - 1, FARTHEST) + 1  # (B, Q, T)
        return Relations(pieces, log_positions, distance)


class EventBlock(nn.Module):
    """One attention layer and one feed-forward layer, each with a residual connection."""

    def __init__(self, dim: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.project_in = nn.Linear(dim, 3 * dim)
        self.project_out = nn.Linear(dim, dim)
        self.gap_bias = nn.Linear(N_GAP_KNOTS, n_heads, bias=False)  # at each knot
        self.distance_bias = nn.Embedding(FARTHEST + 1, n_heads)

        widen = nn.Linear(dim, 2 * dim)
        narrow = nn.Linear(2 * dim, dim)

        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), widen, nn.GELU(), Dropout(dropout), narrow
        )
        self.dropout = Dropout(dropout)

    def forward(
        self, tokens: Tensor, relations: Relations, positions: Tensor | None = None
    ) -> Tensor:
        """Let query tokens read all tokens.

        Args:
            tokens: (B, T, D).
            relations: how the query tokens stand to all tokens.
            positions: (B, Q) positions of the query tokens; None for all tokens.

        Returns:
            (B, Q, D) the query tokens after the block.
        """
        weights = self.distance_bias.weight.T  # (H, distances)
        tables = pad(
            weights, (1, 0), value=-math.inf
        )  # (H, 1 + distances), `MASKED` first
        bias = _look_up(tables, relations.distance)  # (B or 1, H, Q, T)
        bias = bias + self.gap_logits(relations.pieces, relations.log_positions)
        mixed = self.attend(self.attention_norm(tokens), bias, positions)  # (B, Q, D)
        queries = tokens  # (B, T, D)

        if positions is not None:
            queries = take_tokens(tokens, positions)  # (B, Q, D)
        queries = queries + self.dropout(mixed)  # (B, Q, D)
        return queries + self.dropout(self.feed_forward(queries))  # type: ignore[no-any-return]  # (B, Q, D)

    def gap_logits(self, pieces: Tensor, log_positions: Tensor) -> Tensor:
        """Interpolate the bias of each gap (B, Q, T) between knots: (B, H, Q, T)."""
        values = self.gap_bias.weight  # (H, K)
        slopes = values[:, 1:] - values[:, :-1]  # (H, pieces)
        first = values[:, :-1]  # (H, pieces)
        knots = torch.arange(slopes.shape[1], device=slopes.device)  # (pieces,)
        starts = first - slopes * knots  # (H, pieces)

        # The piece that is appended has a bias of 0: `NO_GAP`.
        lines = pad(torch.cat([starts, slopes]), (0, 1))  # (2 H, K)
        starts, slopes = _look_up(lines, pieces).chunk(2, dim=1)  # (B, H, Q, T) both

        return starts + slopes * log_positions.unsqueeze(1)  # (B, H, Q, T)

    def attend(self, tokens: Tensor, bias: Tensor, positions: Tensor | None) -> Tensor:
        """Mix the values of tokens (B, T, D) for the queries, by a bias (B, H, Q, T): (B, Q, D)."""
        query, key, value = self.project_in(tokens).chunk(3, dim=-1)  # (B, T, D) each
        if positions is not None:
            query = take_tokens(query, positions)  # (B, Q, D)
        query = self.split_heads(query)  # (B, H, Q, D / H)
        key = self.split_heads(key)  # (B, H, T, D / H)
        value = self.split_heads(value)  # (B, H, T, D / H)

        # Before the product, which could be too large for float16.
        query = query / math.sqrt(query.shape[-1])  # (B, H, Q, D / H)
        logits = query @ key.transpose(2, 3) + bias.to(query.dtype)  # (B, H, Q, T)
        mixed = logits.softmax(dim=-1) @ value  # (B, H, Q, D / H)

        return self.project_out(self.join_heads(mixed))  # type: ignore[no-any-return]  # (B, Q, D)

    def split_heads(self, tokens: Tensor) -> Tensor:
        """Give each head its part of the tokens (B, T, D): (B, H, T, D / H)."""
        if self.n_heads == 1:
            return tokens.unsqueeze(1)  # (B, 1, T, D)
        n_batch, n_tokens, dim = tokens.shape
        shape = (n_batch, n_tokens, self.n_heads, dim // self.n_heads)
        return tokens.reshape(shape).transpose(1, 2)  # (B, H, T, D / H)

    def join_heads(self, heads: Tensor) -> Tensor:
        """Undo `split_heads`: (B, H, T, D / H) to (B, T, D)."""
        if self.n_heads == 1:
            return heads.squeeze(1)  # (B, T, D)

        # A reshape would not export with several heads.
        return torch.cat(heads.unbind(1), dim=-1)  # (B, T, D)


def take_tokens(tokens: Tensor, positions: Tensor) -> Tensor:
    """Take the tokens (B, T, D) at positions (B, Q): (B, Q, D)."""
    index = positions.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])  # (B, Q, D)
    return tokens.gather(1, index)  # (B, Q, D)


def _look_up(tables: Tensor, index: Tensor) -> Tensor:
    """Look up (B, Q, T) in each of H tables (H, K), (B, H, Q, T).

    By a gather: on a CPU, an embedding of one or two numbers takes thirty times as long.
    """
    n_batch, n_queries, _ = index.shape
    rows = tables.unsqueeze(0).unsqueeze(2)  # (1, H, 1, K)
    rows = rows.expand(n_batch, -1, n_queries, -1)  # (B, H, Q, K)
    columns = index.unsqueeze(1).expand(-1, len(tables), -1, -1)  # (B, H, Q, T)
    return rows.gather(3, columns)  # (B, H, Q, T)
