"""`report.html`: a page on a run whose users have no names: python -m evaluation.report --run DIR [--holdout FILE]."""

from __future__ import annotations

import io
import json
import platform
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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
from serve.arrays import Ints
from serve.bundle import BUNDLE, CONFIG, CURVES, LOGS, METRICS, REPORT
from serve.catalogue import name_items
from serve.errors import SchemaError, say
from serve.files import write_file
from serve.recommender import Recommender
from serve.requests import History
from service.command_line import make_parser, run_command

MAX_REQUESTS = (
    2048  # requests that lists are made for, drawn by the seed where there are more
)
N_EXAMPLES = 10  # examples, and events of each
MAX_EVENTS = 8
Requests = list[dict[str, Any]]
STAGES = {
    "select": "first training, which validation stops",
    "final": "last training, on all but the test",
}
INK = "#17212b"
OURS = "#0b62a8"
THEIRS = "#7d8894"
COLOURS = (
    INK,
    OURS,
    THEIRS,
    "#b86e00",
    "#00795c",
)  # the style sheet knows them by their place
NAMES = environment().get_template("words.jinja").module.models  # type: ignore[attr-defined]
_STYLE: dict[Any, Any] = {
    **{
        "svg.fonttype": "none",
        "svg.hashsalt": "bascule",
        "font.size": 9,
        "axes.grid": True,
        "grid.alpha": 0.3,
    },
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(
        (
            "text.color",
            "axes.edgecolor",
            "axes.labelcolor",
            "xtick.color",
            "ytick.color",
        ),
        INK,
    ),
}


def main(
    argv: Sequence[str] | None = None, program: str = "python -m evaluation.report"
) -> int:
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
    """Write the report of a finished run again, unless its figures are of another bundle than the one there."""
    path = run / METRICS
    try:
        content = json.loads(path.read_bytes())
        measured = content["data"] and content["version"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SchemaError(
            f"{path} cannot be read: {say(error)}; give the folder of a finished run"
        ) from error
    recommender = Recommender.load(run / BUNDLE)
    there = recommender.bundle.manifest.version
    if measured != there:
        raise SchemaError(
            f"{path} is of version {measured}, the bundle beside it of {there}; give one run's folder"
        )
    held_out = (
        None
        if holdout is None
        else read_interactions(holdout, recommender.bundle.schema)
    )
    write_report(run, run, content, recommender, held_out)
    sys.stdout.write(f"report: {run / REPORT}\n")


def write_report(
    folder: Path,
    run: Path,
    content: Content,
    recommender: Recommender,
    holdout: pd.DataFrame | None,
) -> None:
    """Write `report.html` of a `run`, from `metrics.json`, its logs and the test, if any, that marks what was right."""
    facts = recommender.bundle.manifest.facts
    seed = int(facts.config.get("seed", 0))
    requests, targets = ask(recommender, content, holdout, seed)
    has_config = any((place / CONFIG).is_file() for place in (folder, run))
    page = render(
        "report.html",
        content,
        content["data"],
        recommender.bundle.schema,
        facts=facts,
        python=platform.python_version(),
        config=shlex.quote(str(run / CONFIG)) if has_config else None,
        without_context=WITHOUT_CONTEXT,
        depth=DEPTH,
        n_asked=len(requests),
        is_test=targets is not None,
        examples=describe_examples(recommender, requests, targets, seed),
        exposure=measure_exposure(recommender, requests) if requests else None,
        curves=read_curves(run),
        draw_intervals=draw_intervals,
        find_limits=find_limits,
        draw_curves=draw_curves,
    )
    write_file(folder / REPORT, page.encode())


def draw(plot: Callable[[Axes], None], label: str, height: float = 2.6) -> Markup:
    """Return a drawing as SVG whose colours the style sheet decides; the label, read aloud, makes ids unique."""
    with mpl.rc_context(_STYLE):
        drawing = Figure(figsize=(4.4, height), layout="constrained")
        text = io.StringIO()
        plot(drawing.subplots())
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        drawing.savefig(text, format="svg", transparent=True, metadata=no_metadata)
    svg = text.getvalue()[text.getvalue().index("<svg") + 5 :]
    for mark in ('id="', "(#", '"#'):
        svg = svg.replace(mark, mark + re.sub(r"\W+", "-", label))
    for place, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--c{place})")
    return Markup('<svg class="chart" role="img" aria-label="{}" ').format(
        label
    ) + Markup(svg)  # noqa: S704


def draw_intervals(
    summaries: Mapping[str, Content],
    metric: str,
    label: str,
    limits: Sequence[float] = (),
) -> Markup:
    """Draw a dot and its 95 % interval per row, ours in our colour; charts of the same limits have the same axis."""
    height = 0.7 + 0.22 * len(summaries)

    def plot(axes: Axes) -> None:
        rows = range(len(summaries), 0, -1)
        names = [NAMES.get(name, name) for name in summaries]
        for row, (name, summary) in zip(rows, summaries.items(), strict=True):
            colour = OURS if name == MODEL or limits else THEIRS
            axes.plot(
                summary[f"{metric}_ci95"], [row, row], color=colour, linewidth=1.8
            )
            axes.plot(summary[metric], row, "o", color=colour, markersize=5)
        axes.set_yticks(
            list(rows), [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
        )
        axes.set(xlabel=metric, ylim=(0.4, len(summaries) + 0.6), xlim=limits or None)
        cast(Figure, axes.figure).set_layout_engine(
            "none"
        )  # the axis is at one place, however long the names
        axes.set_position((0.36, 0.5 / height, 0.61, 1 - 0.6 / height))

    return draw(plot, label, height)


def find_limits(slices: Sequence[Content]) -> tuple[float, float]:
    """Return the ends of an axis that holds the intervals of all groups."""
    ends = [
        end
        for one in slices
        for group in one["charted"].values()
        for end in group[f"{one['metric']}_ci95"]
    ]
    return max(0.0, min(ends) - 0.02), max(ends) + 0.02


def read_curves(run: Path) -> dict[str, dict[str, pd.Series[float]]]:
    """Return caption -> figures by epoch of each training that left a log; of an epoch run again the last ones."""
    charts = {}
    for stage, title in STAGES.items():
        path = run / LOGS / stage / CURVES
        if path.is_file():
            rows = pd.read_csv(path).groupby("epoch").last().dropna(axis=1, how="all")
            for start, meaning in (
                ("train_loss", "Training loss"),
                ("val_ndcg", "NDCG on validation users"),
            ):
                curves = {
                    str(name): rows[name].dropna()
                    for name in rows
                    if str(name).startswith(start)
                }
                if curves:
                    charts[
                        f"{meaning} of the {title}; the upright line is the chosen epoch"
                    ] = curves
    return charts


def draw_curves(
    curves: Mapping[str, Any],
    label: str,
    marked: float | None = None,
    is_share: bool = False,
) -> Markup:
    """Draw figures over epochs, or over the share of a catalogue."""

    def plot(axes: Axes) -> None:
        for (name, curve), colour in zip(curves.items(), COLOURS[1:], strict=False):
            axes.plot(
                curve.index,
                curve.to_numpy(),
                label=name,
                color=colour,
                marker="" if is_share else ".",
            )
        if marked is not None:
            axes.axvline(marked, color=INK, linewidth=0.8, linestyle="--")
        if is_share:
            axes.set(xlabel="share of the catalogue, most popular first", xscale="log")
        else:
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()

    return draw(plot, label)


def ask(
    recommender: Recommender, content: Content, holdout: pd.DataFrame | None, seed: int
) -> tuple[Requests, ItemSets | None]:
    """Draw requests of users of the test with their targets, or of known users where nothing was held out."""
    requests = [
        {"user_id": user_id} for user_id in recommender.profiles.user_ids.tolist()
    ]
    targets = None
    if holdout is not None and len(holdout):
        test_at = content["data"]["split"].get("test_at")
        held_out = group_requests(
            holdout, Ids.number(_item_ids(recommender), (holdout,))
        )
        requests = plain_requests(
            held_out.rows, None if test_at is None else read_moment(test_at, None)
        )
        targets = held_out.targets.items
    drawn = np.sort(
        np.random.default_rng(seed).permutation(len(requests))[:MAX_REQUESTS]
    )
    return [
        requests[row] for row in drawn.tolist()
    ], None if targets is None else targets.take(drawn)


def _rank(recommender: Recommender, requests: Requests, filter_viewed: bool) -> Ints:
    return as_lists(
        recommender.recommend(requests, DEPTH, filter_viewed=filter_viewed), DEPTH
    )


def _item_ids(recommender: Recommender) -> Any:
    return pd.Index(recommender.bundle.items.column("item_id").to_pylist())


def measure_exposure(
    recommender: Recommender, requests: Requests
) -> dict[str, pd.Series[float]]:
    """Return the shares of recommendations and of events on the most popular items, by share of the catalogue."""
    n_items = recommender.bundle.items.num_rows
    events = _item_ids(recommender).get_indexer(
        pd.Index(recommender.profiles.history.item_id)
    )
    lists = _rank(recommender, requests, recommender.bundle.schema.repeats == "exclude")
    rows = {"recommendations": lists, "events": events}
    counts = pd.DataFrame(
        {name: np.bincount(of[of >= 0], minlength=n_items) for name, of in rows.items()}
    )
    counts = counts.sort_values("events", ascending=False, kind="stable").set_axis(
        np.arange(1, n_items + 1) / n_items
    )
    shown = np.unique(np.geomspace(1, n_items, 120).round().astype(int) - 1)
    shares = (counts.cumsum() / counts.sum().clip(lower=1)).iloc[shown]
    return {str(name): shares[name] for name in shares}


def describe_examples(
    recommender: Recommender, requests: Requests, targets: ItemSets | None, seed: int
) -> list[dict[str, Any]]:
    """Return what users had, are recommended and chose: one of each of ten groups of rising history length."""
    profiles = [recommender.profiles.get(request["user_id"]) for request in requests]
    histories = [
        History(np.empty(0, object)) if profile is None else profile.history
        for profile in profiles
    ]
    groups = np.array_split(
        np.argsort([len(history) for history in histories], kind="stable"), N_EXAMPLES
    )
    rng = np.random.default_rng(seed)
    chosen = [int(rng.choice(group)) for group in groups if len(group)]
    schema = recommender.bundle.schema
    ids = _item_ids(recommender)
    views = (
        {"All items": False, "New items only": True}
        if schema.repeats == "allow"
        else {"Recommended": True}
    )
    asked = [requests[row] for row in chosen]
    lists = {
        title: _rank(recommender, asked, is_filtered)
        for title, is_filtered in views.items()
    }
    names = np.array(
        [*name_all(recommender), "an item outside the catalogue"], object
    )  # the last one answers -1
    examples = []
    for place, row in enumerate(chosen):
        history = histories[row]
        had = ids.get_indexer(pd.Index(history.item_id))
        wanted: Any = [] if targets is None else targets.take(np.array([row])).item_row
        places = {
            title: [
                (names[item], item in wanted, item in had)
                for item in ranked[place]
                if item >= 0
            ]
            for title, ranked in lists.items()
        }
        events = _describe_events(history, names[had], schema.timezone)
        wanted = [names[item] for item in wanted]
        examples.append(
            {
                "n_events": len(history),
                "events": events,
                "lists": places,
                "targets": wanted,
            }
        )
    return examples


def _describe_events(
    history: History, names: Any, timezone: str | None
) -> list[tuple[str, str]]:
    events = pd.DataFrame(
        {"name": names, "date": "", "event": history.event, "weight": history.weight}
    )
    if history.datetime is not None:
        times = pd.to_datetime(pd.Series(history.datetime), unit="s", utc=True)
        events["date"] = times.dt.tz_convert(timezone or "UTC").dt.date.astype(str)
    described = []
    for name, date, event, weight in events.tail(MAX_EVENTS)[::-1].itertuples(
        index=False
    ):
        details = event if isinstance(event, str) else ""
        details += (
            f" x {weight:g}"
            if weight is not None and np.isfinite(weight) and weight != 1
            else ""
        )
        described.append((date, f"{name} [{details.strip()}]" if details else name))
    return described


def name_all(recommender: Recommender) -> list[str]:
    """Return readable names of all items, with the id if several have the same."""
    items = recommender.bundle.items
    names = name_items(items, recommender.bundle.schema.item_features)
    counts = Counter(names)
    ids = map(str, _item_ids(recommender))
    return [
        name if counts[name] == 1 else f"{name} ({item_id})"
        for name, item_id in zip(names, ids, strict=True)
    ]


if __name__ == "__main__":
    sys.exit(main())
