"""Rows: prepare, train as a user would, ask the bundle for lists, score them, and keep the figures as one JSON file."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from evaluation.seen import refuse_known, refuse_learned
from serve.recommender import Recommender
from tests.benchmarks.boards import peers
from tests.benchmarks.boards.declared import PAIRS, Board
from tests.benchmarks.boards.protocols import PAIR, PROTOCOLS, SITUATION, Parts, is_owned, prepare
from tests.benchmarks.boards.scores import (
    Figures,
    check_lists,
    number_requests,
    score_users,
    summarise,
)
from tests.benchmarks.boards.version import ROOT, hash_sources, tell_commit
from tests.benchmarks.measured import recall

Row = dict[str, Any]

LIST_LENGTH = 100
SEED_WITH_OTHERS = 0
"""Baselines and peers do not depend on the seed of a training: they are fitted beside this one."""
INTERVAL = 1.96


@dataclass(frozen=True)
class Folders:
    """Where things lie."""

    data: Path
    """Raw public files, a folder a data set."""
    tables: Path
    runs: Path
    rows: Path
    """JSON files of rows."""


def run_rows(
    boards: Iterable[Board],
    seeds: Sequence[int],
    folder: Path,
    run: Callable[[Board, int], Row],
    is_quick: bool,
) -> None:
    """Run what has no row of this version yet, board by board; a row is written when it is whole."""
    version = hash_sources()
    folder.mkdir(parents=True, exist_ok=True)
    for board in boards:
        for seed in seeds:
            path = folder / name_row(board, seed, is_quick)
            if is_done(path, board, version):
                print(f"{path.name}: done", flush=True)
                continue
            row = run(board, seed)
            if hash_sources() != version:
                raise SystemExit(f"{path.name}: sources changed during the run; it is not kept")
            row |= {"version": version, "commit": tell_commit(), "quick": is_quick}
            partial = path.with_suffix(".part")
            partial.write_text(json.dumps(row, indent=2, sort_keys=True) + "\n")
            partial.replace(path)
            print(f"{path.name}: {tell(row)}", flush=True)


def name_row(board: Board, seed: int, is_quick: bool) -> str:
    """Return the name of the file of a row."""
    return f"{board.name}-quick-{seed}.json" if is_quick else f"{board.name}-{seed}.json"


def is_done(path: Path, board: Board, version: str) -> bool:
    """Whether a row is there of this version and of these options."""
    if not path.exists():
        return False
    row = json.loads(path.read_text())
    return is_of(row, board, version)


def is_of(row: Row, board: Board, version: str) -> bool:
    """Whether a row is of a version, and of the options and the configuration that a board has."""
    declared = (version, list(board.options), board.config)
    return (row["version"], row["options"], row["config"]) == declared


def tell(row: Row) -> str:
    """Return the figures of a row in a line."""
    return ", ".join(f"{name} {figure['value']:.4f}" for name, figure in row["figures"].items())


def run_row(folders: Folders, is_quick: bool, board: Board, seed: int) -> Row:
    """Run a row."""
    protocol = PROTOCOLS[board.protocol]
    tables = folders.tables / protocol.name
    told = prepare(protocol, folders.data, tables)
    if not board.has_order:
        pd.read_csv(tables / "interactions.csv")[PAIR].to_parquet(tables / PAIRS)
    version = hash_sources()
    suffix = "-quick" if is_quick else ""
    run = folders.runs / version / f"{board.trained_as or board.name}{suffix}-{seed}"
    train(board, list_paths(board, tables), run, seed, is_quick)
    metrics = json.loads((run / "metrics.json").read_bytes())
    parts = Parts(
        *(pd.read_csv(tables / f"{name}.csv") for name in ("interactions", "train", "holdout"))
    )
    _, recommender = recall(run)
    by_user = {view: ask_and_score(board, view, parts, recommender) for view in board.views}
    figures: Figures = {}
    for view, values in by_user.items():
        figures |= summarise(view, values)

    others, lead = {}, None
    if seed == SEED_WITH_OTHERS:
        others, lead = compare(board, parts, metrics, by_user)
    return {
        "board": board.name,
        "seed": seed,
        "options": list(board.options),
        "config": board.config,
        "protocol": told,
        "figures": figures,
        "by_the_run": read_figures(metrics, "bascule", board),
        "others": others,
        "lead": lead,
        "seconds": metrics["timing"],
        "seen": metrics["seen"],
        "machine": tell_machine(),
    }


def list_paths(board: Board, tables: Path) -> dict[str, Path]:
    """Return the files that a training reads: by table, and the folder of the prepared ones as `tables`."""
    names = ["interactions"]
    if board.config is not None:
        names += [name for name in ("users", "items") if (tables / f"{name}.csv").exists()]
    paths = {name: tables / f"{name}.csv" for name in names}
    return paths | {"tables": tables}


def train(board: Board, paths: dict[str, Path], run: Path, seed: int, is_quick: bool) -> None:
    """Run `train.py` as a user would; what is finished is kept, and what was stopped goes on."""
    if (run / "metrics.json").exists():
        return
    # Without a configuration the bundled sample would be meant.
    words = ["--config", "seed: 0"]
    if board.config is not None:
        words = ["--config", str(ROOT / "configs" / f"{board.config}.yaml")]
    for name in ("interactions", "users", "items"):
        if name in paths:
            words += [f"--data.{name}.path", str(paths[name])]
    words += [word.replace("{tables}", str(paths["tables"])) for word in board.options]
    words += [] if seed == SEED_WITH_OTHERS else ["--evaluation.baselines", "[]"]
    words += ["--refit", "profiles"]  # no more is asked than what was measured
    words += ["--quick"] if is_quick else []
    words += ["--seed", str(seed), "--out", str(run), "--ckpt_path", "last"]
    subprocess.run([sys.executable, ROOT / "train.py", *words], cwd=ROOT, check=True)


# ---- lists


def ask_and_score(board: Board, view: str, parts: Parts, recommender: Recommender) -> pd.DataFrame:
    """Ask for the lists of a view, and return the metrics of each user.

    Raises:
        SchemaError: weights or profiles have seen targets.
    """
    refuse_learned(recommender.bundle, parts.holdout)
    refuse_known(recommender.profiles, parts.train, parts.holdout)
    targets = number_requests(parts.holdout, board.is_by_row)
    requests = write_requests(board, targets, parts)
    lists = ask(requests, view, recommender)
    check_lists(lists, parts.train, is_novel=view == "novel")
    # Where owned items are judged in a view of their own they are no targets here; elsewhere they are missed.
    if view == "novel" and "all" in board.views:
        targets = targets[~is_owned(targets, parts.train)]
    return score_users(lists, targets, board.metrics(view))


def ask(requests: list[Row], view: str, recommender: Recommender) -> pd.DataFrame:
    """Return the lists of all requests: `request`, `user_id`, `item_id`, `rank`."""
    answers = recommender.recommend(requests, LIST_LENGTH, view == "novel")
    lists = answers.to_table().to_pandas()[["user_id", "item_id", "rank"]]
    numbers = np.repeat(np.arange(len(requests)), np.diff(answers.offsets))
    return lists.assign(request=numbers)


def write_requests(board: Board, targets: pd.DataFrame, parts: Parts) -> list[Row]:
    """Return the requests of a board, in the order of their numbers."""
    if board.requests == "contexts":
        rows = parts.holdout.drop_duplicates(["user_id", "item_id"])
        contexts = rows[SITUATION].astype(object).to_dict("records")
        users = rows["user_id"].tolist()
        return [
            {"user_id": user, "context": context}
            for user, context in zip(users, contexts, strict=True)
        ]
    users = targets.drop_duplicates("request")["user_id"].tolist()
    if board.requests == "users":
        return [{"user_id": user} for user in users]
    histories = parts.train.groupby("user_id")["item_id"].agg(list)
    return [{"user_id": user, "history": histories[user]} for user in users]


# ---- others


def compare(
    board: Board, parts: Parts, metrics: Row, by_user: dict[str, pd.DataFrame]
) -> tuple[Row, Row | None]:
    """Return the figures of others, and the lead over the best of them by the first figure."""
    figure = board.figures[0]
    view, metric = figure.split()
    if not board.has_peers:
        others = {name: read_figures(metrics, name, board) for name in metrics.get("baselines", {})}
        others = {name: figures for name, figures in others.items() if figures}
        if not others:
            return {}, None
        best = max(others, key=lambda name: others[name][figure]["value"])
        paired = metrics["paired"][best][view]
        low, high = paired[f"{metric}_ci95"]
        return others, {"over": best, "value": paired[metric], "low": low, "high": high}

    inner = PROTOCOLS[board.protocol].split(parts.interactions)
    judged = peers.compare(parts, inner, board.metrics(view), board.is_by_row)
    best = max(judged, key=lambda name: judged[name][metric].mean())
    difference = by_user[view][metric] - judged[best][metric]
    value = float(difference.mean())
    margin = INTERVAL * float(difference.std(ddof=1)) / np.sqrt(len(difference))
    lead = {"over": best, "value": value, "low": value - margin, "high": value + margin}
    return {name: summarise(view, values) for name, values in judged.items()}, lead


def read_figures(metrics: Row, model: str, board: Board) -> Figures:
    """Read what the run itself measured of a model; a view that it lacks is left out."""
    figures: Figures = {}
    for figure in board.figures:
        view, metric = figure.split()
        values = metrics.get("test", {}).get(model, {}).get(view, {})
        if metric in values:
            low, high = values[f"{metric}_ci95"]
            figures[figure] = {
                "value": values[metric],
                "error": (high - low) / 2 / INTERVAL,
                "users": values["users"],
            }
    return figures


def tell_machine() -> Row:
    """Return what the seconds and the last digits may depend on."""
    from importlib.metadata import version

    packages = ("torch", "numpy", "scipy", "faiss-cpu", "onnxruntime")
    return {
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
