"""Any logger of Lightning follows the trainings; MLflow and W&B too.

    from pytorch_lightning.loggers import MLFlowLogger, WandbLogger  # pip install mlflow, wandb

    MLFlowLogger("bascule", tracking_uri="http://mlflow:5000")
    WandbLogger(project="bascule")

A configuration file cannot hold an object, so that the run starts from Python. In the wheel the
imports are `bascule.pipeline.config` and `bascule.pipeline.run`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from pytorch_lightning.loggers import CSVLogger

from pipeline.config import parse
from pipeline.run import run


def make_events() -> pd.DataFrame:
    """Draw 60 people who each keep to one of three shelves."""
    rng = np.random.default_rng(0)
    events = pd.DataFrame({"user_id": np.repeat(np.arange(60), 10)})
    events["item_id"] = rng.integers(12, size=600) * 3 + events["user_id"] % 3
    events["datetime"] = 1_700_000_000 + np.sort(rng.integers(10_000_000, size=600))
    return events


def main() -> None:
    """Run as `bascule train --config shop.json --out run` does, with a logger."""
    make_events().to_csv("events.csv", index=False)
    content = {
        "data": {"interactions": {"path": "events.csv"}},
        "model": {"max_epochs": 3},
        "evaluation": {"baselines": ["popularity"]},
    }
    Path("shop.json").write_text(json.dumps(content))
    config, text = parse(["--config", "shop.json", "--out", "run"])

    logger = CSVLogger("lightning", name="shop")
    run(replace(config, trainer={"logger": logger, "log_every_n_steps": 1}), text=text)

    (path,) = Path(logger.log_dir).glob("metrics.csv")
    print(pd.read_csv(path).tail(3))


if __name__ == "__main__":
    main()
