"""Embed encoded features: a table row per code, a linear map for numbers and vectors, all summed."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from serve.encode import code_slices, value_slices
from serve.schema import PADDING, UNKNOWN, Feature


class FeatureEmbedding(nn.Module):
    """Embed the encoded features of users, items or requests.

    The codes of a multi-valued feature, such as the n-grams of a text, are averaged; features are summed. Unknown codes
    start at zero. Padding has no share in any mean.
    """

    code_offsets: Tensor
    feature_of_column: Tensor
    missing_columns: Tensor

    def __init__(self, features: tuple[Feature, ...], dim: int) -> None:
        super().__init__()
        slices = code_slices(features)
        offsets = 0
        column_offsets = []
        columns = []
        for position, (feature, span) in enumerate(slices):
            column_offsets += [offsets] * (span.stop - span.start)
            columns += [position] * (span.stop - span.start)
            offsets += feature.n_codes
        self.dim = dim
        self.has_features = len(features) > 0
        self.has_single_codes = len(columns) == len(slices)
        self.table = nn.Embedding(max(offsets, 1), dim)
        stops = [span.stop for _, span in value_slices(features)]
        self.number_table = nn.Parameter(
            torch.empty(max(stops, default=0), dim)
        )  # (V, D)
        self.register_buffer(
            "missing_columns",
            torch.tensor(stops, dtype=torch.int64) - 1,
            persistent=False,
        )
        self.register_buffer(
            "code_offsets",
            torch.tensor(column_offsets, dtype=torch.int64),
            persistent=False,
        )
        membership = torch.zeros(len(columns), max(len(slices), 1))
        membership[torch.arange(len(columns)), columns] = 1.0
        self.register_buffer(
            "feature_of_column", membership, persistent=False
        )  # (C, features)
        self._catalogue: tuple[Tensor, Tensor, Tensor] | None = None
        self.reset_parameters()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_catalogue": None}  # sparse matrices cannot be copied

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table.weight, std=0.02)
        nn.init.normal_(self.number_table, std=0.02)
        with torch.no_grad():
            for offset in sorted(set(self.code_offsets.tolist())):
                self.table.weight[offset + PADDING] = 0.0
                self.table.weight[offset + UNKNOWN] = 0.0

    def forward(self, codes: Tensor, values: Tensor) -> Tensor:
        """Embed rows of codes (B, C) int64 and values (B, V) float32, (B, D)."""
        if not self.has_features:
            return torch.zeros(
                codes.shape[0],
                self.dim,
                dtype=self.table.weight.dtype,
                device=codes.device,
            )  # (B, D)
        if not len(self.code_offsets):
            return values @ self.number_table  # (B, D)
        return self._add_values(self._sum_codes(codes, values.dtype), values)  # (B, D)

    def embed_catalogue(self, codes: Tensor, values: Tensor) -> Tensor:
        """Embed all items (N, C), (N, V) by a product with a sparse matrix that is made once, (N, D).

        The backward pass of `embedding_bag` would sort all codes anew in each step: twice the time on Frappe.
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
        return (
            summed + values @ self.number_table if len(self.number_table) else summed
        )  # (B, D)

    def _sum_codes(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """Sum table rows of codes (B, C), each by its share of its feature, (B, D).

        ONNX would loop over an `embedding_bag`, so that an exported graph holds the (B, C, D) that it avoids.
        """
        rows = codes + self.code_offsets  # (B, C), (codes, D)
        weight = self.table.weight
        if (
            torch.compiler.is_exporting() and self.has_single_codes
        ):  # a code has all, or is padding, of zeros
            return functional.embedding(rows, weight).sum(dim=1)  # (B, D)
        share = self._share(codes, dtype)  # (B, C)
        if torch.compiler.is_exporting():
            return (functional.embedding(rows, weight) * share.unsqueeze(-1)).sum(
                dim=1
            )  # (B, D)
        return functional.embedding_bag(
            rows, weight, mode="sum", per_sample_weights=share
        )  # (B, D)

    def _share(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the weight of each code (B, C) in the mean of its feature, (B, C)."""
        present = (codes != PADDING).to(dtype)  # (B, C)
        per_feature = present @ self.feature_of_column  # (B, features)
        return present / (per_feature @ self.feature_of_column.T).clamp(
            min=1.0
        )  # (B, C)

    def _share_matrices(
        self, codes: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return the shares of all table rows in all items as sparse matrices, (N, codes) and (codes, N)."""
        is_code = codes != PADDING  # (N, C)
        index = torch.stack(
            [is_code.nonzero()[:, 0], (codes + self.code_offsets)[is_code]]
        )  # (2, K)
        share = self._share(codes, dtype)[is_code]  # (K,)
        size = (len(codes), self.table.num_embeddings)
        shares = torch.sparse_coo_tensor(
            index, share, size, check_invariants=False
        ).coalesce()
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*Sparse CSR tensor support is in beta.*"
            )
            return shares.to_sparse_csr(), shares.t().coalesce().to_sparse_csr()


class _SparseProduct(torch.autograd.Function):
    """Multiply a sparse matrix by a dense one, with the transpose at hand for the gradient."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, matrix: Tensor, transposed: Tensor) -> Tensor:
        ctx.transposed = transposed
        with torch.autocast(
            table.device.type, enabled=False
        ):  # there is no such product of halves
            return matrix @ table  # (N, D)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.transposed @ grads[0], None, None  # (codes, D)
