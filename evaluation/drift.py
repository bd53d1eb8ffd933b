"""Compare what a service sees with what its bundle was trained on: python -m evaluation.drift --run DIR.

Training leaves a snapshot of its last four weeks in `metrics.json`: shares of values, deciles of numbers, popularity of
items, how many items and users were new, scores and reach of lists. The same is read from the log of the service, and
compared by the population stability index, the sum of (q - p) ln(q / p) over bins. `DIR/drift.json` has them.
A value of fewer than `MIN_USERS` people counts with the others, in both files.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import chi2
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from evaluation.holdout import plain_requests
from evaluation.metrics import MAX_VALUES
from evaluation.online import read_log
from serve.arrays import Doubles
from serve.bundle import BUNDLE, DRIFT, ITEMS_FILE, METRICS, STATE, STATE_FILE
from serve.clock import DAY, day_of_week, hour_of_day
from serve.encode import split_cell, to_numbers, to_text
from serve.errors import SchemaError
from serve.files import write_file
from serve.recommender import Recommender
from serve.schema import MIN_USERS, SEVERAL, WORDED, Feature
from service.command_line import make_parser, run_command, tabulate
from service.live_items import LiveItems

Spec = dict[
    str, Any
]  # of a column: `names` of its bins, their `shares`, `edges` if it has numbers, and `users`
Limits = tuple[float, float]
Column = tuple[
    "pd.Series[Any]", "pd.Series[Any]"
]  # a value per row, and the user of each

SNAPSHOT = "snapshot"  # in `metrics.json`, the second under `timing`
LATENCY = "answer_ms"
SHIFT = (
    0.1,
    0.25,
)  # `watch` and `red`: of the index, and of times of answers, as a ratio
SLOWER = (1.5, 3.0)
CHANCE = (
    0.01  # of reaching `watch` without a shift; with fewer users nothing can be told
)
LEAST = 1e-3  # of a share, so that the index is finite
OTHERS = "(others)"
MISSING = "(missing)"
DECILES = np.arange(1, 10) / 10
WEEK = 7 * DAY
WEEKS = 4
N_LISTS = 1000
N_TIMED = 300
K = 10
CALENDAR = {"hour_of_day": hour_of_day, "day_of_week": day_of_week}
COMPARED = ("numeric", *WORDED)  # kinds with bins; dates age anyway


def main(
    argv: Sequence[str] | None = None, program: str = "python -m evaluation.drift"
) -> int:
    """Run the command and return its exit status."""
    parser = make_parser(program, str(__doc__))
    parser.add_argument(
        "--run",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the run: bundle and profiles",
    )
    parser.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        help="folder of the state; default: in the run",
    )
    return run_command(lambda: run(parser.parse_args(argv)))


def run(given: argparse.Namespace) -> None:
    """Compare, write the figures and print the table."""
    state = given.state or given.run / STATE
    path = given.run / METRICS
    if not (path.exists() and (state / STATE_FILE).exists()):
        raise SchemaError(
            f"{path} or {state / STATE_FILE} does not exist; give a run that a service has served"
        )
    metrics = json.loads(path.read_bytes())
    if not metrics.get(SNAPSHOT):
        raise SchemaError(
            f"{path} has no snapshot: its data has no times, or an earlier version wrote it"
        )
    with closing(
        LiveItems(state / ITEMS_FILE, Recommender.load(given.run / BUNDLE))
    ) as items:
        rows = compare(
            metrics[SNAPSHOT], items.recommender, *read_log(state / STATE_FILE)
        )
        if was := metrics.get("timing", {}).get(
            LATENCY
        ):  # an earlier version did not measure it
            took = time_answers(items.recommender)
            rows.append(
                make_row("latency", took / was, 0, f"{was:g} to {took:g} ms", SLOWER)
            )
    worst = min(
        (row["status"] for row in rows), key=("red", "watch", "ok", "few").index
    )
    content = {"version": metrics["version"], "status": worst, "rows": rows}
    write_file(
        state.absolute().parent / DRIFT,
        (json.dumps(content, indent=1, allow_nan=False) + "\n").encode(),
    )
    sys.stdout.write(
        "\n".join([*tabulate(rows), f"{worst}: {state.parent / DRIFT}"]) + "\n"
    )


def take_snapshot(recommender: Recommender) -> dict[str, Any]:
    """Describe the last weeks that a recommender was trained on, and lists for users of then; nothing without times."""
    profiles = recommender.profiles
    until = recommender.bundle.schema.data_until
    if profiles.history.datetime is None:
        return {}
    owner = np.repeat(profiles.user_ids, np.diff(profiles.offsets))
    begin = until - WEEKS * WEEK
    events = pd.DataFrame({"user_id": owner, **profiles.history.columns()})
    for side in ("user", "item"):
        events[f"new {side}"] = (
            events.groupby(f"{side}_id")["datetime"].transform("min") >= begin
        )
    events = events[events["datetime"] >= begin]
    users = np.random.default_rng(0).permutation(
        np.unique(events["user_id"].to_numpy())
    )[:N_LISTS]
    answers = recommender.recommend(
        plain_requests(pd.DataFrame({"user_id": users}), until), K
    )
    slots = answers.to_table().to_pandas().rename(columns={"rank": "position"})
    specs = {
        name: describe(*column)
        for name, column in collect(recommender, events, slots).items()
    }
    reach = {"lists": len(users), "listed": slots["item_id"].nunique()}
    return {"items": recommender.catalogue.n_listed, **reach, "columns": specs}


def time_answers(recommender: Recommender) -> float:
    """Return the milliseconds of a processor, a median, that a request of a user takes in one thread, as served."""
    users = (
        np.random.default_rng(0)
        .permutation(recommender.profiles.user_ids)[:N_TIMED]
        .tolist()
    )
    seconds = []
    with threadpool_limits(1):
        for request in [{"user_id": user} for user in users] or [{}]:
            begun = time.thread_time()
            recommender.recommend([request], K)
            seconds.append(time.thread_time() - begun)
    return round(float(np.median(seconds)) * 1000, 4)


def compare(
    snapshot: dict[str, Any],
    recommender: Recommender,
    lists: pd.DataFrame,
    slots: pd.DataFrame,
    events: pd.DataFrame,
) -> list[dict[str, Any]]:
    """Compare the last whole weeks of a log, and as many of its last lists, with a snapshot: a row for each thing."""
    last = events["datetime"].max()
    n_weeks = (
        min((last + DAY - events["datetime"].min()) // WEEK, WEEKS)
        if len(events)
        else 0
    )
    for side, ids in (
        ("user", recommender.profiles.user_ids),
        ("item", recommender.catalogue.item_ids.ids),
    ):
        events[f"new {side}"] = ~events[f"{side}_id"].isin(ids.astype(str))
    lists = lists[lists["version"] == recommender.version].tail(snapshot["lists"])
    lists["user_id"] = lists["user_id"].fillna(
        lists["list"].astype("str")
    )  # nobody's stands for itself
    slots = slots[slots["position"] <= K].merge(lists, on="list")
    columns = collect(
        recommender, events[events["datetime"] > last - n_weeks * WEEK], slots
    )
    rows = [
        judge(name, spec, *columns[name])
        for name, spec in snapshot["columns"].items()
        if name in columns
    ]
    was = snapshot["items"]
    n_items = recommender.catalogue.n_listed
    n_listed = slots["item_id"].nunique()
    reach = (
        abs(n_listed - snapshot["listed"]) / was
        if len(lists) == snapshot["lists"]
        else None
    )
    rows.append(
        make_row("catalogue", abs(n_items / was - 1), 0, f"{was} to {n_items} items")
    )
    rows.append(
        make_row(
            "items in a list", reach, 0, f"{snapshot['listed']} to {n_listed} of {was}"
        )
    )
    return rows


def collect(
    recommender: Recommender, events: pd.DataFrame, slots: pd.DataFrame
) -> dict[str, Column]:
    """Return name -> a column of events, or of the first slots of lists."""
    schema = recommender.bundle.schema
    profiles = recommender.profiles
    catalogue = recommender.catalogue
    times = events["datetime"].to_numpy(np.int64)
    item_ids = catalogue.item_ids.ids.astype(str)
    events = events.astype({"user_id": "str", "item_id": "str"})
    users = pd.DataFrame({"user_id": profiles.user_ids.astype(str)})
    items = pd.DataFrame({"item_id": item_ids})
    for one in schema.user_features:
        if one.name in profiles.features and one.kind in COMPARED:
            users[f"user {one.name}"] = read_cells(one, profiles.features[one.name])
    for one in schema.item_features:
        if one.kind in COMPARED:
            items[f"item {one.name}"] = read_cells(
                one, catalogue.table.column(one.column).to_pylist()
            )
    counts = pd.Series(profiles.history.item_id.astype(str)).value_counts()
    items["popularity"] = counts.reindex(item_ids, fill_value=0).to_numpy(float)
    kinds = {
        one.name: one.kind for one in schema.context_features if one.kind in CALENDAR
    }  # others are not in the log
    moments = {
        f"context {name}": CALENDAR[kind](times, schema.timezone).astype(str)
        for name, kind in kinds.items()
    }
    known = (
        events.assign(**moments).merge(users, on="user_id").merge(items, on="item_id")
    )
    given = [
        *users.columns[1:],
        *items.columns[1:],
        *moments,
        *(["event"] if schema.event_types else []),
    ]
    first = slots[slots["position"] == 1].rename(
        columns={"score": "score of the first item"}
    )
    parts = (
        (known, given),
        (first, ["score of the first item"]),
        (events, ["new user", "new item"]),
    )
    return {
        name: (part[name], part["user_id"]) for part, names in parts for name in names
    }


def read_cells(feature: Feature, cells: Any) -> list[Any] | Doubles:
    """Read the cells of a feature: numbers, texts, or lists of texts."""
    if feature.is_numeric:
        return to_numbers(feature, cells)
    return [
        split_cell(feature, cell) if feature.kind in SEVERAL else to_text(cell)
        for cell in cells
    ]


def describe(values: pd.Series[Any], owner: pd.Series[Any]) -> Spec:
    """Describe a column by the shares of its values, or of numbers between deciles, each of some people."""
    edges = None
    if pd.api.types.is_float_dtype(values):
        is_many = owner[values.notna()].nunique() >= MIN_USERS * (len(DECILES) + 1)
        edges = (
            sorted({float(f"{one:.3g}") for one in np.nanquantile(values, DECILES)})
            if is_many
            else []
        )
    bins = to_bins(values, edges)
    n_users = (
        owner.to_frame("user").join(bins.rename("bin")).groupby("bin")["user"].nunique()
    )
    names = (
        n_users[n_users >= MIN_USERS]
        .sort_values(ascending=False, kind="stable")
        .index[:MAX_VALUES]
        .tolist()
    )
    shares = measure_shares(bins, names).tolist()
    return {
        "users": int(owner.nunique()),
        "edges": edges,
        "names": names,
        "shares": shares,
    }


def to_bins(values: pd.Series[Any], edges: list[float] | None) -> pd.Series[Any]:
    """Return the values of each row, one or several, or between which edges its number is."""
    if edges is None:
        return values.explode()
    return (
        pd.cut(values, [-np.inf, *edges, np.inf], right=False)
        .astype("str")
        .where(values.notna())
    )


def measure_shares(bins: pd.Series[Any], names: list[str]) -> Doubles:
    """Return the share of each name, of all others, and of what is missing."""
    known = bins.where(bins.isna() | bins.isin(names), OTHERS).fillna(MISSING)
    counts = known.value_counts(normalize=True).reindex(
        [*names, OTHERS, MISSING], fill_value=0.0
    )
    return np.asarray(counts, np.float64)


def judge(
    name: str, spec: Spec, values: pd.Series[Any], owner: pd.Series[Any]
) -> dict[str, Any]:
    """Compare a column with its snapshot, unless chance alone could reach the first threshold."""
    shares = (
        spec["shares"],
        measure_shares(to_bins(values, spec["edges"]), spec["names"]),
    )
    n_users = owner.nunique()
    was, is_now = (np.maximum(each, LEAST) for each in shares)
    terms = (is_now - was) * np.log(is_now / was)  # of the population stability index
    noise = chi2.isf(CHANCE, len(terms) - 1) * (
        1 / max(n_users, 1) + 1 / max(spec["users"], 1)
    )
    most = int(terms.argmax())
    moved = f"{[*spec['names'], OTHERS, MISSING][most]}: {shares[0][most]:.3f} to {shares[1][most]:.3f}"
    return make_row(
        name, float(terms.sum()) if noise <= SHIFT[0] else None, n_users, moved
    )


def make_row(
    name: str, index: float | None, n_users: int, moved: str, limits: Limits = SHIFT
) -> dict[str, Any]:
    """Make a row of the table; without an index there are too `few` users or lists."""
    status = (
        "few"
        if index is None
        else "red"
        if index >= limits[1]
        else "watch"
        if index >= limits[0]
        else "ok"
    )
    return {
        "name": name,
        "status": status,
        "index": index,
        "users": n_users,
        "moved": "" if index is None else moved,
    }


if __name__ == "__main__":
    sys.exit(main())
