"""Train on the public boards, score the lists of the exported bundles, and print one Markdown table.

    python tests/benchmarks/boards.py --data ../shared/data [--only NAME ...] [--seeds 0 1 2] [--out FILE] [--plot FILE]

`--data` holds the raw data sets; the harness that prepares and scores them (`prepare.py`, `score.py`) lies beside it,
in `../bench` (`--bench` names another one). Options not listed here go to every training. Runs lie in `--runs`, one
folder per board and seed; what is finished there is not trained again, and what was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
ALL_BUT_TEST = ("--data.split.kind", "leave_one_out")
STRICT = (*ALL_BUT_TEST, "--data.split.strict", "true")
IDS_ALONE = ("--data.features.item", "{}")
DECEMBER = ("--data.split.kind", "time", "--data.split.at", "2017-12-01")
BY_FILE = ("--data.split.kind", "files", "--data.split.test")
HEADER = (
    "board",
    "seeds",
    "Bascule",
    "best baseline (seed 0)",
    "Bascule minus it",
    "fit CPU s",
)
BASELINES_WITH_SEED = 0


@dataclass(frozen=True)
class Board:
    """A data set with a protocol."""

    name: str
    dataset: str
    options: tuple[str, ...]
    """Of train.py; `{tables}` is the folder of the prepared tables."""
    figures: tuple[str, ...] = ("exclude NDCG@10", "exclude HR@10")
    """Views and metrics of score.py; without a harness, those of metrics.json."""
    table: str = "interactions.csv"
    by_harness: bool = True
    """The harness prepares its tables and scores its lists; else metrics.json is read."""


BOARDS = (
    Board("beauty", "amazon-beauty", ALL_BUT_TEST),
    Board("beauty-strict", "amazon-beauty", STRICT),
    Board("beauty-ids", "amazon-beauty", (*ALL_BUT_TEST, *IDS_ALONE)),
    Board("beauty-ids-strict", "amazon-beauty", (*STRICT, *IDS_ALONE)),
    Board("movielens-100k", "movielens-100k", ALL_BUT_TEST),
    Board(
        "movielens-1m",
        "movielens-1m",
        STRICT,
        ("novel NDCG@10", "novel HR@10"),
        by_harness=False,
    ),
    Board(
        "complete-journey",
        "complete-journey",
        DECEMBER,
        ("all NDCG@20", "novel NDCG@20"),
    ),
    Board("frappe", "frappe", (*BY_FILE, "{tables}/holdout.csv"), table="train.csv"),
    Board(
        "gowalla",
        "gowalla",
        (*BY_FILE, "{tables}/test.csv"),
        ("novel Recall@20", "novel NDCG@20"),
        "train.csv",
        by_harness=False,
    ),
)


def main() -> None:
    args, options = parse_arguments()
    lines = [join(HEADER), join(["---"] * len(HEADER))]
    shown = []
    for board in (board for board in BOARDS if args.only is None or board.name in args.only):
        tables = make_tables(args.bench, args.data / board.dataset, args.tables / board.dataset)
        runs = {
            seed: train(board, tables, args.runs / f"{board.name}-{seed}", seed, options)
            for seed in args.seeds
        }
        scores = [score(args.bench, board, tables, run) for run in runs.values()]
        metrics = [json.loads((run / "metrics.json").read_bytes()) for run in runs.values()]
        ours = {figure: [pick(one, figure) for one in scores] for figure in board.figures}
        name, theirs, lead = find_best_baseline(metrics[0], board.figures[0])
        seconds = mean(tell_seconds(one["timing"]) for one in metrics)
        text = ", ".join(
            f"{figure.replace('exclude ', '')} {show(values)}" for figure, values in ours.items()
        )
        lines.append(
            join(
                (
                    board.name,
                    ", ".join(map(str, runs)),
                    text,
                    f"{name} {theirs:.4f}",
                    lead,
                    f"{seconds:.0f}",
                )
            )
        )
        shown.append((board.name, board.figures[0], mean(ours[board.figures[0]]), name, theirs))
    print("\n".join(lines))
    if args.out:
        args.out.write_text("\n".join([*lines, ""]), encoding="utf-8")
    if args.plot:
        plot(shown, args.plot)


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bench", type=Path, help="default: ../bench beside --data")
    parser.add_argument("--tables", type=Path, default=ROOT / "runs" / "bench")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "boards")
    parser.add_argument("--only", nargs="+", choices=[board.name for board in BOARDS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--plot", type=Path, help="a picture of each board beside its best baseline"
    )
    args, options = parser.parse_known_args()
    args.bench = args.bench or args.data.parent / "bench"
    return args, options


def make_tables(bench: Path, raw: Path, tables: Path) -> Path:
    """Prepare a data set, unless it is there; sets that the harness does not know are Parquet files of our columns."""
    if any(tables.glob("*.csv")):
        return tables
    if list(raw.glob("*.parquet")) and raw.name in ("movielens-1m", "gowalla"):
        tables.mkdir(parents=True, exist_ok=True)
        for path in raw.glob("*.parquet"):
            pa_csv.write_csv(pq.read_table(path), tables / f"{path.stem}.csv")
    else:
        subprocess.run([sys.executable, bench / "prepare.py", raw.name, raw, tables], check=True)
    return tables


def train(board: Board, tables: Path, run: Path, seed: int, options: Sequence[str]) -> Path:
    """Run `train.py` as a user would, unless the run is there; return its folder."""
    if (run / "metrics.json").exists():
        return run
    # without a file the bundled sample would be meant
    words = ["--config", "seed: 0", "--data.interactions.path", str(tables / board.table)]
    config = ROOT / "configs" / "bench" / f"{board.dataset}.yaml"
    if config.exists():
        words = ["--config", str(config), *words]
        words += [
            word
            for side in ("users", "items")
            for word in (f"--data.{side}.path", str(tables / f"{side}.csv"))
        ]
    words += [word.replace("{tables}", str(tables)) for word in board.options]
    words += [] if seed == BASELINES_WITH_SEED else ["--evaluation.baselines", "[]"]
    command = [
        sys.executable,
        ROOT / "train.py",
        *words,
        *options,
        "--seed",
        str(seed),
        "--out",
        run,
    ]
    subprocess.run([*command, "--ckpt_path", "last"], cwd=ROOT, check=True)
    return run


def score(bench: Path, board: Board, tables: Path, run: Path) -> dict[str, Any]:
    """Return what the harness says of a bundle's lists, by view."""
    if not board.by_harness:
        return dict(json.loads((run / "metrics.json").read_bytes())["test"]["bascule"])
    result = run / "score.json"
    if not result.exists():
        options = json.loads((tables / "meta.json").read_text())["score_options"].split()
        is_repeated = "allow" in options
        modes = ("allow", "exclude") if is_repeated else ("exclude",)
        lists = {repeats: run / f"lists-{repeats}.csv" for repeats in modes}
        for repeats, path in lists.items():
            words = [
                "--bundle",
                run / "bundle",
                "--all-users",
                "--repeats",
                repeats,
                "--out",
                path,
            ]
            command = [
                sys.executable,
                "-m",
                "serve",
                "recommend",
                *words,
                "--k",
                "200" if is_repeated else "100",
            ]
            subprocess.run(command, cwd=ROOT, check=True)
        more = ["--novel-recs", lists["exclude"]] if is_repeated else []
        files = [
            "--holdout",
            tables / "holdout.csv",
            "--train",
            tables / "train.csv",
            "--json",
            result,
        ]
        command = [
            sys.executable,
            bench / "score.py",
            *files,
            "--recs",
            lists[modes[0]],
            *more,
            *options,
        ]
        subprocess.run(command, check=True)
    return dict(json.loads(result.read_text()))


def pick(views: dict[str, Any], figure: str) -> float:
    view, metric = figure.split(" ")
    return float(views[view][metric])


def find_best_baseline(metrics: dict[str, Any], figure: str) -> tuple[str, float, str]:
    """Return the name, the figure and our paired lead of the baseline that ranks the test best."""
    view, metric = figure.replace("exclude", "novel").split(" ")
    found = {
        name: views[view] for name, views in metrics["test"].items() if name in metrics["baselines"]
    }
    if not found:
        return "none", 0.0, ""
    name = max(found, key=lambda name: found[name][metric])
    difference = metrics["paired"][name][view]
    low, high = difference[f"{metric}_ci95"]
    return (
        name,
        found[name][metric],
        f"{difference[metric]:+.4f} ({low:+.4f}, {high:+.4f})",
    )


def tell_seconds(timing: dict[str, float]) -> float:
    return timing["training_cpu"] + timing.get("training_again_cpu", 0.0)


def plot(shown: Sequence[tuple[str, str, float, str, float]], path: Path) -> None:
    """Draw each board as a pair of bars: Bascule and the best baseline."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.55 * len(shown) + 1.2), layout="constrained")
    for place, (_, _, ours, name, theirs) in enumerate(shown):
        axes.barh(place - 0.2, ours, 0.36, color="#1f5f99")
        axes.barh(place + 0.2, theirs, 0.36, color="#c9ccd1")
        axes.text(ours, place - 0.2, f" {ours:.4f}", va="center", fontsize=8)
        axes.text(
            theirs,
            place + 0.2,
            f" {name} {theirs:.4f}",
            va="center",
            fontsize=8,
            color="#555555",
        )
    labels = [f"{board}\n{metric.replace('exclude ', '')}" for board, metric, *_ in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("Bascule (blue) and the best other model (grey); the whole catalogue is ranked")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def show(values: Sequence[float]) -> str:
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def join(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
