"""Run the boards on the code that is checked out, and write docs/boards.md and its picture from their rows.

    make boards DATA=folder [ONLY="movielens-100k frappe"] [SEEDS="0 1 2"] [OPTIONS=--quick]

DATA holds the public data sets, a folder each, as their owners publish them. A row, one board with one seed, is kept as
docs/boards/BOARD-SEED.json; what is there of the present version is not run again, and what was stopped goes on.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from tests.benchmarks.boards.declared import BOARDS
from tests.benchmarks.boards.page import draw, read_rows, render, write_page
from tests.benchmarks.boards.runs import Folders, run_row, run_rows
from tests.benchmarks.boards.version import ROOT, hash_sources


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [board.name for board in BOARDS]
    parser.add_argument("--data", type=Path, help="default: only the page is written")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tables", type=Path, default=ROOT / "runs" / "bench")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "boards")
    parser.add_argument("--rows", type=Path, default=ROOT / "docs" / "boards")
    parser.add_argument("--quick", action="store_true", help="hardly train: rows of their own")
    args = parser.parse_args()
    if args.data is not None:
        folders = Folders(args.data, args.tables, args.runs, args.rows)
        boards = [board for board in BOARDS if board.name in args.only]
        run = partial(run_row, folders, args.quick)
        run_rows(boards, args.seeds, args.rows, run, args.quick)

    # The page and the picture lie beside the folder of rows.
    page = args.rows.with_suffix(".md")
    if page.exists():
        version = hash_sources()
        rows = read_rows(args.rows, version)
        write_page(page, render(rows, version))
        if rows:
            draw(rows, args.rows.with_suffix(".png"))


if __name__ == "__main__":
    main()
