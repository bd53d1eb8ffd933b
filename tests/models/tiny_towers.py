"""Towers of the small shop without a zero weight, so that every path through them counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from datamodules.datamodule import InteractionsDataModule
from models.config import Recipe
from models.export import draw_features
from models.initialise import build_towers
from models.towers import Towers
from models.two_tower import TwoTower
from serve.events import (
    Events,
    history_arrays,
    owned_arrays,
    request_arrays,
    summarise_owned,
)
from tests.tiny_data import DAY, FIRST, D, N, World, make_data, make_world

MOMENT = FIRST + 300 * DAY


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work alone: on tensors this small, threads only wait for each other."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


RECIPE = Recipe(
    dim=D,
    n_blocks=2,
    dropout=0.1,
    id_dropout=0.5,
    similarity="dot",
    neighbours=0,
    negatives=0,
    learning_rate=1e-2,
    batch_size=4,
    max_epochs=2,
    patience=2,
    n_heads=2,
    warmup_steps=5,
)


def make_towers(
    world: World,
    data: InteractionsDataModule,
    similarity: str = "dot",
    n_blocks: int = 2,
    seed: int = 5,
) -> Towers:
    """Build towers in evaluation mode whose weights are all drawn anew."""
    recipe = replace(RECIPE, similarity=similarity, n_blocks=n_blocks)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        with torch.enable_grad():
            towers = build_towers(data, recipe, seed)
        for parameter in towers.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return towers.eval()


def make_module(
    towers: Towers, learning_rate: float = 1e-2, max_epochs: int = 2, seed: int = 0
) -> TwoTower:
    similarity = towers.item_tower.similarity
    recipe = replace(
        RECIPE,
        learning_rate=learning_rate,
        max_epochs=max_epochs,
        similarity=similarity,
    )
    return TwoTower(towers, recipe, None, seed)


class Side:
    """Everything that one protocol's vectors are made with."""

    def __init__(self, config, similarity="dot", n_blocks=2):
        self.world = make_world(config)
        self.data = make_data(self.world)
        self.towers: Towers = make_towers(self.world, self.data, similarity, n_blocks)
        popularity = torch.from_numpy(self.data.trends.popularity[-1])
        with torch.no_grad():
            self.items = self.towers.item_vectors(popularity)

    def arrays(
        self, events: Events, seed: int = 1
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        schema, catalogue, rng = (
            self.world.schema,
            self.world.catalogue,
            np.random.default_rng(seed),
        )
        moment = np.full(len(events), MOMENT)
        arrays, rows = history_arrays(events, schema, np.ones(len(events), np.int64))
        user, context = (
            draw_features(schema.features(side), len(events), rng) for side in ("user", "context")
        )
        arrays |= request_arrays(moment, user, context, schema)
        rates = np.linspace(-1, 1, N).astype(np.float32)
        owned = summarise_owned(events, moment, schema.decay_days, len(schema.event_types), rates)
        arrays |= owned_arrays(owned, catalogue.categories, catalogue.n_categories)
        return arrays, rows, owned.item_row

    @torch.no_grad()
    def vectors(self, arrays, rows, owned_rows) -> np.ndarray:
        """Return user vectors and, flat beside them, memory scores."""
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        tower = self.towers.user_tower
        history = self.items[torch.from_numpy(rows)][..., : tower.dim]
        fused = tower.request_state(history, tensors)
        if tower.memory is None:
            return tower.finish(fused).numpy()
        tensors["owned_vectors"] = self.items[torch.from_numpy(owned_rows)]
        vectors, _ = tower.remember(fused, tensors)
        return vectors.numpy()

    def of(self, events: Events) -> np.ndarray:
        return self.vectors(*self.arrays(events))
