"""Map a history of item vectors, demographics and the request to the user's vector.

There is no table of users or items: what the tower reads of an item is its vector.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize, pad
from torch.nn.init import eye_, normal_, ones_, zeros_

from datamodules.batch import Tensors
from models.attention import Dropout, EventBlocks, LogTimeBasis
from models.config import Recipe
from models.features import FeatureEmbedding
from models.memory import Memory
from serve.clock import SEASONS
from serve.kinds import FIRST_CODE
from serve.schema import Schema

N_RECENCY_FUNCTIONS = 12
PADDING_GROUP = 1 << 40  # above every group: no token sees padding


class UserTower(nn.Module):
    """Encode events, take the state before the request, fuse it with demographics and context.

    Where vectors hold popularity, the user's vector says how much it counts for them. `memory` adds
    what repeated consumption needs: a long-term profile, affinities, popularity and a score per
    owned item.

    Arrays of a request or window, as `serve.encode` names them: history_times, history_events,
    history_weights, history_groups (B, L); history_lengths, request_times (B,); user_codes,
    user_values, context_codes, context_values (B, C or V).
    """

    def __init__(self, schema: Schema, recipe: Recipe, memory: Memory | None) -> None:
        super().__init__()
        dim = recipe.dim
        dropout = recipe.dropout
        popularity_dim = len(schema.popularity_days)
        has_blocks = recipe.n_blocks > 0

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
        self.has_season = any(
            part.traits.period in SEASONS for part in schema.context_features
        )
        self.project_recency = nn.Linear(N_RECENCY_FUNCTIONS, dim, bias=False)

        mix = nn.Linear(2 * dim, 2 * dim)
        narrow = nn.Linear(2 * dim, dim)
        self.head = nn.Sequential(mix, nn.GELU(), Dropout(dropout), narrow)

        self.project_state = nn.Linear(dim, dim)
        power = torch.tensor(1.0 if has_blocks else 0.5)
        self.pool_power = nn.Parameter(power, requires_grad=not has_blocks)
        self.popularity_gate = None

        if popularity_dim and memory is None:
            self.popularity_gate = nn.Linear(dim, popularity_dim)
        self.memory = memory
        # What scores are multiplied by. `models.refine` lets it fall where other terms rank alone.
        self.output_scale = 1.0
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                normal_(module.weight, std=0.02)
                if module.bias is not None:
                    zeros_(module.bias)

        normal_(self.start_token, std=0.02)
        normal_(self.event_table.weight, std=0.02)

        # A history starts near its items, in the space that it is searched in.
        eye_(self.project_state.weight)
        eye_(self.project_vector.weight)

        if self.popularity_gate is not None:
            zeros_(self.popularity_gate.weight)
            ones_(self.popularity_gate.bias)

        if self.memory is not None:
            self.memory.reset_parameters()
            # With a memory the start is the long-term profile alone.
            zeros_(self.project_state.weight)

    def encode_events(self, history_vectors: Tensor, arrays: Tensors) -> Tensor:
        """Encode the start token and every event from the events at or before it.

        Args:
            history_vectors: (B, L, D) taste parts of the item vectors.
            arrays: see the class.

        Returns:
            (B, T, D) states; state 0 is the start token's.
        """
        return self.blocks(*self.embed_events(history_vectors, arrays))  # type: ignore[no-any-return]  # (B, T, D)

    def embed_events(
        self, history_vectors: Tensor, arrays: Tensors
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tokens (B, T, D), times (B, T) and groups (1 or B, T) that the blocks read."""
        gaps, groups = self.order(arrays)  # (B, L, K), (1 or B, L)
        events = self.project_vector(history_vectors * self.vector_scale)  # (B, L, D)
        events = events + self.event_table(arrays["history_events"])  # (B, L, D)
        events = events + self.project_gap(gaps)  # (B, L, D)
        events = events + self.project_weight(
            arrays["history_weights"].unsqueeze(-1)
        )  # (B, L, D)
        start = self.start_token.expand(events.shape[0], 1, -1)  # (B, 1, D)
        tokens = self.input_dropout(torch.cat([start, events], dim=1))  # (B, T, D)
        times = pad(arrays["history_times"], (1, 0))  # (B, T)

        groups = pad(groups, (1, 0))  # (1 or B, T)
        return tokens, times, groups

    def order(self, arrays: Tensors) -> tuple[Tensor, Tensor]:
        """Return the gap before each event, (B, L, K), and its group, (1 or B, L).

        The gap is to the event before, or to the group before; the first events have none.
        """
        times = arrays["history_times"]  # (B, L)
        if self.is_ordered:
            positions = torch.arange(1, times.shape[1] + 1, device=times.device)  # (L,)
            before = torch.cat([times[:, :1], times[:, :-1]], dim=1)  # (B, L)
            groups = positions.unsqueeze(0)  # (1, L)
        else:
            positions = torch.arange(times.shape[1], device=times.device)  # (L,)
            before = times[:, :1].expand_as(times)  # (B, L)
            is_padding = positions >= arrays["history_lengths"].unsqueeze(1)  # (B, L)
            groups = arrays["history_groups"]  # (B, L)
            groups = torch.where(is_padding, PADDING_GROUP, groups)  # (B, L)

            if not self.is_set:  # whose pairs would be too many
                is_earlier = groups.unsqueeze(1) < groups.unsqueeze(2)  # (B, L, L)
                first = times[:, :1].unsqueeze(2)  # (B, 1, 1)
                earlier = torch.where(is_earlier, times.unsqueeze(1), first)
                before = earlier.amax(dim=2)  # (B, L)

        return self.time_basis(times - before), groups

    def fuse(
        self,
        states: Tensor,
        user_codes: Tensor,
        user_values: Tensor,
        context_codes: Tensor,
        context_values: Tensor,
        recency: Tensor,
    ) -> Tensor:
        """Join states with demographics, request context and recency.

        Args:
            states: (B, D).
            user_codes: (B, C) encoded demographics.
            user_values: (B, V) encoded demographics.
            context_codes: (B, C) encoded context.
            context_values: (B, V) encoded context.
            recency: (B,) seconds since the last event.

        Returns:
            (B, D) fused states.
        """
        sides = []  # (B, D) each
        if self.demographics.has_features:
            sides.append(self.demographics(user_codes, user_values))
        if self.context.has_features:
            sides.append(self.context(context_codes, context_values))
        now = self.project_recency(self.time_basis(recency))  # (B, D)
        joined = torch.cat([states, sum(sides, now)], dim=-1)  # (B, 2 D)
        change: Tensor = self.head(joined)  # (B, D)

        return sum(sides, states + change)  # (B, D)

    def finish(self, fused: Tensor) -> Tensor:
        """Make the user's vector (B, W) from the fused state (B, D): taste, popularity if any."""
        taste: Tensor = self.project_state(fused)  # (B, D)
        if self.similarity == "cosine":
            taste = normalize(taste, dim=-1)  # (B, D)
        if self.popularity_gate is not None:
            taste = torch.cat([taste, self.popularity_gate(fused)], dim=-1)  # (B, W)
        return taste * self.output_scale  # (B, W)

    def last_weights(self, history_groups: Tensor, history_lengths: Tensor) -> Tensor:
        """Return the weight of each token in the state before the request, (B, T).

        With blocks, the n tokens of the last group weigh 1 / n. Without, they weigh 1 / n^p, where
        p is learned: a longer history may say more than a short one.
        """
        positions = torch.arange(
            history_groups.shape[1], device=history_groups.device
        )  # (L,)
        is_event = positions < history_lengths.unsqueeze(1)  # (B, L)
        groups = torch.where(is_event, history_groups, 0)  # (B, L)
        last_group = groups.amax(dim=1, keepdim=True)  # (B, 1)
        is_last = is_event & (history_groups == last_group)  # (B, L)
        is_empty = (history_lengths == 0).unsqueeze(1)  # (B, 1)
        is_used = torch.cat([is_empty, is_last], dim=1)  # (B, T)
        weights = is_used.to(self.start_token.dtype)  # (B, T)

        return weights / weights.sum(dim=1, keepdim=True).pow(self.pool_power)  # (B, T)

    def pool_events(self, history_vectors: Tensor, arrays: Tensors) -> Tensor:
        """Make the state (B, D) of a tower without blocks, for arguments as of `encode_events`.

        Tokens are linear in their parts: these are summed first and projected once.
        """
        gaps, _ = self.order(arrays)  # (B, L, K)
        groups = arrays["history_groups"]  # (B, L)
        weights = self.last_weights(groups, arrays["history_lengths"])  # (B, T)
        of_events = weights[:, 1:].unsqueeze(1)  # (B, 1, L)

        def add_up(values: Tensor) -> Tensor:  # (B, L, any)
            return torch.bmm(of_events, values).squeeze(1)  # (B, any)

        vectors = add_up(history_vectors) * self.vector_scale  # (B, D)

        total = of_events.sum(dim=2)  # (B, 1)
        project = self.project_vector
        state = linear(vectors, project.weight)  # (B, D)
        state = state + total * project.bias  # (B, D)
        state = state + add_up(self.event_table(arrays["history_events"]))  # (B, D)
        state = state + self.project_gap(add_up(gaps))  # (B, D)
        event_weights = arrays["history_weights"].unsqueeze(-1)  # (B, L, 1)
        state = state + self.project_weight(add_up(event_weights))  # (B, D)
        state = state + weights[:, :1] * self.start_token  # (B, D)

        return self.input_dropout(state)  # type: ignore[no-any-return]  # (B, D)

    def request_state(self, history_vectors: Tensor, arrays: Tensors) -> Tensor:
        """Encode the histories of requests and fuse them with their other inputs.

        Args:
            history_vectors: (B, L, D) taste parts of the item vectors.
            arrays: see the class.

        Returns:
            (B, D) fused states.
        """
        lengths = arrays["history_lengths"]  # (B,)
        if not self.blocks.blocks:
            state = self.pool_events(history_vectors, arrays)  # (B, D)
        elif self.is_ordered:  # the last state is a single one
            state = self.blocks.encode_at(
                *self.embed_events(history_vectors, arrays), lengths
            )  # (B, D)
        else:
            states = self.encode_events(history_vectors, arrays)  # (B, T, D)
            weights = self.last_weights(arrays["history_groups"], lengths)  # (B, T)
            state = (weights.unsqueeze(-1) * states).sum(dim=1)  # (B, D)

        last = (lengths - 1).clamp(min=0).unsqueeze(1)  # (B, 1)
        last_times = arrays["history_times"].gather(1, last).squeeze(1)  # (B,)
        has_events = lengths > 0  # (B,)
        seconds = arrays["request_times"] - last_times  # (B,)

        return self.fuse(
            state,
            arrays["user_codes"],
            arrays["user_values"],
            arrays["context_codes"],
            arrays["context_values"],
            torch.where(has_events, seconds, 0),
        )  # (B, D)

    def remember(self, fused: Tensor, arrays: Tensors) -> tuple[Tensor, Tensor]:
        """Use the memory, which the tower must have.

        Args:
            fused: (B, D) fused states.
            arrays: see `Memory`, of E owned items.

        Returns:
            (B, W) complete user vectors and (E,) scores of owned items beyond the product.
        """
        if self.memory is None:
            raise ValueError("this user tower was built without memory")

        taste = self.project_state(fused)  # (B, D)
        vectors = self.memory.complete_vector(taste, arrays)  # (B, W)

        if self.similarity == "cosine":
            taste = vectors[:, : self.dim]  # (B, D)
            rest = vectors[:, self.dim :]  # (B, A + P)
            taste = normalize(taste, dim=-1)  # (B, D)
            vectors = torch.cat([taste, rest], dim=1)  # (B, W)

        memory = self.memory.score_owned(fused, vectors, arrays)  # (E,)
        vectors = vectors * self.output_scale  # (B, W)
        return vectors, memory * self.output_scale  # (B, W), (E,)
