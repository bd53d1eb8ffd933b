"""A bundle of random data: real towers of full size, of which nothing but speed may be asked.

python tests/benchmarks/synthetic.py bundle FOLDER exclude|allow N_ITEMS HISTORY_LENGTH DIM
python tests/benchmarks/synthetic.py items FILE N_ROWS
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from datamodules.config import DataConfig, FeaturesConfig, SplitConfig  # noqa: E402
from models.config import ModelConfig  # noqa: E402
from pipeline.config import Config, EvaluationConfig  # noqa: E402
from pipeline.run import run  # noqa: E402
from serve.arrays import Repeats  # noqa: E402

N_USERS, N_EVENTS, N_CATEGORIES = (
    400,
    51,
    40,
)  # events of a user: the last one is the test
ROWS_AT_ONCE = 100_000
DAY = 86_400
UNTIL = 1_700_000_000
FEATURES = FeaturesConfig(
    user={"gender": "categorical", "age": "numeric"},
    item={"category": "categorical", "tags": "multi_categorical", "price": "numeric"},
    context={"device": "categorical", "hour": "hour_of_day"},
)


def train_bundle(
    folder: Path, repeats: Repeats, n_items: int, history_length: int, dim: int
) -> None:
    """Train for a few steps on random tables into `folder`: bundle and profiles."""
    split = SplitConfig(strict=True)
    ties = "simultaneous" if repeats == "allow" else "ordered"
    data = DataConfig(
        features=FEATURES,
        split=split,
        ties=ties,
        repeats=repeats,
        history_length=history_length,
    )
    model = ModelConfig(dim=dim, max_epochs=1)
    trainer = {
        "limit_train_batches": 2,
        "limit_val_batches": 1,
        "enable_progress_bar": False,
    }
    rng = np.random.default_rng(0)
    tables = (
        draw_events(n_items, repeats, rng),
        draw_users(rng),
        draw_items(np.arange(n_items), rng),
    )
    evaluation = EvaluationConfig(baselines=[])  # EASE would invert a matrix of items
    run(Config(data, model, trainer, folder, evaluation=evaluation), tables)


def draw_items(item_ids: np.ndarray, rng: np.random.Generator) -> pd.DataFrame:
    """Draw the features of items."""
    tags = np.array([f"t{number}|t{number // 2}" for number in range(N_CATEGORIES)], dtype=object)
    return pd.DataFrame(
        {
            "item_id": item_ids,
            "category": np.array([f"c{number}" for number in range(N_CATEGORIES)], dtype=object)[
                rng.integers(N_CATEGORIES, size=len(item_ids))
            ],
            "tags": tags[rng.integers(N_CATEGORIES, size=len(item_ids))],
            "price": rng.lognormal(1, 1, len(item_ids)),
        }
    )


def draw_users(rng: np.random.Generator) -> pd.DataFrame:
    gender = rng.choice(np.array(["f", "m"], dtype=object), N_USERS)
    return pd.DataFrame(
        {
            "user_id": np.arange(N_USERS),
            "gender": gender,
            "age": rng.normal(40, 10, N_USERS),
        }
    )


def draw_events(n_items: int, repeats: Repeats, rng: np.random.Generator) -> pd.DataFrame:
    """Draw as many events of each user, of distinct items unless repeats are allowed."""
    few = N_EVENTS if repeats == "exclude" else 60  # items that a user chooses from
    choices = np.stack([rng.choice(n_items, few, replace=False) for _ in range(N_USERS)])
    if repeats == "allow":
        choices = np.stack([rng.choice(row, N_EVENTS) for row in choices])
    times = UNTIL - np.sort(rng.integers(0, 300, choices.shape), axis=1)[:, ::-1] * DAY
    events = {
        "user_id": np.repeat(np.arange(N_USERS), N_EVENTS),
        "item_id": choices.ravel(),
        "datetime": times.ravel(),
    }
    return pd.DataFrame(
        events | {"device": rng.choice(np.array(["phone", "web"], dtype=object), choices.size)}
    )


def write_items(path: Path, n_rows: int) -> None:
    """Write items that no bundle knows, a part at a time."""
    rng = np.random.default_rng(1)
    starts = range(0, n_rows, ROWS_AT_ONCE)
    parts = (
        draw_items(np.arange(start, min(start + ROWS_AT_ONCE, n_rows)), rng) for start in starts
    )
    tables = (pa.Table.from_pandas(part, preserve_index=False) for part in parts)
    first = next(tables)
    with pq.ParquetWriter(path, first.schema) as writer:
        for table in (first, *tables):
            writer.write_table(table)


def main() -> None:
    what, path, *rest = sys.argv[1:]
    if what == "items":
        write_items(Path(path), int(rest[0]))
    else:
        repeats, *sizes = rest
        train_bundle(Path(path), "allow" if repeats == "allow" else "exclude", *map(int, sizes))


if __name__ == "__main__":
    main()
