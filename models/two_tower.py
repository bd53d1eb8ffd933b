"""Train and validate the towers with Lightning: steps, optimiser and schedule."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from datamodules.batch import RequestBatch, WindowBatch
from models.config import TEMPERATURE, Recipe
from models.losses import novel_loss, repeat_loss, window_loss
from models.sampled_softmax import (
    NegativeSampler,
    find_positions,
    sampled_novel_loss,
    sampled_window_loss,
)
from models.towers import Towers
from models.validation import request_ndcg

NDCG = "val_ndcg"
MIN_TEMPERATURE = 0.01
WEIGHT_DECAY = 0.01
MEMORY_RATE = 1e-2  # peak rate of the few weights of the memory
STARTED_TABLES = (
    "item_tower.id_table.weight",
    "item_tower.content.table.weight",
    "item_tower.content.number_table",
    "item_tower.affinity_table.weight",
    "user_tower.memory.affinity_table",
)
STARTED_TABLE_RATE = 0.2  # share of the rate, with a memory, of tables that start from the data: more over-fits


class TwoTower(pl.LightningModule):
    """Train the two towers.

    Under `cosine` logits are scores over a learned temperature; under `dot` the temperature is 1.
    """

    def __init__(
        self, towers: Towers, recipe: Recipe, sampler: NegativeSampler | None, seed: int
    ) -> None:
        """Wrap the towers; without a sampler, and with a memory, the softmax goes over the whole catalogue."""
        super().__init__()
        self.towers = towers
        self.recipe = recipe
        self.sampler = sampler
        self.seed = seed
        is_cosine = recipe.similarity == "cosine"
        first = torch.tensor(math.log(TEMPERATURE) if is_cosine else 0.0)
        self.log_temperature = nn.Parameter(first, requires_grad=is_cosine)
        self.validation_values: dict[str, list[np.ndarray]] = {}
        self.validation_items = torch.empty(0)  # (N, W) while a validation runs

    @property
    def temperature(self) -> Tensor:
        return self.log_temperature.exp().clamp(min=MIN_TEMPERATURE)  # scalar

    def on_fit_start(self) -> None:
        if self.sampler is not None:
            self.sampler = self.sampler.to(self.device)

    def on_train_batch_start(
        self, batch: WindowBatch | RequestBatch, batch_idx: int
    ) -> None:
        """Seed dropout from (seed, epoch): a checkpoint stores no generator, so that a resumed run repeats it."""
        if (
            batch_idx == 0
        ):  # Lightning skips the start of a resumed epoch, and making the iterator draws a number
            torch.manual_seed(self.seed * 1_000_003 + self.current_epoch)

    def training_step(
        self, batch: WindowBatch | RequestBatch, batch_idx: int
    ) -> Tensor:
        loss = (
            self.window_step(batch)
            if isinstance(batch, WindowBatch)
            else self.request_step(batch)
        )
        if not torch.isfinite(loss):  # before a step that would spoil every weight
            raise FloatingPointError(
                f"the loss is {loss.item()} in epoch {self.current_epoch + 1}, step {self.global_step}: nothing is "
                "published; lower --model.learning_rate, or look for extreme values in the features"
            )
        self.log(
            "train_loss",
            loss,
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            batch_size=1,
        )
        return loss

    def window_step(self, batch: WindowBatch) -> Tensor:
        if self.sampler is not None:
            return self.sampled_window_step(batch, self.sampler)
        items = self.towers.item_vectors(self.towers.no_popularity)  # (N, W)
        users = self.towers.window_vectors(batch, items)  # (M, W)
        return window_loss(users / self.temperature, items, batch)

    def sampled_window_step(
        self, batch: WindowBatch, sampler: NegativeSampler
    ) -> Tensor:
        """Compute only the item vectors that histories and negatives need."""
        negatives = sampler.draw()
        needed = torch.cat(
            [batch.history_rows.flatten(), negatives.rows]
        )  # (B * L + K,)
        distinct, positions = torch.unique(
            needed, return_inverse=True
        )  # (n,), (B * L + K,)
        n_history = batch.history_rows.numel()
        local = batch._replace(
            history_rows=positions[:n_history].view_as(batch.history_rows)
        )
        items = self.towers.some_item_vectors(
            distinct, self.towers.no_popularity
        )  # (n, W)
        users = self.towers.window_vectors(local, items)  # (M, W)
        negatives = replace(negatives, rows=positions[n_history:])
        return sampled_window_loss(users / self.temperature, items, local, negatives)

    def request_step(self, batch: RequestBatch) -> Tensor:
        if self.sampler is not None and self.towers.user_tower.memory is None:
            return self.sampled_request_step(batch, self.sampler)
        items = self.towers.item_vectors(batch.popularity)  # (N, W)
        users, bonus = self.towers.request_vectors(batch, items)  # (B, W), (E,)
        users = users / self.temperature  # (B, W)
        if self.towers.user_tower.memory is None:
            return novel_loss(users, items, batch)
        return repeat_loss(users, bonus / self.temperature, items, batch)

    def sampled_request_step(
        self, batch: RequestBatch, sampler: NegativeSampler
    ) -> Tensor:
        """Do as `sampled_window_step` with the targets of each request."""
        negatives = sampler.draw()
        needed = (
            batch.history_rows.flatten(),
            batch.target_rows,
            negatives.rows,
        )  # (B * L,), (M,), (K,)
        distinct, positions = torch.unique(
            torch.cat(needed), return_inverse=True
        )  # (n,), (B * L + M + K,)
        history, targets, rows = torch.split(
            positions, [len(part) for part in needed]
        )  # (B * L,), (M,), (K,)
        local = batch._replace(
            history_rows=history.view_as(batch.history_rows),
            target_rows=targets,
            owned_rows=find_positions(distinct, batch.owned_rows),
        )
        items = self.towers.some_item_vectors(distinct, batch.popularity)  # (n, W)
        users, _ = self.towers.request_vectors(local, items)  # (B, W)
        return sampled_novel_loss(
            users / self.temperature, items, local, replace(negatives, rows=rows)
        )

    def on_validation_epoch_start(self) -> None:
        self.validation_values = {}

    def validation_step(self, batch: RequestBatch, batch_idx: int) -> None:
        if batch_idx == 0:  # all of them are as of one moment
            self.validation_items = self.towers.item_vectors(batch.popularity)  # (N, W)
        items = self.validation_items  # (N, W)
        users, bonus = self.towers.request_vectors(batch, items)  # (B, W), (E,)
        remembered = None if self.towers.user_tower.memory is None else bonus  # (E,)
        for view, values in request_ndcg(users, remembered, items, batch).items():
            self.validation_values.setdefault(view, []).append(values)

    def on_validation_epoch_end(self) -> None:
        self.validation_items = torch.empty(0)  # (0,)
        values = {
            view: np.concatenate(parts)
            for view, parts in self.validation_values.items()
        }
        means = {
            view: float(measured.mean())
            for view, measured in values.items()
            if len(measured)
        }
        for view, value in means.items():
            self.log(f"{NDCG}_{view}", value)
        self.log(NDCG, float(np.mean(list(means.values()) or [0.0])), prog_bar=True)

    def rate_of(self, name: str) -> float:
        """Return the peak rate of a parameter of the towers."""
        if name in STARTED_TABLES and self.towers.user_tower.memory is not None:
            return self.recipe.learning_rate * STARTED_TABLE_RATE
        return MEMORY_RATE if ".memory." in name else self.recipe.learning_rate

    def configure_optimizers(self) -> Any:
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.towers.named_parameters():
            groups.setdefault(self.rate_of(name), []).append(parameter)
        temperature = {
            "params": [self.log_temperature],
            "weight_decay": 0.0,
        }  # decay would pull it towards 1
        optimizer = torch.optim.AdamW(
            [
                temperature,
                *(
                    {"params": parameters, "lr": rate}
                    for rate, parameters in groups.items()
                ),
            ],
            lr=self.recipe.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=WEIGHT_DECAY,
            fused=self.trainer.precision
            != "16-mixed",  # there gradients are to be unscaled before they are clipped
        )
        steps_per_epoch = self.trainer.estimated_stepping_batches / max(
            self.trainer.max_epochs or 1, 1
        )
        n_steps = int(
            self.recipe.max_epochs * steps_per_epoch
        )  # the schedule's, also where training ends earlier
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warm_cosine(step, self.recipe.warmup_steps, n_steps)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients; Lightning refuses to where the optimiser is fused, even without float16."""
        clip = (
            nn.utils.clip_grad_value_
            if gradient_clip_algorithm == "value"
            else nn.utils.clip_grad_norm_
        )
        if gradient_clip_val:
            clip(self.parameters(), gradient_clip_val)


def warm_cosine(step: int, warmup_steps: int, n_steps: int) -> float:
    """Return the factor of the rate: a linear rise, then half a cosine down to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(n_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
