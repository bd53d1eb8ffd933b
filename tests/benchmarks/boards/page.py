"""The tables and the picture of docs/boards.md, made from the JSON files of rows alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tests.benchmarks.boards.declared import BOARDS, QUOTED, Board
from tests.benchmarks.boards.runs import Row, is_of

BEGIN, END = "<!-- rows: made by make boards -->", "<!-- end of rows -->"
HEADER = (
    "board",
    "figures",
    "seeds",
    "Bascule",
    "best other",
    "Bascule minus the run's best (95 %)",
    "fit CPU s",
)
QUICK_HEADER = ("board", "figures", "quick", "whole run", "quick, fit CPU s")
INTERVAL = 1.96
TOLERANCE = 0.0005
"""Equal scores may stand in another order in float32 lists."""


def read_rows(folder: Path, version: str) -> list[Row]:
    """Read the rows of a version; those of another one, or of other options, are left out."""
    boards = {board.name: board for board in BOARDS}
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [
        row for row in rows if row["board"] in boards and is_of(row, boards[row["board"]], version)
    ]


def render(rows: Sequence[Row], version: str) -> str:
    """Return the Markdown between the marks of the page."""
    by_board = group(row for row in rows if not row["quick"])
    quick = group(row for row in rows if row["quick"])
    lines = [f"Version `{version}`, {tell_commits(rows)}.", "", *head(HEADER)]
    lines += [show_board(board, by_board[board.name]) for board in BOARDS if board.name in by_board]
    missing = [board.name for board in BOARDS if board.name not in by_board]
    if missing:
        lines += ["", f"Not run with this version: {', '.join(missing)}."]
    lines += tell_disagreements(by_board)
    lines += ["", f"The same tables split by time: {tell_twins()}."]
    if by_board:
        lines += ["", "Protocols:", "", *tell_protocols(by_board)]
    if quick:
        lines += ["", "Quick runs:", "", *head(QUICK_HEADER)]
        names = [board for board in BOARDS if board.name in quick]
        lines += [show_quick(board, quick[board.name], by_board) for board in names]
    return "\n".join(lines)


def group(rows: Any) -> dict[str, list[Row]]:
    """Group rows by board, by rising seed."""
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        groups.setdefault(row["board"], []).append(row)
    return groups


def head(names: Sequence[str]) -> list[str]:
    return [join(names), join(["---"] * len(names))]


def tell_commits(rows: Sequence[Row]) -> str:
    commits = sorted({row["commit"] for row in rows})
    return f"run at {', '.join(commits)}" if commits else "no row was run"


def tell_disagreements(by_board: dict[str, list[Row]]) -> list[str]:
    """Name the boards whose run measured another figure of itself than the scorer, of the same requests."""
    boards = []
    for board in BOARDS:
        figure = board.figures[0]
        for row in [] if board.has_peers else by_board.get(board.name, []):
            ours = row["figures"][figure]
            by_the_run = row["by_the_run"].get(figure, ours)["value"]
            if abs(by_the_run - ours["value"]) > TOLERANCE:
                boards.append(f"{board.name} ({show_number(by_the_run)}, seed {row['seed']})")
    if not boards:
        return []
    return ["", f"The evaluation of the run itself says otherwise: {', '.join(boards)}."]


def tell_twins() -> str:
    """Say which row splits each board's tables by time, or why there is none."""
    boards: dict[str, list[str]] = {}
    for board in BOARDS:
        if board.twin:
            boards.setdefault(board.twin, []).append(board.name)
    return "; ".join(f"{', '.join(names)}: {twin}" for twin, names in boards.items())


def tell_protocols(by_board: dict[str, list[Row]]) -> list[str]:
    """Return a line a protocol: what is held out, what is excluded, counts and hashes of the raw files."""
    lines = {}
    for rows in by_board.values():
        told = rows[0]["protocol"]
        counts = ", ".join(
            f"{count:,} {name.replace('_', ' ')}" for name, count in told["counts"].items()
        )
        hashes = ", ".join(f"{name} `{digest[:12]}`" for name, digest in told["raw"].items())
        lines[told["name"]] = (
            f"- {told['name']}: held out is {told['held_out']}; excluded: {told['excluded']}. "
            f"{counts}. SHA-256: {hashes}."
        )
    return list(lines.values())


def show_board(board: Board, rows: Sequence[Row]) -> str:
    """Return the line of a board."""
    seeds = ", ".join(str(row["seed"]) for row in rows)
    ours = ", ".join(show_values(rows, figure) for figure in board.figures)
    seconds = mean(tell_seconds(row) for row in rows)
    name, figures = find_best_other(board, rows)
    known = [figure for figure in board.figures if figure in figures]
    other = f"{name} {', '.join(show_number(figures[figure]) for figure in known)}"
    row = next((row for row in rows if row["lead"]), None)
    ahead = ""
    if row:
        lead = row["lead"]
        ahead = f"{lead['value']:+.4f} ({lead['low']:+.4f}, {lead['high']:+.4f}), {lead['over']}"
        ahead += f", seed {row['seed']}" if len(rows) > 1 else ""
    named = ", ".join(figure.replace("novel ", "") for figure in board.figures)
    if len(board.views) > 1:
        named = ", ".join(board.figures)
    return join((board.title, named, seeds, ours, other, ahead, f"{seconds:.0f}"))


def show_quick(board: Board, rows: Sequence[Row], whole: dict[str, list[Row]]) -> str:
    """Return the line of a board's quick runs."""
    quick = ", ".join(show_values(rows, figure) for figure in board.figures)
    ours = ""
    if board.name in whole:
        ours = ", ".join(show_values(whole[board.name], figure) for figure in board.figures)
    seconds = mean(tell_seconds(row) for row in rows)
    return join((board.title, ", ".join(board.figures), quick, ours, f"{seconds:.0f}"))


def show_values(rows: Sequence[Row], figure: str) -> str:
    """Return the mean over seeds, with their standard deviation."""
    values = [row["figures"][figure]["value"] for row in rows]
    spread = f" ± {show_number(stdev(values))}" if len(values) > 1 else ""
    return show_number(mean(values)) + spread


def find_best_other(board: Board, rows: Sequence[Row]) -> tuple[str, dict[str, float]]:
    """Return the name and the figures of the best baseline, peer or quoted peer.

    Figures are means over the seeds that have the model.
    """
    others: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(name for row in rows for name in row["others"]):
        found = [row["others"][name] for row in rows if name in row["others"]]
        others[name] = {figure: mean(of[figure]["value"] for of in found) for figure in found[0]}
    for quoted in QUOTED.get(board.name, []):
        others[f"{quoted.model} (quoted)"] = quoted.figures
    if not others:
        return "", {}
    first = board.figures[0]
    name = max(others, key=lambda name: others[name].get(first, 0.0))
    return name, others[name]


def tell_seconds(row: Row) -> float:
    seconds = row["seconds"]
    return float(seconds.get("training_cpu", 0.0) + seconds.get("training_again_cpu", 0.0))


def show_number(value: float) -> str:
    return f"{value:.4f}".removeprefix("0")


def join(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_page(page: Path, block: str) -> None:
    """Replace what stands between the marks of a page."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n{block}\n{END}{after}", encoding="utf-8")


def measure_bar(board: Board, rows: Sequence[Row]) -> tuple[float, float]:
    """Return the mean over seeds and half of its 95 % interval, of users and of seeds together."""
    values = [row["figures"][board.figures[0]] for row in rows]
    error = mean(value["error"] for value in values)
    spread = stdev(value["value"] for value in values) if len(values) > 1 else 0.0
    return mean(value["value"] for value in values), INTERVAL * (error**2 + spread**2) ** 0.5


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw each board as a pair of bars with error bars: Bascule and the best other model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_board = group(row for row in rows if not row["quick"])
    shown = [board for board in BOARDS if board.name in by_board]
    figure, axes = pyplot.subplots(figsize=(9, 0.55 * len(shown) + 1.2), layout="constrained")
    for place, board in enumerate(shown):
        of_board = by_board[board.name]
        ours, margin = measure_bar(board, of_board)
        name, others = find_best_other(board, of_board)
        theirs = others.get(board.figures[0], 0.0)
        error = find_error(of_board, name, board.figures[0])
        style = {"ecolor": "#333333", "capsize": 2}
        axes.barh(place - 0.2, ours, 0.36, xerr=margin, color="#1f5f99", error_kw=style)
        axes.barh(place + 0.2, theirs, 0.36, xerr=error, color="#c9ccd1", error_kw=style)
        axes.text(ours + margin, place - 0.2, f" {ours:.4f}", va="center", fontsize=8)
        text = f" {name} {theirs:.4f}"
        axes.text(theirs + error, place + 0.2, text, va="center", fontsize=8, color="#555555")

    labels = [f"{board.name}\n{board.figures[0].replace('novel ', '')}" for board in shown]
    axes.set_yticks(range(len(shown)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(
        "Bascule (blue) and the best other model (grey), 95 % intervals; the whole catalogue is ranked"
    )
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def find_error(rows: Sequence[Row], name: str, figure: str) -> float:
    """Return half of the 95 % interval of another model; of a quoted one none is known."""
    for row in rows:
        if name in row["others"]:
            return float(INTERVAL * row["others"][name][figure]["error"])
    return 0.0
