"""`report.html`: one page on a run, for people who did not train the model; users in it have numbers and no names.

Write it again with python -m evaluation.report --run DIR [--holdout FILE].
"""

from __future__ import annotations

import io
import json
import platform
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Drawing

from evaluation import model_card
from evaluation.evaluate import DEPTH, MODEL, WITHOUT_CONTEXT, as_lists
from evaluation.holdout import Ids, group_requests, plain_requests, read_interactions, read_moment
from evaluation.metrics import MIN_USERS_TO_COMPARE, Ints, ItemSets
from evaluation.model_card import Content, Figure, Slice, View
from serve.command_line import FAULT, ending_on_signals, make_parser, parse_options
from serve.durable import write_file
from serve.encoding import to_text
from serve.errors import SchemaError, say
from serve.layout import BUNDLE, CONFIG, CURVES, LOGS, METRICS, REPORT
from serve.profiles import History
from serve.recommender import Recommender

MAX_REQUESTS = 2048
"""Requests that lists are made for, drawn by the seed where there are more."""
N_EXAMPLES = 10
MAX_EVENTS, MAX_TARGETS = 8, 8
"""Events and targets of an example that are shown."""
MAX_NAME = 90
"""Letters of an item's name."""
TITLES = ("title", "name", "product_name", "description")
STAGES = {"select": "first training, which validation stops", "final": "last training, on all but the test"}
BEYOND = {
    "coverage": "share of the catalogue that stands in at least one list",
    "novelty": "bits of surprise of an item shown: higher is less known",
    "popularity lift": "popularity of what is shown over that of what users chose",
    "gini": "0: all items shown equally often; near 1: a few have it all",
}
COLOURS = ("#0b62a8", "#b86e00", "#00795c", "#7d8894")
"""Ours first; the style sheet knows them by these values."""
INK = "#17212b"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bascule",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
    "axes.grid": True,
    "grid.color": COLOURS[-1],
    "grid.alpha": 0.3,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0, or 2 after one line about what is wrong. Ctrl-C ends it with 130, SIGTERM with 143."""
    parser = make_parser("python -m evaluation.report", "Write the report of a finished run again.")
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--holdout", type=Path, help="the test interactions, to mark what was right in the examples")
    try:
        arguments = parse_options(parser, argv)
        with ending_on_signals():
            rewrite_report(arguments.run, arguments.holdout)
    except (ValueError, OSError) as error:  # SchemaError and BundleError are ValueErrors
        sys.stderr.write(f"error: {say(error)}\n")
        return FAULT
    sys.stdout.write(f"report: {arguments.run / REPORT}\n")
    return 0


def rewrite_report(folder: Path, holdout: Path | None) -> None:
    """Write the report of a finished run again.

    Raises:
        SchemaError: no finished run, figures of another bundle than the one there, or the holdout cannot be read.
        BundleError: the bundle cannot be trusted.
    """
    path = folder / METRICS
    if not path.is_file():
        raise SchemaError(f"{path}: no such file; give the folder of a finished run of train.py")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise SchemaError(f"{path} is damaged: {say(error)}; train again") from error
    if not isinstance(content, dict) or "data" not in content:
        raise SchemaError(f"{path}: no data report in it; give the folder of a finished run of train.py")
    recommender = Recommender.load(folder / BUNDLE)
    measured, there = content.get("version"), recommender.bundle.manifest.version
    if measured != there:
        raise SchemaError(f"{path} is of version {measured}, the bundle beside it of {there}; give one run's folder")
    held_out = None if holdout is None else read_interactions(holdout, recommender.bundle.schema)
    write_report(folder, folder, content, recommender, held_out)


def write_report(
    folder: Path, run: Path, content: Content, recommender: Recommender, holdout: pd.DataFrame | None
) -> None:
    """Write `report.html`; until it is complete, an older one stays.

    Args:
        folder: of the page: that of the run, or one whose files will come there.
        run: folder of the run, with its `logs`.
        content: what `metrics.json` holds.
        recommender: the bundle, staged or published, with the profiles of the run.
        holdout: interactions that were to be predicted, to mark what was right; None or empty where there are none.

    Raises:
        OSError: the file cannot be written.
    """
    has_config = any((place / CONFIG).is_file() for place in (folder, run))
    command = f"python train.py --config {shlex.quote(str(run / CONFIG))} --out runs/again" if has_config else None
    write_file(folder / REPORT, render_report(run, content, recommender, holdout, command).encode())


def render_report(
    run: Path, content: Content, recommender: Recommender, holdout: pd.DataFrame | None, command: str | None
) -> str:
    """Return the page; `command` repeats the run, the other arguments are those of `write_report`."""
    bundle = recommender.bundle
    seed = int(bundle.manifest.facts.config.get("seed", 0))
    views, slices = model_card.read_views(content), model_card.read_slices(content)
    asked = ask(recommender, content, holdout, seed)
    exposure = measure_exposure(recommender, asked)
    protocol = {name: value for name, value in content["protocol"].items() if not isinstance(value, dict)}
    return model_card.render(
        "report.html",
        product=model_card.PRODUCT,
        content=content,
        schema=bundle.schema,
        facts=bundle.manifest.facts,
        python=platform.python_version(),
        command=command,
        period=model_card.describe_period(content["data"], bundle.schema),
        summary=model_card.summarise_run(content["data"], views, bundle.schema),
        tiles=make_tiles(content, views),
        views=[(view, draw_view(view)) for view in views],
        all_metrics=read_all_metrics(content),
        contextual=read_contextual(content, views),
        skipped=model_card.find_skipped(content),
        metric_meanings=model_card.METRICS,
        models=model_card.MODELS,
        slices=[(one, draw_slice(one)) for one in slices],
        gaps=model_card.describe_gaps(slices),
        view_titles=model_card.VIEWS,
        min_users=model_card.MIN_USERS_SHOWN,
        min_users_to_compare=MIN_USERS_TO_COMPARE,
        beyond_meanings=BEYOND,
        exposure=exposure,
        tail=None if exposure is None else draw_exposure(exposure),
        depth=DEPTH,
        asked=asked,
        examples=describe_examples(recommender, draw_examples(asked, seed)),
        curves=draw_training(read_logs(run), content.get("training", {}).get("epochs")),
        protocol={name.replace("_", " ").capitalize(): value for name, value in protocol.items()},
        data_facts=model_card.describe_data(content["data"], bundle.schema),
        leaks=model_card.list_leaks(content["data"]),
    )


def make_tiles(content: Content, views: Sequence[View]) -> list[tuple[str, str]]:
    """Return the numbers that stand out, each with its meaning."""
    measured = [view for view in views if view.rows]
    tiles = []
    if measured:
        hits = measured[0].ours.others["HR@10"].value
        tiles.append((model_card.percent(hits), "of users find something right among ten (HR@10)"))
    for view in measured:
        against = ""
        if view.rival is not None and view.rival.difference is not None:
            is_clear = view.rival.difference.sign != 0
            gain = view.rival.relative if is_clear else "not clearly different"
            against = f"; {gain} against “{view.rival.label}”, the best simple method"
        label = f"{view.metric}, {view.title.lower()}{against}"
        tiles.append((model_card.figure(view.ours.headline.value), label))
    coverage = content.get("beyond_accuracy", {}).get(MODEL, {}).get(f"coverage@{DEPTH}")
    if coverage is not None:
        tiles.append((model_card.percent(coverage), "of the catalogue is in somebody's first ten"))
    return tiles


def read_all_metrics(content: Content) -> dict[str, dict[str, Figure]]:
    """Return metric -> view -> figure of our model."""
    by_name: dict[str, dict[str, Figure]] = {}
    for view, figures in content.get("test", {}).get(MODEL, {}).items():
        for name in figures:
            if f"{name}_ci95" in figures:
                by_name.setdefault(name, {})[view] = Figure.read(figures, name)
    return by_name


def read_contextual(content: Content, views: Sequence[View]) -> list[tuple[str, list[Figure]]]:
    """Return per view the headline figure without context, with it, and the difference."""
    asked, paired = content.get("with_context", {}), content.get("paired_with_context", {})
    if not asked:
        return []
    results = []
    for view in views:
        parts = [part[view.name] for part in (asked[WITHOUT_CONTEXT], asked[MODEL], paired[WITHOUT_CONTEXT])]
        if all(view.metric in part for part in parts):
            results.append((view.title, [Figure.read(part, view.metric) for part in parts]))
    return results


def read_logs(run: Path) -> dict[str, pd.DataFrame]:
    """Read what the trainings logged, title -> a row per epoch; an epoch that was run again counts once."""
    logs = {}
    for stage, title in STAGES.items():
        path = run / LOGS / stage / CURVES
        if path.is_file():
            rows = pd.read_csv(path).replace([np.inf, -np.inf], np.nan).groupby("epoch").last()
            logs[title] = rows.drop(columns="step", errors="ignore").dropna(axis=1, how="all")
    return logs


def draw(plot: Callable[[Axes], None], label: str, height: float = 2.6) -> Markup:
    """Return a drawing as SVG whose colours the style sheet decides.

    Args:
        plot: draws on axes.
        label: what the drawing shows, for those who do not see it; it makes ids unique in the page.
        height: in inches.
    """
    with mpl.rc_context(_STYLE):
        drawing = Drawing(figsize=(4.4, height), layout="constrained")
        plot(drawing.subplots())
        text = io.StringIO()
        FigureCanvasSVG(drawing).print_svg(text, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    name = re.sub(r"\W+", "-", label)
    for mark in ('id="', "(#", '"#'):
        svg = svg.replace(mark, f"{mark}{name}-")
    for number, colour in enumerate((INK, *COLOURS)):
        svg = svg.replace(colour, f"var(--c{number})")
    attributes = Markup('<svg class="chart" role="img" aria-label="{}" ').format(label)
    return attributes + Markup(svg.removeprefix("<svg "))  # noqa: S704 - matplotlib escapes its texts


def draw_intervals(figures: Mapping[str, Figure], title: str, label: str, has_zero: bool = False) -> Markup:
    """Draw a dot and its 95 % interval per row, the first in our colour; mark 0 for differences."""

    def plot(axes: Axes) -> None:
        rows = range(len(figures), 0, -1)
        names = [name if len(name) <= 24 else f"{name[:23]}…" for name in figures]
        for row, (name, one) in zip(rows, figures.items(), strict=True):
            is_ours = name == model_card.PRODUCT or (has_zero and one.sign > 0)
            colour = COLOURS[0] if is_ours else COLOURS[-1]
            axes.plot([one.low, one.high], [row, row], color=colour, linewidth=1.8)
            axes.plot(one.value, row, "o", color=colour, markersize=5)
        axes.set_yticks(list(rows), names)
        axes.set_xlabel(title)
        if has_zero:
            axes.axvline(0, color=INK, linewidth=0.8, linestyle="--")

    return draw(plot, label, 0.7 + 0.26 * len(figures))


def draw_view(view: View) -> list[tuple[str, Markup]]:
    """Draw all models of a view, and how ours differs from each baseline, each with its caption."""
    if not view.rows:
        return []
    headlines = {row.label: row.headline for row in view.rows}
    label = f"{view.metric} of each model with 95 % intervals, {view.title.lower()}"
    drawings = [(f"{view.metric} of each model", draw_intervals(headlines, view.metric, label))]
    differences = {row.label: row.difference for row in view.rows if row.difference is not None}
    if differences:
        label = f"{model_card.PRODUCT} minus each baseline in {view.metric}, with 95 % intervals, {view.title.lower()}"
        chart = draw_intervals(differences, f"{model_card.PRODUCT} minus baseline", label, has_zero=True)
        drawings.append((f"{model_card.PRODUCT} minus each baseline, user by user: right of 0 it is better", chart))
    return drawings


def draw_slice(one: Slice) -> Markup | None:
    """Draw the groups of a slice in the first view, None if there are not two to compare."""
    view = one.views[0]
    figures = {label: views[view] for label, views in one.groups.items() if view in views}
    if len(figures) < 2:
        return None
    return draw_intervals(figures, one.metric, f"{one.metric} by group of {one.title}, with 95 % intervals")


def draw_training(logs: Mapping[str, pd.DataFrame], epochs: int | None) -> list[tuple[str, Markup]]:
    """Draw the loss of all trainings, and the validation of each, with the chosen epoch."""
    losses = {title: rows["train_loss"].dropna() for title, rows in logs.items() if "train_loss" in rows}
    drawings = []
    if losses:
        chart = draw_curves(losses, "epoch", "Training loss by epoch")
        drawings.append(("Training loss: lower is better", chart))
    for title, rows in logs.items():
        curves = {name: rows[name].dropna() for name in rows if str(name).startswith("val_ndcg")}
        if curves:
            chart = draw_curves(curves, "epoch", f"Validation NDCG by epoch of the {title}", epochs)
            marked = "" if epochs is None else f"; the upright line is the chosen epoch, {epochs}"
            drawings.append((f"NDCG on validation users: higher is better{marked}", chart))
    return drawings


def draw_curves(curves: Mapping[str, pd.Series[float]], title: str, label: str, marked: float | None = None) -> Markup:
    """Draw lines over a common axis."""

    def plot(axes: Axes) -> None:
        for name, curve in curves.items():
            axes.plot(curve.index, curve.to_numpy(), ".-", label=name)
        if marked is not None:
            axes.axvline(marked, color=INK, linewidth=0.8, linestyle="--")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel(title)
        axes.legend(frameon=False)

    return draw(plot, label)


@dataclass(frozen=True)
class Asked:
    """B requests, one per user of the test as the evaluation made them, or per known user."""

    requests: list[dict[str, Any]]
    history_length: Ints
    """(B,) events of the user so far."""
    targets: ItemSets | None
    """Items that each request should have found; None where nothing was held out."""

    def take(self, index: Ints) -> Asked:
        """Return some of the requests."""
        targets = None if self.targets is None else self.targets.take(index)
        return Asked([self.requests[row] for row in index.tolist()], self.history_length[index], targets)


def ask(recommender: Recommender, content: Content, holdout: pd.DataFrame | None, seed: int) -> Asked:
    """Choose users of the test at its moment, or known users where nothing was held out."""
    profiles, targets = recommender.profiles, None
    requests = [{"user_id": user_id} for user_id in profiles.user_ids.tolist()]
    if holdout is not None and len(holdout):
        test_at = content["data"]["split"].get("test_at")
        held_out = group_requests(holdout, Ids.number(_item_ids(recommender), (holdout,)))
        requests = plain_requests(held_out.rows, None if test_at is None else read_moment(test_at, None))
        targets = held_out.targets.items
    lengths = dict(zip(profiles.user_ids.tolist(), np.diff(profiles.offsets).tolist(), strict=True))
    counts = np.array([lengths.get(request["user_id"], 0) for request in requests], np.int64)
    drawn = np.random.default_rng(seed).permutation(len(requests))[:MAX_REQUESTS]
    return Asked(requests, counts, targets).take(np.sort(drawn))


def _item_ids(recommender: Recommender) -> pd.Index[Any]:
    return pd.Index(recommender.bundle.items.column("item_id").to_pylist())


@dataclass(frozen=True)
class Exposure:
    """N items in the order of their popularity."""

    events: Ints
    """(N,) events of each item, falling."""
    shown: Ints
    """(N,) places of lists that each item has."""

    def shares(self) -> list[tuple[int, float, float]]:
        """Return how many items the top 1 % and 10 % are, and their share of events and of places."""
        heads = dict.fromkeys(max(round(share * len(self.events)), 1) for share in (0.01, 0.1))
        return [(n, *(float(_accumulate(counts)[n - 1]) for counts in (self.events, self.shown))) for n in heads]


def _accumulate(counts: Ints) -> Any:
    return np.cumsum(counts) / max(counts.sum(), 1)


def measure_exposure(recommender: Recommender, asked: Asked) -> Exposure | None:
    """Count the events of each item in the profiles, and its places in the lists; None where nobody is known."""
    if not asked.requests:
        return None
    rows = _item_ids(recommender).get_indexer(pd.Index(recommender.profiles.history.item_id))
    events = np.bincount(rows[rows >= 0], minlength=recommender.bundle.items.num_rows)
    lists = _recommend(recommender, asked, recommender.bundle.schema.repeats == "exclude")
    order = np.argsort(-events, kind="stable")
    return Exposure(events[order], np.bincount(lists[lists >= 0], minlength=len(events))[order])


def _recommend(recommender: Recommender, asked: Asked, filter_viewed: bool) -> Ints:
    """Return the first `DEPTH` places of each list, (B, DEPTH)."""
    return as_lists(recommender.recommend(asked.requests, DEPTH, filter_viewed=filter_viewed), DEPTH)


def draw_exposure(exposure: Exposure) -> list[tuple[str, Markup]]:
    """Draw events by rank, and the shares that popular items have of events and of recommendations."""
    n_items = len(exposure.events)
    places = np.unique(np.geomspace(1, n_items, 120).round().astype(int) - 1)

    def plot_ranks(axes: Axes) -> None:
        axes.loglog(places + 1, np.maximum(exposure.events[places], 0.5))
        axes.set_xlabel("items, most popular first")

    def plot_shares(axes: Axes) -> None:
        for label, counts in (("recommendations", exposure.shown), ("events", exposure.events)):
            axes.semilogx((places + 1) / n_items, _accumulate(counts)[places], label=label)
        axes.set_xlabel("share of the catalogue, most popular first")
        axes.legend(frameon=False)

    share = "Share of events and of recommendations on the most popular items"
    return [
        ("Events of each item: the long tail", draw(plot_ranks, "Events of each item by rank")),
        (f"{share}: where ours is above, lists favour them", draw(plot_shares, share)),
    ]


@dataclass(frozen=True)
class Example:
    """One user, known by a number alone."""

    history_length: int
    events: list[tuple[str, str]]
    """Date, or '' without times, and description of the last events, the newest first."""
    lists: dict[str, list[tuple[str, bool, bool]]]
    """Title -> name of each recommended item, whether it was a target and whether the user had it."""
    targets: list[str] | None
    """Names of the targets, as many as are shown; None where nothing was held out."""
    n_targets: int


def draw_examples(asked: Asked, seed: int) -> Asked:
    """Draw one user from each of ten equally large groups of history length, the shortest first."""
    ordered = np.argsort(asked.history_length, kind="stable")
    rng = np.random.default_rng(seed)
    groups = np.array_split(ordered, min(N_EXAMPLES, len(ordered))) if len(ordered) else []
    return asked.take(np.array([rng.choice(group) for group in groups], np.int64))


def describe_examples(recommender: Recommender, asked: Asked) -> list[Example]:
    """Return what each user had, what they are recommended and what they chose then."""
    is_allowed = recommender.bundle.schema.repeats == "allow"
    views = {"All items": False, "New items only": True} if is_allowed else {"Recommended": True}
    lists = {title: _recommend(recommender, asked, is_filtered) for title, is_filtered in views.items()}
    ids = _item_ids(recommender)
    names = np.array([*name_items(recommender), "an item outside the catalogue"], object)  # the last one answers -1
    examples = []
    for row, request in enumerate(asked.requests):
        profile = recommender.profiles.get(request["user_id"])
        history = History(np.empty(0, object)) if profile is None else profile.history
        had = ids.get_indexer(pd.Index(history.item_id))
        wanted = None if asked.targets is None else asked.targets.take(np.array([row])).item_row
        right = () if wanted is None else wanted
        ranked = {
            title: [(names[item], item in right, item in had) for item in ranked[row] if item >= 0]
            for title, ranked in lists.items()
        }
        targets = None if wanted is None else names[wanted[:MAX_TARGETS]].tolist()
        last = _describe_events(history, names[had], recommender.bundle.schema.timezone)
        examples.append(Example(len(history), last, ranked, targets, len(right)))
    return examples


def _describe_events(history: History, names: Any, timezone: str | None) -> list[tuple[str, str]]:
    """Return date and description of the last events, the newest first."""
    events = pd.DataFrame({"name": names})
    if history.datetime is not None:
        times = pd.to_datetime(pd.Series(history.datetime), unit="s", utc=True)
        events["date"] = times.dt.tz_convert(timezone or "UTC").dt.date.astype(str)
    if history.event is not None:
        events["event"] = history.event
    if history.weight is not None and (np.isfinite(history.weight) & (history.weight != 1)).any():
        events["weight"] = history.weight
    described = []
    for event in events.tail(MAX_EVENTS)[::-1].to_dict("records"):
        details = [str(event["event"])] if isinstance(event.get("event"), str) else []
        details += [f"weight {event['weight']:g}"] if np.isfinite(event.get("weight", np.nan)) else []
        described.append((event.get("date", ""), event["name"] + (f" [{', '.join(details)}]" if details else "")))
    return described


def name_items(recommender: Recommender) -> list[str]:
    """Return readable names of all items of a catalogue: a text, else up to three categories, else the id.

    Names that several items have get the id added.
    """
    items, features = recommender.bundle.items, recommender.bundle.schema.item_features
    vectors = {feature.column for feature in features if feature.kind == "vector"}
    by_name = {name.lower(): name for name in items.column_names if name not in vectors}
    texts = [feature.column for feature in features if feature.kind == "text"]
    titles = [*texts, *(by_name[name] for name in TITLES if name in by_name)][:1]
    columns = titles or [feature.column for feature in features if feature.kind == "categorical"][-3:]
    columns = [column for column in columns if column in items.column_names]
    cells = [[to_text(value) for value in items.column(column).to_pylist()] for column in columns]
    rows = zip(*cells, strict=True) if cells else [()] * items.num_rows
    names = [" ".join(" · ".join(dict.fromkeys(filter(None, row))).split()) for row in rows]
    names = [name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…" for name in names]
    counts = Counter(names)
    ids = map(str, _item_ids(recommender))
    return [
        f"item {item_id}" if not name else name if counts[name] == 1 else f"{name} ({item_id})"
        for name, item_id in zip(names, ids, strict=True)
    ]


if __name__ == "__main__":
    sys.exit(main())
