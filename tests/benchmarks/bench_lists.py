"""Lists of a published bundle for the bench's scorer, what it says of them, and values per user for differences."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation.metrics import Floats, ItemSets, Summary, Targets, measure_users, summarise_difference
from serve.schema import Schema
from tests.benchmarks.board_list import ROOT
from tests.benchmarks.kept import write_whole

IDS = ["user_id", "item_id"]
DEPTH = 20


def make_lists(run: Path, tables: Path, name: str) -> Path:
    """Answer with a run's bundle, unless it was done.

    Args:
        run: folder of the run.
        tables: the prepared tables.
        name: `plain` (a list per user, repeats as the bench wants them), `novel` (without what the user has) or
            `context` (a list per row of the holdout, in its context).
    """
    path = run / "lists" / f"{name}.csv"
    if path.exists():
        return path
    is_repeated = "allow" in score_options(tables)
    asked = ["--requests", str(write_requests(run, tables))] if name == "context" else ["--all-users"]
    repeats = "allow" if is_repeated and name != "novel" else "exclude"
    command = [sys.executable, "-m", "serve", "recommend", "--bundle", str(run / "bundle"), *asked]
    command += ["--k", "200" if is_repeated else "100", "--repeats", repeats, "--out"]
    write_whole(path, lambda out: subprocess.run([*command, str(out)], check=True, cwd=ROOT))
    return path


def reads_context(run: Path) -> bool:
    """Tell whether a run's bundle reads features of the moment of a request."""
    return bool(Schema.from_json((run / "bundle" / "schema.json").read_text()).context_features)


def write_requests(run: Path, tables: Path) -> Path:
    """Leave the bench's requests beside the lists: the rows of the holdout without their answers."""
    path = run / "lists" / "requests.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.read_csv(tables / "holdout.csv", dtype=str, keep_default_na=False).drop(columns="item_id").to_csv(
        path, index=False
    )
    return path


def score_options(tables: Path) -> list[str]:
    options: str = json.loads((tables / "meta.json").read_bytes())["score_options"]
    return options.split()


def score_lists(bench: Path, run: Path, tables: Path, name: str) -> dict[str, Any]:
    """Score the lists of a run as the bench scores its peers', unless it was done; return what score.py writes."""
    path = run / "lists" / f"{name}.json"
    if not path.exists():
        options = [*score_options(tables), "--recs", make_lists(run, tables, name)]
        if "allow" in options:
            options += ["--novel-recs", make_lists(run, tables, "novel")]
        score(bench, tables, options, path)
    scored: dict[str, Any] = json.loads(path.read_bytes())
    return scored


def score(bench: Path, tables: Path, options: list[Any], path: Path, python: str | Path = sys.executable) -> None:
    files = ["--holdout", tables / "holdout.csv", "--train", tables / "train.csv"]
    command = [python, bench / "score.py", *files, *options, "--json"]
    write_whole(path, lambda out: subprocess.run([*command, out], check=True, stdout=subprocess.DEVNULL))


def measure_lists(path: Path, holdout: Path, metric: str) -> Floats:
    """Return a metric of one list per user, by user of the holdout in ascending order, 0 without a list."""
    wanted = pd.read_csv(holdout, usecols=IDS, dtype=str).drop_duplicates()
    lists = pd.read_csv(path, usecols=[*IDS, "rank"], dtype={name: str for name in IDS})
    users, user = np.unique(wanted["user_id"], return_inverse=True)
    items = pd.Index(pd.concat([wanted["item_id"], lists["item_id"]]).unique())
    lists = lists[lists["user_id"].isin(users) & (lists["rank"] <= DEPTH)]
    ranked = np.full((len(users), DEPTH), -1)
    ranked[np.searchsorted(users, lists["user_id"]), lists["rank"] - 1] = items.get_indexer(pd.Index(lists["item_id"]))
    targets = ItemSets.group(user, items.get_indexer(pd.Index(wanted["item_id"])), len(users))
    return measure_users(ranked, Targets(targets, np.arange(len(users))))[metric]


def compare_runs(runs: list[Path], others: list[Path], tables: Path, metric: str) -> Summary:
    """Return what runs are ahead of others by, averaged over them, with the interval over users."""
    holdout = tables / "holdout.csv"
    means = [
        np.mean([measure_lists(make_lists(run, tables, "plain"), holdout, metric) for run in some], axis=0)
        for some in (runs, others)
    ]
    return summarise_difference({metric: means[0]}, {metric: means[1]})
