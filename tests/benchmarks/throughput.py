"""Targets a second of whole training steps and of the loader alone, beside matrix products of the same run.

OMP_NUM_THREADS=1 python tests/benchmarks/throughput.py --config configs/amazon-beauty.yaml [train.py options]
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

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from datamodules.batch import EpochSampler, make_loader  # noqa: E402
from datamodules.splits import split_interactions  # noqa: E402
from models.two_tower import TwoTower  # noqa: E402
from pipeline.config import parse  # noqa: E402
from pipeline.stages import make_data, make_model  # noqa: E402
from pipeline.tables import prepare  # noqa: E402

N_BATCHES, N_ROUNDS = 40, 5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    args, options = parser.parse_known_args()
    config, _ = parse(["--config", args.config, *options])
    with tempfile.TemporaryDirectory() as folder:
        work = prepare(config, None, Path(folder))
    split = split_interactions(work.tables.interactions, work.config.data, work.config.seed)
    data = make_data(work, split, split.refit, (split.refit, split.refit.iloc[:0]), None)
    model = make_model(work.recipe, data, work.config.seed)
    batches = [data.examples[plan] for plan in data.examples.plan(0, 0)[:N_BATCHES]]
    steps = median(step_rates(model, batches))
    loaded = median(
        timed(
            lambda: sum(
                int(batch.is_target.sum())
                for batch in make_loader(data.examples, EpochSampler(data.examples, data.seed))
            )
        )
    )
    print(f"matrix products  {gigaflops():8.1f} GFLOP/s ({torch.get_num_threads()} threads)")
    print(f"training steps   {steps:8,.0f} targets/s")
    print(f"loader alone     {loaded:8,.0f} targets/s, {loaded / steps:.1f} x the steps")


def timed(work: Callable[[], int]) -> Iterator[float]:
    """Yield the targets a second of each round; the first, which warms up, is left out."""
    for number in range(N_ROUNDS + 1):
        started = time.process_time()
        n_targets = work()
        if number:
            yield n_targets / (time.process_time() - started)


def step_rates(model: TwoTower, batches: list[Any]) -> Iterator[float]:
    model.log = lambda *_, **__: None  # type: ignore[method-assign]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def work() -> int:
        for batch in batches:
            optimizer.zero_grad()
            model.training_step(batch, 1).backward()
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
