"""Embed encoded features: a table row per code, a linear map for numbers, all summed."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding, embedding_bag
from torch.nn.init import normal_

from serve.encode import code_slices, value_slices
from serve.kinds import PADDING, UNKNOWN, Feature


class FeatureEmbedding(nn.Module):
    """Embed the encoded features of users, items or requests.

    The codes of a multi-valued feature, such as the n-grams of a text, are averaged; features are
    summed. Unknown codes start at zero. Padding has no share in any mean.

    Args:
        features: the features, in the order of the encoded columns.
        dim: D.
    """

    def __init__(self, features: tuple[Feature, ...], dim: int) -> None:
        super().__init__()
        slices = code_slices(features)
        n_codes = 0
        offsets = []  # first table row of the feature of each column, (C,)
        columns = []  # feature of each column, (C,)

        for position, (feature, span) in enumerate(slices):
            width = span.stop - span.start
            offsets += [n_codes] * width
            columns += [position] * width
            n_codes += feature.n_codes

        stops = [span.stop for _, span in value_slices(features)]
        n_columns = len(columns)
        self.dim = dim
        self.has_features = len(features) > 0
        self.has_single_codes = n_columns == len(slices)
        self.table = nn.Embedding(max(n_codes, 1), dim)
        self.number_table = nn.Parameter(torch.empty(max(stops, default=0), dim))

        code_offsets = torch.tensor(offsets, dtype=torch.int64)  # (C,)
        missing_columns = torch.tensor(stops, dtype=torch.int64) - 1
        feature_of_column = torch.zeros(n_columns, max(len(slices), 1))  # (C, features)
        feature_of_column[torch.arange(n_columns), columns] = 1.0

        self.missing_columns = nn.Buffer(missing_columns, persistent=False)
        self.code_offsets = nn.Buffer(code_offsets, persistent=False)
        self.feature_of_column = nn.Buffer(feature_of_column, persistent=False)
        self._catalogue: tuple[Tensor, Tensor, Tensor] | None = None
        self.reset_parameters()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_catalogue": None}  # sparse matrices cannot be copied

    def reset_parameters(self) -> None:
        normal_(self.table.weight, std=0.02)
        normal_(self.number_table, std=0.02)
        with torch.no_grad():
            for offset in sorted(set(self.code_offsets.tolist())):
                self.table.weight[offset + PADDING] = 0.0
                self.table.weight[offset + UNKNOWN] = 0.0

    def forward(self, codes: Tensor, values: Tensor) -> Tensor:
        """Embed rows of encoded features.

        Args:
            codes: (B, C) int64.
            values: (B, V) float32.

        Returns:
            (B, D) embedded rows.
        """
        if not self.has_features:
            return self.table.weight.new_zeros(codes.shape[0], self.dim)  # (B, D)
        if not len(self.code_offsets):
            return values @ self.number_table  # (B, D)
        return self._add_values(self._sum_codes(codes, values.dtype), values)  # (B, D)

    def embed_catalogue(self, codes: Tensor, values: Tensor) -> Tensor:
        """Embed all items (N, C), (N, V) by a product with a sparse matrix, which is made once.

        The backward pass of `embedding_bag` would sort all codes anew in each step: twice the time
        on Frappe.

        Returns:
            (N, D) embedded items.
        """
        if not len(self.code_offsets):
            return self(codes, values)  # type: ignore[no-any-return]  # (N, D)
        if self._catalogue is None or self._catalogue[0] is not codes:
            self._catalogue = (codes, *self._share_matrices(codes, values.dtype))
        summed = _SparseProduct.apply(self.table.weight, *self._catalogue[1:])  # type: ignore[no-untyped-call]
        return self._add_values(summed, values)  # (N, D)

    def has_content(self, codes: Tensor, values: Tensor) -> Tensor:
        """Return which rows have any known feature value, (B,) bool."""
        missing = values[:, self.missing_columns]  # (B, numeric and vector features)
        return (codes > UNKNOWN).any(dim=1) | (missing == 0).any(dim=1)  # (B,)

    def _add_values(self, summed: Tensor, values: Tensor) -> Tensor:
        if not len(self.number_table):
            return summed  # (B, D)
        return summed + values @ self.number_table  # (B, D)

    def _sum_codes(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """Sum table rows of codes (B, C), each by its share of its feature, (B, D).

        ONNX would loop over an `embedding_bag`: an exported graph holds the (B, C, D) that it
        avoids.
        """
        rows = codes + self.code_offsets  # (B, C)
        weight = self.table.weight  # (codes, D)
        is_exporting = torch.onnx.is_in_onnx_export()

        # A single code has the whole share of its feature, or is padding, whose row is zero.
        if is_exporting and self.has_single_codes:
            return embedding(rows, weight).sum(dim=1)  # (B, D)

        share = self._share(codes, dtype)  # (B, C)

        if is_exporting:
            vectors = embedding(rows, weight)  # (B, C, D)
            return (vectors * share.unsqueeze(-1)).sum(dim=1)  # (B, D)

        return embedding_bag(
            rows, weight, mode="sum", per_sample_weights=share
        )  # (B, D)

    def _share(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the weight of each code (B, C) in the mean of its feature, (B, C)."""
        present = (codes != PADDING).to(dtype)  # (B, C)
        per_feature = present @ self.feature_of_column  # (B, features)
        n_present = per_feature @ self.feature_of_column.T  # (B, C)
        return present / n_present.clamp(min=1.0)  # (B, C)

    def _share_matrices(
        self, codes: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return the shares of table rows in items as sparse (N, codes), and the transpose."""
        is_code = codes != PADDING  # (N, C)
        items = is_code.nonzero()[:, 0]  # (K,)
        rows = (codes + self.code_offsets)[is_code]  # (K,)
        share = self._share(codes, dtype)[is_code]  # (K,)
        shares = torch.sparse_coo_tensor(
            torch.stack([items, rows]),
            share,
            (len(codes), self.table.num_embeddings),
            check_invariants=False,
        ).coalesce()  # (N, codes)
        transposed = shares.t().coalesce()  # (codes, N)

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*Sparse CSR.*is in beta.*")
            return shares.to_sparse_csr(), transposed.to_sparse_csr()


class _SparseProduct(torch.autograd.Function):
    """Multiply a sparse matrix by a dense one, with the transpose at hand for the gradient."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.transposed = transposed

        # There is no such product of halves.
        with torch.autocast(table.device.type, enabled=False):
            return matrix @ table  # (N, D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.transposed @ grads[0], None, None  # (codes, D)
