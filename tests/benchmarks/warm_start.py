"""Train on all but the last days, then with them: from those weights, and anew. Prints one Markdown table.

    python tests/benchmarks/warm_start.py --data DATA [--only NAME ...] [--seeds 0 1 2] [--runs DIR]

The last days come as a log of events. Options not listed here go to every training; finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pandas as pd
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.boards.protocols import PROTOCOLS, prepare  # noqa: E402

LATE_SHARE = 0.1
"""Of a table without order, what comes later is drawn."""
SMALL = {
    "model.dim": 48,
    "model.n_blocks": 1,
    "model.max_epochs": 12,
    "model.patience": 4,
    "data.history_length": 50,
}
RATED = ("user_id", "item_id", "weight", "datetime")
# name -> configuration, view and metric, first moment of the last days, split before and after, options
BOARDS: dict[str, tuple[str | None, str, str, str, str, dict[str, int]]] = {
    "grocery": (
        "grocery.yaml",
        "all NDCG@20",
        "2017-12-01",
        "2017-11-01",
        "2017-12-01",
        {},
    ),
    "movielens-100k": (
        "movielens-100k.yaml",
        "novel NDCG@10",
        "1998-04-08T23:10:39",
        "",
        "",
        SMALL,
    ),
    "lastfm": (None, "novel NDCG@20", "", "", "", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=BOARDS, default=[*BOARDS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "warm_start")
    args, options = parser.parse_known_args()
    lines = [
        "| board | seeds | before | from its weights | anew | CPU s of both | share |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in args.only:
        found = [
            measure(name, args.data, args.runs.absolute(), seed, options) for seed in args.seeds
        ]
        figures = [
            mean(figures) for figures in zip(*(figures for figures, _ in found), strict=True)
        ]
        seconds = [mean(times) for times in zip(*(times for _, times in found), strict=True)]
        both = f"{seconds[1]:.0f}, {seconds[2]:.0f} | {seconds[1] / seconds[2]:.2f}"
        lines.append(
            f"| {name} | {args.seeds} | {' | '.join(f'{one:.4f}' for one in figures)} | {both} |"
        )
    print("\n".join(lines))


def measure(
    name: str, data: Path, runs: Path, seed: int, more: Sequence[str]
) -> tuple[list[float], list[float]]:
    """Return figures and CPU seconds of training of the three runs."""
    config, figure, since, at, later, options = BOARDS[name]
    past, log = split(name, data, runs, since)
    table: dict[str, object] = {"path": str(past)}
    if since:
        table |= {"names": None, "columns": {"datetime": "datetime", "weight": "weight"}}
    words = ["--config", str(ROOT / "configs" / config) if config else "seed: 0"]
    words += ["--data.interactions", json.dumps(table)]
    if name == "lastfm":
        words += ["--data.split.kind", "files"]
        words += ["--data.split.test", str(runs / "lastfm" / "holdout.csv")]
    if name == "movielens-100k":
        text = (ROOT / "configs" / config).read_text(encoding="utf-8")
        query = yaml.safe_load(text.replace("../shared/data", str(data)))["data"]["items"]["query"]
        words += ["--data.users.path", str(data / name / "u.user"), "--data.items.query", query]
    words += [f"--{key}={value}" for key, value in options.items()]
    words += [*more, "--seed", str(seed), "--evaluation.baselines", "[]"]
    old, warm, anew = (runs / f"{name}-{seed}-{kind}" for kind in ("old", "warm", "anew"))
    late = ["--data.feedback", str(log), *(["--data.split.at", later] if later else [])]
    train(old, [*words, *(["--data.split.at", at] if at else [])])
    train(warm, [*words, *late, "--previous", str(old / "bundle"), "--warm_start"])
    train(anew, [*words, *late])
    found = [json.loads((run / "metrics.json").read_bytes()) for run in (old, warm, anew)]
    view, metric = figure.split(" ")
    figures = [float(one["test"]["bascule"][view][metric]) for one in found]
    return figures, [tell_seconds(one["timing"]) for one in found]


def split(name: str, data: Path, runs: Path, since: str) -> tuple[Path, Path]:
    """Write the interactions before a moment, and those from it on as a log."""
    is_late: pd.Series
    if name == "lastfm":
        prepare(PROTOCOLS[name], data, runs / name)
        events = pd.read_csv(runs / name / "train.csv")
        draws = np.random.default_rng(0).random(len(events))
        is_late = pd.Series(draws < LATE_SHARE, events.index)
        moments = pd.Series(pd.Timestamp(0, tz="UTC"), events.index)
        return write(name, runs, events, moments, is_late)
    if name == "grocery":
        events = pd.read_parquet(ROOT / "datamodules" / "sample" / "interactions.parquet")
    else:
        events = pd.read_csv(data / name / "u.data", sep="\t", names=RATED)
        events["datetime"] = pd.to_datetime(events["datetime"], unit="s", utc=True)
    is_late = events["datetime"] >= pd.Timestamp(since, tz="UTC")
    return write(name, runs, events, events["datetime"], is_late)


def write(
    name: str, runs: Path, events: pd.DataFrame, moments: pd.Series, is_late: pd.Series
) -> tuple[Path, Path]:
    """Write the events that are not late as a table, and the others as a log."""
    past, log = runs / f"{name}.parquet", runs / f"{name}-log.parquet"
    runs.mkdir(parents=True, exist_ok=True)
    events[~is_late].to_parquet(past, index=False)
    logged = events[is_late].astype({"user_id": "str", "item_id": "str"})
    if "weight" not in logged:
        logged["weight"] = np.nan
    logged["weight"] = logged["weight"].astype("float64")
    seconds = moments[is_late].dt.as_unit("s").astype("int64")
    columns = {
        "event": "event",
        "datetime": seconds,
        "request_id": pd.Series(None, logged.index, dtype="str"),
    }
    names = ["user_id", "item_id", "event", "datetime", "weight", "request_id"]
    logged.assign(**columns)[names].to_parquet(log, index=False)
    return past, log


def train(run: Path, words: Sequence[str]) -> None:
    if not (run / "metrics.json").exists():
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            *words,
            "--out",
            str(run),
            "--ckpt_path",
            "last",
        ]
        subprocess.run(command, cwd=ROOT, check=True)


def tell_seconds(timing: dict[str, Any]) -> float:
    return float(timing["training_cpu"] + timing.get("training_again_cpu", 0.0))


if __name__ == "__main__":
    main()
