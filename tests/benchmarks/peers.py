"""The bench's peers: how they are run, what they leave, and their figures as rows of a table."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.benchmarks.bench_lists import score, score_options

FIT = ("fit s", "fit CPU s")
"""Columns of the seconds, as the bench's table.py calls them."""


@dataclass(frozen=True)
class PeerResult:
    """What the bench says of a peer."""

    dataset: str
    model: str
    figures: dict[str, float]
    """By metric, after the name of the view where there are several."""
    seconds: tuple[float | None, float | None]
    """Of the fit: on the clock and of the processor; None where it is not known."""


def read_peers(path: Path) -> list[PeerResult]:
    """Read the folder that run_all.sh writes, or a CSV: `dataset`, `model` and columns as table.py prints them."""
    return list(_read_csv(path) if path.is_file() else _read_folders(path))


def _read_csv(path: Path) -> Iterator[PeerResult]:
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            figures = {name: float(cell) for name, cell in row.items() if "@" in name and cell}
            seconds = tuple(float(row[name]) if row.get(name) else None for name in FIT)
            yield PeerResult(row["dataset"], row["model"], figures, (seconds[0], seconds[1]))


def _read_folders(folder: Path) -> Iterator[PeerResult]:
    for path in sorted(folder.glob("*/results/*.json")):
        yield read_result(path, path.parents[1].name)


def read_result(path: Path, dataset: str) -> PeerResult:
    """Read what score.py wrote of a peer, and the seconds in the log beside it."""
    log = path.with_suffix(".log")
    found = re.search(r"^fit_seconds (\S+) cpu (\S+)$", log.read_text() if log.exists() else "", re.MULTILINE)
    seconds = (float(found[1]), float(found[2])) if found else (None, None)
    return PeerResult(dataset, path.stem, name_figures(json.loads(path.read_bytes())), seconds)


def name_figures(scored: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the figures of score.py under the names of a board's."""
    return {
        metric if view == "exclude" else f"{view} {metric}": value
        for view, figures in scored.items()
        for metric, value in figures.items()
        if "@" in metric
    }


@dataclass(frozen=True)
class PeerCommand:
    """A line of the bench's settings."""

    name: str
    interpreter: str
    """`peers` or `rechub`: the libraries disagree on their versions."""
    script: str
    options: tuple[str, ...]


def read_settings(bench: Path, dataset: str) -> dict[str, PeerCommand]:
    lines = (bench / "settings" / f"{dataset}.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
    return {row[0]: PeerCommand(row[0], row[1], row[2], tuple(row[3:])) for row in rows}


def on_other_tables(command: PeerCommand, item_features: str) -> PeerCommand:
    """Return a command that was set for other tables: users have no features, items have others."""
    pairs = dict(zip(command.options[::2], command.options[1::2], strict=True)) | {"--item-features": item_features}
    pairs.pop("--user-features", None)
    return replace(command, options=tuple(word for pair in pairs.items() for word in pair))


def run_peer(command: PeerCommand, bench: Path, tables: Path, python: Path, scorer: Path, folder: Path) -> PeerResult:
    """Fit a peer, let it answer, and score its lists, as run_all.sh does.

    Args:
        command: what to run.
        bench: folder of the bench.
        tables: the prepared tables.
        python: interpreter with the peer's library.
        scorer: interpreter that score.py runs in.
        folder: for lists, log and figures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lists, log = folder / f"{command.name}.csv", folder / f"{command.name}.log"
    files = [word for side in ("train", "users", "items", "holdout") for word in (f"--{side}", tables / f"{side}.csv")]
    seen = score_options(tables)
    words = [*files, "--out", lists, "--k", "100", *seen, "--seed", "0", *command.options]
    with log.open("w") as output:
        done = subprocess.run([python, bench / "peers" / command.script, *words], stdout=output, stderr=output)
    if done.returncode:
        raise SystemExit(f"{command.name} failed, see {log}:\n{log.read_text()[-2000:]}")
    path = lists.with_suffix(".json")
    score(bench, tables, [*seen, "--recs", lists], path, scorer)
    return read_result(path, tables.name)
