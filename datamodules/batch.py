"""Training batches: their tensors, the features dropped in them, and loaders in an order of seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from serve.encode import EncodedFeatures, encode_features
from serve.schema import Feature

Tensors = dict[str, Tensor]


class WindowBatch(NamedTuple):
    """B windows of L consecutive events in which every event may be a target, predicted from those before it."""

    arrays: Tensors  # the history arrays of `serve.events`, `user_codes`, `user_values`: (B, V), with ages (B, L, V)
    history_rows: Tensor  # (B, L) item rows, 0 where padded
    context_codes: Tensor  # (B, L, C) context of each event as a target
    context_values: Tensor  # (B, L, V)
    target_weights: Tensor  # (B, L) float32; 0 where the event is no target
    sees_history: Tensor  # (B, L) bool; the others are predicted from the empty history
    recency: Tensor  # (B, L) int64 seconds from the event before to the target; 0 where the target's time is dropped

    @property
    def is_target(self) -> Tensor:
        return self.target_weights > 0  # (B, L)

    @property
    def targets(self) -> tuple[Tensor, Tensor]:
        """Window and place of each of the M targets, (M,) both, ascending."""
        return self.is_target.nonzero(as_tuple=True)  # type: ignore[return-value]


class RequestBatch(NamedTuple):
    """B requests, each with the items that followed."""

    arrays: Tensors  # everything the user tower reads but vectors, named as in `serve.events`
    history_rows: Tensor  # (B, L)
    owned_rows: (
        Tensor  # (E,) distinct items of each request's past, ordered by request and row
    )
    owned_users: Tensor  # (E,) request of each
    target_users: Tensor  # (M,) request of each target, ascending
    target_rows: Tensor  # (M,) item row of each target
    target_weights: Tensor  # (M,)
    target_owned: Tensor  # (M,) position of the target among `owned_rows`, -1 if novel
    popularity: Tensor  # (N, P) of the catalogue, as of a moment not after any request of the batch

    def mark_owned(self, n_items: int) -> Tensor:
        """Mark which of N items each user has, (B, N)."""
        is_owned = torch.zeros(
            (len(self.history_rows), n_items),
            dtype=torch.bool,
            device=self.owned_rows.device,
        )
        is_owned[self.owned_users, self.owned_rows] = True
        return is_owned


@dataclass(frozen=True)
class FeatureDropout:
    """Shares of training targets that are predicted without a part of what is known, as some requests come without."""

    history: float = 0.05  # without any history
    user: float = 0.10  # without demographics
    context: float = 0.15  # without request context
    time: float = 0.15  # without the time of the request: recency counts from the user's last event


def encode_missing(features: tuple[Feature, ...]) -> EncodedFeatures:
    """Encode one row of which nothing is known, as serving does."""
    return encode_features(features, {}, 1)


def hide_rows(
    encoded: EncodedFeatures, is_hidden: np.ndarray, missing: EncodedFeatures
) -> EncodedFeatures:
    """Put the one row of `missing` in the place of the marked ones."""
    is_hidden = is_hidden[:, None]
    codes = (
        np.where(is_hidden, missing.codes, encoded.codes)
        if encoded.codes.size
        else encoded.codes
    )
    values = (
        np.where(is_hidden, missing.values, encoded.values)
        if encoded.values.size
        else encoded.values
    )
    return EncodedFeatures(codes, values)


class Examples(Protocol):
    """Plans the batches of an epoch and makes one batch of a plan."""

    def plan(self, seed: int, epoch: int) -> list[Any]: ...
    def __getitem__(self, plan: Any) -> Any: ...


class EpochSampler(Sampler[Any]):
    """Yield the plans of one epoch, a function of (seed, epoch): a resumed run sees what an uninterrupted one does."""

    def __init__(self, examples: Examples, seed: int) -> None:
        self.examples = examples
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Plan an epoch; Lightning calls this before each."""
        self.plans = self.examples.plan(self.seed, epoch)

    def __iter__(self) -> Iterator[Any]:
        yield from self.plans  # read late: Lightning makes the iterator of a resumed epoch before it sets the epoch

    def __len__(self) -> int:
        return len(self.plans)


def make_loader(batches: Any, sampler: EpochSampler | None = None) -> DataLoader[Any]:
    """Make a loader of whole batches, by number or by the plans of a sampler: no Python per row, nothing converted."""
    return DataLoader(
        batches, sampler=sampler, batch_size=None, collate_fn=lambda batch: batch
    )
