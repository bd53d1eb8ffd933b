"""Compare what a service sees with what its bundle was trained on: bascule drift --run DIR.

Training leaves a snapshot of its last four weeks in `metrics.json`: shares of values, deciles of
numbers, popularity of items, how many items and users were new, scores and reach of lists. The same
is read from the log of the service, and compared by the population stability index, the sum of (q -
p) ln(q / p) over bins. Users count, not events: those of one user together count as one. Whether
users still take what their past suggests is the row `fit`. `DIR/drift.json` has all rows. A value
of fewer than `MIN_USERS` people counts with the others, in both files.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from scipy.special import chdtri
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from evaluation.holdout import plain_requests
from evaluation.metrics import MAX_VALUES
from evaluation.online import add_profiles, load_served, read_frames
from serve.arrays import Doubles
from serve.bundle import DRIFT, METRICS, STATE, STATE_FILE
from serve.cells import parse_id
from serve.clock import DAY, read_calendar
from serve.errors import SchemaError
from serve.files import write_json
from serve.kinds import Feature
from serve.recommender import Recommender
from serve.schema import MIN_USERS
from service.command_line import make_parser, run_command, tabulate
from service.remote.fetched import fetch_state
from service.sources import NO_PROFILES

# of a column: users, edges of numbers, names and shares of bins
Spec = dict[str, Any]
Row = dict[str, Any]  # of the table
Limits = tuple[float, float]  # of `watch` and `red`
Values: TypeAlias = "pd.Series[Any]"  # one per row, or a list of some

SNAPSHOT = "snapshot"  # in `metrics.json`
LATENCY = "answer_ms"  # there, under `timing`
SHIFT = (0.1, 0.25)  # of the index
SLOWER = (1.5, 3.0)  # of times of answers, as a ratio
CHANCE = 0.001  # of reaching `watch` without a shift, else there are too few users
LESS_FIT = (0.7, 0.85)  # of the fit above that of chance, lost
LEAST = 1e-3  # of a share, so that the index is finite
OTHERS = "(others)"
MISSING = "(missing)"
DECILES = np.arange(1, 10) / 10
WEEK = 7 * DAY
WEEKS = 4
N_LISTS = 1000
N_TIMED = 300
K = 10
MIN_FIT = 0.6  # of training, else there is little to lose
N_FIT = 300  # users
MIN_USERS_TO_FIT = 50
FIRST_SCORE = "score of the first item"
VOLUME = "events of a user"
_UNTOLD = "the training had too few users"
STATUSES = ("red", "watch", "ok", "few")  # worst first


def main(argv: Sequence[str] | None = None, program: str = "bascule drift") -> int:
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

    add_profiles(parser)
    return run_command(lambda: run(parser.parse_args(argv)))


def run(options: argparse.Namespace) -> None:
    """Compare, write the figures and print the table."""
    state = options.state or options.run / STATE
    path = options.run / METRICS
    metrics = json.loads(path.read_bytes())

    snapshot = metrics.get(SNAPSHOT)
    if not snapshot:
        raise SchemaError(
            f"{path} has no snapshot: its data has no times, or an earlier version "
            "wrote it"
        )

    frames = read_frames(fetch_state(options.state, state) / STATE_FILE)
    recommender = load_served(options.run, state, options.profiles)
    if recommender is None:
        raise SchemaError(f"{options.run} has no bundle; give the folder of a run")
    if not len(recommender.profiles):
        raise SchemaError(NO_PROFILES)

    rows = compare(snapshot, recommender, *frames)
    before = metrics["timing"][LATENCY]
    now = time_answers(recommender)
    moved = f"{before:g} to {now:g} ms"
    rows.append(make_row("latency", now / before, 0, moved, SLOWER))

    worst = min((row["status"] for row in rows), key=STATUSES.index)
    content = {"version": metrics["version"], "status": worst, "rows": rows}
    write_json(state.absolute().parent / DRIFT, content)
    lines = [*tabulate(rows), f"{worst}: {state.parent / DRIFT}"]
    sys.stdout.write("\n".join(lines) + "\n")


def take_snapshot(recommender: Recommender) -> Spec:
    """Describe what a recommender was trained on, and lists for users of then.

    Args:
        recommender: with the profiles of its training.

    Returns:
        The snapshot of `metrics.json`: numbers of items and lists, and a spec for each column; it
        is empty without times.
    """
    profiles = recommender.profiles
    if profiles.history.datetime is None:
        return {}

    until = recommender.bundle.schema.data_until
    begin = until - WEEKS * WEEK
    owner = np.repeat(profiles.user_ids, np.diff(profiles.offsets))
    events = pd.DataFrame({"user_id": owner, **profiles.history.columns()})

    for side in ("user", "item"):
        first = events.groupby(f"{side}_id")["datetime"].transform("min")
        events[f"new {side}"] = first >= begin

    events = events[events["datetime"] >= begin]

    users = np.unique(events["user_id"].to_numpy())
    users = np.random.default_rng(0).permutation(users)[:N_LISTS]
    requests = plain_requests(pd.DataFrame({"user_id": users}), until)
    slots = recommender.recommend(requests, K).to_table().to_pandas()
    slots = slots.rename(columns={"rank": "position"})

    columns = collect(recommender, events, slots)
    specs = {name: describe(*column) for name, column in columns.items()}
    return {
        "items": recommender.catalogue.n_listed,
        "lists": len(users),
        "listed": slots["item_id"].nunique(),
        "fit": measure_fit(recommender, events),
        "columns": specs,
    }


def time_answers(recommender: Recommender) -> float:
    """Return the median milliseconds of a processor that a request takes in one thread."""
    rng = np.random.default_rng(0)
    users = rng.permutation(recommender.profiles.user_ids)[:N_TIMED].tolist()
    requests = [{"user_id": user} for user in users] or [{}]

    seconds = []
    with threadpool_limits(1):
        for request in requests:
            begin = time.thread_time()
            recommender.recommend([request], K)
            seconds.append(time.thread_time() - begin)

    return round(float(np.median(seconds)) * 1000, 4)


def compare(
    snapshot: Spec,
    recommender: Recommender,
    lists: pd.DataFrame,
    slots: pd.DataFrame,
    events: pd.DataFrame,
) -> list[Row]:
    """Compare the last whole weeks of a log with a snapshot.

    Args:
        snapshot: of the training.
        recommender: the version that serves, with live items.
        lists: of the log; as many of the last ones count as the snapshot has.
        slots: of the log.
        events: of the log; new users and items are marked in place.

    Returns:
        A row for each column, the catalogue and the reach of lists.
    """
    users = recommender.profiles.user_ids.astype(str)
    items = recommender.catalogue.item_ids.ids.astype(str)
    events["new user"] = ~events["user_id"].isin(users)
    events["new item"] = ~events["item_id"].isin(items)

    n_weeks = 0
    if len(events):
        last = events["datetime"].max()
        n_weeks = min((last + DAY - events["datetime"].min()) // WEEK, WEEKS)
        events = events[events["datetime"] > last - n_weeks * WEEK]

    lists = lists[lists["version"] == recommender.version].tail(snapshot["lists"])
    # A list of nobody stands for a user of its own.
    lists["user_id"] = lists["user_id"].fillna(lists["list"].astype("str"))
    slots = slots[slots["position"] <= K].merge(lists, on="list")

    columns = collect(recommender, events, slots)
    if n_weeks < WEEKS:  # fewer events than in as many weeks as the snapshot's
        del columns[VOLUME]
    rows = []
    for name, spec in snapshot["columns"].items():
        if name in columns:
            rows.append(judge(name, spec, *columns[name]))

    before = snapshot["items"]
    n_items = recommender.catalogue.n_listed
    n_listed = slots["item_id"].nunique()

    reach = None
    reached = f"needs {snapshot['lists']:,} lists of this version, has {len(lists):,}"
    if not len(lists):
        reached += "; a list counts once POST /v1/shown confirms it"
    if len(lists) == snapshot["lists"]:
        reach = abs(n_listed - snapshot["listed"]) / before
        reached = f"{snapshot['listed']} to {n_listed} of {before}"
    grown = f"{before} to {n_items} items"
    rows.append(make_row("catalogue", abs(n_items / before - 1), 0, grown))
    rows.append(make_row("items in a list", reach, 0, reached))

    before = snapshot.get("fit") or 0.0
    now = measure_fit(recommender, events)
    lost = None
    if now is not None and before > MIN_FIT:
        lost = (before - now) / (before - 0.5)
    rows.append(make_row("fit", lost, N_FIT, f"{before} to {now}", LESS_FIT))
    return rows


def collect(
    recommender: Recommender, events: pd.DataFrame, slots: pd.DataFrame
) -> dict[str, tuple[Values, Values]]:
    """Collect what is compared.

    Args:
        recommender: with profiles and catalogue, whose features the events get.
        events: user_id, item_id, datetime, and marks of new users and items.
        slots: user_id, position, score of lists.

    Returns:
        Name -> a column of the events, or of the first slots of lists.
    """
    schema = recommender.bundle.schema
    times = events["datetime"].to_numpy(np.int64)
    profiles = recommender.profiles
    catalogue = recommender.catalogue

    users = pd.DataFrame({"user_id": profiles.user_ids.astype(str)})
    _add_features(users, "user", schema.user_features, profiles.features)

    items = pd.DataFrame({"item_id": catalogue.item_ids.ids.astype(str)})
    columns = {
        feature.name: catalogue.table.column(feature.column).combine_chunks()
        for feature in schema.item_features
    }
    _add_features(items, "item", schema.item_features, columns)

    counts = pd.Series(profiles.history.item_id.astype(str)).value_counts()
    items["popularity"] = counts.reindex(items["item_id"], fill_value=0).to_numpy(float)

    events = events.astype({"user_id": "str", "item_id": "str"})
    names = [*users.columns[1:], *items.columns[1:]]
    for name, kind in (("hour", "hour_of_day"), ("day_of_week", "day_of_week")):
        if (times % DAY).any():  # else these are days
            moments = read_calendar(kind, times, schema.timezone)
            events[f"context {name}"] = moments.astype(str)
            names.append(f"context {name}")

    if schema.event_types:
        names.append("event")

    known = events.merge(users, on="user_id").merge(items, on="item_id")
    first = slots[slots["position"] == 1]
    compared = {name: (known[name], known["user_id"]) for name in names}
    compared[FIRST_SCORE] = (first["score"], first["user_id"])

    by_user = events["user_id"].value_counts().astype(float)
    compared[VOLUME] = (by_user, by_user.index.to_series())
    for name in ("new user", "new item"):
        compared[name] = (events[name], events["user_id"])
    return compared


def _add_features(
    frame: pd.DataFrame,
    side: str,
    features: Sequence[Feature],
    columns: Mapping[str, Any],
) -> None:
    """Add the features with bins, as numbers or lists of texts; dates age anyway."""
    for feature in features:
        if feature.name not in columns:
            continue
        name = f"{side} {feature.name}"
        column = columns[feature.name]
        if feature.is_numeric:
            frame[name] = feature.read(column.tolist())
        elif feature.has_vocabulary:
            frame[name] = [feature.texts(cell) for cell in column.tolist()]


def describe(values: Values, owner: Values) -> Spec:
    """Describe a column by the shares of its values, or of numbers between deciles.

    Args:
        values: a value per row, or a list of them.
        owner: the user of each row; a bin of fewer than `MIN_USERS` of them is not named.
    """
    edges: list[float] | None = None
    if pd.api.types.is_float_dtype(values):
        edges = []
        n_users = owner[values.notna()].nunique()
        if n_users >= MIN_USERS * (len(DECILES) + 1):
            quantiles = np.nanquantile(values, DECILES)
            edges = sorted({float(f"{quantile:.3g}") for quantile in quantiles})

    bins = to_bins(values, edges)
    users = owner.to_frame("user").join(bins.rename("bin"))
    counts = users.groupby("bin")["user"].nunique()
    counts = counts[counts >= MIN_USERS].sort_values(ascending=False, kind="stable")
    names = counts.index[:MAX_VALUES].tolist()
    return {
        "users": int(owner.nunique()),
        "edges": edges,
        "names": names,
        "shares": measure_shares(bins, owner, names).tolist(),
    }


def to_bins(values: Values, edges: list[float] | None) -> Values:
    """Return the values of each row, one or several, or between which edges its number is."""
    if edges is None:
        return values.explode()
    bins = pd.cut(values, [-np.inf, *edges, np.inf], right=False)
    return bins.astype("str").where(values.notna())


def measure_shares(bins: Values, owner: Values, names: list[str]) -> Doubles:
    """Return the share of each name, of all others, and of what is missing; users count alike."""
    by_row = 1 / owner.map(owner.value_counts()).astype(float)
    weights = by_row.loc[bins.index]
    is_named = bins.isna() | bins.isin(names)
    labels = bins.where(is_named, OTHERS).fillna(MISSING)
    shares = weights.groupby(labels).sum() / weights.sum()
    shares = shares.reindex([*names, OTHERS, MISSING], fill_value=0.0)
    return np.asarray(shares, np.float64)


def measure_fit(recommender: Recommender, events: pd.DataFrame) -> float | None:
    """Return how often an item that a user took scores above one that another took.

    Args:
        recommender: with the profiles of its training.
        events: with marks of new users and items; the first one of each other user counts.

    Returns:
        From 0 to 1, 1/2 for chance; None where there are too few users.
    """
    taken = events[~events["new user"] & ~events["new item"]]
    taken = taken.drop_duplicates("user_id").head(N_FIT)
    if len(taken) < MIN_USERS_TO_FIT:
        return None

    requests = [{"user_id": user_id} for user_id in taken["user_id"].tolist()]
    id_type = recommender.bundle.schema.item_id_type
    items = [parse_id(item_id, id_type, "item_id") for item_id in taken["item_id"]]
    scores = recommender.score(requests, items)
    own = np.diagonal(scores)[:, None]
    return round(float((own > scores).mean()), 3)


def judge(name: str, spec: Spec, values: Values, owner: Values) -> Row:
    """Compare a column with its snapshot, unless chance alone could reach `watch`.

    Args:
        name: of the column.
        spec: of the snapshot.
        values: a value per row, or a list of them.
        owner: the user of each row.

    Returns:
        A row of the table.
    """
    n_users = owner.nunique()
    shares = measure_shares(to_bins(values, spec["edges"]), owner, spec["names"])
    before = np.maximum(spec["shares"], LEAST)
    now = np.maximum(shares, LEAST)
    terms = (now - before) * np.log(now / before)
    index = float(terms.sum())  # the population stability index
    # Among 1 / per_user users chance alone does not reach `watch`.
    per_user = SHIFT[0] / chdtri(len(terms) - 1, CHANCE) - 1 / max(spec["users"], 1)
    if n_users * per_user < 1:
        needed = f"needs {np.ceil(1 / per_user):,.0f} users"
        return make_row(name, None, n_users, needed if per_user > 0 else _UNTOLD)

    most = int(terms.argmax())
    bin_name = [*spec["names"], OTHERS, MISSING][most]
    moved = f"{bin_name}: {spec['shares'][most]:.3f} to {shares[most]:.3f}"
    return make_row(name, index, n_users, moved)


def make_row(
    name: str, index: float | None, n_users: int, moved: str, limits: Limits = SHIFT
) -> Row:
    """Make a row of the table.

    Args:
        name: of what is compared.
        index: how far it has moved; None where there are too `few` users or lists.
        n_users: behind the figures.
        moved: what moved most, or how many would be needed.
        limits: of `watch` and `red`.
    """
    if index is None:
        status = "few"
    elif index >= limits[1]:
        status = "red"
    else:
        status = "watch" if index >= limits[0] else "ok"

    return {
        "name": name,
        "status": status,
        "index": index,
        "users": n_users,
        "moved": moved,
    }
