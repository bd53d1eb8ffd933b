"""Search with a chain of SIGKILLs at random moments, each time by the same command; compare with a whole search.

python -m tests.pipeline.killed_search FOLDER N_KILLS SEED
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
import yaml
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from tuning.study import DATABASE

import train
from models.two_tower import TwoTower
from tests.pipeline.killed_training import LONGEST_WAIT, finish, make_tables, tell, wait_for

N_TRIALS = 3
CONFIG: dict[str, Any] = {
    "data": {"features": {"item": {"category": "categorical"}}},
    "model": {"dim": 8, "n_heads": 2, "max_epochs": 2, "batch_size": 64, "warmup_steps": 3, "id_dropout": 0.1},
    "trainer": {"enable_progress_bar": False},
}


def write_config(folder: Path, **model: Any) -> Path:
    """Write tables and configuration into a folder; return the path of the configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    data = dict(CONFIG["data"])
    for name, table in zip(("interactions", "users", "items"), make_tables(False), strict=True):
        table.to_parquet(folder / f"{name}.parquet")
        data[name] = {"path": str(folder / f"{name}.parquet")}
    path = folder / "shop.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "data": data, "model": {**CONFIG["model"], **model}}))
    return path


def attempt(words: list[str], pipe: int) -> None:
    """Search in this process; it ends with the status of the command."""
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    TwoTower.training_step = tell(pipe, TwoTower.training_step)  # type: ignore[method-assign]
    os.fsync, os.replace = tell(pipe, os.fsync), tell(pipe, os.replace)
    try:
        code = train.main(words)
    except SystemExit as end:
        code = int(str(end.code))
    os._exit(code)


def start(words: list[str]) -> tuple[int, int]:
    """Fork a search; return its process and where its events come."""
    events, pipe = os.pipe()
    child = os.fork()
    if not child:
        os.close(events)
        attempt(words, pipe)
    os.close(pipe)
    return child, events


def kill_once(words: list[str], n_events: int, wait: float, number: int = signal.SIGKILL) -> int:
    """End an attempt after some events; return its status."""
    child, events = start(words)
    wait_for(events, n_events)
    time.sleep(wait)
    os.kill(child, number)
    return finish(child, events)[0]


def read_trials(folder: Path) -> list[FrozenTrial]:
    storage = RDBStorage(f"sqlite:///{folder}/tuning/{DATABASE}")
    try:
        return optuna.load_study(study_name="study", storage=storage).get_trials()
    finally:
        storage.remove_session()
        storage.engine.dispose()


def read_study(folder: Path) -> dict[str, Any]:
    """Return what counts of a study, and how its trials ended."""
    trials = read_trials(folder)
    counted = [trial for trial in trials if trial.state.name in ("COMPLETE", "PRUNED")]
    return {
        "tried": [[trial.state.name, trial.params, trial.intermediate_values] for trial in counted],
        "states": [trial.state.name for trial in trials],
        "best": (folder / "tuning" / "best.yaml").read_text().replace(str(folder), "") if trials else "",
        "names": sorted(path.name for path in (folder / "tuning").iterdir() if not path.name.startswith("users-")),
    }


def report_chain(folder: Path, n_kills: int, seed: int) -> dict[str, Any]:
    """Compare a search that is killed again and again with one that is not."""
    words = ["--config", str(write_config(folder)), "--tune.trials", str(N_TRIALS), "--out"]
    rng = np.random.default_rng(seed)
    code, n_events = finish(*start([*words, str(folder / "whole")]))
    killed = [*words, str(folder / "killed")]
    most = max(2, int(2.5 * n_events / (n_kills + 2)))
    codes = [kill_once(killed, int(rng.integers(1, most)), rng.uniform(0, LONGEST_WAIT)) for _ in range(n_kills)]
    told = kill_once(killed, 3, 0.0, signal.SIGTERM)
    last, _ = finish(*start(killed))
    found = {name: read_study(folder / name) for name in ("whole", "killed")}
    return {"code": code, "codes": codes, "told": told, "last": last, **found}


if __name__ == "__main__":
    torch.set_num_threads(1)
    _, out, n_kills, seed = sys.argv
    print(json.dumps(report_chain(Path(out), int(n_kills), int(seed))))
