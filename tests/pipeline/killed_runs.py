"""Train with a chain of SIGKILLs at random moments, each time going on; compare the end.

Each attempt is a fork of this program: torch is imported once, and works with one thread. A fork says through a pipe
when a training step begins and when a call changes the disk; it is killed a random while after a random one of these.

    python -m tests.pipeline.killed_runs FOLDER ordered|baskets|retrain N_KILLS SEED
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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models.config import ModelConfig
from models.two_tower import TwoTower
from tests.pipeline.shop import open_shop
from tests.pipeline.small_runs import (
    BASKETS,
    ORDERED,
    config_of,
    make_tables,
    trace_exports,
)

from pipeline import retrain, run, stages

LONGEST_WAIT = 0.01  # seconds after an event
MODEL = ModelConfig(dim=8, max_epochs=9, patience=2, batch_size=16, learning_rate=0.03, dropout=0.3)
DATA = {"ordered": ORDERED, "baskets": BASKETS}
TRAIN = stages.train


def leave_weights(work: Any, seconds: dict[str, float]) -> None:
    """Train, and end before the export, which takes longer than the training."""
    trained = TRAIN(work, seconds)
    torch.save(
        [trained.towers.state_dict(), trained.epochs, trained.temperature],
        work.config.out / "weights.pt",
    )
    os._exit(0)


def run_training(out: Path, protocol: str) -> int:
    # the last training goes on from the first where events have an order, for several epochs
    stages.MAX_ADDED, stages.MANY_EVENTS, stages.CONTINUED_SHARE = 1.0, 0, 0.4
    stages.train = leave_weights  # type: ignore[assignment]
    run.run(
        config_of(out, DATA[protocol], model=MODEL, resume=True),
        make_tables(DATA[protocol]),
    )
    return 0


def run_shop(out: Path, _: str) -> int:
    open_shop(out.parent / "shop", BASKETS, max_epochs=20, dropout=0.3)
    return 0


def run_retrain(out: Path, _: str) -> int:
    """Train on what the shop logged, to the end: export and publish."""
    shop = out.parent / "shop"
    return retrain.main(
        [
            "--config",
            str(shop / "shop.yaml"),
            "--run",
            str(shop / "my"),
            "--out",
            str(out),
        ]
    )


def tell(pipe: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """Say through the pipe that the call begins."""

    def telling(*args: Any, **kwargs: Any) -> Any:
        os.write(pipe, b".")
        return call(*args, **kwargs)

    return telling


def start(run: Callable[[Path, str], int], out: Path, protocol: str) -> tuple[int, int]:
    """Fork a run; return its process and where its events come."""
    events, pipe = os.pipe()
    child = os.fork()
    if child:
        os.close(pipe)
        return child, events
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    TwoTower.training_step = tell(pipe, TwoTower.training_step)  # type: ignore[method-assign]
    os.fsync, os.replace = tell(pipe, os.fsync), tell(pipe, os.replace)
    code: Any = 1
    try:
        code = run(out, protocol)
    except SystemExit as end:
        code = end.code
    finally:
        os._exit(code or 0)  # Lightning ends on SIGTERM with no code


def finish(child: int, events: int) -> tuple[int, int]:
    """Wait for the end; return the status and the number of events."""
    seen = 0
    while read := os.read(events, 4096):
        seen += len(read)
    os.close(events)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), seen


def end_once(process: tuple[int, int], n_events: int, wait: float, number: int) -> int:
    """Send a signal after some events; return the status."""
    child, events = process
    for _ in range(n_events):
        if not os.read(events, 1):
            break
    time.sleep(wait)
    os.kill(child, number)
    return finish(child, events)[0]


def digests(folder: Path) -> dict[str, str]:
    """Hash what a run leaves and what is the same for the same seed."""
    found = {
        f"curve {path.parent.name}": path.read_bytes()
        for path in (folder / "logs").glob("*/metrics.csv")
    }
    if (folder / "weights.pt").exists():
        state, *rest = torch.load(folder / "weights.pt", weights_only=True)
        found["weights"] = (
            b"".join(tensor.numpy().tobytes() for tensor in state.values()) + repr(rest).encode()
        )
    if (folder / "bundle").exists():
        found |= {
            f"bundle {path.name}": path.read_bytes() for path in (folder / "bundle").iterdir()
        }
        found |= {
            path.name: path.read_bytes()
            for path in (folder.parent / "shop" / "my" / "bundle").iterdir()
        }
        found["log"] = next(
            folder.parent.glob(f"shop/my/feedback/trained-{folder.name}.parquet")
        ).read_bytes()
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


def report_chain(folder: Path, protocol: str, n_kills: int, seed: int) -> dict[str, Any]:
    """Compare a run that is killed again and again, and then stopped by SIGTERM, with one that is not."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    run = run_retrain if protocol == "retrain" else run_training
    if protocol == "retrain":
        finish(*start(run_shop, folder / "whole", protocol))
    code, n_events = finish(*start(run, folder / "whole", protocol))
    most = max(
        2, int(2.5 * n_events / (n_kills + 2))
    )  # together about as long as a run, with what is done again
    out = folder / "killed"
    codes = [
        end_once(
            start(run, out, protocol),
            int(rng.integers(1, most)),
            rng.uniform(0, LONGEST_WAIT),
            int(signal.SIGKILL),
        )
        for _ in range(n_kills)
    ]
    stopped = end_once(start(run, out, protocol), 3, 0.0, signal.SIGTERM)
    last, _ = finish(*start(run, out, protocol))
    left = [path.name for pattern in (".bundle-*", "*.part") for path in out.rglob(pattern)]
    report = {
        "code": code,
        "codes": codes,
        "stopped": stopped,
        "last": last,
        "left": left,
    }
    return {**report, "whole": digests(folder / "whole"), "killed": digests(out)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    trace_exports(pytest.MonkeyPatch())
    _, out, protocol, n_kills, seed = sys.argv
    print(json.dumps(report_chain(Path(out), protocol, int(n_kills), int(seed))))
