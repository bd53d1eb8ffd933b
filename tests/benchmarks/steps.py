"""Seconds, memory and targets a second of a training step by the number of items, beside AdamW of every row.

python tests/benchmarks/steps.py [N_ITEMS ...]    default: 10,000, 100,000 and 1,000,000

Each line is a process of its own, so that its peak of memory is its own; batches are of the same
size. `dense` is the optimiser that reads and writes the whole table. Ratios are to 10,000 items.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from datamodules.config import DataConfig, FeaturesConfig  # noqa: E402
from datamodules.datamodule import InteractionsDataModule  # noqa: E402
from datamodules.schema_fitting import fit_schema  # noqa: E402
from datamodules.sequences import build_catalogue  # noqa: E402
from datamodules.tables import Tables  # noqa: E402
from models.config import Recipe  # noqa: E402
from models.initialise import build_towers  # noqa: E402
from models.sampled_softmax import NegativeSampler  # noqa: E402
from models.two_tower import TwoTower  # noqa: E402

from models import two_tower  # noqa: E402

SIZES = (10_000, 100_000, 1_000_000)
N_USERS, LENGTH, DIM, BATCH = 8_000, 20, 64, 128
FIRST_STEPS, STEPS = 3, 40
RECIPE = Recipe(DIM, 1, 0.3, 0.1, "cosine", 0, 1024, 2e-3, BATCH, 1, 1, 1, 10)


class Clock(pl.Callback):
    """Note the seconds of the processor in each step: those on the clock depend on other programs."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.n_targets = 0

    def on_train_batch_start(self, *_: Any) -> None:
        self.begun = time.process_time()

    def on_train_batch_end(
        self, trainer: Any, model: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self.seconds.append(time.process_time() - self.begun)
        self.n_targets += int((batch.target_weights > 0).sum())


def draw_data(n_items: int) -> InteractionsDataModule:
    """Draw events on uniform items, so that a step needs as many rows as it can."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(N_USERS), LENGTH)
    events = pd.DataFrame(
        {
            "user_id": users,
            "item_id": rng.integers(n_items, size=len(users)),
            "datetime": 1_600_000_000 + np.tile(np.arange(LENGTH), N_USERS) * 3600,
        }
    )
    items = pd.DataFrame(
        {"item_id": np.arange(n_items), "category": [f"c{row % 500}" for row in range(n_items)]}
    )
    people = pd.DataFrame({"user_id": np.arange(N_USERS)})
    features = FeaturesConfig(item={"category": "categorical"})
    schema = fit_schema(Tables(events, people, items), events, DataConfig(features=features))
    catalogue = build_catalogue(items, events, schema)
    return InteractionsDataModule(events, events[:0], people, catalogue, schema, BATCH, 0)


def measure(n_items: int, kind: str) -> dict[str, float]:
    """Train some steps and measure them."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    two_tower.MANY_ROWS = 0 if kind == "row-wise" else sys.maxsize
    data = draw_data(n_items)
    pl.seed_everything(0, verbose=False)
    counts = torch.from_numpy(data.count_targets())
    sampler = NegativeSampler.make(RECIPE.negatives, counts)
    model = TwoTower(build_towers(data, RECIPE, 0), RECIPE, sampler, 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=FIRST_STEPS + STEPS,
        limit_val_batches=0,
        logger=False,
        callbacks=[clock],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
    )
    trainer.fit(model, data)
    seconds = statistics.median(clock.seconds[FIRST_STEPS:])
    state = trainer.optimizers[0].state_dict()["state"]
    kept = [value for values in state.values() for value in values.values()]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "ms_a_step": 1000 * seconds,
        "targets_a_second": clock.n_targets / len(clock.seconds) / seconds,
        "peak_mb": peak / 1024,
        "training_mb": (peak - before) / 1024,
        "optimiser_mb": sum(value.nbytes for value in kept) / 2**20,
    }


def main() -> None:
    """Print a line for each size and optimiser."""
    if len(sys.argv) == 4 and sys.argv[1] == "one":
        print(json.dumps(measure(int(sys.argv[2]), sys.argv[3])))
        return
    sizes = [int(word) for word in sys.argv[1:]] or SIZES
    first: dict[str, float] = {}
    print("items      optimiser  ms/step  ratio  targets/s  peak MB  of training  moments MB")
    for n_items in sizes:
        for kind in ("dense", "row-wise"):
            words = [sys.executable, __file__, "one", str(n_items), kind]
            output = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            found = json.loads(output.splitlines()[-1])
            ratio = found["ms_a_step"] / first.setdefault(kind, found["ms_a_step"])
            print(
                f"{n_items:<10,} {kind:9} {found['ms_a_step']:8.1f} {ratio:6.2f} "
                f"{found['targets_a_second']:10,.0f} {found['peak_mb']:8,.0f} "
                f"{found['training_mb']:12,.0f} {found['optimiser_mb']:11,.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
