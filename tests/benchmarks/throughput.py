"""Targets a second: a whole training step, and the loader beside a Dataset that makes the same a sample at a time.

    OMP_NUM_THREADS=1 python tests/benchmarks/throughput.py --config configs/amazon-beauty.yaml [train.py options]

Prints medians over rounds, with what the processor does in matrix products in the same run. `--trainer.precision` is
that of the steps.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from models.heap import keep_freed_memory  # noqa: E402

import pipeline.stages
import train  # noqa: E402
from datamodules.batch import train_loader
from datamodules.datamodule import InteractionsDataModule
from datamodules.schema_fitting import fit_schema  # noqa: E402
from datamodules.sequences import build_catalogue
from datamodules.splits import split_interactions  # noqa: E402
from models.config import recipe_of  # noqa: E402
from models.two_tower import TwoTower  # noqa: E402
from tests.benchmarks.sample_dataset import SampleDataset, collate  # noqa: E402

N_BATCHES, N_ROUNDS = 40, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    args, options = parser.parse_known_args()
    config, _ = train.parse(["--config", args.config, *options])
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        tables, _ = train.read(config, None, Path(folder))
    config, _ = run_training.settle(config, tables)
    rows = split_interactions(tables.interactions, config.data, config.seed).refit
    schema = fit_schema(tables, rows, config.data)
    catalogue = build_catalogue(tables.items, rows, schema)
    size = recipe_of(config.model).batch_size
    data = InteractionsDataModule(rows, rows.iloc[:0], tables.users, catalogue, schema, size, config.seed)
    model = run_training.make_model(config, schema, catalogue, data)
    batches = [data.examples[plan] for plan in data.examples.plan(0, 0)[:N_BATCHES]]
    is_halved = config.trainer.get("precision") == "bf16-mixed"
    ours = median(loader_rates(data))
    naive = median(one_by_one_rates(data, size))
    print(f"one core's matrix products  {gigaflops():8.1f} GFLOP/s ({torch.get_num_threads()} threads)")
    print(f"training steps              {median(step_rates(model, batches, is_halved)):8,.0f} targets/s")
    print(
        f"loader alone                {ours:8,.0f} targets/s, {ours / naive:.1f} x a Dataset of samples ({naive:,.0f})"
    )


def timed(work: Callable[[], int]) -> Iterator[float]:
    """Yield the targets a second of each round; the first, which warms up, is left out."""
    for number in range(N_ROUNDS + 1):
        started = time.process_time()
        n_targets = work()
        if number:
            yield n_targets / (time.process_time() - started)


def loader_rates(data: InteractionsDataModule) -> Iterator[float]:
    """Time the loader of a training through an epoch, its planning included."""

    def work() -> int:
        return sum(int(batch.is_target.sum()) for batch in train_loader(data.examples, data.seed))

    return timed(work)


def one_by_one_rates(data: InteractionsDataModule, size: int) -> Iterator[float]:
    users = np.random.default_rng(0).permutation(np.flatnonzero(data.sequences.events.counts))[: N_BATCHES * size]
    samples = SampleDataset(data.sequences, data.schema, data.withheld, seed=0)
    loader: DataLoader[Any] = DataLoader(samples, size, sampler=users.tolist(), collate_fn=collate)
    return timed(lambda: sum(int(batch.is_target.sum()) for batch in loader))


def step_rates(model: TwoTower, batches: list[Any], is_halved: bool) -> Iterator[float]:
    model.log = lambda *_, **__: None  # type: ignore[method-assign]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def work() -> int:
        for batch in batches:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=is_halved):
                loss = model.training_step(batch, 1)
            loss.backward()
            optimizer.step()
        return sum(int(batch.is_target.sum()) for batch in batches)

    return timed(work)


def gigaflops() -> float:
    left, right = torch.randn(1024, 512), torch.randn(512, 1024)
    times = []
    for _ in range(N_ROUNDS):
        started = time.process_time()
        torch.mm(left, right)
        times.append(time.process_time() - started)
    return 2 * 1024 * 512 * 1024 / median(times) / 1e9


if __name__ == "__main__":
    main()
