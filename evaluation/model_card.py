"""`MODEL_CARD.md`, and the facts and sentences on a run that it shares with the report.

The card is a file of the bundle, so it holds nothing that differs between two runs of one seed, and no person.
A *summary* is a model's metrics in a view, as in `metrics.json`: metric -> value, `<metric>_ci95` -> [low, high].
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from evaluation.console import NOTHING_HELD_OUT
from evaluation.evaluate import MODEL, headline_metric
from evaluation.metrics import MIN_USERS_TO_COMPARE
from evaluation.slices import MISSING, OTHER
from serve.bundle import Facts
from serve.clock import find_zone
from serve.schema import Schema

Content = Mapping[str, Any]
"""What `metrics.json` holds, or a part of it."""

PRODUCT = "Bascule"
MIN_USERS_SHOWN = 20
"""Groups of fewer users are not shown: their figures are noise, and may say who they are."""
OTHER_METRICS = ("HR@10", "Recall@20", "MRR@10")
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
SPLITS = {
    "leave_one_out": "the last event of each user",
    "time": "everything from one moment on",
    "pairs": "a random share of each user's items",
    "files": "a given file",
}
SHARES = ("missing", "unlisted", "cold", "long_tail", "repeat_share")
SIDES = {"user": "User", "item": "Item", "context": "Request context"}
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~&])")
_NUMBER = re.compile(r"(^-)?\d+(\.\d+)?(e[+-]\d+)?")


def render_card(metrics: Content, data: Content, schema: Schema, facts: Facts) -> str:
    """Write the card of a bundle that is about to be published, in Markdown.

    Args:
        metrics: as `evaluate` returns them, without durations; without `test` where nothing was held out.
        data: the data report.
        schema: of the bundle.
        facts: of the bundle's manifest; its `config` has `data` as declared, `model` and `seed`.
    """
    views, slices = read_views(metrics), read_slices(metrics)
    return render(
        "MODEL_CARD.md",
        views=views,
        slices=slices,
        gaps=describe_gaps(slices),
        summary=summarise_run(data, views, schema),
        data=data,
        data_tables=describe_data(data, schema),
        features={title: getattr(schema, f"{side}_features") for side, title in SIDES.items()},
        audit_only=list(facts.config.get("data", {}).get("audit_only", [])),
        metrics=metrics,
        schema=schema,
        facts=facts,
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
    environment.filters |= {one.__name__: one for one in (figure, signed, percent, amount, name_model, markdown, sign)}
    shared = {"product": PRODUCT, "metric_meanings": METRICS, "view_titles": VIEWS, "models": MODELS}
    minima = {"min_users": MIN_USERS_SHOWN, "min_users_to_compare": MIN_USERS_TO_COMPARE}
    environment.globals |= shared | minima | {"other_metrics": OTHER_METRICS}
    return environment


def markdown(text: object) -> str:
    """Make of any text one line that Markdown shows as it is, also in a table."""
    return _MARKS.sub(r"\\\1", " ".join(str(text).split()))


def figure(value: float) -> str:
    """Write a metric with four digits and a true minus sign."""
    return f"{value:.4f}".replace("-", "−")


def signed(value: float) -> str:
    """Write a difference with its sign."""
    return f"{value:+.4f}".replace("-", "−")


def percent(share: float) -> str:
    """Write a share of 0 to 1."""
    return f"{share * 100:.1f}\N{NO-BREAK SPACE}%"


def amount(number: int, noun: str) -> str:
    """Write a count with its noun, in the plural unless it is one."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def name_model(name: str) -> str:
    """Return the name that people read; a baseline of no known name keeps its own."""
    return MODELS.get(name, (name, ""))[0]


def sign(difference: Content, metric: str) -> int:
    """Return 1 or -1 where the interval of a difference is on one side of 0 and is of enough users, else 0."""
    low, high = difference[f"{metric}_ci95"]
    return 0 if difference["users"] < MIN_USERS_TO_COMPARE else int(low > 0) - int(high < 0)


def _with_interval(summary: Content, metric: str) -> str:
    low, high = summary[f"{metric}_ci95"]
    return f"{figure(summary[metric])} [{figure(low)} to {figure(high)}]"


@dataclass(frozen=True)
class View:
    """All models in one view."""

    name: str
    meaning: str
    metric: str
    ours: Content
    """Summary of our model, without the metric where no user has a target in this view."""
    models: dict[str, Content]
    """Model -> summary, the best first; ours among them, none where no user has a target."""
    paired: dict[str, Content]
    """Baseline -> summary of ours minus it, the best first."""

    @property
    def scope(self) -> str:
        """Counts of users and targets, and of targets that no list can hold."""
        n_outside, n_owned = self.ours["targets_outside_catalogue"], self.ours["unreachable_targets"]
        scope = f"{amount(self.ours['users'], 'user')} with {amount(self.ours['targets'], 'target')}"
        outside = f"; {amount(n_outside, 'target')} outside the catalogue, each a miss" if n_outside else ""
        return scope + outside + (f"; {n_owned:,} out of reach, since the user has the item" if n_owned else "") + "."

    @property
    def gain(self) -> str:
        """Our gain over the best baseline as a share of its figure."""
        best = next(iter(self.paired))
        theirs = self.models[best][self.metric]
        if theirs <= 0:
            return f"“{name_model(best)}” has nothing right"
        return f"{self.paired[best][self.metric] / theirs * 100:+.1f}\N{NO-BREAK SPACE}%".replace("-", "−")

    @property
    def verdict(self) -> str:
        """Comparison of our model with the best baseline."""
        if not self.models:
            return "No user has a target here."
        if not self.paired:
            return f"{self.metric} is {_with_interval(self.ours, self.metric)}; no baseline was measured."
        best, difference = next(iter(self.paired.items()))
        low, high = difference[f"{self.metric}_ci95"]
        doubt = f"{signed(low)} to {signed(high)} with 95\N{NO-BREAK SPACE}% confidence"
        if difference["users"] < MIN_USERS_TO_COMPARE:
            doubt = f"of {amount(difference['users'], 'user')}, too few to tell it from chance"
        words = {1: "better than", 0: "not clearly different from", -1: "worse than"}
        simple = f"{amount(len(self.paired), 'simple method')}, “{name_model(best)}”"
        return (
            f"{self.metric} is {figure(self.ours[self.metric])}, {words[sign(difference, self.metric)]} the best of "
            f"{simple} ({MODELS.get(best, ('', 'a baseline'))[1]}), with {figure(self.models[best][self.metric])}. "
            f"The difference is {signed(difference[self.metric])} ({self.gain}), {doubt}."
        )


def read_views(metrics: Content) -> list[View]:
    """Lay out the test of all models, view by view; nothing where nothing was held out."""
    views = []
    for view, ours in metrics.get("test", {}).get(MODEL, {}).items():
        metric = headline_metric(metrics["protocol"]["repeats"])
        measured = {name: views[view] for name, views in metrics["test"].items() if metric in views.get(view, {})}
        models = dict(sorted(measured.items(), key=lambda item: -item[1][metric]))
        paired = {name: metrics["paired"][name][view] for name in models if name in metrics["paired"]}
        views.append(View(view, metrics["protocol"]["views"][view], metric, ours, models, paired))
    return views


@dataclass(frozen=True)
class Slice:
    """Groups of users or items."""

    name: str
    title: str
    views: tuple[str, ...]
    metric: str
    groups: dict[str, dict[str, Content]]
    """Label -> view -> summary, of views where the group has enough users."""
    n_hidden: int
    """Groups that are too small in every view."""


def read_slices(metrics: Content) -> list[Slice]:
    """Lay out the slices of all views in a sensible order of their groups; nothing where nothing was held out."""
    by_view: Mapping[str, Any] = metrics.get("slices", {})
    slices = []
    for name in next(iter(by_view.values()), {}):
        labels = {label for of_view in by_view.values() for label in of_view.get(name, {})}
        groups: dict[str, dict[str, Content]] = {label: {} for label in sorted(labels, key=_order_label)}
        for view, of_view in by_view.items():
            for label, summary in of_view.get(name, {}).items():
                if summary["users"] >= MIN_USERS_SHOWN:
                    groups[label][view] = summary
        shown = {label: views for label, views in groups.items() if views}
        title = SLICES.get(name, name[:1].upper() + name[1:].replace("_", " "))
        metric = headline_metric(metrics["protocol"]["repeats"])
        slices.append(Slice(name, title, tuple(by_view), metric, shown, len(groups) - len(shown)))
    return slices


def _order_label(label: str) -> tuple[int, float, str]:
    """Order labels by their first number, then by letters; `other` and `missing` last."""
    number = _NUMBER.search(label)
    start = float(number.group()) if number else float("inf")
    is_below = label.lower().startswith(("under", "below", "less", "up to", "<"))
    return {OTHER: 1, MISSING: 2}.get(label, 0), start - is_below / 2, label


def describe_gaps(slices: Sequence[Slice]) -> list[str]:
    """Say how far the groups of each column of users are apart, and whether it may be chance."""
    gaps = []
    for one in slices:
        summaries = {label: views[one.views[0]] for label, views in one.groups.items() if one.views[0] in views}
        unknown, _ = summaries.pop(MISSING, None), summaries.pop(OTHER, None)
        if one.name in SLICES or len(summaries) < 2:
            continue
        worst, *_, best = sorted(summaries, key=lambda label: summaries[label][one.metric])
        high, low = summaries[best], summaries[worst]
        is_clear = high[f"{one.metric}_ci95"][0] > low[f"{one.metric}_ci95"][1]
        ends = [
            f"{_with_interval(summary, one.metric)} for “{label}” ({amount(summary['users'], 'user')})"
            for label, summary in ((best, high), (worst, low))
        ]
        gap = f"a gap of {figure(high[one.metric] - low[one.metric])}"
        chance = "The intervals are apart." if is_clear else "The intervals overlap, so this may be chance."
        rest = f" Where it is not known: {_with_interval(unknown, one.metric)}." if unknown else ""
        gaps.append(f"{one.title}: {one.metric} is {' and '.join(ends)}, {gap}. {chance}{rest}")
    return gaps


def summarise_run(data: Content, views: Sequence[View], schema: Schema) -> str:
    """Say what was learned from and what was asked, or that nothing was held out."""
    counts, split = data["counts"], data["split"]
    n_learned = counts["interactions"] - counts["test"] - (counts["validation"] if split.get("strict") else 0)
    learned = (
        f"{PRODUCT} learned from {amount(n_learned, 'event')}. The data has {amount(counts['users'], 'user')} and "
        f"{amount(counts['items'], 'item')}, with events {describe_period(data, schema)}."
    )
    if not views:
        return f"{learned} {NOTHING_HELD_OUT}"
    held_out = SPLITS.get(split["kind"], split["kind"])
    if split["kind"] == "leave_one_out" and schema.is_set:
        held_out = "one item of each user, drawn by chance"
    if split.get("test_at"):
        held_out += f", {_write_day(split['test_at'], schema.timezone)}"
    return f"{learned} It was asked what {amount(views[0].ours['users'], 'user')} chose in the test: {held_out}."


def describe_period(data: Content, schema: Schema) -> str:
    """Say when the events happened."""
    time = data["time"]
    if time is None:
        return "that have neither times nor an order" if schema.is_set else "that have an order and no times"
    return f"from {_write_day(time['first'], schema.timezone)} to {_write_day(time['last'], schema.timezone)}"


def _write_day(moment: str, timezone: str | None) -> str:
    day = datetime.fromisoformat(moment).astimezone(find_zone(timezone))
    return f"{day.day} {calendar.month_name[day.month]} {day.year}"


def describe_data(data: Content, schema: Schema) -> dict[str, list[tuple[str, str]]]:
    """Return the facts of a data report in tables, title -> label and value of each row."""
    tables: dict[str, list[tuple[str, str]]] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            tables[_capitalise(name)] = list(_flatten(value, "", name in SHARES))
        elif name != "leaks":
            rows = tables.setdefault("Looks wrong" if isinstance(value, list) else "Habits", [])
            rows.extend(_flatten(value, _capitalise(name), name in SHARES))
    if data["time"] is not None:
        tables["Time"].append(("Time zone", schema.timezone or "times as given"))
    return {title: rows for title, rows in tables.items() if rows}


def _flatten(value: Any, label: str, is_share: bool) -> Iterator[tuple[str, str]]:
    """Yield the label and text of every value in nested dictionaries and lists; what is missing is left out."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _flatten(part, f"{label}: {name}" if label else _capitalise(name), is_share and name != "gini")
    elif isinstance(value, list):
        yield from ((label, str(one)) for one in value)
    elif isinstance(value, float) and is_share:
        yield label, percent(value)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield label, f"{round(value, 3):,}"
    elif value is not None:
        yield label, str(value)


def _capitalise(name: str) -> str:
    return name[:1].upper() + name[1:].replace("_", " ")
