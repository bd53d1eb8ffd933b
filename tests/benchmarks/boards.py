"""The boards: train, export and evaluate through the bundle, and print one Markdown table beside the peers.

    python tests/benchmarks/boards.py --data ../shared/data [--only NAME ...] [--seeds 3] [--peers FOLDER] [--out FILE]

`--data` holds the raw data sets; `prepare.py` beside it, in `../bench`, makes the tables (`--prepare` names another
one). `--peers` is the folder that the bench's `run_all.sh` writes, `DATASET/results/*.json` in it. Options after `--`
go to every training. Runs lie in `--runs`; what is there already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).parents[2]
ALL_BUT_TEST = ("--data.split.kind", "leave_one_out")
STRICT = (*ALL_BUT_TEST, "--data.split.strict", "true")
IDS_ONLY = ("--data.features.item", "{}")
EVERYTHING = "interactions.csv"


@dataclass(frozen=True)
class Board:
    """One row of the table."""

    name: str
    dataset: str
    protocol: str
    table: str
    """Of the prepared ones, what is read as interactions."""
    options: tuple[str, ...]
    figures: tuple[tuple[str, str, str], ...] = (("test", "novel", "NDCG@10"), ("test", "novel", "HR@10"))
    """Block of metrics.json, view, metric."""


REPEATED = (("test", "all", "NDCG@20"), ("test", "novel", "NDCG@20"))
IN_CONTEXT = (("test", "novel", "NDCG@10"), ("with_context", "novel", "NDCG@10"))
BOARDS = (
    Board("movielens-100k", "movielens-100k", "all-but-test", EVERYTHING, ALL_BUT_TEST),
    Board("movielens-100k-strict", "movielens-100k", "strict", EVERYTHING, STRICT),
    Board("amazon-beauty", "amazon-beauty", "all-but-test", EVERYTHING, ALL_BUT_TEST),
    Board("amazon-beauty-ids", "amazon-beauty", "all-but-test, ids only", EVERYTHING, (*ALL_BUT_TEST, *IDS_ONLY)),
    Board("amazon-beauty-strict", "amazon-beauty", "strict", EVERYTHING, STRICT),
    Board(
        "complete-journey",
        "complete-journey",
        "December 2017, repeats allowed",
        EVERYTHING,
        ("--data.split.kind", "time", "--data.split.at", "2017-12-01"),
        REPEATED,
    ),
    Board(
        "frappe",
        "frappe",
        "a fifth of each user's apps; with context: one request per app",
        "train.csv",
        ("--data.split.kind", "files", "--data.split.test", "{tables}/holdout.csv"),
        IN_CONTEXT,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--prepare", type=Path, help="default: ../bench/prepare.py beside --data")
    parser.add_argument("--tables", type=Path, default=ROOT / "runs" / "bench")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "boards")
    parser.add_argument("--only", nargs="+", choices=[board.name for board in BOARDS])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--data-only", action="store_true", help="leave `model` out: everything is chosen from the data"
    )
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--out", type=Path)
    args, options = parser.parse_known_args()
    prepare = args.prepare or args.data.parent / "bench" / "prepare.py"
    lines = ["| board | protocol | model | figures | training s |", "|---|---|---|---|---|"]
    for board in [board for board in BOARDS if not args.only or board.name in args.only]:
        make_tables(prepare, args.data / board.dataset, args.tables / board.dataset)
        folders = [args.runs / f"{board.name}{'-data-only' * args.data_only}-{seed}" for seed in range(args.seeds)]
        for seed, folder in enumerate(folders):
            train(board, args.tables / board.dataset, folder, seed, args.data_only, options)
        runs = [json.loads((folder / "metrics.json").read_bytes()) for folder in folders]
        lines += [row(board, *described) for described in (*describe(board, runs), *read_peers(board, args.peers))]
        text = "\n".join(lines) + "\n"
        print(text, flush=True)
        if args.out:
            args.out.write_text(text)


def make_tables(prepare: Path, raw: Path, tables: Path) -> None:
    if not (tables / "meta.json").exists():
        subprocess.run([sys.executable, prepare, raw.name, raw, tables], check=True)


def train(board: Board, tables: Path, out: Path, seed: int, is_data_only: bool, options: list[str]) -> None:
    """Run `train.py` as a user would, unless the run is there."""
    if (out / "metrics.json").exists():
        return
    config = ROOT / "configs" / "bench" / f"{board.dataset}.yaml"
    if is_data_only:
        out.parent.mkdir(parents=True, exist_ok=True)
        text = config.read_text().split("\nmodel:")[0]
        config = out.parent / f"{out.name}.yaml"
        config.write_text(text + "\n")
    words = [word.format(tables=tables) for word in board.options]
    command = [sys.executable, ROOT / "train.py", "--config", config, "--data.interactions.path", tables / board.table]
    for side in ("users", "items"):
        command += [f"--data.{side}.path", tables / f"{side}.csv"]
    subprocess.run([*command, *words, "--seed", str(seed), "--out", out, *options], check=True, cwd=ROOT)


def describe(board: Board, runs: list[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Yield model, figures with their spread over seeds, and seconds: ours, then the baselines of the first run."""
    seconds = [run["timing"]["training"] + run["timing"].get("training_again", 0) for run in runs]
    yield "**Bascule**", figures(board, runs, "bascule"), f"{mean(seconds):.0f}"
    for name in runs[0]["baselines"]:
        if name in runs[0]["test"]:
            yield name, figures(board, runs[:1], name), ""


def figures(board: Board, runs: list[dict[str, Any]], model: str) -> str:
    texts = []
    for block, view, metric in board.figures:
        values = [run[block][model][view][metric] for run in runs if model in run.get(block, {})]
        if values:
            spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
            what = " ".join(part for part in (metric, view * (view != "novel"), block * (block != "test")) if part)
            texts.append(f"{what} {mean(values):.4f}{spread}")
    return ", ".join(texts)


def read_peers(board: Board, folder: Path | None) -> Iterator[tuple[str, str, str]]:
    """Yield the rows that the bench measured on the same holdout."""
    if folder is None or "strict" in board.name or "ids" in board.name:
        return
    for path in sorted((folder / board.dataset / "results").glob("*.json")):
        result = json.loads(path.read_bytes())
        view = "exclude" if "exclude" in result else "all"
        metric = "NDCG@10" if view == "exclude" else "NDCG@20"
        yield f"{path.stem} (peer)", f"{metric} {result[view][metric]:.4f}", ""


def row(board: Board, model: str, text: str, seconds: str) -> str:
    return f"| {board.name} | {board.protocol} | {model} | {text} | {seconds} |"


if __name__ == "__main__":
    main()
