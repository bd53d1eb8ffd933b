"""People and items that training never saw.

    python tests/benchmarks/cold.py --part items --board amazon-beauty [--seed 0] [train.py options]

items         a tenth of the items leaves all tables, is placed by `encode_items` after training and stands in the full
              catalogue among all the others; beside content-kNN, popularity, chance, exchanged content, and a training
              that had these items too
users         a training without each of some folds of users: what a user gets from the training that never saw her, and
              from another one that did
demographics  the same trainings, asked by demographics alone for users they never saw; beside popularity

Trainings and figures stay in `--runs`; what is there is not made again, and a killed training goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.benchmarks.cold_figures import table  # noqa: E402
from tests.benchmarks.cold_items import measure_items  # noqa: E402
from tests.benchmarks.cold_training import open_board  # noqa: E402
from tests.benchmarks.cold_users import measure_demographics, measure_users  # noqa: E402
from tests.benchmarks.kept import check_options, write_whole  # noqa: E402

PARTS = {"items": measure_items, "users": measure_users, "demographics": measure_demographics}
BOARDS = ("amazon-beauty", "complete-journey", "movielens-100k")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(PARTS), required=True)
    parser.add_argument("--board", choices=BOARDS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folds", type=int, choices=range(2, 6), default=2, help="a fifth of the users each")
    parser.add_argument("--tables", type=Path, default=ROOT / "runs" / "bench")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "cold")
    args, options = parser.parse_known_args()
    runs = args.runs / f"{args.board}-{args.seed}"
    check_options(runs, options)
    path = runs / ("items.json" if args.part == "items" else f"{args.part}-{args.folds}.json")
    if not path.exists():
        figures = PARTS[args.part](open_board(args.board, args.tables, runs, args.seed, options), args.folds)
        write_whole(path, lambda unfinished: unfinished.write_text(json.dumps(figures, indent=1) + "\n"))
    print("\n".join(table(f"{args.board}, {args.part}, seed {args.seed}", json.loads(path.read_bytes()))))


if __name__ == "__main__":
    main()
