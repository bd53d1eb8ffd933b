"""Feature columns to one vector: an embedding per code, a linear map for numbers and vectors, summed."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.code_bags import CodeBags
from serve.encode import code_slices, value_slices
from serve.schema import PADDING, UNKNOWN, Feature


class FeatureEmbedding(nn.Module):
    """Embed the encoded features of one side.

    The codes of a multi-valued feature, n-grams of a text among them, are averaged; features are summed. Unknown codes
    of a feature start at zero: they say nothing until trained. Those of padding are zero and stay so: their share is 0.
    """

    code_offsets: Tensor
    feature_of_column: Tensor
    missing_columns: Tensor

    def __init__(self, features: tuple[Feature, ...], dim: int) -> None:
        super().__init__()
        slices = code_slices(features)
        offsets, column_offsets, columns = 0, [], []
        for position, (feature, columns_of_feature) in enumerate(slices):
            width = columns_of_feature.stop - columns_of_feature.start
            column_offsets += [offsets] * width
            columns += [position] * width
            offsets += feature.n_codes
        self.dim = dim
        self.has_features = len(features) > 0
        self.has_single_codes = len(columns) == len(slices)
        self.table = nn.Embedding(max(offsets, 1), dim)
        stops = [columns_of_feature.stop for _, columns_of_feature in value_slices(features)]
        self.number_table = nn.Parameter(torch.empty(max(stops, default=0), dim))  # (V, D)
        self.register_buffer("missing_columns", torch.tensor(stops, dtype=torch.int64) - 1, persistent=False)
        self.register_buffer("code_offsets", torch.tensor(column_offsets, dtype=torch.int64), persistent=False)
        membership = torch.zeros(len(columns), max(len(slices), 1))
        membership[torch.arange(len(columns)), columns] = 1.0
        self.register_buffer("feature_of_column", membership, persistent=False)  # (C, features)
        self._catalogue: tuple[Tensor | None, CodeBags | None] = None, None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table.weight, std=0.02)
        nn.init.normal_(self.number_table, std=0.02)
        with torch.no_grad():
            for offset in sorted(set(self.code_offsets.tolist())):
                self.table.weight[offset + PADDING] = 0.0
                self.table.weight[offset + UNKNOWN] = 0.0

    def widen(self, dim: int) -> FeatureEmbedding:
        """Copy this with zeros behind its entries, `dim` in all."""
        wide = copy.deepcopy(self)
        table, numbers = (
            functional.pad(weight.detach(), (0, dim - self.dim)) for weight in (self.table.weight, self.number_table)
        )  # (codes, dim), (V, dim)
        wide.dim, wide.number_table = dim, nn.Parameter(numbers)  # (V, dim)
        wide.table = nn.Embedding(len(table), dim, _weight=table)
        return wide

    def forward(self, codes: Tensor, values: Tensor) -> Tensor:
        """Embed rows.

        Args:
            codes: (B, C) int64.
            values: (B, V) float32.

        Returns:
            (B, dim).
        """
        if not self.has_features:
            return torch.zeros(codes.shape[0], self.dim, dtype=self.table.weight.dtype, device=codes.device)  # (B, D)
        if not len(self.code_offsets):
            return values @ self.number_table  # (B, D)
        return self._add_values(self._sum_codes(codes, values.dtype), values)  # (B, D)

    def embed_catalogue(self, codes: Tensor, values: Tensor) -> Tensor:
        """Do as `forward` of all items (N, C), (N, V), which come in every step: their codes are sorted once."""
        if not len(self.code_offsets):
            return self(codes, values)  # type: ignore[no-any-return]  # (N, D)
        return self._add_values(self._find_bags(codes, values.dtype).sum(self.table.weight), values)  # (N, D)

    def _add_values(self, summed: Tensor, values: Tensor) -> Tensor:
        """Add what numbers and vectors (B, V) say to the sum of codes (B, D)."""
        return summed + values @ self.number_table if len(self.number_table) else summed  # (B, D)

    def _sum_codes(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """Sum table rows of codes (B, C), each by its share of its feature, (B, D).

        Without the (B, C, D) in between, which is large for many rows; an exported graph, where this would be a loop,
        has it. Where each feature has one code it has all of the share, or is padding, of zeros.
        """
        rows = codes + self.code_offsets  # (B, C)
        summed: Tensor
        if not torch.compiler.is_exporting():
            share = self._share(codes, dtype)  # (B, C)
            summed = functional.embedding_bag(rows, self.table.weight, mode="sum", per_sample_weights=share)  # (B, D)
        elif self.has_single_codes:
            summed = self.table(rows).sum(dim=1)  # (B, D)
        else:
            summed = (self.table(rows) * self._share(codes, dtype).unsqueeze(-1)).sum(dim=1)  # (B, D)
        return summed

    def _find_bags(self, codes: Tensor, dtype: torch.dtype) -> CodeBags:
        """Return the codes (N, C) without padding, with their shares: made once of a catalogue."""
        known, bags = self._catalogue
        if known is not codes or bags is None:
            is_code = codes != PADDING  # (N, C)
            share = self._share(codes, dtype)[is_code]  # (K,)
            bags = CodeBags((codes + self.code_offsets)[is_code], share, is_code.sum(dim=1))
            self._catalogue = codes, bags
        return bags

    def _share(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """Say by how much each code (B, C) counts in the mean of its feature, (B, C)."""
        present = (codes != PADDING).to(dtype)  # (B, C)
        per_feature = present @ self.feature_of_column  # (B, features)
        return present / (per_feature @ self.feature_of_column.T).clamp(min=1.0)  # (B, C)

    def has_content(self, codes: Tensor, values: Tensor) -> Tensor:
        """Say which rows have any known feature value, (B,) bool."""
        missing = values[:, self.missing_columns]  # (B, numeric and vector features)
        return (codes > UNKNOWN).any(dim=1) | (missing == 0).any(dim=1)  # (B,)
