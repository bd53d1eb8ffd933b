"""Seconds until the test is ranked as well as the best peer ranks it, over the seconds that the peer's fit takes.

    python tests/benchmarks/time_to_quality.py --data ../shared/data --peers-python PYTHON --rechub-python PYTHON
        [--core 0] [--only NAME ...] [--plot docs/time_to_quality.svg]

We train on all but the test; after each epoch the clock stands still while NDCG@10 of the test is measured by a full
ranking. The peers (RecTools SASRec; DSSM and YoutubeDNN of torch-rechub) run in the same call, on the same core, with
one thread and the same allocator, with the options of the bench's settings; one without an interpreter is left out.
The test is looked at after every epoch to draw the curve, and nothing is chosen by it: where our whole schedule ends is
told beside. A board's result is kept in `--runs`; options not listed here go to our training.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.board_fit import Clock, FullRanking, Prepared, fit_once, prepare  # noqa: E402
from tests.benchmarks.board_list import ON_BEAUTY, ON_MOVIES, Board, find_boards, make_tables  # noqa: E402
from tests.benchmarks.kept import check_options, write_whole  # noqa: E402
from tests.benchmarks.peers import PeerCommand, on_other_tables, read_settings, run_peer  # noqa: E402
from tests.benchmarks.quality_curves import BoardResult, Peer, Point, draw, print_table  # noqa: E402

ON_BOARDS = (ON_MOVIES, ON_BEAUTY)
METRIC = "NDCG@10"
PEERS = ("sasrec", "rechub-dssm", "rechub-youtubednn")
ITEM_FEATURES = {ON_BEAUTY: "attributes"}
"""Of the data sets for which the bench has no settings of a peer: those of MovieLens are taken, with these features."""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""As the bench runs its peers; freed memory that is kept for reuse spares torch the page faults."""


class Curve(Callback):
    """Measure the test after each epoch, and keep the seconds that training took until then."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.ranking: FullRanking | None = None
        self.points: list[Point] = []
        self.clock = Clock.start()
        self.measuring = [0.0, 0.0]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stopped = self.clock.read()
        seconds, work = (now - lost for now, lost in zip(stopped, self.measuring, strict=True))
        if self.ranking is None:
            self.ranking = FullRanking.make(self.prepared, trainer.datamodule)
        quality = float(self.ranking.measure(pl_module.towers)["novel"].mean())
        self.points.append(Point(trainer.current_epoch + 1, seconds, work, quality))
        print(
            f"  epoch {trainer.current_epoch + 1}: {seconds:.0f} s, {METRIC} {quality:.4f}", file=sys.stderr, flush=True
        )
        self.measuring = [
            lost + now - then for lost, now, then in zip(self.measuring, self.clock.read(), stopped, strict=True)
        ]


def main() -> None:
    args, options = parse_arguments()
    run_on_one_core(args.core)
    results = []
    for board in find_boards(args.only):
        folder = args.runs / f"{board.name}-{args.seed}"
        path = folder / "result.json"
        check_options(folder, [*options, *(name for name, python in interpreters(args).items() if python)])
        if not path.exists():
            result = measure_board(board, args, options, folder / "results")
            write_whole(path, lambda out, result=result: out.write_text(json.dumps(asdict(result), indent=1) + "\n"))
        results.append(BoardResult.read(path))
    print_table(results, METRIC)
    if args.plot:
        args.plot.parent.mkdir(parents=True, exist_ok=True)
        draw(results, METRIC, args.plot)


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--bench", type=Path, help="default: ../bench beside --data")
    parser.add_argument("--tables", type=Path, default=ROOT / "runs" / "bench")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "time_to_quality")
    parser.add_argument("--peers-python", type=Path, help="interpreter with RecTools")
    parser.add_argument("--rechub-python", type=Path, help="interpreter with torch-rechub")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=ON_BOARDS, choices=ON_BOARDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path)
    args, options = parser.parse_known_args()
    args.bench = args.bench or args.data.parent / "bench"
    return args, options


def run_on_one_core(core: int) -> None:
    """Bind this process and what it starts to a core; begin again where the environment is another one."""
    os.sched_setaffinity(0, {core})
    wanted = {name: value for name, value in os.environ.items() if name not in UNSET} | ENVIRONMENT
    if wanted != dict(os.environ):  # it is read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], wanted)


def interpreters(args: argparse.Namespace) -> dict[str, Path | None]:
    """Return the interpreters of the peers by the name that the bench's settings give them."""
    return {"peers": args.peers_python, "rechub": args.rechub_python}


def measure_board(board: Board, args: argparse.Namespace, options: list[str], folder: Path) -> BoardResult:
    tables = make_tables(args.bench, args.data / board.dataset, args.tables / board.dataset)
    print(f"{board.name}: Bascule", file=sys.stderr, flush=True)
    points, seconds = train_and_measure(prepare(board, tables, args.seed, options))
    peers = []
    for command in list_commands(args.bench, board.dataset):
        if python := interpreters(args)[command.interpreter]:
            print(f"{board.name}: {command.name}", file=sys.stderr, flush=True)
            left = run_peer(command, args.bench, tables, python, Path(sys.executable), folder)
            peers.append(Peer(left.model, *left.seconds, left.figures[METRIC], " ".join(command.options)))
    return BoardResult(board.name, args.seed, points, *seconds, peers)


def train_and_measure(prepared: Prepared) -> tuple[list[Point], tuple[float, float]]:
    """Return the curve, and the seconds of the whole fit without what was spent on measuring."""
    curve = Curve(prepared)
    config = replace(prepared.config, trainer={**prepared.config.trainer, "callbacks": [curve]})
    curve.clock = Clock.start()
    _, (seconds, work) = fit_once(prepared, config)
    return curve.points, (seconds - curve.measuring[0], work - curve.measuring[1])


def list_commands(bench: Path, dataset: str) -> list[PeerCommand]:
    """Return the peers' commands by the bench's settings, where there are none by those of MovieLens."""
    own, others = read_settings(bench, dataset), read_settings(bench, ON_MOVIES)
    return [own[name] if name in own else on_other_tables(others[name], ITEM_FEATURES[dataset]) for name in PEERS]


if __name__ == "__main__":
    main()
