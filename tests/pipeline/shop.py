"""A shop on disk: tables, a configuration, a finished run, and the log of a service that was asked since."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import train
import yaml
from datamodules.config import DataConfig
from serve.bundle import STATE, STATE_FILE
from service.event_log import Observation
from service.state import StateStore
from tests.pipeline.small_runs import DAY, QUIET, make_tables

MODEL = {"dim": 8, "max_epochs": 3, "batch_size": 16, "learning_rate": 0.01}
NEW_USER, NEW_ITEM = "newcomer", 999
DISMISSED = ("u002", 102)


def open_shop(folder: Path, data: DataConfig, **model: Any) -> Path:
    """Write tables and configuration, train, and log events; return the configuration, beside which the run is `my`."""
    folder.mkdir(parents=True)
    tables = make_tables(data)
    section: dict[str, Any] = {
        "features": {
            "user": {"gender": "categorical"},
            "item": {"category": "categorical"},
        }
    }
    section |= {
        "ties": data.ties,
        "repeats": data.repeats,
        "split": {"kind": data.split.kind, "at": data.split.at},
    }
    for name, table in zip(("interactions", "users", "items"), tables, strict=True):
        table.to_parquet(folder / f"{name}.parquet")
        section[name] = {"path": str(folder / f"{name}.parquet")}
    content = {
        "data": section,
        "model": MODEL | model,
        "trainer": QUIET,
        "evaluation": {"baselines": []},
    }
    (folder / "shop.yaml").write_text(yaml.safe_dump(content))
    assert train.main(["--config", str(folder / "shop.yaml"), "--out", str(folder / "my")]) == 0
    log_events(folder / "my", int(tables[0]["datetime"].max()) + DAY)
    return folder / "shop.yaml"


def log_events(run: Path, at: int) -> None:
    rng = np.random.default_rng(0)
    events = [
        Observation(f"u{user:03d}", 100 + int(rng.integers(35)), "buy", at + user)
        for user in range(40)
    ]
    events += [
        Observation(NEW_USER, item, "buy", at + 100 + item, 2.0) for item in (NEW_ITEM, 105, 110)
    ]
    with closing(StateStore(run / STATE / STATE_FILE)) as store:
        store.observe_many([*events, Observation(*DISMISSED, "dismiss", at + 5)])
