"""What each part is worth: one fit without it on all but the test, beside one with everything, as a Markdown table.

    python tests/benchmarks/ablations.py --data ../shared/data [--boards NAME ...] [--only VARIANT ...] [--seeds 0 1 2]

No selection of epochs and no baselines: the whole schedule, with the recipe that is chosen for the board as it is.
NDCG@10 by a full ranking of the catalogue. Options not listed here go to every training. Each (board, variant, seed) is
kept in `--runs`; a second call does what is missing.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from unittest.mock import patch

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import pipeline.stages
from evaluation.metrics import summarise_difference
from models.two_tower import TwoTower  # noqa: E402
from tests.benchmarks.board_fit import FullRanking, Prepared, fit_once, prepare  # noqa: E402
from tests.benchmarks.board_list import BOARDS, Board, find_boards, make_tables  # noqa: E402
from tests.benchmarks.kept import check_options, write_whole  # noqa: E402
from tests.benchmarks.variants import VARIANTS, WHOLE, Variant  # noqa: E402

ON_BOARDS = ("movielens-100k", "amazon-beauty", "complete-journey", "frappe")
SECONDS, TOLD = "seconds", "told"
"""What is kept beside the values of views."""
HEADER = ("board", "variant", "asked", "NDCG@10", "minus all", "fit s", "fit CPU s")


Kept = dict[str, Any]


def main() -> None:
    args, options = parse_arguments()
    variants = [variant for variant in VARIANTS if args.only is None or variant.name in (WHOLE, *args.only)]
    rows = [HEADER, ("---",) * len(HEADER)]
    for board in find_boards(args.boards):
        folder = args.runs / board.name
        check_options(folder, options)
        tables = make_tables(args.bench, args.data / board.dataset, args.tables / board.dataset)
        kept = {variant.name: {} for variant in variants}
        for seed in args.seeds:
            for name, result in run_seed(board, tables, variants, folder, seed, options).items():
                kept[name][seed] = result
        rows += [
            row for name, of_seeds in kept.items() if of_seeds for row in describe(board, name, of_seeds, kept[WHOLE])
        ]
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
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
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "ablations")
    parser.add_argument("--boards", nargs="+", default=ON_BOARDS, choices=[board.name for board in BOARDS])
    parser.add_argument("--only", nargs="+", choices=[variant.name for variant in VARIANTS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    args, options = parser.parse_known_args()
    args.bench = args.bench or args.data.parent / "bench"
    return args, options


def run_seed(
    board: Board, tables: Path, variants: list[Variant], folder: Path, seed: int, options: list[str]
) -> dict[str, Kept]:
    """Fit what is missing of a seed; return what is kept of it by variant, those that do not apply left out."""
    paths = {variant.name: folder / f"{variant.name}-{seed}.npz" for variant in variants}
    missing = [variant for variant in variants if not paths[variant.name].exists()]
    prepared = prepare(board, tables, seed, options) if missing else None
    for variant in missing:
        result = fit_variant(prepared, variant) if variant.applies(prepared) else {}
        write_whole(paths[variant.name], lambda out, result=result: save(out, result))
        print(f"{board.name}, seed {seed}: {variant.name} done", file=sys.stderr, flush=True)
    kept = {name: load(path) for name, path in paths.items()}
    return {name: result for name, result in kept.items() if result}


def fit_variant(prepared: Prepared, variant: Variant) -> Kept:
    config, split = variant.configure(prepared.config), prepared.split
    split = replace(split, train=variant.rows(split.train), validation=variant.rows(split.validation))
    changed = replace(prepared, config=config, split=split)
    build = run_training.make_model

    def build_altered(*args: Any) -> TwoTower:
        model = build(*args)
        variant.alter(model)
        return model

    with patch.object(run_training, "make_model", build_altered):
        trained, seconds = fit_once(changed, config)
    told = variant.tell(config) if variant.tell else variant.name
    return {
        **FullRanking.make(changed, trained.data).measure(trained.towers),
        SECONDS: np.array(seconds),
        TOLD: np.array(told),
    }


def save(path: Path, result: Kept) -> None:
    with path.open("wb") as file:  # a name without .npz would be given one
        np.savez(file, **result)


def load(path: Path) -> Kept:
    with np.load(path) as arrays:
        return dict(arrays)


def describe(board: Board, name: str, kept: dict[int, Kept], whole: dict[int, Kept]) -> list[tuple[str, ...]]:
    """Return a row per view: mean and deviation over seeds, and the difference paired by user, averaged over seeds."""
    seeds = sorted(kept)
    clock, work = np.mean([kept[seed][SECONDS] for seed in seeds], axis=0)
    rows, told = [], str(kept[seeds[0]][TOLD])
    for view in [view for view in kept[seeds[0]] if view not in (SECONDS, TOLD)]:
        means = [float(kept[seed][view].mean()) for seed in seeds]
        spread = f" ± {stdev(means):.4f}" if len(means) > 1 else ""
        difference = "" if name == WHOLE else show_difference(*(average(some, seeds, view) for some in (kept, whole)))
        rows.append((board.name, told, view, f"{mean(means):.4f}{spread}", difference, f"{clock:.0f}", f"{work:.0f}"))
    return rows


def average(kept: dict[int, Kept], seeds: list[int], view: str) -> np.ndarray:
    """Average each user's values over seeds."""
    return np.mean([kept[seed][view] for seed in seeds], axis=0)


def show_difference(values: np.ndarray, others: np.ndarray) -> str:
    summary = summarise_difference({"NDCG": values}, {"NDCG": others})
    low, high = summary["NDCG_ci95"]
    return f"{summary['NDCG']:+.4f} ({low:+.4f}, {high:+.4f})"


if __name__ == "__main__":
    main()
