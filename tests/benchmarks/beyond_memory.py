"""Prepare and train on generated events on disk: seconds and peak memory of each stage.

    python -m tests.benchmarks.beyond_memory FOLDER [N_EVENTS ...] [--users-per-event 0.02] [--items 1000000]
        [--steps 50] [--memory] [--prepare]

Each size is a process of its own. Peaks are of resident memory: all of it, and without pages of mapped files. Events
are drawn by a seed: users and items follow power laws, a part of a user's events is of items of their taste.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_FILE = 5_000_000
START, YEAR = 1_700_000_000, 365 * 86_400
N_TASTES = 1_000
STAGES = {
    "pipeline.tables": ("type_interactions", "read_tables", "store_events", "count_data"),
    "pipeline.run": ("examine", "measure", "stage_profiles"),
    "pipeline.pack": ("stage_bundle",),
    "pipeline.stages": ("make_data", "make_model", "fit_stage", "choose", "apply"),
}


def generate(folder: Path, n_events: int, n_users: int, n_items: int) -> None:
    """Write events in files of 5 million rows, in no order; files of an earlier call are taken."""
    marker = folder / "generated.json"
    declared = {"events": n_events, "users": n_users, "items": n_items}
    if marker.exists() and json.loads(marker.read_text()) == declared:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, first in enumerate(range(0, n_events, ROWS_PER_FILE)):
        rng = np.random.default_rng([17, number])
        n = min(ROWS_PER_FILE, n_events - first)
        users = (n_users * rng.random(n) ** 1.5).astype(np.int64)
        popular = (n_items * rng.random(n) ** 3).astype(np.int64)
        near = popular - popular % N_TASTES + users % N_TASTES
        items = np.where(rng.random(n) < 0.7, np.minimum(near, n_items - 1), popular)
        kinds = pa.DictionaryArray.from_arrays(
            pa.array((rng.random(n) < 0.2).astype(np.int8)), pa.array(["view", "purchase"])
        )
        weights = rng.integers(1, 5, n).astype(np.float64)
        weights[rng.random(n) < 1e-5] = np.nan  # these rows are rejected
        columns = {
            "user_id": users,
            "item_id": items,
            "datetime": rng.integers(START, START + YEAR, n),
            "event": kinds.cast(pa.string()),
            "weight": weights,
        }
        pq.write_table(pa.table(columns), folder / f"{number:04d}.parquet")
    marker.write_text(json.dumps(declared))


def read_memory() -> tuple[int, int]:
    """Return the resident memory of this process in MB: all of it, and without mapped files."""
    status = Path("/proc/self/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return tuple(int(fields[name].split()[0]) // 1024 for name in ("VmRSS", "RssAnon"))


class Watch:
    """Sum the seconds of each stage, and keep its peaks of memory."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}
        self.open: list[str] = ["all"]
        self.begun = time.monotonic()
        threading.Thread(target=self.sample, daemon=True).start()

    def sample(self) -> None:
        while True:
            resident, anonymous = read_memory()
            for name in self.open:
                stage = self.stages.setdefault(name, {"seconds": 0, "peak": 0, "anonymous": 0})
                stage["peak"] = max(stage["peak"], resident)
                stage["anonymous"] = max(stage["anonymous"], anonymous)
            time.sleep(0.05)

    def wrap(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            self.open = [*self.open, name]
            begun = time.monotonic()
            try:
                return work(*args, **options)
            finally:
                seconds = time.monotonic() - begun
                stage = self.stages.setdefault(name, {"seconds": 0, "peak": 0, "anonymous": 0})
                stage["seconds"] = round(stage["seconds"] + seconds, 2)
                self.open = self.open[:-1]
                print(f"{name}: {seconds:.1f} s, {read_memory()} MB now", flush=True)

        return timed


def measure(events: Path, out: Path, on_disk: bool, steps: int, prepares: bool) -> dict[str, Any]:
    """Run everything on the events of a folder, or what comes before the first step of a training.

    `steps` bounds each training; 0 does not.
    """
    from importlib import import_module

    from datamodules.config import DataConfig, SplitConfig, TableConfig
    from models.config import ModelConfig
    from pipeline.config import Config, EvaluationConfig

    watch = Watch()
    for module, names in STAGES.items():
        imported = import_module(module)
        for name in names:
            setattr(imported, name, watch.wrap(name, getattr(imported, name)))
    trainer = {"enable_progress_bar": False}
    if steps:
        trainer |= {"limit_train_batches": steps, "limit_val_batches": 1}
    config = Config(
        data=DataConfig(
            TableConfig(str(events / "*.parquet")),
            split=SplitConfig("time", at="2024-11-01"),
            on_disk=on_disk,
        ),
        model=ModelConfig(
            dim=32, n_blocks=1, max_epochs=1, batch_size=256, neighbours=0, negatives=1024
        ),
        trainer=trainer,
        out=out,
        overwrite=True,
        evaluation=EvaluationConfig(baselines=["popularity"]),
    )
    run = import_module("pipeline.run")
    if prepares:
        begun = time.monotonic()
        prepare_alone(config, watch)
        watch.stages["all"]["seconds"] = round(time.monotonic() - begun, 2)
        return {"stages": watch.stages}
    begun = time.monotonic()
    done = run.run(config)
    watch.stages["all"]["seconds"] = round(time.monotonic() - begun, 2)
    ndcg = done.metrics["test"]["bascule"]["novel"]["NDCG@10"]
    return {"stages": watch.stages, "ndcg": ndcg}


def prepare_alone(config: Any, watch: Watch) -> None:
    """Prepare, map the events of both trainings, make 50 batches of an epoch, and write profiles."""
    from itertools import islice

    from serve.profiles import stage_profiles
    from tests.benchmarks.measured import profile

    from pipeline import pack, stages, tables

    config.out.mkdir(exist_ok=True)
    work = watch.wrap("prepare", tables.prepare)(config, None, config.out)
    split = work.split
    data = stages.make_data(work, "train", "train", split.validation, split.validation_at)
    last = stages.make_last_data(work)
    plans = watch.wrap("plan", lambda: list(islice(last.examples.plan(1, 1), 50)))()
    watch.wrap("50 batches", lambda: [last.examples[plan] for plan in plans])()
    folder = config.out / "profiles"
    if work.on_disk is None:
        made = profile(work, data.schema)
        watch.wrap("profiles", stage_profiles)(folder, [made], "measured")
        return
    made = pack.list_profiles(work.on_disk, data.schema)
    watch.wrap("profiles", stage_profiles)(folder, made, "measured")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("n_events", type=int, nargs="*", default=[1_000_000, 3_000_000])
    parser.add_argument("--users-per-event", type=float, default=0.02)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=50, help="of each training; 0: one epoch")
    parser.add_argument("--memory", action="store_true", help="read all into memory instead")
    parser.add_argument("--prepare", action="store_true", help="all but training and export")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for n_events in options.n_events:
        n_users = int(n_events * options.users_per_event)
        events = options.folder / f"events-{n_events}"
        if options.one:
            out = options.folder / f"run-{n_events}"
            on_disk = not options.memory
            done = measure(events, out, on_disk, options.steps, options.prepare)
            path = options.folder / f"measured-{n_events}{'-memory' * options.memory}.json"
            path.write_text(json.dumps(done, indent=1))
            continue
        generate(events, n_events, n_users, options.items)
        words = [str(options.folder), str(n_events), "--one", f"--steps={options.steps}"]
        words += [word for word in ("--memory", "--prepare") if getattr(options, word[2:])]
        subprocess.run([sys.executable, "-m", "tests.benchmarks.beyond_memory", *words], check=True)


if __name__ == "__main__":
    main()
