"""Retrain, judge and let take over, killed at one step after the other, each time going on; compare the end.

Each attempt is a fork of this program, which ends itself by SIGKILL where its step begins or has just ended.

    python -m tests.pipeline.killed_gate FOLDER
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from models.two_tower import TwoTower
from service.registry import Registry, publish_version
from service.sources import RegistrySource
from tests.pipeline.shop import open_shop
from tests.pipeline.small_runs import BASKETS, trace_exports

from evaluation import gate
from pipeline import retrain

LIMITS = ("--loss", "1", "--slice-loss", "1", "--coverage-loss", "1")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(
    owner: Any, name: str, is_time: Callable[..., bool] = lambda *args, **kwargs: True
) -> None:
    """Let the process end when a call begins."""
    call = getattr(owner, name)

    def dying(*args: Any, **kwargs: Any) -> Any:
        if is_time(*args, **kwargs):
            die()
        return call(*args, **kwargs)

    setattr(owner, name, dying)


def after(owner: Any, name: str) -> None:
    """Let the process end when a call is over."""
    call = getattr(owner, name)

    def dying(*args: Any, **kwargs: Any) -> None:
        call(*args, **kwargs)
        die()

    setattr(owner, name, dying)


def is_step(step: str) -> Callable[..., bool]:
    return lambda registry, name, **facts: name == step


def is_late(towers: TwoTower, *_: Any) -> bool:
    return towers.current_epoch == 1


POINTS: dict[str, Callable[[], None]] = {
    "log exported": lambda: after(retrain, "export_log"),
    "in the training": lambda: before(TwoTower, "training_step", is_late),
    "trained": lambda: before(gate, "decide"),
    "verdict written": lambda: before(gate, "audit", is_step("judged")),
    "published": lambda: after(gate, "publish_version"),
    "published and logged": lambda: before(gate, "activate"),
    "activated": lambda: before(gate, "audit", is_step("activated")),
    "": lambda: None,
}


def fork(work: Callable[[], Any]) -> int:
    """Work in a fork, since what torch has begun does not outlive another one; return its status."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        os._exit(work() or 0)
    finally:
        os._exit(1)


def open_shops(folder: Path) -> None:
    whole = folder / "whole"
    open_shop(whole, BASKETS, max_epochs=14)  # of which two when it goes on
    publish_version(Registry(whole / "registry"), whole / "my" / "bundle", is_activated=True)
    shutil.copytree(whole, folder / "killed")


def attempt(shop: Path, prepare: Callable[[], None]) -> int:
    """Run the command, prepared to be killed."""
    prepare()
    words = [
        "--config",
        str(shop / "shop.yaml"),
        "--run",
        str(shop / "my"),
        "--registry",
        str(shop / "registry"),
    ]
    return retrain.main([*words, "--state", str(shop / "my" / "state"), *LIMITS])


def describe(shop: Path) -> dict[str, Any]:
    """Say what a service would load, what lies in the registry and what is said of it."""
    registry = Registry(shop / "registry")
    recommender, reason = RegistrySource(registry).start()
    log, verdict = registry.path / gate.AUDIT, shop / "my-2" / retrain.VERDICT
    steps = (
        [json.loads(line)["step"] for line in log.read_text().splitlines()] if log.exists() else []
    )
    return {
        "loaded": recommender.version,
        "reason": reason,
        "versions": sorted(registry.versions()),
        "history": [registry.current(), *registry.past()],
        "steps": steps,
        "verdict": json.loads(verdict.read_text()) if verdict.exists() else None,
        "log": hashlib.sha256(
            (shop / "my" / "feedback" / "trained-my-2.parquet").read_bytes()
        ).hexdigest(),
    }


def main(folder: Path) -> None:
    trace_exports(pytest.MonkeyPatch())
    assert fork(lambda: open_shops(folder)) == 0
    code = fork(lambda: attempt(folder / "whole", POINTS[""]))
    report: dict[str, Any] = {
        "code": code,
        "whole": describe(folder / "whole"),
        "killed": {},
    }
    for point, prepare in POINTS.items():
        code = fork(partial(attempt, folder / "killed", prepare))
        report["killed"][point] = {"code": code, **describe(folder / "killed")}
    print(json.dumps(report))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
