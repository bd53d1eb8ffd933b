"""The memory m_u(i) of owned items, and the long-term parts of a user's vector.

A product of rank D expresses "buys the same things again" badly. So the score has a sparse part
that is non-zero for owned items only: score(u, i) = u . v_i + m_u(i). Beside it the memory
completes u by a profile of all owned items, by affinities to categories and by the weight of
popularity.

Letters: B users, E owned items of all of them, D + A + P = W entries of a vector, S statistics of
an owned item, G of a user, Q categories, U users of the training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus
from torch.nn.init import constant_, normal_, xavier_uniform_, zeros_

from datamodules.batch import Tensors
from models.config import Recipe
from serve.encode import category_features
from serve.schema import Schema

N_STATE_FEATURES = 8
HIDDEN = 32  # width of the item score's layers
FIRST_TASTE = 0.2
FIRST_AFFINITY = 0.2
FIRST_POPULARITY = 0.3
PRODUCT_SCALE = 0.1
PRIOR_EVENTS = 20.0  # weight of the overall share in a user's share of a category


@dataclass(frozen=True)
class MemorySample:
    """Inputs of training users, by which the memory is standardised."""

    statistics: Tensor  # (any, S) of owned items
    user_statistics: Tensor  # (U, G)
    category_preferences: Tensor  # (U, Q)


class Standardise(nn.Module):
    """Shift and scale columns by statistics fixed at construction, limited to +-5."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        scale = rows.std(dim=0, correction=0)  # (S,)
        self.mean = nn.Buffer(rows.mean(dim=0))
        self.scale = nn.Buffer(torch.where(scale > 1e-6, scale, 1.0))

    def forward(self, rows: Tensor) -> Tensor:
        return ((rows - self.mean) / self.scale).clamp(-5.0, 5.0)  # the shape of `rows`


class Memory(nn.Module):
    """Complete a user's vector and score the items that they own.

    Before training this is decayed personal frequency beside the taste of the profile.

    Arrays, as `serve.events` names them: owned_vectors (E, W), owned_users, owned_preferences (E,),
    owned_statistics (E, S), user_statistics (B, G), category_preferences (B, Q).
    """

    def __init__(
        self, schema: Schema, recipe: Recipe, affinity_dim: int, sample: MemorySample
    ) -> None:
        super().__init__()
        self.dim = recipe.dim
        self.affinity_dim = affinity_dim
        self.n_decays = len(schema.decay_days)
        self.unit = recipe.logit_unit
        self.standardise = Standardise(sample.statistics)
        self.standardise_user = Standardise(sample.user_statistics)

        n_statistics = sample.statistics.shape[1]
        n_user = sample.user_statistics.shape[1]
        n_features = len(category_features(schema.item_features))

        sums = sample.category_preferences.sum(dim=0)  # (Q,)
        shares = sums * n_features / sums.sum().clamp(min=1e-12)  # (Q,)
        self.category_shares = nn.Buffer(shares.clamp(min=1e-6))

        popularity_dim = len(schema.popularity_days)
        first_gates = [FIRST_TASTE * self.dim**0.5, FIRST_AFFINITY]
        first_gates += [FIRST_POPULARITY] * popularity_dim
        self.first_gates = nn.Buffer(torch.tensor(first_gates) * self.unit)  # (2 + P,)

        self.affinity_table = nn.Parameter(torch.empty(len(sums), affinity_dim))
        self.profile_weight = nn.Linear(n_statistics, 1)
        self.gates = nn.Linear(n_user, 2 + popularity_dim)
        self.project_state = nn.Linear(self.dim, N_STATE_FEATURES)

        widen = nn.Linear(n_statistics + n_user + N_STATE_FEATURES + 1, HIDDEN)
        mix = nn.Linear(HIDDEN, HIDDEN)
        narrow = nn.Linear(HIDDEN, 1)
        self.item_score = nn.Sequential(widen, nn.GELU(), mix, nn.GELU(), narrow)
        self.skip = nn.Linear(self.n_decays, 1)

        # Share of u . v_i that the memory takes back.
        self.product_share = nn.Parameter(torch.tensor(1.0))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        normal_(self.affinity_table, std=0.02)
        for layer in (self.profile_weight, self.gates):
            zeros_(layer.weight)
            zeros_(layer.bias)

        with torch.no_grad():
            for module in self.item_score:
                if isinstance(module, nn.Linear):
                    xavier_uniform_(module.weight)
                    zeros_(module.bias)

            zeros_(self.item_score[-1].weight)  # type: ignore[arg-type]
            constant_(self.skip.weight, 0.5)
            # Owned items begin above most others.
            constant_(self.skip.bias, 4.0)
            self.product_share.fill_(1.0)

    def profile(self, arrays: Tensors, n_users: int) -> Tensor:
        """Sum the taste vectors of each user's owned items by learned weights.

        Returns:
            (B, D) unit vectors; 0 of users without owned items.
        """
        statistics = self.standardise(arrays["owned_statistics"])  # (E, S)
        correction = self.profile_weight(statistics).squeeze(-1)  # (E,)
        factors = torch.exp(correction.clamp(-3.0, 3.0))  # (E,)
        weights = arrays["owned_preferences"] * factors  # (E,)
        vectors = arrays["owned_vectors"][:, : self.dim] * weights.unsqueeze(
            -1
        )  # (E, D)
        summed = sum_by_user(vectors, arrays["owned_users"], n_users)  # (B, D)

        return normalize(summed, dim=-1, eps=1e-6)  # (B, D)

    def category_lift(self, preferences: Tensor) -> Tensor:
        """Compare each user's preference for a category with the overall share of it, (B, Q).

        log(1 + preference / (prior x share)) is the log ratio of the user's smoothed share to the
        overall one, less its value for an untouched category. That value is the same for all
        categories of a user, so that ranks do not change.
        """
        return torch.log1p(
            preferences / (PRIOR_EVENTS * self.category_shares)
        )  # (B, Q)

    def complete_vector(self, taste: Tensor, arrays: Tensors) -> Tensor:
        """Complete a user's vector.

        Args:
            taste: (B, D) taste of recent events.
            arrays: see the class.

        Returns:
            (B, W) vectors: taste with the profile added, affinity, and the weight of popularity.
        """
        change = self.gates(
            self.standardise_user(arrays["user_statistics"])
        )  # (B, 2 + P)
        gates = self.first_gates * torch.exp(change.clamp(-4.0, 4.0))  # (B, 2 + P)
        taste = taste + gates[:, :1] * self.profile(arrays, taste.shape[0])  # (B, D)
        gate = gates[:, 1:2]  # (B, 1)
        lift = self.category_lift(arrays["category_preferences"])  # (B, Q)
        affinity = gate * (lift @ self.affinity_table)  # (B, A)

        return torch.cat([taste, affinity, gates[:, 2:]], dim=1)  # (B, W)

    def score_owned(self, state: Tensor, vectors: Tensor, arrays: Tensors) -> Tensor:
        """Score owned items beyond u . v_i.

        Args:
            state: (B, D) fused states.
            vectors: (B, W) complete user vectors.
            arrays: see the class.

        Returns:
            (E,) m_u(i).
        """
        statistics = self.standardise(arrays["owned_statistics"])  # (E, S)
        of_user = torch.cat(
            [
                self.standardise_user(arrays["user_statistics"]),
                self.project_state(state),
            ],
            dim=1,
        )  # (B, G + state features)
        products = vectors[arrays["owned_users"]] * arrays["owned_vectors"]  # (E, W)
        product = products.sum(dim=1, keepdim=True)  # (E, 1)
        product = product / self.unit  # (E, 1) in units of logits
        columns = [statistics, of_user[arrays["owned_users"]], PRODUCT_SCALE * product]
        learned = self.item_score(torch.cat(columns, dim=1))  # (E, 1)
        decayed = self.skip(statistics[:, : self.n_decays])  # (E, 1)
        frequency = softplus(learned + decayed)  # (E, 1)
        scores = frequency - self.product_share * product  # (E, 1)

        return self.unit * scores.squeeze(-1)  # (E,)


def sum_by_user(values: Tensor, users: Tensor, n_users: int) -> Tensor:
    """Sum values (E, any) of the users (E,), (n_users, any).

    An exported graph multiplies by an indicator matrix: ONNX Runtime's ScatterAdd takes 25 times as
    long, and index_add loses rows where a session has several threads.
    """
    if torch.onnx.is_in_onnx_export():
        rows = torch.arange(n_users, device=users.device).unsqueeze(1)  # (B, 1)
        return (rows == users).to(values.dtype) @ values  # (B, any)

    return values.new_zeros(n_users, values.shape[1]).index_add(
        0, users, values
    )  # (B, any)
