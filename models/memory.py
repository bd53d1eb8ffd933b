"""What repeated consumption needs: a long-term profile, category affinity, popularity, a score per owned item.

A rank-D dot product expresses "buys her own things again" badly, so the score has a second, sparse part m_u(i) that
is non-zero for owned items only: score(u, i) = u . v_i + m_u(i).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.sums_by_user import sum_by_user

N_STATE_FEATURES = 8
HIDDEN = 32  # width of the item score's layers
FIRST_TASTE, FIRST_AFFINITY, FIRST_POPULARITY = 0.2, 0.2, 0.3
PRODUCT_SCALE = 0.1
PRIOR_EVENTS = 20.0  # weight of the overall share in a user's share of a category


@dataclass(frozen=True)
class MemoryInputs:
    """The named arrays of `serve.tower_inputs` that only a tower with memory reads."""

    owned_vectors: Tensor
    """(E, W) vectors of the owned items."""
    owned_users: Tensor
    """(E,) request of each owned item."""
    owned_statistics: Tensor
    """(E, S)."""
    owned_preferences: Tensor
    """(E,)."""
    user_statistics: Tensor
    """(B, G)."""
    category_preferences: Tensor
    """(B, Q)."""


class Standardise(nn.Module):
    """Shift and scale columns by statistics fixed at construction, limited to +-5."""

    mean: Tensor
    scale: Tensor

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        scale = rows.std(dim=0, correction=0)
        self.register_buffer("mean", rows.mean(dim=0))
        self.register_buffer("scale", torch.where(scale > 1e-6, scale, torch.ones_like(scale)))

    def forward(self, rows: Tensor) -> Tensor:
        return ((rows - self.mean) / self.scale).clamp(-5.0, 5.0)  # the shape of `rows`


class Memory(nn.Module):
    """Complete a user's vector and score her owned items.

    Starts as decayed personal frequency beside the taste of the profile; training moves it from there.
    """

    category_shares: Tensor
    first_gates: Tensor

    def __init__(
        self,
        dim: int,
        affinity_dim: int,
        popularity_dim: int,
        n_decays: int,
        statistics: Tensor,
        user_statistics: Tensor,
        category_shares: Tensor,
        unit: float,
    ) -> None:
        """Build it from samples of its inputs.

        Args:
            dim: D, the taste part of the vectors.
            affinity_dim: A.
            popularity_dim: P.
            n_decays: the first columns of the statistics, which hold log decayed counts.
            statistics: (any, S) rows to standardise by.
            user_statistics: (any, G) rows to standardise by.
            category_shares: (Q,) each category's share of all preference, per feature.
            unit: the score that one unit of logits is: 1 for `dot`, the first temperature for `cosine`.
        """
        super().__init__()
        self.dim, self.affinity_dim, self.popularity_dim = dim, affinity_dim, popularity_dim
        self.n_decays, self.unit = n_decays, unit
        self.standardise = Standardise(statistics)
        self.standardise_user = Standardise(user_statistics)
        n_statistics, n_user = statistics.shape[1], user_statistics.shape[1]
        self.register_buffer("category_shares", category_shares.clamp(min=1e-6))
        first_gates = torch.tensor([FIRST_TASTE * dim**0.5, FIRST_AFFINITY] + [FIRST_POPULARITY] * popularity_dim)
        self.register_buffer("first_gates", first_gates * unit)
        self.affinity_table = nn.Parameter(torch.empty(len(category_shares), affinity_dim))  # (Q, A)
        self.profile_weight = nn.Linear(n_statistics, 1)
        self.gates = nn.Linear(n_user, 2 + popularity_dim)
        self.project_state = nn.Linear(dim, N_STATE_FEATURES)
        self.item_score = nn.Sequential(
            nn.Linear(n_statistics + n_user + N_STATE_FEATURES + 1, HIDDEN),
            nn.GELU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.GELU(),
            nn.Linear(HIDDEN, 1),
        )
        self.skip = nn.Linear(n_decays, 1)
        self.product_share = nn.Parameter(torch.tensor(1.0))  # of u . v_i that the memory takes back
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.affinity_table, std=0.02)
        for layer in (self.profile_weight, self.gates):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            for module in self.item_score:
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)
            last = self.item_score[-1]
            nn.init.zeros_(last.weight)  # type: ignore[arg-type]
            nn.init.constant_(self.skip.weight, 0.5)
            nn.init.constant_(self.skip.bias, 4.0)  # owned items begin above most others
            self.product_share.fill_(1.0)

    def split(self, inputs: MemoryInputs) -> tuple[Tensor, MemoryInputs]:
        """Take the correlation parts (E, R) out of the owned items' vectors: what is learned does not know them."""
        vectors = inputs.owned_vectors  # (E, W)
        stop = vectors.shape[1] - self.affinity_dim - self.popularity_dim
        learned = torch.cat([vectors[:, : self.dim], vectors[:, stop:]], dim=1)  # (E, D + A + P)
        return vectors[:, self.dim : stop], replace(inputs, owned_vectors=learned)  # (E, R)

    def profile(self, inputs: MemoryInputs, n_users: int) -> Tensor:
        """Sum the taste vectors of each user's owned items by learned weights, to unit length, (B, D)."""
        correction = self.profile_weight(self.standardise(inputs.owned_statistics)).squeeze(-1)  # (E,)
        weights = inputs.owned_preferences * torch.exp(correction.clamp(-3.0, 3.0))  # (E,)
        vectors = inputs.owned_vectors[:, : self.dim] * weights.unsqueeze(-1)  # (E, D)
        summed = sum_by_user(vectors, inputs.owned_users, n_users)  # (B, D)
        return functional.normalize(summed, dim=-1, eps=1e-6)  # (B, D)

    def category_lift(self, preferences: Tensor) -> Tensor:
        """Compare each user's preference for a category with the overall share of it, (B, Q).

        log(1 + preference / (prior x share)) is the log ratio of the user's smoothed share to the overall one, less
        its value for an untouched category; that is the same for all categories of a user, so ranks do not change.
        """
        return torch.log1p(preferences / (PRIOR_EVENTS * self.category_shares))  # (B, Q)

    def complete_vector(self, taste: Tensor, inputs: MemoryInputs) -> Tensor:
        """Add the profile to the taste (B, D) of recent events, and the affinity and popularity parts: (B, W)."""
        change = self.gates(self.standardise_user(inputs.user_statistics))  # (B, 2 + P)
        gates = self.first_gates * torch.exp(change.clamp(-4.0, 4.0))  # (B, 2 + P)
        taste = taste + gates[:, :1] * self.profile(inputs, taste.shape[0])  # (B, D)
        affinity = gates[:, 1:2] * (self.category_lift(inputs.category_preferences) @ self.affinity_table)  # (B, A)
        return torch.cat([taste, affinity, gates[:, 2:]], dim=1)  # (B, W)

    def score_owned(self, state: Tensor, vectors: Tensor, inputs: MemoryInputs) -> Tensor:
        """Score every owned item beyond u . v_i.

        Args:
            state: (B, D) fused states.
            vectors: (B, W) complete user vectors.
            inputs: the memory's arrays.

        Returns:
            (E,) m_u(i).
        """
        statistics = self.standardise(inputs.owned_statistics)  # (E, S)
        of_user = torch.cat([self.standardise_user(inputs.user_statistics), self.project_state(state)], dim=1)
        product = (vectors[inputs.owned_users] * inputs.owned_vectors).sum(dim=1, keepdim=True)  # (E, 1)
        product = product / self.unit  # (E, 1) in units of logits
        columns = [statistics, of_user[inputs.owned_users], PRODUCT_SCALE * product]
        learned = self.item_score(torch.cat(columns, dim=1))  # (E, 1)
        frequency = functional.softplus(learned + self.skip(statistics[:, : self.n_decays]))  # (E, 1)
        return self.unit * (frequency - self.product_share * product).squeeze(-1)  # (E,)


def memory_inputs(arrays: dict[str, Tensor], owned_vectors: Tensor) -> MemoryInputs:
    """Pick the memory's arrays by name."""
    return MemoryInputs(
        owned_vectors,
        arrays["owned_users"],
        arrays["owned_statistics"],
        arrays["owned_preferences"],
        arrays["user_statistics"],
        arrays["category_preferences"],
    )
