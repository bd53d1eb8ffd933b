"""`report.html`, a page on a run whose users have no names: bascule report --run DIR."""

from __future__ import annotations

import io
import json
import platform
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.evaluate import DEPTH, MODEL, WITHOUT_CONTEXT, as_lists
from evaluation.holdout import (
    Ids,
    group_requests,
    plain_requests,
    read_interactions,
    read_moment,
)
from evaluation.metrics import ItemSets
from evaluation.model_card import Content, environment, render
from evaluation.signal import advise
from serve.arrays import Ints
from serve.bundle import BUNDLE, CONFIG, CURVES, LOGS, METRICS, REPORT
from serve.catalogue import name_items
from serve.errors import SchemaError
from serve.files import write_file
from serve.recommender import Recommender
from serve.requests import History
from service.command_line import make_parser, run_command

MAX_REQUESTS = 2048  # lists that are made; where there are more users, the seed draws
N_EXAMPLES = 10
MAX_EVENTS = 8  # of an example
Requests = list[dict[str, Any]]
STAGES = {
    "select": "first training, which validation stops",
    "final": "last training, on all but the test",
}
CURVES_SHOWN = {
    "train_loss": "Training loss",
    "val_ndcg": "NDCG on validation users",
}
INK = "#17212b"
OURS = "#0b62a8"
THEIRS = "#7d8894"
COLOURS = (INK, OURS, THEIRS, "#b86e00", "#00795c")  # in the order of the style sheet
NAMES = environment().get_template("words.jinja").module.models  # type: ignore[attr-defined]
STYLE = Path(__file__).with_name("templates") / "report.mplstyle"


def main(argv: Sequence[str] | None = None, program: str = "bascule report") -> int:
    """Run the command and return its exit status."""
    parser = make_parser(program, "Write the report of a finished run again.")
    parser.add_argument(
        "--run", type=Path, required=True, help="folder of a finished run"
    )
    parser.add_argument(
        "--holdout",
        type=Path,
        help="the test interactions, to mark what was right in the examples",
    )

    return run_command(lambda: rewrite_report(**vars(parser.parse_args(argv))))


def rewrite_report(run: Path, holdout: Path | None) -> None:
    """Write the report of a finished run again.

    Args:
        run: folder of the run.
        holdout: file of the test interactions, to mark what was right in the examples.

    Raises:
        SchemaError: the folder has no figures, or those of another bundle.
    """
    path = run / METRICS
    recommender = Recommender.load(run / BUNDLE)
    version = recommender.bundle.manifest.version

    content = json.loads(path.read_bytes())
    if content.get("version") != version:
        raise SchemaError(
            f"{path} is not of version {version}, as the bundle beside it"
        )

    test = None
    if holdout is not None:
        test = read_interactions(holdout, recommender.bundle.schema)
    write_report(run, run, content, recommender, test)
    sys.stdout.write(f"report: {run / REPORT}\n")


def write_report(
    folder: Path,
    run: Path,
    content: Content,
    recommender: Recommender,
    holdout: pd.DataFrame | None,
) -> None:
    """Write `report.html`.

    Args:
        folder: where the report goes.
        run: folder with the logs and the configuration of the run.
        content: `metrics.json`.
        recommender: the bundle of the run with its profiles.
        holdout: the test interactions, to mark what was right in the examples.
    """
    bundle = recommender.bundle
    facts = bundle.manifest.facts
    seed = int(facts.config.get("seed", 0))
    requests, targets = draw_requests(recommender, content, holdout, seed)

    config = None
    if (folder / CONFIG).is_file():
        config = shlex.quote(str(run / CONFIG))
    exposure = None
    if requests:
        exposure = measure_exposure(recommender, requests)
    answers = {
        "n_asked": len(requests),
        "is_test": targets is not None,
        "examples": describe_examples(recommender, requests, targets, seed),
        "exposure": exposure,
        "advice": [*advise(content)],
    }
    charts = {
        "depth": DEPTH,
        "curves": read_curves(run),
        "draw_intervals": draw_intervals,
        "find_limits": find_limits,
        "draw_curves": draw_curves,
    }

    page = render(
        "report.html",
        content,
        content["data"],
        bundle.schema,
        facts=facts,
        python=platform.python_version(),
        config=config,
        without_context=WITHOUT_CONTEXT,
        **answers,
        **charts,
    )
    write_file(folder / REPORT, page.encode())


def draw(plot: Callable[[Axes], None], label: str, height: float = 2.6) -> Markup:
    """Draw a chart.

    Args:
        plot: draws on axes.
        label: is read aloud; it also makes the ids of the drawing unique on the page.
        height: inches.

    Returns:
        SVG whose colours the style sheet decides.
    """
    with mpl.rc_context(fname=STYLE):
        figure = Figure(figsize=(4.4, height), layout="constrained")
        plot(figure.subplots())
        text = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=no_metadata)

    svg = text.getvalue().partition("<svg ")[2]
    prefix = re.sub(r"\W+", "-", label)
    svg = re.sub(r'id="|\(#|"#', lambda mark: mark[0] + prefix, svg)

    for place, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--c{place})")
    head = Markup('<svg class="chart" role="img" aria-label="{}" ').format(label)
    return head + Markup(svg)  # noqa: S704 - matplotlib escapes


def draw_intervals(
    summaries: Mapping[str, Content],
    metric: str,
    label: str,
    limits: Sequence[float] = (),
) -> Markup:
    """Draw a dot and its 95 % interval per row.

    Args:
        summaries: name of the row -> metric and `<metric>_ci95`.
        metric: the figure to draw.
        label: of the drawing.
        limits: ends of the axis, the same for charts of groups, which are all ours.
    """
    height = 0.7 + 0.22 * len(summaries)

    def plot(axes: Axes) -> None:
        for row, (name, summary) in enumerate(summaries.items()):
            colour = OURS if name == MODEL or limits else THEIRS
            ends = summary[f"{metric}_ci95"]
            axes.plot(ends, [row, row], color=colour, linewidth=1.8)
            axes.plot(summary[metric], row, "o", color=colour, markersize=5)

        names = [NAMES.get(name, name)[:24] for name in summaries]
        axes.set_yticks(range(len(names)), names)
        bottom = len(names) - 0.4  # the first row is on top
        axes.set(xlabel=metric, ylim=(bottom, -0.6), xlim=limits or None)
        # the axis is at one place, however long the names
        cast(Figure, axes.figure).set_layout_engine("none")
        axes.set_position((0.36, 0.5 / height, 0.61, 1 - 0.6 / height))

    return draw(plot, label, height)


def find_limits(slices: Sequence[Content]) -> tuple[float, float]:
    """Return the ends of an axis that holds the intervals of all groups."""
    ends = []
    for groups in slices:
        interval = f"{groups['metric']}_ci95"
        for summary in groups["charted"].values():
            ends += summary[interval]

    return max(0.0, min(ends) - 0.02), max(ends) + 0.02


def read_curves(run: Path) -> dict[str, dict[str, pd.Series[float]]]:
    """Return caption -> figures by epoch of each training that left a log.

    An epoch that ran twice has its last figures.
    """
    charts = {}
    for stage, title in STAGES.items():
        path = run / LOGS / stage / CURVES
        if not path.is_file():
            continue

        rows = pd.read_csv(path).groupby("epoch").last().dropna(axis=1, how="all")

        for start, meaning in CURVES_SHOWN.items():
            logged = rows.filter(regex=f"^{start}")
            if len(logged.columns):
                caption = (
                    f"{meaning} of the {title}; the upright line is the chosen epoch"
                )
                charts[caption] = {str(name): logged[name].dropna() for name in logged}

    return charts


def draw_curves(
    curves: Mapping[str, Any],
    label: str,
    axis: str,
    scale: str = "linear",
    chosen_epoch: float | None = None,
) -> Markup:
    """Draw figures over epochs, or over the share of a catalogue."""

    def plot(axes: Axes) -> None:
        for (name, curve), colour in zip(curves.items(), COLOURS[1:], strict=False):
            axes.plot(curve.index, curve, ".-", label=name, color=colour)
        axes.legend()
        axes.set(xlabel=axis, xscale=scale)
        if chosen_epoch is not None:
            axes.locator_params("x", integer=True)
            axes.axvline(chosen_epoch, color=INK, linewidth=0.8, linestyle="--")

    return draw(plot, label)


def draw_requests(
    recommender: Recommender, content: Content, holdout: pd.DataFrame | None, seed: int
) -> tuple[Requests, ItemSets | None]:
    """Draw requests of test users with their targets, or of known users without a test."""
    requests = [
        {"user_id": user_id} for user_id in recommender.profiles.user_ids.tolist()
    ]

    targets = None
    if holdout is not None and len(holdout):
        test_at = content["data"]["split"].get("test_at")
        at = None if test_at is None else read_moment(test_at, None)
        held_out = group_requests(
            holdout, Ids.number(_item_ids(recommender), (holdout,))
        )
        requests = plain_requests(held_out.rows, at)
        targets = held_out.targets.items

    order = np.random.default_rng(seed).permutation(len(requests))
    rows = np.sort(order[:MAX_REQUESTS])
    drawn = [requests[row] for row in rows.tolist()]
    return drawn, None if targets is None else targets.take(rows)


def _rank(recommender: Recommender, requests: Requests, filter_viewed: bool) -> Ints:
    return as_lists(recommender.recommend(requests, DEPTH, filter_viewed), DEPTH)


def _item_ids(recommender: Recommender) -> Any:
    return pd.Index(recommender.bundle.items.column("item_id").to_pylist())


def measure_exposure(
    recommender: Recommender, requests: Requests
) -> dict[str, pd.Series[float]]:
    """Return how recommendations and events fall on popular items.

    Returns:
        `recommendations` and `events` -> their share on the most popular items, by the share of
        the catalogue that these are.
    """
    bundle = recommender.bundle
    n_items = bundle.items.num_rows
    events = _item_ids(recommender).get_indexer(
        pd.Index(recommender.profiles.history.item_id)
    )
    lists = _rank(recommender, requests, bundle.schema.repeats == "exclude")

    n_events = np.bincount(events[events >= 0], minlength=n_items)
    n_shown = np.bincount(lists[lists >= 0], minlength=n_items)
    order = np.argsort(-n_events, kind="stable")
    places = np.unique(np.geomspace(1, n_items, 120).round().astype(int))

    shares = {}
    for name, counts in (("recommendations", n_shown), ("events", n_events)):
        totals = np.cumsum(counts[order])
        values = totals[places - 1] / max(totals[-1], 1)
        shares[name] = pd.Series(values, places / n_items)

    return shares


def describe_examples(
    recommender: Recommender, requests: Requests, targets: ItemSets | None, seed: int
) -> list[dict[str, Any]]:
    """Return what some users had, are recommended and chose, from short to long histories."""
    histories = []
    for request in requests:
        profile = recommender.profiles.get(request["user_id"])
        histories.append(profile.history if profile else History(np.empty(0, object)))

    chosen = _choose_rows([len(history) for history in histories], seed)

    schema = recommender.bundle.schema
    views = {"Recommended": True}
    if schema.repeats == "allow":
        views = {"All items": False, "New items only": True}
    chosen_requests = [requests[row] for row in chosen]
    lists = {
        title: _rank(recommender, chosen_requests, filter_viewed)
        for title, filter_viewed in views.items()
    }
    ids = _item_ids(recommender)
    # the last name answers -1
    names = np.array([*name_all(recommender), "an item outside the catalogue"], object)

    examples = []
    for place, row in enumerate(chosen):
        history = histories[row]
        owned = ids.get_indexer(pd.Index(history.item_id))
        wanted: Any = [] if targets is None else targets.take(np.array([row])).item_row

        shown = {}
        for title, ranked in lists.items():
            items = ranked[place][ranked[place] >= 0]
            shown[title] = [
                (names[item], item in wanted, item in owned) for item in items
            ]

        events = _describe_events(history, names[owned], schema.timezone)
        examples.append(
            {
                "n_events": len(history),
                "events": events,
                "lists": shown,
                "targets": [names[item] for item in wanted],
            }
        )

    return examples


def _choose_rows(lengths: Sequence[int], seed: int) -> list[int]:
    """Draw one row of each of some groups of rising length."""
    rng = np.random.default_rng(seed)
    groups = np.array_split(np.argsort(lengths, kind="stable"), N_EXAMPLES)
    return [int(rng.choice(group)) for group in groups if len(group)]


def _describe_events(
    history: History, names: Any, timezone: str | None
) -> list[tuple[str, str]]:
    """Return the date and the name of the last items, the latest first."""
    names = names[-MAX_EVENTS:][::-1].tolist()
    dates: Any = repeat("")
    if history.datetime is not None:
        last = history.datetime[-MAX_EVENTS:][::-1]
        times = pd.to_datetime(last, unit="s", utc=True).tz_convert(timezone or "UTC")
        dates = map(str, times.date)

    return [*zip(dates, names, strict=False)]


def name_all(recommender: Recommender) -> list[str]:
    """Return readable names of all items, with the id if several have the same."""
    bundle = recommender.bundle
    names = pd.Series(name_items(bundle.items, bundle.schema.item_features))
    with_ids = names + [f" ({item_id})" for item_id in _item_ids(recommender)]
    return names.where(~names.duplicated(keep=False), with_ids).tolist()


if __name__ == "__main__":
    sys.exit(main())
