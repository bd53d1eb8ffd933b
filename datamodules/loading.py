"""Batches whose order is a function of (seed, epoch), so that a resumed run sees what an uninterrupted one does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch.utils.data import DataLoader, Dataset, Sampler


class Examples(Protocol):
    """Plans the batches of an epoch and makes one batch of a plan."""

    def plan(self, seed: int, epoch: int) -> list[Any]: ...
    def __getitem__(self, plan: Any) -> Any: ...


class EpochSampler(Sampler[Any]):
    """Yield the plans of one epoch. Lightning calls `set_epoch`."""

    def __init__(self, examples: Examples, seed: int) -> None:
        self.examples = examples
        self.seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.plans = self.examples.plan(self.seed, epoch)

    def __iter__(self) -> Iterator[Any]:
        """Look at the plans when the first is asked for.

        Lightning makes the iterator of a resumed epoch before it says which epoch that is.
        """
        yield from self.plans

    def __len__(self) -> int:
        return len(self.plans)


class MadeBatches(Dataset[Any]):
    """Batches made once, for validation."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return self.batches[index]


class PlannedBatches(Dataset[Any]):
    """Make the batch that a plan describes: whole batches by vectorised indexing, no per-row Python."""

    def __init__(self, examples: Examples) -> None:
        self.examples = examples

    def __getitem__(self, plan: Any) -> Any:
        return self.examples[plan]


def _as_it_is(batch: Any) -> Any:
    """Pass on what is made of tensors already: torch would look into each batch for arrays to convert."""
    return batch


def train_loader(examples: Examples, seed: int) -> DataLoader[Any]:
    return DataLoader(
        PlannedBatches(examples), sampler=EpochSampler(examples, seed), batch_size=None, collate_fn=_as_it_is
    )


def validation_loader(batches: list[Any]) -> DataLoader[Any]:
    return DataLoader(MadeBatches(batches), batch_size=None, collate_fn=_as_it_is)
