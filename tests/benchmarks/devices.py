"""Trainings on one device and on several, and SASRec of RecTools on the same card: speed, memory, time to quality.

    python tests/benchmarks/devices.py --data DATA/movielens-1m [--devices 1 2] [--rectools ENV/bin/python]
    OMP_NUM_THREADS=1 python tests/benchmarks/devices.py --sample --devices 1 2 --epochs 2     (without a card)

Prints a row per training: targets a second, seconds of the training until its best validation and in all, most memory
of the cards and of a process, NDCG@10 of each user's last event among the items that they do not have. RecTools has an
environment of its own (`pip install "rectools[torch]"`), whose interpreter is named, and the same last events.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[2]
HEAD = (
    "training",
    "targets/s",
    "s to best",
    "s in all",
    "GiB of cards",
    "GiB of a process",
    "NDCG@10",
)
COLUMNS = ["user_id", "item_id", "datetime"]
SASREC = """
import json, resource, sys, time
import numpy as np, pandas as pd
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

train, test, epochs, dim, length = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
names = {"user_id": Columns.User, "item_id": Columns.Item, "datetime": Columns.Datetime}
events = pd.read_parquet(train).rename(columns=names).assign(**{Columns.Weight: 1.0})
last = pd.read_parquet(test).set_index("user_id")["item_id"]
dataset = Dataset.construct(events)
model = SASRecModel(n_factors=dim, session_max_len=length, epochs=epochs)
begun = time.perf_counter()
model.fit(dataset)
seconds = time.perf_counter() - begun
lists = model.recommend(last.index.to_numpy(), dataset, k=10, filter_viewed=True)
hits = lists[lists[Columns.Item] == lists[Columns.User].map(last)]
ndcg = float((1 / np.log2(hits[Columns.Rank] + 1)).sum() / len(last))
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"rate": epochs * len(events) / seconds, "seconds": seconds, "ndcg": ndcg, "kib": memory}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of interactions.parquet")
    parser.add_argument(
        "--sample", action="store_true", help="150 users of the bundled sample instead"
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[1])
    parser.add_argument("--rectools", help="an interpreter with RecTools")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--length", type=int, default=50)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_events(args, folder)
        print("  ".join(HEAD))
        for n_devices in args.devices:
            print(measure(args, folder, n_devices), flush=True)
        if args.rectools:
            print(measure_rectools(args, folder), flush=True)


def write_events(args: argparse.Namespace, folder: Path) -> None:
    """Write all events, and those before the last of each user beside these."""
    if args.sample:
        events = pd.read_parquet(ROOT / "datamodules" / "sample" / "interactions.parquet")
        events = events.drop_duplicates(["user_id", "item_id"])
        events = events[events["user_id"].isin(events["user_id"].unique()[:150])]
    else:
        events = pd.read_parquet(args.data / "interactions.parquet")
    events = events[COLUMNS].sort_values(["user_id", "datetime"], kind="stable")
    is_last = ~events.duplicated("user_id", keep="last")
    events.to_parquet(folder / "all.parquet")
    events[~is_last].to_parquet(folder / "train.parquet")
    events[is_last].to_parquet(folder / "last.parquet")


def measure(args: argparse.Namespace, folder: Path, n_devices: int) -> str:
    """Train the towers alone, by ids in their order, and return a row."""
    out = folder / f"run-{n_devices}"
    options = {
        "data.interactions.path": folder / "all.parquet",
        "data.split.kind": "leave_one_out",
        "data.split.strict": "true",
        "data.ties": "ordered",
        "data.repeats": "exclude",
        "data.history_length": args.length,
        "model.dim": args.dim,
        "model.neighbours": 0,
        "evaluation.baselines": "[]",
        "trainer.devices": n_devices,
        "trainer.precision": args.precision,
        "out": out,
    }
    if args.epochs:
        options["model.max_epochs"] = args.epochs
    # an empty configuration, so that the bundled sample with its features is not meant
    config = folder / "config.yaml"
    config.write_text("seed: 0\n")
    words = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, str(ROOT / "train.py"), f"--config={config}", *words]
    with watch_cards() as cards:
        kib = run(command)

    content = json.loads((out / "metrics.json").read_text())
    timing = content["timing"]
    ndcg = content["test"]["bascule"]["novel"]["NDCG@10"]
    return format_row(
        f"Bascule, {n_devices} devices",
        timing["targets_per_second"],
        timing["seconds_to_best"],
        timing["training"],
        max(cards),
        kib,
        ndcg,
    )


def measure_rectools(args: argparse.Namespace, folder: Path) -> str:
    """Train SASRec with its defaults but for the sizes, and return a row."""
    epochs = args.epochs or 30
    sizes = [str(epochs), str(args.dim), str(args.length)]
    paths = [str(folder / "train.parquet"), str(folder / "last.parquet")]
    command = [args.rectools, "-c", SASREC, *paths, *sizes]
    with watch_cards() as cards:
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder)
    found = json.loads(done.stdout.splitlines()[-1])
    return format_row(
        "SASRec (RecTools)",
        found["rate"],
        float("nan"),
        found["seconds"],
        max(cards),
        found["kib"],
        found["ndcg"],
    )


def run(command: Sequence[str]) -> int:
    """Run a command; return the KiB of its largest process, its children included."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command[1]} failed: {status}")
    return usage.ru_maxrss


@contextmanager
def watch_cards() -> Iterator[list[float]]:
    """Collect the GiB that all cards hold, twice a second; 0 without a card."""
    gib = [0.0]
    ended = threading.Event()

    def look() -> None:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        while not ended.wait(0.5):
            text = subprocess.run(query, capture_output=True, text=True).stdout
            gib.append(sum(map(float, text.split())) / 1024)

    if shutil.which("nvidia-smi"):
        threading.Thread(target=look, daemon=True).start()
    try:
        yield gib
    finally:
        ended.set()
        time.sleep(0.1)


def format_row(
    name: str, rate: float, to_best: float, seconds: float, cards: float, kib: int, ndcg: float
) -> str:
    values = f"{rate:9,.0f}  {to_best:9.1f}  {seconds:8.1f}  {cards:12.2f}  {kib / 2**20:16.2f}  {ndcg:7.4f}"
    return f"{name}  {values}"


if __name__ == "__main__":
    main()
