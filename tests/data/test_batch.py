from __future__ import annotations

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from datamodules.batch import EpochSampler, FeatureDropout, make_loader

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # within Lightning
]
N_EPOCHS = 6


class Plans:
    """Examples whose batches are their own plans."""

    def __init__(self, n_batches: int) -> None:
        self.n_batches = n_batches

    def plan(self, seed: int, epoch: int) -> list[tuple[int, int, int]]:
        return [(seed, epoch, number) for number in range(self.n_batches)]

    def __getitem__(self, plan):
        return plan


class Recorder(pl.LightningModule):
    """Write down what Lightning hands to the steps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained: list = []
        self.validated: list = []

    def training_step(self, batch, batch_idx):
        self.trained.append(batch)
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.validated.append((self.current_epoch, batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(loader, validation) -> Recorder:
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=N_EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(recorder, loader, validation)
    return recorder


def test_the_shares_of_feature_dropout_are_those_that_were_measured():
    chosen = FeatureDropout(0.05, 0.1, 0.15, time=0.15, time_of_next=0.8)
    assert FeatureDropout() == chosen


def test_a_sampler_yields_the_plans_of_its_epoch():
    sampler = EpochSampler(Plans(3), seed=5)
    assert list(sampler) == [(5, 0, 0), (5, 0, 1), (5, 0, 2)]
    iterator = iter(
        sampler
    )  # made before the epoch is known, as Lightning does where a training is resumed
    sampler.set_epoch(4)
    assert list(sampler) == list(iterator) == [(5, 4, 0), (5, 4, 1), (5, 4, 2)]
    assert len(sampler) == 3


def test_every_epoch_trains_its_own_plans_and_is_validated():
    recorder = train(make_loader(Plans(4), EpochSampler(Plans(4), 5)), make_loader(["a", "b"]))
    assert [tuple(batch) for batch in recorder.trained] == [
        (5, epoch, number) for epoch in range(N_EPOCHS) for number in range(4)
    ]
    assert recorder.validated == [(epoch, name) for epoch in range(N_EPOCHS) for name in "ab"]


def test_batches_are_passed_on_as_they_are():
    made = [(1, np.zeros(2)), {"rows": np.ones(3)}]
    assert all(found is batch for found, batch in zip(make_loader(made), made, strict=True))
    loader = make_loader(Plans(3), EpochSampler(Plans(3), 0))
    assert all(found is plan for found, plan in zip(loader, loader.sampler.plans, strict=True))
