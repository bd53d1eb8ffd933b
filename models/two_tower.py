"""Train and validate the towers with Lightning: steps, optimiser and schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from datamodules.batch import RequestBatch, WindowBatch
from models.config import TEMPERATURE, Recipe
from models.devices import gather, joins
from models.losses import novel_loss, repeat_loss, window_loss
from models.sampled_softmax import (
    NegativeSampler,
    find_positions,
    sampled_novel_loss,
    sampled_window_loss,
)
from models.towers import Towers
from models.validation import Figures, join_figures, mean_of_views, request_ndcg

NDCG = "val_ndcg"
TRAIN_LOSS = "train_loss"
MIN_TEMPERATURE = 0.01
WEIGHT_DECAY = 0.01
MEMORY_RATE = 1e-2  # peak rate of the few weights of the memory, and of the season
# With a season its rows start near 0, beside states of length 10: no slower rate moves them.
CONTEXT_TABLE = "user_tower.context.table.weight"
STARTED_TABLES = (
    "item_tower.id_table.weight",
    "item_tower.content.table.weight",
    "item_tower.content.number_table",
    "item_tower.affinity_table.weight",
    "user_tower.memory.affinity_table",
)
# Share of the rate, with a memory, of tables that start from the data: more over-fits.
STARTED_TABLE_RATE = 0.2
ID_TABLE = "item_tower.id_table.weight"
# Rows of the id table from which on a step updates those alone that it needs.
MANY_ROWS = 100_000
# Rate of row-wise Adagrad, as a multiple of AdamW's: its steps get shorter with each one of a row.
ROW_RATE = 20.0
SUMMED_SQUARES = "summed_squares"
MIN_ROOT = 1e-10


# ---- sparse gradients

# An optimiser of dense gradients reads and writes every row of a table of items in each step, with
# two moments of the same size. Row-wise Adagrad touches the rows that a step needs, and keeps one
# number a row. Letters: R rows of a table, D entries of a row, n distinct rows that a step needs.


class RowWiseAdamW(AdamW):
    """AdamW of dense gradients, row-wise Adagrad of sparse ones, whose weights do not decay.

    Source: Duchi et al., JMLR 2011, with one sum of squares a row as in FBGEMM's
    `EXACT_ROWWISE_ADAGRAD`.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is not None and gradient.is_sparse:
                    self._update_rows(parameter, gradient.coalesce(), group["lr"])
                    parameter.grad = None

        super().step()
        return loss

    @torch.no_grad()
    def _update_rows(self, table: Tensor, gradient: Tensor, rate: float) -> None:
        """Update the rows of a table (R, D) that a coalesced gradient names."""
        rows = gradient.indices()[0]  # (n,)
        values = gradient.values()  # (n, D)
        state = self.state[table]
        if not state:
            state["step"] = torch.zeros(())  # AdamW looks for one when it is loaded
            state[SUMMED_SQUARES] = table.new_zeros(len(table))  # (R,)

        summed = state[SUMMED_SQUARES]  # (R,)
        summed.index_add_(0, rows, values.square().mean(dim=1))
        roots = summed[rows].sqrt().clamp(min=MIN_ROOT)  # (n,)
        table.index_add_(0, rows, values / roots.unsqueeze(1), alpha=-rate)


def clip_norm(module: nn.Module, max_norm: float) -> None:
    """Clip the gradients of a module by their norm, sparse ones by that of their rows."""
    clipped = []
    for parameter in module.parameters():
        gradient = parameter.grad
        if gradient is not None and gradient.is_sparse:
            parameter.grad = gradient.coalesce()
            # stands for the parameter; its gradient shares the memory
            parameter = nn.Parameter(parameter.grad.values())  # (n, D)
            parameter.grad = parameter.data
        clipped.append(parameter)

    nn.utils.clip_grad_norm_(clipped, max_norm)


# ---- the module


class TwoTower(pl.LightningModule):
    """Train the two towers.

    Under `cosine` logits are scores over a learned temperature; under `dot` the temperature is 1.

    Args:
        towers: the towers.
        recipe: how they are trained.
        sampler: draws negatives; without one, and with a memory, the softmax goes over the
            catalogue.
        seed: of dropout and negatives, with the epoch.
    """

    def __init__(
        self, towers: Towers, recipe: Recipe, sampler: NegativeSampler | None, seed: int
    ) -> None:
        super().__init__()
        self.towers = towers
        self.recipe = recipe
        self.sampler = sampler
        self.seed = seed

        is_cosine = recipe.similarity == "cosine"
        first = torch.tensor(math.log(TEMPERATURE) if is_cosine else 0.0)
        self.log_temperature = nn.Parameter(first, requires_grad=is_cosine)

        self.validation_figures: list[Figures] = []
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
        """Seed each epoch, so that a resumed run repeats it: a checkpoint stores no generator.

        Several processes differ in dropout, and draw the same negatives.
        """
        # Lightning skips the start of a resumed epoch, and the iterator draws a number.
        if batch_idx == 0:
            seed = self.seed * 1_000_003 + self.current_epoch
            torch.manual_seed(seed + (self.global_rank << 55))  # above those of any run
            if joins() and self.sampler is not None:
                alike = torch.Generator(self.device).manual_seed(seed)
                self.sampler = replace(self.sampler, generator=alike)

    def training_step(
        self, batch: WindowBatch | RequestBatch, batch_idx: int
    ) -> Tensor:
        """Return the loss of a batch.

        Raises:
            FloatingPointError: the loss is not finite; a step would spoil every weight.
        """
        if isinstance(batch, WindowBatch):
            loss = self.window_step(batch)
        else:
            loss = self.request_step(batch)

        if not torch.isfinite(loss):
            step = f"epoch {self.current_epoch + 1}, step {self.global_step}"
            raise FloatingPointError(
                f"the loss is {loss.item()} in {step}: nothing is published; "
                "lower --model.learning_rate, or look for extreme values in the features"
            )

        self.log(
            TRAIN_LOSS,
            loss,
            prog_bar=True,
            on_step=False,
            on_epoch=True,
            batch_size=1,
            sync_dist=True,
        )
        return loss

    def window_step(self, batch: WindowBatch) -> Tensor:
        """Compute the loss; with negatives, only from the items that histories and they need."""
        nothing = self.towers.no_popularity  # (N, 0)
        if self.sampler is None:
            items = self.towers.item_vectors(nothing)  # (N, W)
            users = self.towers.window_vectors(batch, items)  # (M, W)
            return window_loss(users / self.temperature, items, batch)

        negatives = self.sampler.draw()
        needed, history, rows = _number_distinct(batch.history_rows, negatives.rows)
        local = batch._replace(history_rows=history)
        items = self.towers.some_item_vectors(needed, nothing)  # (n, W)
        users = self.towers.window_vectors(local, items)  # (M, W)
        negatives = replace(negatives, rows=rows)
        return sampled_window_loss(users / self.temperature, items, local, negatives)

    def request_step(self, batch: RequestBatch) -> Tensor:
        """Compute the loss; with negatives, only from the items that need be known."""
        if self.sampler is None or self.towers.user_tower.memory is not None:
            items = self.towers.item_vectors(batch.popularity)  # (N, W)
            users, bonus = self.towers.request_vectors(batch, items)  # (B, W), (E,)
            users = users / self.temperature  # (B, W)
            if bonus is None:
                return novel_loss(users, items, batch)
            return repeat_loss(users, bonus / self.temperature, items, batch)

        negatives = self.sampler.draw()
        needed, history, targets, rows = _number_distinct(
            batch.history_rows, batch.target_rows, negatives.rows
        )
        local = batch._replace(
            history_rows=history,
            target_rows=targets,
            owned_rows=find_positions(needed, batch.owned_rows),
        )
        items = self.towers.some_item_vectors(needed, batch.popularity)  # (n, W)
        users, _ = self.towers.request_vectors(local, items)  # (B, W)
        negatives = replace(negatives, rows=rows)

        return sampled_novel_loss(users / self.temperature, items, local, negatives)

    def on_validation_epoch_start(self) -> None:
        self.validation_figures = []

    def validation_step(self, batch: RequestBatch, batch_idx: int) -> None:
        if batch_idx == 0:  # all of them are as of one moment
            self.validation_items = self.towers.item_vectors(batch.popularity)  # (N, W)
        items = self.validation_items  # (N, W)
        users, bonus = self.towers.request_vectors(batch, items)  # (B, W), (E,)
        self.validation_figures.append(request_ndcg(users, bonus, items, batch))

    def on_validation_epoch_end(self) -> None:
        self.validation_items = torch.empty(0)  # (0,)
        figures = join_figures(gather(self.validation_figures))
        for view, values in figures.items():
            if len(values):
                self.log(f"{NDCG}_{view}", float(values.mean()))

        self.log(NDCG, mean_of_views(figures), prog_bar=True)

    @property
    def is_row_wise(self) -> bool:
        """Whether a step updates only the rows of the id table that it needs.

        Several processes would have to exchange sparse gradients, which NCCL cannot. Tables that
        start from factors, as of sets without blocks, were not measured.
        """
        is_sampled = self.sampler is not None and self.towers.user_tower.memory is None
        has_many = len(self.towers.item_tower.id_table.weight) >= MANY_ROWS
        if not (is_sampled and has_many and self.recipe.n_blocks):
            return False
        return self.trainer.world_size == 1

    def rate_of(self, name: str) -> float:
        """Return the peak rate of a parameter of the towers."""
        rate = self.recipe.learning_rate
        if name == ID_TABLE and self.is_row_wise:
            return rate * ROW_RATE
        if name == CONTEXT_TABLE and self.towers.user_tower.has_season:
            return MEMORY_RATE
        if name in STARTED_TABLES and self.towers.user_tower.memory is not None:
            return rate * STARTED_TABLE_RATE
        return MEMORY_RATE if ".memory." in name else rate

    def configure_optimizers(self) -> Any:
        self.towers.item_tower.id_table.sparse = self.is_row_wise
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.towers.named_parameters():
            groups.setdefault(self.rate_of(name), []).append(parameter)

        # Decay would pull the temperature towards 1.
        options = [
            {"params": [self.log_temperature], "weight_decay": 0.0},
            *({"params": group, "lr": rate} for rate, group in groups.items()),
        ]

        optimizer = RowWiseAdamW(
            options,
            lr=self.recipe.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=WEIGHT_DECAY,
            # Under float16 gradients are to be unscaled before they are clipped.
            fused=self.trainer.precision != "16-mixed",
        )
        n_epochs = max(self.trainer.max_epochs or 1, 1)
        steps_per_epoch = self.trainer.estimated_stepping_batches / n_epochs

        # The schedule keeps its length where training ends earlier.
        n_steps = int(self.recipe.max_epochs * steps_per_epoch)
        warmup_steps = self.recipe.warmup_steps
        schedule = LambdaLR(
            optimizer, lambda step: warm_cosine(step, warmup_steps, n_steps)
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients; Lightning refuses to if the optimiser is fused."""
        if not gradient_clip_val:
            return
        if gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        else:
            clip_norm(self, gradient_clip_val)


def _number_distinct(*parts: Tensor) -> tuple[Tensor, ...]:
    """Return the distinct numbers of all parts, ascending, and for each part their positions."""
    numbers = torch.cat([part.flatten() for part in parts])
    distinct, positions = torch.unique(numbers, return_inverse=True)
    split = torch.split(positions, [part.numel() for part in parts])
    return distinct, *map(Tensor.view_as, split, parts)


def warm_cosine(step: int, warmup_steps: int, n_steps: int) -> float:
    """Return the factor of the rate: a linear rise, then half a cosine down to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(n_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
