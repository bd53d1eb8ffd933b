"""`MODEL_CARD.md`, and the facts and sentences on a run that it shares with the report.

The card is a file of the bundle, so it holds nothing that differs between two runs of one seed, and no person.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from evaluation.console import NOTHING_HELD_OUT
from evaluation.evaluate import MODEL, headline_metric
from evaluation.metrics import MIN_USERS_TO_COMPARE
from evaluation.slices import MISSING, OTHER
from serve.manifest import Facts
from serve.schema import Schema
from serve.zones import find_zone

Content = Mapping[str, Any]
"""What `metrics.json` holds, or the data report in it."""
Rows = list[tuple[str, str]]

PRODUCT = "Bascule"
MIN_USERS_SHOWN = 20
"""Groups of fewer users are not shown: their figures are noise, and may say who they are."""
OTHER_METRICS = ("HR@10", "Recall@20", "MRR@10")
VERDICTS = {1: "better", 0: "no clear difference", -1: "worse"}
MODELS = {
    MODEL: (PRODUCT, ""),
    "popularity": ("Most popular", "the same list for everybody: what most events were on"),
    "popularity-recent": ("Recently popular", "the same list for everybody: what most events of the last days were on"),
    "personal": ("Own most frequent", "what the user had most often before, then what is popular"),
    "personal-decayed": ("Own, recent first", "what the user had most often before, recent times counting more"),
    "itemknn": ("ItemKNN", "items that go with those the user had, by how often they come together"),
    "ease": ("EASE", "a linear model of which items go together, Steck 2019"),
}
VIEWS = {"all": "All items", "repeat": "Items the user had before", "novel": "Items new to the user"}
METRICS = {
    "HR": "share of users with at least one right item among the first k",
    "Recall": "share of the right items found among the first k",
    "NDCG": "as Recall, but higher places count more; 1 is a perfect list, 0 has nothing right",
    "MRR": "1 / place of the first right item",
    "MAP": "mean precision at the places of the right items",
}
SLICES = {
    "history": "Events in the user's history",
    "item_events": "Events of the right item in training",
    "popularity": "Popularity of the right item",
}
"""Slices that every evaluation has; all others are columns of the users table."""
COLD = {
    "test_users_unseen": "Test users without any event in training",
    "test_items_unseen": "Test items without any event in training",
    "test_pairs_outside_catalogue": "Test pairs whose item is not in the catalogue",
    "test_pairs_owned_before": "Test pairs whose user has the item in training too",
}
SPLITS = {
    "leave_one_out": "the last event of each user",
    "time": "everything from one moment on",
    "pairs": "a random share of each user's items",
    "files": "a given file",
    "none": "nothing: everything trains",
}
SIDES = {"user": "User", "item": "Item", "context": "Request context"}
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~&])")
_NUMBER = re.compile(r"(^-)?\d+(\.\d+)?(e[+-]\d+)?")


def render_card(metrics: Content, data: Content, training: Content, schema: Schema, facts: Facts) -> str:
    """Write the card of a bundle that is about to be published.

    Args:
        metrics: as `evaluate` returns them, without durations; without `test` where nothing was held out.
        data: the data report.
        training: how it was trained, as `metrics.json` holds it.
        schema: of the bundle.
        facts: of the bundle's manifest; its `config` has `data` as declared, `model` and `seed`.

    Returns:
        Markdown, the same for the same arguments.
    """
    views = read_views(metrics)
    slices = read_slices(metrics)
    return render(
        "MODEL_CARD.md",
        views=views,
        slices=slices,
        gaps=describe_gaps(slices),
        summary=summarise_run(data, views, schema),
        leaks=list_leaks(data),
        data=data,
        data_facts=describe_data(data, schema),
        cold_names=COLD,
        features=[(title, schema.features(side)) for side, title in SIDES.items()],  # type: ignore[arg-type]
        audit_only=list(facts.config.get("data", {}).get("audit_only", [])),
        skipped=sorted(find_skipped(metrics)),
        metric_meanings=METRICS,
        min_users=MIN_USERS_SHOWN,
        schema=schema,
        facts=facts,
        model=facts.config.get("model", {}),
        order=describe_order(schema),
    )


def render(template: str, **content: Any) -> str:
    """Fill a template of this package, HTML escaped; a name that it lacks is an error, not a gap."""
    return _environment().get_template(template).render(**content)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("evaluation", "templates"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"figure": figure, "signed": signed, "percent": percent, "amount": amount, "md": to_markdown}
    return environment


def to_markdown(text: str) -> str:
    """Make of any text one line that Markdown shows as it is, also in a table."""
    return _MARKS.sub(r"\\\1", " ".join(text.split()))


def figure(value: float) -> str:
    """Write a metric with four digits and a true minus sign."""
    return f"{value:.4f}".replace("-", "−")


def signed(value: float) -> str:
    """Write a difference with its sign."""
    return f"{value:+.4f}".replace("-", "−")


def percent(share: float | None) -> str:
    """Write a share of 0 to 1; None, where there is nothing to share, is a dash."""
    return "–" if share is None else f"{share * 100:.1f}\N{NO-BREAK SPACE}%"


def amount(number: int, noun: str) -> str:
    """Write a count with its noun, in the plural unless it is one."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


@dataclass(frozen=True)
class Figure:
    """A metric with its 95 % interval."""

    value: float
    low: float
    high: float
    users: int

    @classmethod
    def read(cls, figures: Content, metric: str) -> Figure:
        """Read a metric and its interval from the summary of a model in a view."""
        return cls(figures[metric], *figures[f"{metric}_ci95"], figures["users"])

    @property
    def sign(self) -> int:
        """1 or -1 where the interval of a difference is on one side of 0 and is of enough users, else 0."""
        return 0 if self.users < MIN_USERS_TO_COMPARE else int(self.low > 0) - int(self.high < 0)

    @property
    def verdict(self) -> str:
        """How a difference is called."""
        return VERDICTS[self.sign]

    def __str__(self) -> str:
        return f"{figure(self.value)} [{figure(self.low)} to {figure(self.high)}]"


@dataclass(frozen=True)
class ModelRow:
    """One model in one view."""

    name: str
    headline: Figure
    others: dict[str, Figure]
    difference: Figure | None
    """Ours minus this one, user by user; None for ours."""

    @property
    def label(self) -> str:
        """Name that people read."""
        return name_model(self.name)

    @property
    def relative(self) -> str:
        """Our gain over a baseline as a share of its figure."""
        if self.difference is None or self.headline.value <= 0:
            return f"“{self.label}” has nothing right"
        return f"{self.difference.value / self.headline.value * 100:+.1f}\N{NO-BREAK SPACE}%".replace("-", "−")


@dataclass(frozen=True)
class View:
    """All models in one view, the best first; without rows where no user has a target in it."""

    name: str
    title: str
    meaning: str
    metric: str
    counts: Content
    """`users`, `targets`, `targets_outside_catalogue` and `unreachable_targets`."""
    rows: tuple[ModelRow, ...]

    @property
    def ours(self) -> ModelRow:
        """Row of our model."""
        return next(row for row in self.rows if row.name == MODEL)

    @property
    def rival(self) -> ModelRow | None:
        """The best baseline, None if all were skipped."""
        return next((row for row in self.rows if row.difference is not None), None)

    @property
    def scope(self) -> str:
        """Counts of users and targets, and of targets that no list can hold."""
        n_outside, n_owned = self.counts["targets_outside_catalogue"], self.counts["unreachable_targets"]
        scope = f"{amount(self.counts['users'], 'user')} with {amount(self.counts['targets'], 'target')}"
        outside = f"; {amount(n_outside, 'target')} outside the catalogue, each a miss" if n_outside else ""
        return scope + outside + (f"; {n_owned:,} out of reach, since the user has the item" if n_owned else "") + "."

    @property
    def verdict(self) -> str:
        """Comparison of our model with the best baseline."""
        if not self.rows:
            return "No user has a target here."
        ours, rival = self.ours.headline, self.rival
        if rival is None or rival.difference is None:
            return f"{self.metric} is {ours}; no baseline was measured."
        difference = rival.difference
        verdict = {1: "better than", 0: "not clearly different from", -1: "worse than"}[difference.sign]
        doubt = f"{signed(difference.low)} to {signed(difference.high)} with 95\N{NO-BREAK SPACE}% confidence"
        if difference.users < MIN_USERS_TO_COMPARE:
            doubt = f"of {amount(difference.users, 'user')}, too few to tell it from chance"
        return (
            f"{self.metric} is {figure(ours.value)}, {verdict} the best of {len(self.rows) - 1} simple methods, "
            f"“{rival.label}” ({MODELS.get(rival.name, ('', 'a baseline'))[1]}), with {figure(rival.headline.value)}. "
            f"The difference is {signed(difference.value)} ({rival.relative}), {doubt}."
        )


def name_model(name: str) -> str:
    """Return the name that people read; a baseline of no known name keeps its own."""
    return MODELS.get(name, (name, ""))[0]


def read_views(metrics: Content) -> list[View]:
    """Lay out the test of all models, view by view; nothing where nothing was held out."""
    if "test" not in metrics:
        return []
    metric = headline_metric(metrics["protocol"]["repeats"])
    views = []
    for view, ours in metrics["test"][MODEL].items():
        of_view = {name: views[view] for name, views in metrics["test"].items() if metric in views.get(view, {})}
        rows = [
            _read_row(name, figures, metrics["paired"].get(name, {}).get(view, {}), metric)
            for name, figures in of_view.items()
        ]
        rows.sort(key=lambda row: -row.headline.value)
        views.append(View(view, VIEWS[view], metrics["protocol"]["views"][view], metric, ours, tuple(rows)))
    return views


def _read_row(name: str, figures: Content, difference: Content, metric: str) -> ModelRow:
    others = {other: Figure.read(figures, other) for other in OTHER_METRICS}
    paired = Figure.read(difference, metric) if metric in difference else None
    return ModelRow(name, Figure.read(figures, metric), others, paired)


def find_skipped(metrics: Content) -> dict[str, str]:
    """Return why baselines were skipped, by the name that people read."""
    records = metrics.get("baselines", {})
    return {name_model(name): record["skipped"] for name, record in records.items() if "skipped" in record}


@dataclass(frozen=True)
class Slice:
    """Groups of users or items."""

    name: str
    title: str
    views: tuple[str, ...]
    metric: str
    groups: dict[str, dict[str, Figure]]
    """Label -> view -> headline figure, of views where the group has enough users."""
    n_hidden: int
    """Groups that are too small in every view."""


def read_slices(metrics: Content) -> list[Slice]:
    """Lay out the slices of all views in a sensible order of their groups; nothing where nothing was held out."""
    by_view: Mapping[str, Any] = metrics.get("slices", {})
    if not by_view:
        return []
    metric = headline_metric(metrics["protocol"]["repeats"])
    slices = []
    for name in next(iter(by_view.values())):
        labels = {label for of_view in by_view.values() for label in of_view.get(name, {})}
        groups = {}
        for label in sorted(labels, key=_order_label):
            figures = {view: of_view.get(name, {}).get(label, {"users": 0}) for view, of_view in by_view.items()}
            large = {view: one for view, one in figures.items() if one["users"] >= MIN_USERS_SHOWN}
            groups[label] = {view: Figure.read(one, metric) for view, one in large.items()}
        shown = {label: figures for label, figures in groups.items() if figures}
        title = SLICES.get(name, name[:1].upper() + name[1:].replace("_", " "))
        slices.append(Slice(name, title, tuple(by_view), metric, shown, len(groups) - len(shown)))
    return slices


def _order_label(label: str) -> tuple[int, float, str]:
    """Order labels by their first number, then by letters; `other` and `missing` last."""
    number = _NUMBER.search(label)
    return ({OTHER: 1, MISSING: 2}.get(label, 0), float(number.group()) if number else float("inf"), label)


def describe_gaps(slices: Sequence[Slice]) -> list[str]:
    """Say how far the groups of each column of users are apart, and whether it may be chance."""
    gaps = []
    for one in slices:
        view = one.views[0]
        figures = {label: views[view] for label, views in one.groups.items() if view in views}
        unknown = figures.pop(MISSING, None)
        figures.pop(OTHER, None)
        if one.name in SLICES or len(figures) < 2:
            continue
        worst, *_, best = sorted(figures, key=lambda label: figures[label].value)
        high, low = figures[best], figures[worst]
        verdict = "are apart" if high.low > low.high else "overlap, so this may be chance"
        rest = f" Where it is not known: {unknown} ({amount(unknown.users, 'user')})." if unknown else ""
        gaps.append(
            f"{one.title}: {one.metric} is {high} for “{best}” ({amount(high.users, 'user')}) and {low} for “{worst}” "
            f"({amount(low.users, 'user')}), a gap of {figure(high.value - low.value)}. The intervals {verdict}.{rest}"
        )
    return gaps


def summarise_run(data: Content, views: Sequence[View], schema: Schema) -> str:
    """Say what was learned from and what was asked, or that nothing was held out."""
    counts, split = data["counts"], data["split"]
    n_learned = counts["interactions"] - counts["test"] - (counts["validation"] if split.get("strict") else 0)
    sizes = f"{amount(counts['users'], 'user')} and {amount(counts['items'], 'item')}"
    order = "neither times nor an order" if schema.is_set else "an order and no times"
    order = f"; its events have {order}" if data["time"] is None else f", with events {describe_period(data, schema)}"
    learned = f"{PRODUCT} learned from {amount(n_learned, 'event')}. The data has {sizes}{order}."
    if not views:
        return f"{learned} {NOTHING_HELD_OUT}"
    question = f"{amount(views[0].counts['users'], 'user')} chose in the test: {describe_split(data, schema)}"
    return f"{learned} It was asked what {question}."


def describe_period(data: Content, schema: Schema) -> str:
    """Say when the events happened."""
    time = data["time"]
    if time is None:
        return "without times"
    return " to ".join(_write_day(time[end], schema.timezone) for end in ("first", "last"))


def _write_day(moment: str, timezone: str | None) -> str:
    day = datetime.fromisoformat(moment).astimezone(find_zone(timezone))
    return f"{day.day} {calendar.month_name[day.month]} {day.year}"


def describe_split(data: Content, schema: Schema) -> str:
    """Say what was held out."""
    split = data["split"]
    held_out = SPLITS.get(split["kind"], split["kind"])
    if split["kind"] == "leave_one_out":
        if schema.ties == "simultaneous":
            held_out = "the last events of each user, which came at one time"
        if schema.is_set:
            held_out = "one item of each user, drawn by chance"
        if data.get("targets"):
            held_out += (
                f", of those to be predicted, and {'some of the others' if schema.is_set else 'what came after'}"
            )
    return f"{held_out}, {_write_moment(split['test_at'])}" if split.get("test_at") else held_out


def _write_moment(moment: str) -> str:
    return moment.replace("T", " ").replace("Z", " UTC")


def describe_order(schema: Schema) -> str:
    """Say what of a user's events is read besides their items."""
    if schema.is_set:
        return "of a user's events, which have neither times nor an order, only what they are on"
    return "the order and times of a user's events" if schema.has_datetime else "the order of a user's events"


def list_leaks(data: Content) -> list[str] | None:
    """Return what the leak check found, None where it was not made."""
    leaks = data.get("leaks")
    return None if leaks is None else [str(leak["message"]) for leak in leaks]


def describe_data(data: Content, schema: Schema) -> dict[str, Rows]:
    """Return the facts of a data report in tables, title -> rows, each with a row at least."""
    hints = [(name, hint) for name, hints in data.items() if name != "leaks" for hint in _list_texts(hints)]
    tables = {
        "Size and time": _describe_size(data, schema),
        "Split": _describe_parts(data, schema),
        "Rejected and cleaned": _describe_cleaning(data),
        "Looks wrong": [(_capitalise(name), hint) for name, hint in hints],
        "Columns that were not read": [
            (_capitalise(table), ", ".join(names)) for table, names in data["dropped_columns"].items() if names
        ],
        "Missing values": [
            (f"{table}: {name}", percent(share))
            for table, columns in data["missing"].items()
            for name, share in columns.items()
            if share
        ],
        "What is new in the test": [
            (COLD.get(name, name), percent(share)) for name, share in data["cold"].items() if share is not None
        ],
        "Habits": [
            ("Events that repeat a pair of user and item", percent(data["repeat_share"])),
            ("Events of a user, median", f"{data['history_length']['p50']:,g}"),
            ("Events of a user, 95th percentile", f"{data['history_length']['p95']:,.0f}"),
            ("Events on the top 1 % of items", percent(data["long_tail"]["top_1%"])),
            ("Gini of items", f"{data['long_tail']['gini']:.3f}"),
        ],
    }
    return {title: rows for title, rows in tables.items() if rows}


def _list_texts(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _capitalise(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _describe_size(data: Content, schema: Schema) -> Rows:
    counts, time = data["counts"], data["time"]
    rows = [(f"{name} with events", f"{counts[name.lower()]:,}") for name in ("Users", "Items")]
    for name in ("users", "items"):
        given = f"{counts[f'{name}_table']:,}" if name in data["records"] else "not given"
        rows.append((f"Rows of the {name} table", given))
    for name, share in data.get("unlisted", {}).items():
        rows.append((f"{name.capitalize()} with events but no row", percent(share)))
    if time is None:
        rows.append(("Times", "none, and no order" if schema.is_set else "none in the data"))
    else:
        rows += [(f"{end.capitalize()} event", _write_moment(time[end])) for end in ("first", "last")]
        rows += [("Days", f"{time['days']:,.1f}"), ("Time zone", schema.timezone or "times as given")]
    return [("Events", f"{counts['interactions']:,}"), *rows]


def _describe_parts(data: Content, schema: Schema) -> Rows:
    counts, targets = data["counts"], data.get("targets") or {}
    held_out = describe_split(data, schema)
    if not (targets or counts)["test"] and data["split"]["kind"] != "none":
        held_out = f"nothing; it would be {held_out}"  # of users with one event each, for example
    rows = [("Held out for the test", held_out)]
    for name in ("train", "validation", "test"):
        predicted = f", {targets[name]:,} of them to be predicted" if name in targets else ""
        rows.append((name.capitalize(), amount(counts[name], "event") + predicted))
    return rows


def _describe_cleaning(data: Content) -> Rows:
    n_rejected, n_records = (sum(data[name].values()) for name in ("rejected", "records"))
    reasons = [(f"– {reason}", f"{n:,}") for reason, n in data["rejected"].items()]
    cleaned = [(_capitalise(name), f"{n:,}") for name, n in data["cleaning"].items() if n]
    return [("Records rejected", f"{n_rejected:,} of {n_records:,}"), *reasons, *cleaned]
