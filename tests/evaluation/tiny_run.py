"""What a finished run leaves, on a linear bundle: figures of a real evaluation, a data report, logs, hostile titles."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from evaluation.evaluate import Parts, evaluate
from evaluation.holdout import profiles_from_frame
from serve.bundle import Bundle
from serve.recommender import Recommender
from serve.schema import Schema
from tests.linear_bundle import DAY, UNTIL, N, item_ids, publish_linear

U = 61
HOSTILE = "<script>alert('&')</script>"
LOGS = {
    "select": "epoch,step,train_loss,val_ndcg,val_ndcg_all\n1,3,5.5,,\n1,3,,0.125,0.25\n2,7,4.25,,\n2,7,,0.1875,0.5\n",
    "final": "epoch,step,train_loss\n1,3,5.0\n2,7,4.0\n",
}
DATA: dict[str, Any] = {
    "counts": {
        "interactions": 1907,
        "users": U,
        "items": N,
        "users_table": 67,
        "items_table": 29,
    }
    | {"train": 1709, "validation": 83, "test": 115},
    "split": {
        "kind": "time",
        "validation_at": "2017-07-04T02:40:00Z",
        "test_at": "2017-07-14T02:40:00Z",
    },
    "ties": "simultaneous",
    "repeats": "allow",
    "time": {
        "first": "2017-04-05T02:40:00Z",
        "last": "2017-08-03T02:40:00Z",
        "days": 120.0,
    },
    "missing": {
        "interactions": {"user_id": 0.0},
        "users": {"sex": 0.375},
        "items": {"price": None},
    },
    "unlisted": {"users": 0.015625, "items": 0.0},
    "records": {"interactions": 1919, "users": 67, "items": 29},
    "rejected": {"null id": 7, "a | strange <reason>": 5},
    "dropped_columns": {"interactions": ["secret|column"], "users": [], "items": []},
    "cleaning": {"duplicate_events": 13, "negative_weights": 0},
    "cold": {
        "test_users_unseen": 0.03125,
        "test_items_unseen": 0.0,
        "test_pairs_owned_before": None,
    },
    "repeat_share": 0.4375,
    "long_tail": {"top_1%": 0.0625, "top_10%": 0.25, "gini": 0.546875},
    "history_length": {"p0": 1.0, "p50": 27.0, "p95": 43.0, "p100": 51.0},
    "leaks": [
        {
            "kind": "context",
            "column": "till",
            "power": 0.98,
            "message": "context 'till' tells <the> item",
        }
    ],
}
QUIET_SPLIT = {"kind": "leave_one_out", "validation_at": None, "test_at": None}


@dataclass(frozen=True)
class TinyRun:
    folder: Path
    content: dict[str, Any]
    recommender: Recommender
    holdout: pd.DataFrame


def user_ids(schema: Schema) -> list:
    """Return ids that stand nowhere else on a page."""
    numbers = [900_000_017 + 13 * row for row in range(U)]
    return (
        numbers if schema.user_id_type == "integer" else [f"person-{number}" for number in numbers]
    )


def draw_events(schema: Schema, n: int, first: int, last: int, seed: int) -> pd.DataFrame:
    """Draw events of all users but the last; the last item of the catalogue is never chosen."""
    rng = np.random.default_rng(seed)
    ids, users = item_ids(schema), user_ids(schema)
    events = pd.DataFrame({"user_id": pd.Series([users[row] for row in rng.integers(0, U - 1, n)])})
    events["item_id"] = [ids[row] for row in (rng.beta(1, 3, n) * (N - 1)).astype(int)]
    events["datetime"] = rng.integers(first, last, n) // DAY * DAY
    if schema.event_types:
        events["event"] = rng.choice(["view", "buy"], n)
    if schema.has_weight:
        events["weight"] = rng.integers(1, 4, n).astype(float)
    return events


def hostile_items(recommender: Recommender) -> pa.Table:
    """Return the catalogue with titles that would be code if a page took them as they are."""
    items = recommender.bundle.items
    titles = pa.array([f"{HOSTILE} {row}" for row in range(items.num_rows)])
    return items.set_column(items.column_names.index("title"), "title", titles)


def make_tiny_run(folder: Path, schema: Schema) -> TinyRun:
    """Publish a bundle in the folder, evaluate it as a run does and write the logs."""
    path = publish_linear(folder, schema, seed=4)
    train = draw_events(schema, 1709, UNTIL - 90 * DAY, UNTIL - 20 * DAY, 1)
    validation = draw_events(schema, 83, UNTIL - 20 * DAY, UNTIL, 2)
    holdout = draw_events(schema, 115, UNTIL, UNTIL + 20 * DAY, 3)
    users = pd.DataFrame({"user_id": user_ids(schema)})
    users["sex"] = [("f", "m", None)[row % 3] if row % 20 else "few" for row in range(U)]
    users["income"] = np.linspace(1.0, 9.0, U)
    profiles = profiles_from_frame(pd.concat([train, validation]), users, schema)
    recommender = Recommender(Bundle.load(path), profiles)
    recommender = Recommender(
        replace(recommender.bundle, items=hostile_items(recommender)), profiles
    )
    at = UNTIL if schema.repeats == "allow" else None
    parts = Parts(holdout, train, validation, users, ["sex", "income"], at)
    metrics = evaluate(recommender, parts, seed=3)
    for stage, text in LOGS.items():
        (folder / "logs" / stage).mkdir(parents=True)
        (folder / "logs" / stage / "metrics.csv").write_text(text)
    data = (
        DATA if at is not None else DATA | {"split": QUIET_SPLIT, "repeats": "exclude", "leaks": []}
    )
    content = {"version": recommender.bundle.manifest.version, **metrics, "data": data}
    content |= {"timing": {"total": 3725.0}, "training": {"epochs": 2}}
    return TinyRun(folder, content, recommender, holdout)
