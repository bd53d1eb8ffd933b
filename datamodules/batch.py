"""Training batches: tensors, the features that they lack, loaders, and shares of processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Sampler

from serve.arrays import Ints
from serve.encode import EncodedFeatures, encode_features
from serve.kinds import Feature

Tensors = dict[str, Tensor]


class WindowBatch(NamedTuple):
    """B windows of L consecutive events; each may be a target, predicted from those before it.

    `arrays` holds the history arrays of `serve.events`, and of the users `user_codes` (B, C) and
    `user_values` (B, V), which are (B, L, V) where they hold ages.
    """

    arrays: Tensors
    history_rows: Tensor  # (B, L) item rows, 0 where padded
    context_codes: Tensor  # (B, L, C) context of each event as a target
    context_values: Tensor  # (B, L, V)
    target_weights: Tensor  # (B, L) float32; 0 where the event is no target
    sees_history: Tensor  # (B, L) bool; the others are predicted from the empty history
    recency: Tensor  # (B, L) int64 seconds since the event before; 0 where the time is dropped

    @property
    def is_target(self) -> Tensor:
        return self.target_weights > 0  # (B, L)

    @property
    def targets(self) -> tuple[Tensor, Tensor]:
        """Window and position of each of the M targets, (M,) both, ascending."""
        return self.is_target.nonzero(as_tuple=True)  # type: ignore[return-value]


class RequestBatch(NamedTuple):
    """B requests, each with the items that followed."""

    arrays: Tensors  # named as in `serve.events`: all the user tower reads but vectors
    history_rows: Tensor  # (B, L)
    owned_rows: Tensor  # (E,) distinct items of each past, by request and row
    owned_users: Tensor  # (E,) request of each
    target_users: Tensor  # (M,) request of each target, ascending
    target_rows: Tensor  # (M,) item row of each target
    target_weights: Tensor  # (M,)
    target_owned: Tensor  # (M,) position of the target among `owned_rows`, -1 if novel
    popularity: Tensor  # (N, P) as of a moment not after any request of the batch

    def mark_owned(self, n_items: int) -> Tensor:
        """Mark which of N items each user has, (B, N)."""
        shape = (len(self.history_rows), n_items)
        device = self.owned_rows.device
        is_owned = torch.zeros(shape, dtype=torch.bool, device=device)  # (B, N)
        is_owned[self.owned_users, self.owned_rows] = True

        return is_owned


@dataclass(frozen=True)
class FeatureDropout:
    """Shares of training targets that are predicted without a part of their input.

    Some requests lack it too.
    """

    history: float = 0.05
    user: float = 0.10  # the user's features
    context: float = 0.15  # the context of the request
    time: float = 0.15  # the time of the request: recency counts from the last event
    # the same before the next group: where nothing is asked at a moment, no validation has one
    time_of_next: float = 0.8


class PartlyHidden:
    """Features of n rows; each batch hides a share of its rows, which then read as missing.

    Args:
        encoded: the features of all rows.
        features: as they are declared.
        share: of the rows of a batch.
    """

    def __init__(
        self, encoded: EncodedFeatures, features: tuple[Feature, ...], share: float
    ) -> None:
        self.encoded = encoded
        self.missing = encode_features(features, {}, 1)
        self.share = share

    def take(self, rows: Ints, rng: np.random.Generator) -> EncodedFeatures:
        """Return (..., C) codes and (..., V) values of rows (...)."""
        is_hidden = rng.random((*rows.shape, 1)) < self.share  # (..., 1)
        shown = self.encoded.take(rows)
        codes = np.where(is_hidden, self.missing.codes, shown.codes)  # (..., C)
        values = np.where(is_hidden, self.missing.values, shown.values)  # (..., V)

        return EncodedFeatures(codes, values)


class EpochSampler(Sampler[Any]):
    """Yield the plans of one epoch, a function of seed and epoch alone.

    So a resumed run sees what an uninterrupted one sees.
    """

    def __init__(self, examples: Any, seed: int) -> None:
        self.examples = examples
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Plan an epoch; Lightning calls this before each."""
        self.plans = self.examples.plan(self.seed, epoch)

    def __iter__(self) -> Iterator[Any]:
        # A generator reads the plans late: Lightning makes the iterator of a resumed epoch
        # before it sets the epoch.
        yield from self.plans

    def __len__(self) -> int:
        return len(self.plans)


def find_place() -> tuple[int, int]:
    """Return the rank of this process, and how many train together."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def take_share(parts: Any) -> Any:
    """Return every n-th of some parts, for one of n processes; all of them if they are fewer.

    These then count n times each, which leaves a mean as it is.
    """
    rank, n_processes = find_place()
    return parts[rank::n_processes] if len(parts) >= n_processes else parts


def make_loader(batches: Any, sampler: EpochSampler | None = None) -> DataLoader[Any]:
    """Make a loader of whole batches: no Python per row, and nothing is converted.

    Args:
        batches: a sequence of batches, or examples that make a batch of a plan.
        sampler: yields the plans of an epoch. Default: the batches in their order.
    """
    return DataLoader(
        batches, sampler=sampler, batch_size=None, collate_fn=lambda batch: batch
    )
