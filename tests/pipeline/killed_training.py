"""Train with a chain of SIGKILLs at random moments, each time going on from the last checkpoint; compare the end.

Run as a program, since each attempt is a fork of it: torch is imported once, and works with one thread. A forked run
says through a pipe when a training step begins and when a call changes the disk; the program kills it a random
while after a random one of these events.

    python -m tests.pipeline.killed_training FOLDER ordered|baskets N_KILLS weights|run SEED
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import pipeline.stages
import train
from datamodules.config import DataConfig, FeaturesConfig, SplitConfig
from models.config import ModelConfig
from models.two_tower import TwoTower

DAY = 86_400
START = 1_600_000_000
N_USERS, N_ITEMS, N_TASTES = 300, 60, 5
LONGEST_WAIT = 0.01  # seconds after an event
FEATURES = FeaturesConfig(user={"gender": "categorical"}, item={"category": "categorical"})
DATA = {
    "ordered": DataConfig(features=replace(FEATURES, context={"hour": "hour_of_day"})),
    "baskets": DataConfig(
        features=FEATURES, split=SplitConfig("time", at="2021-06-01"), ties="simultaneous", repeats="allow"
    ),
}
MODEL = ModelConfig(
    dim=8, affinity_dim=4, max_epochs=9, patience=2, batch_size=32, warmup_steps=3, learning_rate=0.03, dropout=0.3
)


def make_tables(is_baskets: bool) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Users keep to the items of one taste."""
    rng = np.random.default_rng(3)
    users = pd.DataFrame({"user_id": [f"u{i:03d}" for i in range(N_USERS)]})
    users["gender"] = rng.choice(np.array(["f", "m", None], dtype=object), N_USERS)
    items = pd.DataFrame({"item_id": np.arange(N_ITEMS) + 100})
    items["category"] = [f"c{i % N_TASTES}" for i in range(N_ITEMS)]
    rows = []
    for user in range(N_USERS):
        own = np.flatnonzero(np.arange(N_ITEMS) % N_TASTES == user % N_TASTES)
        days = np.sort(rng.choice(300, 7, replace=False))
        for day in days:
            basket = rng.choice(own, 2, replace=False) if is_baskets else [own[day % len(own)]]
            rows += [(f"u{user:03d}", item + 100, START + int(day) * DAY) for item in basket]
    return pd.DataFrame(rows, columns=["user_id", "item_id", "datetime"]), users, items


def tell(pipe: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """Say through the pipe that the call begins."""

    def telling(*args: Any, **kwargs: Any) -> Any:
        os.write(pipe, b".")
        return call(*args, **kwargs)

    return telling


def leave_weights(config: train.Config, trained: train.Trained, *_: Any) -> None:
    """Stand in for the export, which takes longer than the training."""
    torch.save([trained.towers.state_dict(), trained.epochs, trained.temperature], config.out / "weights.pt")
    os._exit(0)


def attempt(config: train.Config, tables: Any, what: str, pipe: int) -> None:
    """Run in this process; it ends with status 0 if it comes to the end."""
    warnings.simplefilter("ignore")
    # the last training goes on from the first where events have an order, for several epochs
    run_training.MOST_ADDED, run_training.MANY_EVENTS, run_training.CONTINUED_SHARE = 1.0, 0, 0.4
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    TwoTower.training_step = tell(pipe, TwoTower.training_step)  # type: ignore[method-assign]
    os.fsync, os.replace = tell(pipe, os.fsync), tell(pipe, os.replace)
    if what == "weights":
        train.stage_bundle = leave_weights  # type: ignore[assignment]
    try:
        train.run(config, tables)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        os._exit(1)
    os._exit(0)


def start(config: train.Config, tables: Any, what: str) -> tuple[int, int]:
    """Fork a run; return its process and where its events come."""
    events, pipe = os.pipe()
    child = os.fork()
    if not child:
        os.close(events)
        attempt(config, tables, what, pipe)
    os.close(pipe)
    return child, events


def wait_for(events: int, n: int) -> int:
    """Read n events or to the end; return how many there were."""
    return next((seen for seen in range(n) if not os.read(events, 1)), n)


def finish(child: int, events: int) -> tuple[int, int]:
    """Wait for the end; return the status and the number of events."""
    seen = 0
    while read := os.read(events, 4096):
        seen += len(read)
    os.close(events)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), seen


def kill_in_chain(config: train.Config, tables: Any, what: str, n_kills: int, most: int, seed: int) -> list[int]:
    """Kill one attempt after another, then let one come to its end; return the events each of them came to."""
    rng, lengths = np.random.default_rng(seed), []
    while len(lengths) < n_kills:
        child, events = start(config, tables, what)
        lengths.append(wait_for(events, int(rng.integers(1, most))))
        time.sleep(rng.uniform(0, LONGEST_WAIT))
        os.kill(child, signal.SIGKILL)
        code, _ = finish(child, events)
        if code != -signal.SIGKILL:
            raise SystemExit(f"attempt {len(lengths)} of the chain ended with {code} before it was killed")
    code, seen = finish(*start(config, tables, what))
    if code:
        raise SystemExit(f"the last attempt ended with {code}")
    return [*lengths, seen]


def digests(folder: Path) -> dict[str, str]:
    """Hash everything that a run leaves and that is the same for the same seed."""
    files = [path for name in ("bundle", "profiles") for path in (folder / name).glob("*.*")]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != ".lock"}
    if (folder / "metrics.json").exists():
        metrics = json.loads((folder / "metrics.json").read_text())
        del metrics["timing"]
        found["metrics"] = json.dumps(metrics).encode()
    if (folder / "weights.pt").exists():
        state, *rest = torch.load(folder / "weights.pt", weights_only=True)
        found["weights"] = b"".join(tensor.numpy().tobytes() for tensor in state.values()) + repr(rest).encode()
    for path in (folder / "logs").glob("*/metrics.csv"):
        found[f"curve {path.parent.name}"] = path.read_bytes()
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


def report_chain(folder: Path, protocol: str, n_kills: int, what: str, seed: int) -> dict[str, Any]:
    """Compare a run that is killed again and again with one that is not."""
    tables = make_tables(protocol == "baskets")
    config = train.Config(DATA[protocol], MODEL, {"enable_progress_bar": False}, folder / "whole", resume=True)
    code, n_events = finish(*start(config, tables, what))
    chained = replace(config, out=folder / "killed")
    most = max(2, int(2.5 * n_events / (n_kills + 2)))  # together about as long as a run, with what is done again
    lengths = kill_in_chain(chained, tables, what, n_kills, most, seed)
    left = [path.name for pattern in (".bundle-*", ".beside-*", "*.part") for path in chained.out.rglob(pattern)]
    report = {"code": code, "events": n_events, "killed_after": lengths, "left": left}
    return {**report, "whole": digests(config.out), "killed": digests(chained.out)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    _, out, protocol, n_kills, what, seed = sys.argv
    print(json.dumps(report_chain(Path(out), protocol, int(n_kills), what, int(seed))))
