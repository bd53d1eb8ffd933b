"""The boards: train, export and evaluate through the bundle, and print one Markdown table beside the peers.

    python tests/benchmarks/boards.py --data ../shared/data [--only NAME ...] [--seeds 0 1] [--peers PATH] [--out FILE]

`--data` holds the raw data sets; the bench that prepares and scores them lies beside it, in `../bench` (`--bench` names
another one). `--peers` is the folder that the bench's `run_all.sh` writes (`DATASET/results/*.json`), or a CSV. Options
not listed here go to every training. Runs lie in `--runs`, one folder per board and seed; what is there is not trained
again. Baselines depend on neither seed nor features: they are fitted with seed 0 alone, once for boards of one test.
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
sys.path.insert(0, str(ROOT))

from tests.benchmarks.bench_lists import compare_runs, reads_context, score_lists  # noqa: E402
from tests.benchmarks.board_list import BOARDS, Board, find_boards, make_tables  # noqa: E402
from tests.benchmarks.kept import check_options  # noqa: E402
from tests.benchmarks.peers import PeerResult, name_figures, read_peers  # noqa: E402

WITH_BASELINES = 0
HEADER = ("board", "protocol", "repeats", "model", "seeds", "figures", "fit s", "fit CPU s")
NOTE = """
NDCG@k and HR@k over the whole catalogue, averaged within a user and then over users; ± is the standard deviation over
seeds, differences have 95 % intervals over users. Fit of Bascule: the training that validation stops and, unless
strict, the one on all before the test; of baselines and peers: one fit with options chosen before."""


@dataclass(frozen=True)
class Ran:
    """A board with its finished runs."""

    board: Board
    tables: Path
    runs: dict[int, Path]
    """Folder by seed."""

    @property
    def seeds(self) -> str:
        return ", ".join(map(str, self.runs))

    def read(self) -> list[dict[str, Any]]:
        return [json.loads((run / "metrics.json").read_bytes()) for run in self.runs.values()]


@dataclass(frozen=True)
class Row:
    """What one model reached on a board."""

    model: str
    seeds: str
    figures: str
    protocol: str
    seconds: tuple[str, str] = ("", "")


def main() -> None:
    args, options = parse_arguments()
    boards = find_boards(args.only)
    peers = read_peers(args.peers) if args.peers else []
    ran: dict[str, Ran] = {}
    for board in boards:
        tables = make_tables(args.bench, args.data / board.dataset, args.tables / board.dataset)
        folders = {seed: args.runs / f"{board.name}-{seed}" for seed in args.seeds}
        for seed, folder in folders.items():
            train(board, tables, folder, seed, options)
        ran[board.name] = Ran(board, tables, folders)
    lines = [join(HEADER), join(["---"] * len(HEADER))]
    beside: set[str] = set()
    for one in ran.values():
        board = one.board
        rows = [*describe(one), *describe_bench(args.bench, one), *describe_difference(one, ran)]
        if board.has_peers and board.dataset not in beside:  # once for all boards of a data set
            beside.add(board.dataset)
            rows += [describe_peer(board, peer) for peer in peers if peer.dataset == board.dataset]
        lines += [
            join((board.name, row.protocol, board.repeats, row.model, row.seeds, row.figures, *row.seconds))
            for row in rows
        ]
    text = "\n".join([*lines, NOTE, ""])
    print(text)
    if args.out:
        args.out.write_text(text)


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bench", type=Path, help="default: ../bench beside --data")
    parser.add_argument("--tables", type=Path, default=ROOT / "runs" / "bench")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "boards")
    parser.add_argument("--only", nargs="+", choices=[board.name for board in BOARDS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--out", type=Path)
    args, options = parser.parse_known_args()
    args.bench = args.bench or args.data.parent / "bench"
    return args, options


def train(board: Board, tables: Path, out: Path, seed: int, options: list[str]) -> None:
    """Run `train.py` as a user would, unless the run is there; go on with one that was stopped."""
    has_baselines = seed == WITH_BASELINES and board.without is None
    words = [*options, *([] if has_baselines else ["--evaluation.baselines", "[]"])]
    check_options(out, words)
    if (out / "metrics.json").exists():
        return
    command = [sys.executable, ROOT / "train.py", *board.arguments(tables), *words]
    command += ["--seed", str(seed), "--out", out, "--ckpt_path", "last"]
    if status := subprocess.run(command, cwd=ROOT).returncode:
        raise SystemExit(f"{board.name}, seed {seed}: train.py ended with status {status}")


def describe(one: Ran) -> Iterator[Row]:
    """Yield ours, ours with the request's time or context, and the baselines of the first run that has some."""
    board, runs = one.board, one.read()
    models = {name: [run["test"][name] for run in runs if name in run["test"]] for name in runs[0]["test"]}
    ours = models.pop("bascule")
    yield Row("**Bascule**", one.seeds, show(board, ours), board.protocol, tell_seconds(runs))
    if board.bench is None and "with_context" in runs[0]:
        informed = [run["with_context"]["bascule"] for run in runs]
        yield Row("**Bascule**, given the request's time", one.seeds, show(board, informed), board.protocol)
    first = next((run for run in runs if run["baselines"]), runs[0])
    for name in first["baselines"]:
        if name in first["test"]:
            metric = board.figures[0]
            ahead = f"; **Bascule** minus it {metric} {show_difference(pick(first['paired'][name], metric))}"
            fit = f"{first['timing'][f'baseline_{name}']:.1f}"
            yield Row(name, "0", show(board, [first["test"][name]]) + ahead, board.protocol, (fit, ""))


def describe_bench(bench: Path, one: Ran) -> Iterator[Row]:
    """Yield ours as the bench's scorer counts, where that differs."""
    board = one.board
    if board.bench is None:
        return
    names = {"plain": "**Bascule**"}
    if all(map(reads_context, one.runs.values())):
        names["context"] = "**Bascule**, given the row's context"
    for name, model in names.items():
        scored = [name_figures(score_lists(bench, run, one.tables, name)) for run in one.runs.values()]
        figures = [show_spread(figure, [values[figure] for values in scored]) for figure in board.figures]
        yield Row(model, one.seeds, ", ".join(figures), board.bench, tell_seconds(one.read()))


def describe_difference(one: Ran, ran: dict[str, Ran]) -> Iterator[Row]:
    """Yield what the board that this one takes something from is ahead by."""
    whole = ran.get(one.board.without or "")
    if whole is None:
        return
    figure = one.board.figures[0]
    metric = figure.rpartition(" ")[2]
    summary = compare_runs(list(whole.runs.values()), list(one.runs.values()), one.tables, metric)
    text = f"{figure} {show_difference((summary[metric], summary[f'{metric}_ci95']))}"
    yield Row(f"{whole.board.name} minus this", one.seeds, text, f"{one.board.bench or whole.board.protocol}; paired")


def describe_peer(board: Board, peer: PeerResult) -> Row:
    figures = [show_spread(name, [peer.figures[name]]) for name in board.figures if name in peer.figures]
    fit, work = ("" if value is None else f"{value:.1f}" for value in peer.seconds)
    return Row(f"{peer.model} (peer)", "0", ", ".join(figures), board.bench or board.protocol, (fit, work))


def show(board: Board, runs: list[dict[str, Any]]) -> str:
    """Show a model's figures, `runs` being one mapping of views per run."""
    return ", ".join(show_spread(figure, [pick(run, figure)[0] for run in runs]) for figure in board.figures)


def pick(views: dict[str, Any], figure: str) -> tuple[float, list[float]]:
    """Return a figure and its interval; without the name of a view it is that of novel items."""
    view, _, metric = figure.rpartition(" ")
    return views[view or "novel"][metric], views[view or "novel"][f"{metric}_ci95"]


def show_spread(name: str, values: list[float]) -> str:
    spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{name} {mean(values):.4f}{spread}"


def show_difference(difference: tuple[Any, Any]) -> str:
    value, (low, high) = difference
    return f"{value:+.4f} ({low:+.4f}, {high:+.4f})"


def tell_seconds(runs: list[dict[str, Any]]) -> tuple[str, str]:
    """Return the seconds of a run's trainings, on the clock and of the processor, averaged over runs."""
    timings = [run["timing"] for run in runs]
    clock, work = (
        mean(sum(timing.get(f"{name}{kind}", 0) for name in ("training", "training_again")) for timing in timings)
        for kind in ("", "_cpu")
    )
    return f"{clock:.0f}", f"{work:.0f}" if all("training_cpu" in timing for timing in timings) else ""


def join(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
