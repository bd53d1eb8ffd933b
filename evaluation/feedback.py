"""Feedback of a service: bascule feedback --run DIR.

Writes into `DIR/feedback` what was shown, with what followed each item (`shown.parquet`), the
events (`events.parquet`, as training reads them), figures of use (`figures.json`), and a page of
them (`feedback.html`). Erasing a user from the run takes them out of these files, too.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from evaluation.experiments import NEW_DAYS, adjust, check_shares, compare
from evaluation.model_card import environment
from evaluation.online import (
    Feedback,
    Figures,
    add_profiles,
    join,
    load_served,
    measure,
    measure_groups,
    read_frames,
)
from serve.arrays import Doubles
from serve.bundle import (
    FEEDBACK,
    FIGURES,
    STATE,
    STATE_FILE,
)
from serve.clock import DAY
from serve.errors import SchemaError
from serve.files import make_private, write_file, write_json
from serve.reasons import assign_segments
from serve.recommender import Recommender
from serve.requests import Request
from serve.rerank import find_new
from service.command_line import make_parser, run_command
from service.experiment import Experiment
from service.export import write_table
from service.figures import read_drift
from service.known_users import complete
from service.remote.fetched import fetch_state
from service.sources import NO_PROFILES
from service.state import StateStore

MAX_WINDOW_DAYS = 90.0
SHOWN = "shown.parquet"
EVENTS = "events.parquet"
PAGE = "feedback.html"
GROUPS = ("version", "arm", "policy", "segment", "position")


def main(argv: Sequence[str] | None = None, program: str = "bascule feedback") -> int:
    """Run the command and return its exit status."""
    parser = make_parser(program, str(__doc__))
    add_log_options(parser)
    parser.add_argument(
        "--experiment",
        type=Path,
        metavar="FILE",
        help="the experiment that was served: its arms are compared",
    )

    add_profiles(parser)
    return run_command(lambda: run(parser.parse_args(argv)))


def add_log_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `read_log_of` reads."""
    parser.add_argument(
        "--run",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the run, or the registry, with the state",
    )
    parser.add_argument(
        "--since",
        type=pd.Timestamp,
        default="1970-01-01",
        metavar="TIME",
        help="only lists from this day or moment on count (UTC), such as 2025-03-01",
    )
    parser.add_argument(
        "--targets",
        nargs="+",
        default=[],
        metavar="EVENT",
        help="events that are conversions; default: all but dismissals",
    )
    parser.add_argument(
        "--window-days",
        type=float,
        default=1.0,
        metavar="DAYS",
        help="in which an event follows a list (default: 1)",
    )


def read_log_of(arguments: argparse.Namespace) -> Feedback:
    """Read the log of a run, with what followed each list in a window.

    Sets `log`, the file, and `lists`, all of them: also those before `--since`.
    """
    arguments.log = fetch_state(None, arguments.run / STATE) / STATE_FILE
    days = arguments.window_days
    if not 0 < days <= MAX_WINDOW_DAYS:
        raise SchemaError(
            f"--window-days is {days:g}; allowed: above 0, up to {MAX_WINDOW_DAYS:g}"
        )

    lists, slots, events = read_frames(arguments.log)
    arguments.lists = lists
    lists = lists[lists["datetime"] >= arguments.since.timestamp()]
    slots = slots[slots["list"].isin(lists["list"])]
    if not len(lists):
        raise SchemaError(
            f"{arguments.log} has no list that was shown: confirm lists by POST /v1/shown, "
            "or name their request_id in events"
        )
    window = int(days * DAY)
    return join(lists, slots, events, targets=arguments.targets, window=window)


def run(arguments: argparse.Namespace) -> None:
    """Read the log, write the files and print the figures."""
    feedback = read_log_of(arguments)
    item_ids: Collection[str] = ()
    state = arguments.run / STATE
    recommender = load_served(arguments.run, state, arguments.profiles)
    if recommender is not None:
        feedback = add_known(feedback, recommender, arguments.log)
        if not len(recommender.profiles):
            sys.stderr.write(
                f"note: no figures of segments and strangers: {NO_PROFILES}\n"
            )
        item_ids = recommender.catalogue.item_ids.ids.astype("str")

    experiment = None
    if arguments.experiment is not None:
        experiment = Experiment.read(arguments.experiment)

    folder = arguments.run / FEEDBACK
    figures = describe(feedback, item_ids)
    if experiment is not None:
        figures["arms"] = compare_arms(feedback, experiment, arguments.lists)
    write(folder, feedback, figures)
    sys.stdout.write(
        f"{len(feedback.lists):,} lists, {len(feedback.events):,} events: "
        f"{folder / PAGE}\n"
    )


def add_known(feedback: Feedback, recommender: Recommender, state: Path) -> Feedback:
    """Add what a bundle knows to each slot.

    Args:
        feedback: the log.
        recommender: the bundle that serves, with its profiles.
        state: file of the state, for the histories of users.

    Returns:
        The log, whose slots have whether the item `is_new` and, if there are profiles, the
        `segment` of the user and whether nothing was known of them (`is_unknown`).
    """
    new_items = recommender.catalogue.item_ids.ids[find_new(recommender)]
    is_new = feedback.slots["item_id"].isin(new_items.astype("str"))
    slots = feedback.slots.assign(is_new=is_new)

    profiles = recommender.profiles
    if not len(profiles):
        return replace(feedback, slots=slots)

    if recommender.bundle.segments is not None:
        users = slots["user_id"].dropna().unique()
        with closing(StateStore(state)) as store:
            requests = [complete(Request(user), profiles, store) for user in users]
        numbers = [
            None if segment is None else segment.id
            for segment in assign_segments(recommender, requests)
        ]
        segment = slots["user_id"].map(pd.Series(numbers, users, dtype="Int64"))
        slots = slots.assign(segment=segment.astype("Int64"))

    first_event = feedback.events.groupby("user_id")["datetime"].min()
    is_known = slots["user_id"].isin(profiles.user_ids.astype("str"))
    is_known |= slots["user_id"].map(first_event) < slots["datetime"]
    slots = slots.assign(is_unknown=slots["user_id"].notna() & ~is_known)
    return replace(feedback, slots=slots)


def describe(feedback: Feedback, item_ids: Collection[str]) -> Figures:
    """Return the figures of `figures.json`.

    Args:
        feedback: the log, with what a bundle knows or without.
        item_ids: the items of the catalogue, as texts; none without a bundle.
    """
    slots = feedback.slots
    groups = [name for name in GROUPS if name in slots and slots[name].notna().any()]
    return {
        "all": measure(feedback, item_ids),
        "groups": measure_groups(slots, groups),
    }


def compare_arms(
    feedback: Feedback, experiment: Experiment, lists: pd.DataFrame
) -> Figures:
    """Compare each arm with the first one by what a user did, and check the shares of arms.

    Only lists of this experiment count; what followed those of its first `NEW_DAYS` does not.

    Args:
        feedback: the log, since a moment or all of it.
        experiment: whose arms are compared.
        lists: of the whole log, with user_id, arm and datetime: "before" is before a user's first
            list of the experiment, even if only later ones are compared.
    """
    shares = {arm.label: arm.share for arm in experiment.arms}
    slots = feedback.slots
    known = slots[slots["user_id"].notna() & slots["arm"].isin([*shares])]
    if known.empty:
        raise SchemaError(f"the log has no list of the experiment '{experiment.salt}'")

    by_user = known.groupby("user_id")
    arm_of_user = by_user["arm"].first()
    first = lists[lists["arm"].isin([*shares])].groupby("user_id")["datetime"].min()
    before = describe_before(feedback.events, first[arm_of_user.index])

    begin = known["datetime"].min() + NEW_DAYS * DAY
    days = (slots["datetime"].max() - begin) / DAY
    lasting = known[known["datetime"] >= begin].groupby("user_id")
    users = lasting[["clicks", "conversions", "value"]].sum()
    users = users.reindex(arm_of_user.index, fill_value=0)

    control, *others = experiment.arms
    figures: Figures = {
        "shares": check_shares(Counter(arm_of_user), shares),
        "control": control.name,
    }

    for arm in others:
        figures[arm.name] = dict.fromkeys(users.columns)
        for name, column in users.items():
            values = adjust(column.to_numpy(np.float64), before)
            of_control = values[arm_of_user == control.label]
            of_arm = values[arm_of_user == arm.label]
            difference = compare(of_control, of_arm, days)
            if difference is not None and np.isfinite(difference.high):
                verdict = difference.verdict
                figures[arm.name][name] = {**vars(difference), "verdict": verdict}

    return figures


def describe_before(events: pd.DataFrame, first: pd.Series[int]) -> Doubles:
    """Return what is known of users from before their first list, (U, 2).

    Args:
        events: of the log.
        first: user -> UTC seconds of their first list of the experiment.

    Returns:
        For how many days they have been in the experiment, and how much they did before.
    """
    is_before = events["datetime"] < events["user_id"].map(first)
    counts = is_before.groupby(events["user_id"]).sum()
    days = (first.max() - first) / DAY
    known = pd.DataFrame({"days": days, "before": counts}, first.index)
    return known.fillna(0.0).to_numpy(np.float64)


def write(folder: Path, feedback: Feedback, figures: Figures) -> None:
    """Write everything, each file in one step."""
    make_private(folder)
    for name, frame in ((SHOWN, feedback.slots), (EVENTS, feedback.events)):
        table = pa.Table.from_pandas(frame, preserve_index=False)
        write_table(folder / name, table)

    write_json(folder / FIGURES, figures)
    write_file(folder / PAGE, render(figures, read_drift(folder.parent)).encode())


def render(figures: Figures, drift: Figures | None = None) -> str:
    """Render the page."""
    style = environment().get_template("report.css").render()
    page = environment(is_escaped=True).get_template("feedback.html")
    return page.render(figures=figures, drift=drift, style=style)
