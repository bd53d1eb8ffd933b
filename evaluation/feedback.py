"""Feedback of a service: python -m evaluation.feedback --run DIR.

Writes into `DIR/feedback` what was shown, with what followed each item (`shown.parquet`), the events
(`events.parquet`, as training reads them), figures of use (`figures.json`), and a page of them (`feedback.html`).
Erasing a user from the run takes them out of these files, too.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.bundle import (
    BUNDLE,
    CURRENT,
    DRIFT,
    FEEDBACK,
    FIGURES,
    ITEMS_FILE,
    STATE,
    STATE_FILE,
)
from serve.clock import DAY
from serve.errors import SchemaError
from service.command_line import make_parser, run_command

if TYPE_CHECKING:  # imported when options and paths are right
    import pandas as pd

    from evaluation.online import Feedback
    from serve.recommender import Recommender

MAX_WINDOW_DAYS = 90.0
SHOWN = "shown.parquet"
EVENTS = "events.parquet"
PAGE = "feedback.html"
GROUPS = ("version", "arm", "policy", "segment", "position")


def main(
    argv: Sequence[str] | None = None, program: str = "python -m evaluation.feedback"
) -> int:
    """Run the command and return its exit status."""
    parser = make_parser(program, str(__doc__))
    add = parser.add_argument
    add(
        "--run",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the run, or the registry, with the state",
    )
    add(
        "--targets",
        nargs="+",
        default=[],
        metavar="EVENT",
        help="events that are conversions; default: all",
    )
    add(
        "--window-days",
        type=float,
        default=1.0,
        metavar="DAYS",
        help="in which an event follows a list (default: 1)",
    )
    add(
        "--experiment",
        type=Path,
        metavar="FILE",
        help="the experiment that was served: its arms are compared",
    )
    return run_command(lambda: run(parser.parse_args(argv)))


def run(arguments: argparse.Namespace) -> None:
    """Read the log, write the files and print the figures."""
    (feedback, item_ids) = read_known(arguments)
    shares = {}
    if arguments.experiment is not None:
        from service.experiment import Experiment

        shares = {
            arm.name: arm.share for arm in Experiment.read(arguments.experiment).arms
        }
    write(arguments.run / FEEDBACK, feedback, describe(feedback, item_ids, shares))
    sys.stdout.write(
        f"{len(feedback.lists):,} lists, {len(feedback.events):,} events: {arguments.run / FEEDBACK / PAGE}\n"
    )


def read_feedback(arguments: argparse.Namespace) -> Feedback:
    """Read the log of a run, with what followed each list in a window."""
    path = arguments.run / STATE / STATE_FILE
    if not path.exists():
        raise SchemaError(
            f"{path} does not exist; give a folder, of a run or a registry, that a service has served"
        )
    if not 0 < arguments.window_days <= MAX_WINDOW_DAYS:
        raise SchemaError(
            f"--window-days is {arguments.window_days:g}; allowed: above 0, up to {MAX_WINDOW_DAYS:g}"
        )
    from evaluation.online import join, read_log

    return join(
        *read_log(path),
        targets=arguments.targets,
        window=int(arguments.window_days * DAY),
    )


def read_known(arguments: argparse.Namespace) -> tuple[Feedback, Collection[str]]:
    """Read the log with what the bundle of the run, or the current one of the registry, knows; and the ids of items."""
    feedback = read_feedback(arguments)
    run = arguments.run
    from service.live_items import LiveItems
    from service.registry import Registry
    from service.sources import BundleSource, RegistrySource

    is_registry = (run / CURRENT).exists()
    if not (is_registry or (run / BUNDLE).exists()):
        return feedback, ()
    source = (
        RegistrySource(Registry(run)) if is_registry else BundleSource(run / BUNDLE)
    )
    with closing(LiveItems(run / STATE / ITEMS_FILE, source.load())) as items:
        recommender = items.recommender
    return add_known(
        feedback, recommender, run / STATE / STATE_FILE
    ), recommender.catalogue.item_ids.ids.astype("str")


def add_known(feedback: Feedback, recommender: Recommender, state: Path) -> Feedback:
    """Add to slots the `segment` of a user, if an item `is_new`, and if nothing was known of a user: `is_unknown`."""
    from serve.requests import Request
    from serve.rerank import find_new
    from service.known_users import complete
    from service.state import StateStore

    slots = feedback.slots
    profiles = recommender.profiles
    segments = recommender.bundle.segments
    if segments is not None:
        users = slots["user_id"].dropna().unique()
        with closing(StateStore(state)) as store:
            vectors = recommender.encode_users(
                [complete(Request(user), profiles, store) for user in users]
            )
        numbers = [segments.segments[place].id for place in segments.of(vectors)]
        slots = slots.assign(
            segment=slots["user_id"]
            .map(dict(zip(users, numbers, strict=True)))
            .astype("Int64")
        )
    since = slots["user_id"].map(feedback.events.groupby("user_id")["datetime"].min())
    is_known = slots["user_id"].isin(profiles.user_ids.astype("str")) | (
        since < slots["datetime"]
    )
    is_new = slots["item_id"].isin(
        recommender.catalogue.item_ids.ids[find_new(recommender)].astype("str")
    )
    return replace(
        feedback,
        slots=slots.assign(
            is_new=is_new, is_unknown=slots["user_id"].notna() & ~is_known
        ),
    )


def describe(
    feedback: Feedback, item_ids: Collection[str], shares: Mapping[str, float]
) -> dict[str, Any]:
    """Return the figures of everything and of groups, and where there are shares of arms, their comparison."""
    from evaluation.online import measure, measure_groups

    slots = feedback.slots
    groups = measure_groups(
        slots, [name for name in GROUPS if name in slots and slots[name].notna().any()]
    )
    content = {"all": measure(feedback, item_ids), "groups": groups}
    return content | ({"arms": compare_arms(slots, shares)} if shares else {})


def compare_arms(slots: pd.DataFrame, shares: Mapping[str, float]) -> dict[str, Any]:
    """Compare each arm with the first one by what a user did, and check that users are in arms as declared."""
    import numpy as np

    from evaluation.experiments import check_shares, compare

    known = slots.dropna(subset=["user_id", "arm"])
    users = known.groupby(["arm", "user_id"])[["clicks", "conversions", "value"]].sum()
    counts = {
        str(arm): int(count) for arm, count in users.groupby("arm").size().items()
    }
    first, *others = shares
    compared: dict[str, Any] = {
        "shares": check_shares(counts, shares),
        "control": first,
    }
    for arm in others:
        is_arm, is_first = (
            users.index.get_level_values("arm") == name for name in (arm, first)
        )
        pairs = {
            str(name): (users.loc[is_first, name], users.loc[is_arm, name])
            for name in users.columns
        }
        values = {
            name: [one.to_numpy(np.float64) for one in pair]
            for name, pair in pairs.items()
        }
        found = {
            name: one
            for name, (a, b) in values.items()
            if (one := compare(a, b)) and np.isfinite(one.high)
        }
        told = {
            name: asdict(one) | {"verdict": one.verdict} for name, one in found.items()
        }
        compared[arm] = dict.fromkeys(values) | told
    return compared


def write(folder: Path, feedback: Feedback, figures: Mapping[str, Any]) -> None:
    """Write everything, each file in one step."""
    import pyarrow as pa

    from serve.files import make_private, write_file
    from serve.tables import write_table

    make_private(folder)
    write_table(
        folder / SHOWN, pa.Table.from_pandas(feedback.slots, preserve_index=False)
    )
    write_table(
        folder / EVENTS, pa.Table.from_pandas(feedback.events, preserve_index=False)
    )
    write_file(
        folder / FIGURES,
        (json.dumps(figures, indent=1, allow_nan=False) + "\n").encode(),
    )
    write_file(folder / PAGE, render(figures, read_moved(folder.parent)).encode())


def read_moved(run: Path) -> dict[str, Any] | None:
    """Read when drift was measured, and its rows; None where it was not, or the file is of another form."""
    from service.http.metrics import read_figures

    at = read_figures(run)["figures_timestamp_seconds"].get(("drift",))
    return (
        None
        if at is None
        else {
            "at": datetime.fromtimestamp(at, UTC),
            **json.loads((run / DRIFT).read_bytes()),
        }
    )


def render(figures: Mapping[str, Any], drift: Mapping[str, Any] | None = None) -> str:
    """Render the page."""
    from jinja2 import Environment, FileSystemLoader

    templates = FileSystemLoader(Path(__file__).with_name("templates"))
    environment = Environment(
        loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    style = environment.get_template("report.css").render()
    return environment.get_template("feedback.html").render(
        figures=figures, drift=drift, style=style, rate=_write_rate
    )


def _write_rate(figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return "none yet"
    return f"{figure['value']:.3g} ({figure['low']:.3g} to {figure['high']:.3g})"


if __name__ == "__main__":
    sys.exit(main())
