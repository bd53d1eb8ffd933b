"""Map a history of item vectors, demographics and the request to the user's vector; no table of users or items."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from datamodules.batch import Tensors
from models.attention import Dropout, EventBlocks, LogTimeBasis
from models.config import Recipe
from models.features import FeatureEmbedding
from models.memory import Memory, MemoryInputs
from serve.schema import FIRST_CODE, Schema

N_RECENCY_FUNCTIONS = 12
PADDING_GROUP = 1 << 40  # above every group: no token sees padding


class UserTower(nn.Module):
    """Encode events, take the state before the request, and fuse it late with demographics and request context.

    Where vectors hold popularity, the user's says how much it counts for them. `memory` adds what repeated
    consumption needs: a long-term profile, affinities, popularity and a score per owned item.
    """

    def __init__(self, schema: Schema, recipe: Recipe, memory: Memory | None) -> None:
        super().__init__()
        dim = recipe.dim
        dropout = recipe.dropout
        popularity_dim = len(schema.popularity_days)
        self.dim = dim
        self.is_ordered = schema.ties == "ordered"  # each event is a group of its own
        self.is_set = schema.is_set  # all events are one group of one time
        self.similarity = recipe.similarity
        self.vector_scale = nn.Parameter(torch.tensor(1.0))
        self.project_vector = nn.Linear(dim, dim)
        self.event_table = nn.Embedding(FIRST_CODE + len(schema.event_types), dim)
        self.project_weight = nn.Linear(1, dim, bias=False)
        self.time_basis = LogTimeBasis(N_RECENCY_FUNCTIONS)
        self.project_gap = nn.Linear(N_RECENCY_FUNCTIONS, dim, bias=False)
        self.start_token = nn.Parameter(torch.empty(dim))
        self.input_dropout = Dropout(dropout)
        self.blocks = EventBlocks(dim, recipe.n_blocks, recipe.n_heads, dropout)
        self.demographics = FeatureEmbedding(schema.user_features, dim)
        self.context = FeatureEmbedding(schema.context_features, dim)
        self.project_recency = nn.Linear(N_RECENCY_FUNCTIONS, dim, bias=False)
        self.head = nn.Sequential(
            nn.Linear(2 * dim, 2 * dim),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(2 * dim, dim),
        )
        self.project_state = nn.Linear(dim, dim)
        has_blocks = recipe.n_blocks > 0
        self.pool_power = nn.Parameter(
            torch.tensor(1.0 if has_blocks else 0.5), requires_grad=not has_blocks
        )
        self.popularity_gate = (
            nn.Linear(dim, popularity_dim)
            if popularity_dim and memory is None
            else None
        )
        self.memory = memory
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.start_token, std=0.02)
        nn.init.normal_(self.event_table.weight, std=0.02)
        nn.init.eye_(self.project_state.weight)
        nn.init.eye_(
            self.project_vector.weight
        )  # a history starts near its items in the space that it is searched in
        if self.popularity_gate is not None:
            nn.init.zeros_(self.popularity_gate.weight)
            nn.init.ones_(self.popularity_gate.bias)
        if self.memory is not None:
            self.memory.reset_parameters()
            nn.init.zeros_(
                self.project_state.weight
            )  # start from the long-term profile alone

    def encode_events(self, history_vectors: Tensor, arrays: Tensors) -> Tensor:
        """Encode the start token (state 0) and every event (B, L, D) from the events at or before it, (B, T, D)."""
        return self.blocks(*self.embed_events(history_vectors, arrays))  # type: ignore[no-any-return]  # (B, T, D)

    def embed_events(
        self, history_vectors: Tensor, arrays: Tensors
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Make what the blocks read of `encode_events`' arguments: tokens (B, T, D), their times (B, T) and groups."""
        gaps, groups = self.order(arrays)  # (B, L, K), (1 or B, L)
        events = self.project_vector(history_vectors * self.vector_scale)  # (B, L, D)
        events = (
            events + self.event_table(arrays["history_events"]) + self.project_gap(gaps)
        )  # (B, L, D)
        events = events + self.project_weight(
            arrays["history_weights"].unsqueeze(-1)
        )  # (B, L, D)
        start = self.start_token.expand(events.shape[0], 1, -1)  # (B, 1, D)
        tokens = self.input_dropout(torch.cat([start, events], dim=1))  # (B, T, D)
        times = functional.pad(arrays["history_times"], (1, 0))  # (B, T)
        return (
            tokens,
            times,
            functional.pad(groups, (1, 0)),
        )  # (B, T, D), (B, T), (B, T)

    def order(self, arrays: Tensors) -> tuple[Tensor, Tensor]:
        """Return the gap before each event, (B, L, K), and its group, (1 or B, L)."""
        find = (
            self.order_events
            if self.is_ordered
            else self.order_set
            if self.is_set
            else self.order_groups
        )
        before, groups = find(arrays)  # (B, L), (1 or B, L)
        return self.time_basis(
            arrays["history_times"] - before
        ), groups  # (B, L, K), (1 or B, L)

    def order_events(self, arrays: Tensors) -> tuple[Tensor, Tensor]:
        """Return the time of the event before each, of the first its own, (B, L), and its position, (1, L)."""
        times = arrays["history_times"]  # (B, L)
        positions = torch.arange(1, times.shape[1] + 1, device=times.device)  # (L,)
        return torch.cat([times[:, :1], times[:, :-1]], dim=1), positions.unsqueeze(
            0
        )  # (B, L), (1, L)

    def order_set(self, arrays: Tensors) -> tuple[Tensor, Tensor]:
        """Do as `order_groups` where all events are one group, without looking at pairs of them: sets may be long."""
        times, groups, lengths = (
            arrays[f"history_{name}"] for name in ("times", "groups", "lengths")
        )
        positions = torch.arange(times.shape[1], device=times.device)  # (L,)
        first = times[:, :1].expand_as(times)  # (B, L)
        return first, torch.where(
            positions >= lengths.unsqueeze(1), PADDING_GROUP, groups
        )  # (B, L), (B, L)

    def order_groups(self, arrays: Tensors) -> tuple[Tensor, Tensor]:
        """Return the time of the group before each event, in the first its own, and its group, (B, L) both."""
        times = arrays["history_times"]  # (B, L)
        _, groups = self.order_set(arrays)  # (B, L)
        is_earlier = groups.unsqueeze(1) < groups.unsqueeze(
            2
        )  # (B, L, L) event, earlier event
        first = times[:, :1].unsqueeze(2)  # (B, 1, 1)
        return torch.where(is_earlier, times.unsqueeze(1), first).amax(
            dim=2
        ), groups  # (B, L), (B, L)

    def fuse(
        self,
        states: Tensor,
        user_codes: Tensor,
        user_values: Tensor,
        context_codes: Tensor,
        context_values: Tensor,
        recency: Tensor,
    ) -> Tensor:
        """Join states (B, D) with demographics, request context and the seconds (B,) since the last event: (B, D)."""
        sides = (
            (self.demographics, user_codes, user_values),
            (self.context, context_codes, context_values),
        )
        known = [
            embed(codes, values) for embed, codes, values in sides if embed.has_features
        ]  # (B, D) each
        now = self.project_recency(self.time_basis(recency))  # (B, D)
        change: Tensor = self.head(
            torch.cat([states, sum(known, now)], dim=-1)
        )  # (B, D)
        return sum(known, states + change)  # (B, D)

    def finish(self, fused: Tensor) -> Tensor:
        """Make the user's vector from the fused state (B, D): taste and, where items carry it, popularity (B, W)."""
        taste = self.project_state(fused)  # (B, D)
        if self.similarity == "cosine":
            taste = functional.normalize(taste, dim=-1)  # (B, D)
        if self.popularity_gate is None:
            return taste  # type: ignore[no-any-return]  # (B, D)
        return torch.cat([taste, self.popularity_gate(fused)], dim=-1)  # (B, D + P)

    def last_state(
        self, states: Tensor, history_groups: Tensor, history_lengths: Tensor
    ) -> Tensor:
        """Pool the states (B, T, D) of each row's last group; the start token's if it has no event: (B, D)."""
        return (
            self.last_weights(history_groups, history_lengths).unsqueeze(-1) * states
        ).sum(dim=1)  # (B, D)

    def last_weights(self, history_groups: Tensor, history_lengths: Tensor) -> Tensor:
        """Return the weight of each token in the state before the request, (B, T).

        With blocks, the n of the last group by 1 / n. Without, by 1 / n^p with a p that may be learned: a longer
        history may say more than a short one.
        """
        positions = torch.arange(
            history_groups.shape[1], device=history_groups.device
        )  # (L,)
        is_event = positions < history_lengths.unsqueeze(1)  # (B, L)
        last_group = torch.where(is_event, history_groups, 0).amax(
            dim=1, keepdim=True
        )  # (B, 1)
        is_last = is_event & (history_groups == last_group)  # (B, L)
        is_empty = (history_lengths == 0).unsqueeze(1)  # (B, 1)
        weights = torch.cat([is_empty, is_last], dim=1).to(
            self.start_token.dtype
        )  # (B, T)
        return weights / weights.sum(dim=1, keepdim=True).pow(self.pool_power)  # (B, T)

    def pool_events(self, history_vectors: Tensor, arrays: Tensors) -> Tensor:
        """Make the state (B, D) of a tower without blocks, for arguments as of `encode_events`.

        Tokens are linear in their parts: these are summed first and projected once.
        """
        gaps, _ = self.order(arrays)  # (B, L, K)
        weights = self.last_weights(
            arrays["history_groups"], arrays["history_lengths"]
        )  # (B, T)
        of_events = weights[:, 1:].unsqueeze(1)  # (B, 1, L)

        def add_up(values: Tensor) -> Tensor:  # (B, L, any)
            return torch.bmm(of_events, values).squeeze(1)  # (B, any)

        vectors = add_up(history_vectors) * self.vector_scale  # (B, D), (B, 1)
        total = of_events.sum(dim=2)
        state = (
            functional.linear(vectors, self.project_vector.weight)
            + total * self.project_vector.bias
        )  # (B, D)
        state = (
            state
            + add_up(self.event_table(arrays["history_events"]))
            + self.project_gap(add_up(gaps))
        )  # (B, D)
        state = state + self.project_weight(
            add_up(arrays["history_weights"].unsqueeze(-1))
        )  # (B, D)
        state = state + weights[:, :1] * self.start_token  # (B, D)
        return self.input_dropout(state)  # type: ignore[no-any-return]  # (B, D)

    def request_state(self, history_vectors: Tensor, arrays: Tensors) -> Tensor:
        """Encode the histories (B, L, D) of requests and fuse them with their other inputs: (B, D)."""
        times = arrays["history_times"]  # (B, L), (B,)
        lengths = arrays["history_lengths"]
        if not self.blocks.blocks:
            state = self.pool_events(history_vectors, arrays)  # (B, D)
        elif self.is_ordered:  # the last state is a single one
            state = self.blocks.encode_at(
                *self.embed_events(history_vectors, arrays), lengths
            )  # (B, D)
        else:
            states = self.encode_events(history_vectors, arrays)  # (B, T, D)
            state = self.last_state(states, arrays["history_groups"], lengths)  # (B, D)
        last = torch.gather(times, 1, (lengths - 1).clamp(min=0).unsqueeze(1)).squeeze(
            1
        )  # (B,)
        recency = torch.where(lengths > 0, arrays["request_times"] - last, 0)  # (B,)
        user = (arrays["user_codes"], arrays["user_values"])
        context = (arrays["context_codes"], arrays["context_values"])
        return self.fuse(state, *user, *context, recency)  # (B, D)

    def remember(self, fused: Tensor, inputs: MemoryInputs) -> tuple[Tensor, Tensor]:
        """Use the memory: complete user vectors (B, W) and the scores (E,) of owned items beyond the product."""
        if self.memory is None:
            raise ValueError("this user tower was built without memory")
        taste = self.project_state(fused)  # (B, D)
        vectors = self.memory.complete_vector(taste, inputs)  # (B, W)
        if self.similarity == "cosine":
            taste = vectors[:, : self.dim]
            rest = vectors[:, self.dim :]
            vectors = torch.cat(
                [functional.normalize(taste, dim=-1), rest], dim=1
            )  # (B, W)
        return vectors, self.memory.score_owned(fused, vectors, inputs)  # (B, W), (E,)
