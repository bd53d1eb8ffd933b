"""Jobs of the tests for processes that train together; a fresh interpreter imports them."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from datamodules.batch import WindowBatch, take_share
from datamodules.datamodule import InteractionsDataModule
from models.fit import fit
from models.sampled_softmax import NegativeSampler
from models.two_tower import TwoTower
from pytorch_lightning.callbacks import Callback
from tests.models.tiny_towers import make_module, make_towers
from tests.tiny_data import BASKETS, DAY, ORDERED, hold_out, make_data, make_world
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

SEED, NEGATIVES, EPOCHS = 3, 7, 4
SET = replace(BASKETS, repeats="exclude")
CASES = {
    "windows": (ORDERED, 0),
    "windows, sampled": (ORDERED, NEGATIVES),
    "baskets with a memory": (BASKETS, 0),
    "baskets": (SET, 0),
    "baskets, sampled": (SET, NEGATIVES),
}
SIZES = [5, 1]  # examples of a batch: an uneven share, and fewer than processes


class Step(nn.Module):
    """The loss of a batch as a forward pass, which DDP wraps."""

    def __init__(self, model: TwoTower) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch) -> Tensor:
        is_windows = isinstance(batch, WindowBatch)
        return self.model.window_step(batch) if is_windows else self.model.request_step(batch)


def make_step(case: str) -> tuple[Step, InteractionsDataModule]:
    """Make the step without dropout, so that all that is drawn are the negatives."""
    config, n_negatives = CASES[case]
    world = make_world(config)
    data = make_data(world, batch_size=13, horizon=8 * DAY)
    model = make_module(make_towers(world, data, "cosine")).eval()
    counts = torch.from_numpy(data.count_targets())
    model.sampler = NegativeSampler.make(n_negatives, counts)
    return Step(model), data


def take_step(step: nn.Module, batch) -> list[Tensor]:
    """Return the loss and the gradients of a batch."""
    torch.manual_seed(SEED)
    step.zero_grad()
    loss = step(batch)
    loss.backward()
    gradients = [weight.grad for weight in step.parameters() if weight.grad is not None]
    return [loss.detach(), *(gradient.clone() for gradient in gradients)]


def compare_gradients() -> dict[str, list[float]]:
    """Return the largest difference to a single process, and the largest gradient, by case."""
    torch.set_num_threads(1)
    plans, alone, joint = {}, {}, {}
    for case in CASES:
        step, data = make_step(case)
        plan = max(data.examples.plan(0, 0), key=lambda plan: len(plan.users))
        for size in SIZES:
            plans[case, size] = plan.take(torch.arange(size).numpy())
            assert len(plans[case, size].users) == size
            alone[case, size] = take_step(step, data.examples[plans[case, size]])

    rank = int(os.environ["LOCAL_RANK"])
    distributed.init_process_group(
        "gloo",
        f"tcp://127.0.0.1:{os.environ['MASTER_PORT']}",
        timedelta(seconds=60),
        world_size=2,
        rank=rank,
    )
    for case in CASES:
        step, data = make_step(case)
        wrapped = DistributedDataParallel(step, find_unused_parameters=True)
        for size in SIZES:
            share = plans[case, size].take(take_share(torch.arange(size).numpy()))
            loss, *gradients = take_step(wrapped, data.examples[share])
            distributed.all_reduce(loss)
            joint[case, size] = [loss / 2, *gradients]
    distributed.destroy_process_group()

    found = {}
    for (case, size), values in alone.items():
        others = joint[case, size]
        pairs = list(zip(values, others, strict=True))
        differences = [float((left - right).abs().max()) for left, right in pairs if left.numel()]
        largest = [float(value.abs().max()) for value in values[1:] if value.numel()]
        found[f"{case}, {size}"] = [max(differences), max(largest)]
    return found


class KillAt(Callback):
    """Kill one of the processes in the midst of an epoch."""

    def __init__(self, rank: int, epoch: int) -> None:
        self.rank = rank
        self.epoch = epoch

    def on_train_batch_end(self, trainer, *_) -> None:
        if (trainer.global_rank, trainer.current_epoch) == (self.rank, self.epoch):
            os.kill(os.getpid(), signal.SIGKILL)


def fit_tiny(folder: Path, config=ORDERED, has_dropout: bool = True, **options) -> TwoTower:
    """Train the towers of the small shop."""
    world, validation = hold_out(make_world(config))
    data = make_data(world, validation=validation)
    model = make_module(make_towers(world, data).train(), learning_rate=0.05, max_epochs=EPOCHS)
    model.recipe = replace(model.recipe, patience=EPOCHS)
    if not has_dropout:
        model.towers.item_tower.id_dropout = 0.0
        for module in model.modules():
            module.n_dropped = 0
    quiet = {"enable_progress_bar": False, "accelerator": "cpu"}
    fit(model, data, folder, "select", EPOCHS, {**quiet, **options}, {"seed": 1})
    return model
