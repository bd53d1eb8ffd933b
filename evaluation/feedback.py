"""Feedback of a service: python -m evaluation.feedback --run DIR.

Writes into `DIR/feedback` what was shown, with what followed each item (`shown.parquet`), the events
(`events.parquet`, as training reads them), figures of use (`figures.json`), and a page of them (`feedback.html`).
Erasing a user from the run takes them out of these files, too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.bundle import BUNDLE, FEEDBACK, STATE, STATE_FILE
from serve.command_line import make_parser, run_command
from serve.errors import SchemaError

if TYPE_CHECKING:  # imported when options and paths are right
    import pandas as pd

    from evaluation.online import Feedback

DAY = 86_400
MAX_WINDOW_DAYS = 90.0
SHOWN, EVENTS, FIGURES, PAGE = "shown.parquet", "events.parquet", "figures.json", "feedback.html"
GROUPS = ("version", "arm", "policy", "position")


def main(argv: Sequence[str] | None = None, program: str = "python -m evaluation.feedback") -> int:
    """Run the command and return its exit status."""
    parser = make_parser(program, str(__doc__))
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="DIR", help="folder of the run, or the registry, with the state")
    add("--targets", nargs="+", default=[], metavar="EVENT", help="events that are conversions; default: all")
    add("--window-days", type=float, default=1.0, metavar="DAYS", help="in which an event follows a list (default: 1)")
    add("--experiment", type=Path, metavar="FILE", help="the experiment that was served: its arms are compared")
    return run_command(lambda: run(parser.parse_args(argv)))


def run(arguments: argparse.Namespace) -> None:
    """Read the log, write the files and print the figures."""
    feedback, shares = read_feedback(arguments), {}
    if arguments.experiment is not None:
        from serve.discovery.experiment import Experiment

        shares = {arm.name: arm.share for arm in Experiment.read(arguments.experiment).arms}
    figures = describe(feedback, _count_items(arguments.run), shares)
    write(arguments.run / FEEDBACK, feedback, figures)
    sys.stdout.write(
        f"{len(feedback.lists):,} lists, {len(feedback.events):,} events: {arguments.run / FEEDBACK / PAGE}\n"
    )


def read_feedback(arguments: argparse.Namespace) -> Feedback:
    """Read the log of a run, with what followed each list in a window."""
    path = arguments.run / STATE / STATE_FILE
    if not path.exists():
        raise SchemaError(f"{path} does not exist; give a folder, of a run or a registry, that a service has served")
    if not 0 < arguments.window_days <= MAX_WINDOW_DAYS:
        raise SchemaError(f"--window-days is {arguments.window_days:g}; allowed: above 0, up to {MAX_WINDOW_DAYS:g}")
    from evaluation.online import join, read_log

    return join(*read_log(path), targets=arguments.targets, window=int(arguments.window_days * DAY))


def describe(feedback: Feedback, n_items: int, shares: Mapping[str, float]) -> dict[str, Any]:
    """Return the figures of everything and of groups, and where there are shares of arms, their comparison."""
    from evaluation.online import measure, measure_groups

    slots = feedback.slots
    groups = measure_groups(slots, [name for name in GROUPS if slots[name].notna().any()])
    content = {"all": measure(feedback, n_items), "groups": groups}
    return content | ({"arms": compare_arms(slots, shares)} if shares else {})


def compare_arms(slots: pd.DataFrame, shares: Mapping[str, float]) -> dict[str, Any]:
    """Compare each arm with the first one by what a user did, and check that users are in arms as declared."""
    from dataclasses import asdict

    import numpy as np

    from evaluation.experiments import check_shares, compare

    known = slots.dropna(subset=["user_id", "arm"])
    users = known.groupby(["arm", "user_id"])[["clicks", "conversions", "value"]].sum()
    counts = {str(arm): int(count) for arm, count in users.groupby("arm").size().items()}
    first, *others = shares
    compared: dict[str, Any] = {"shares": check_shares(counts, shares), "control": first}
    for arm in others:
        is_arm, is_first = (users.index.get_level_values("arm") == name for name in (arm, first))
        pairs = {str(name): (users.loc[is_first, name], users.loc[is_arm, name]) for name in users.columns}
        values = {name: [one.to_numpy(np.float64) for one in pair] for name, pair in pairs.items()}
        found = {name: compare(control, other) for name, (control, other) in values.items()}
        compared[arm] = {name: one and asdict(one) | {"verdict": one.verdict} for name, one in found.items()}
    return compared


def write(folder: Path, feedback: Feedback, figures: Mapping[str, Any]) -> None:
    """Write everything, each file in one step."""
    import pyarrow as pa

    from serve.durable import make_private, write_file
    from serve.tables import write_table

    make_private(folder)
    write_table(folder / SHOWN, pa.Table.from_pandas(feedback.slots, preserve_index=False))
    write_table(folder / EVENTS, pa.Table.from_pandas(feedback.events, preserve_index=False))
    write_file(folder / FIGURES, (json.dumps(figures, indent=1, allow_nan=False) + "\n").encode())
    write_file(folder / PAGE, render(figures).encode())


def render(figures: Mapping[str, Any]) -> str:
    """Render the page."""
    from jinja2 import Environment, FileSystemLoader

    templates = FileSystemLoader(Path(__file__).with_name("templates"))
    environment = Environment(loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    style = environment.get_template("report.css").render()
    return environment.get_template("feedback.html").render(figures=figures, style=style, rate=_write_rate)


def _write_rate(figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return "none yet"
    return f"{figure['value']:.3g} ({figure['low']:.3g} to {figure['high']:.3g})"


def _count_items(run: Path) -> int:
    from serve.bundle import Bundle

    bundle = run / BUNDLE
    return len(Bundle.load(bundle).items) if bundle.exists() else 0


if __name__ == "__main__":
    sys.exit(main())
