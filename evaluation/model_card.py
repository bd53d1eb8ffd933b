"""`MODEL_CARD.md` of a bundle, and the figures of a run as the templates read them.

The card is a file of the bundle, so it holds nothing that differs between two runs of one seed,
and no person. A *summary* is a model's metrics in a view, as in `metrics.json`: metric -> value,
`<metric>_ci95` -> [low, high].
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from evaluation.evaluate import MODEL, headline_metric
from evaluation.metrics import MISSING, OTHER, SLICES, sign
from serve.clock import find_zone
from serve.schema import Schema

Content = Mapping[str, Any]  # `metrics.json`, or a part of it
Rows = list[tuple[str, str]]  # label and value

MIN_USERS_SHOWN = 20  # figures of fewer users are noise, and may say who they are
SHARES = ("missing", "unlisted", "cold", "long_tail", "repeat_share")
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~&])")
_NUMBER = re.compile(r"(^-)?\d+(\.\d+)?(e[+-]\d+)?")


def render(
    template: str, content: Content, data: Content, schema: Schema, **more: Any
) -> str:
    """Fill a template of this package, HTML escaped.

    Args:
        template: name of a file in `evaluation/templates`.
        content: `metrics.json`.
        data: the report on the data.
        schema: the schema of the bundle.
        **more: further names that the template reads.

    Raises:
        jinja2.UndefinedError: the template names something that is not there.
    """
    return (
        environment()
        .get_template(template)
        .render(
            content=content,
            data=data,
            schema=schema,
            tables=describe_data(data, schema),
            views=read_views(content),
            slices=read_slices(content),
            **more,
        )
    )


@cache
def environment() -> Environment:
    """Return the templates of this package with their filters."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.globals["min_users"] = MIN_USERS_SHOWN
    templates.filters |= {
        "figure": lambda value: f"{value:.4f}".replace("-", "−"),
        "signed": lambda value: f"{value:+.4f}".replace("-", "−"),
        "percent": "{:.1%}".format,
        "day": _write_day,
        "sign": sign,
        "markdown": lambda text: _MARKS.sub(r"\\\1", " ".join(str(text).split())),
    }
    return templates


def _write_day(moment: str, schema: Schema) -> str:
    day = datetime.fromisoformat(moment).astimezone(find_zone(schema.timezone))
    return f"{day.day} {calendar.month_name[day.month]} {day.year}"


def read_views(metrics: Content) -> list[dict[str, Any]]:
    """Lay out the test by view: summaries of ours, of all models, and of the differences.

    The best model comes first; `paired` holds ours minus each baseline.
    """
    if "test" not in metrics:
        return []
    metric = headline_metric(metrics["protocol"]["repeats"])
    views = []
    for view, ours in metrics["test"][MODEL].items():
        models = {
            name: summaries[view]
            for name, summaries in metrics["test"].items()
            if metric in summaries[view]
        }
        names = sorted(models, key=lambda name: -models[name][metric])
        paired = metrics["paired"]
        views.append(
            {
                "name": view,
                "metric": metric,
                "ours": ours,
                "models": {name: models[name] for name in names},
                "paired": {
                    name: paired[name][view] for name in names if name in paired
                },
            }
        )
    return views


def read_slices(metrics: Content) -> list[dict[str, Any]]:
    """Lay out slices: label -> view -> summary of groups that are large enough.

    `n_hidden` counts the others. `charted` is of the first view; `ranked` are the labels of at
    least two groups of users there, the worst first.
    """
    by_view: Mapping[str, Any] = metrics.get("slices", {})
    if not by_view:
        return []
    metric = headline_metric(metrics["protocol"]["repeats"])
    first = next(iter(by_view))
    slices = []
    for name in by_view[first]:
        groups = _group_by_label(by_view, name)
        shown = {label: views for label, views in groups.items() if views}
        charted = {
            label: views[first] for label, views in shown.items() if first in views
        }
        ranked: list[str] = []
        if name not in SLICES:
            ranked = [label for label in charted if label not in (MISSING, OTHER)]
            ranked.sort(key=lambda label: charted[label][metric])
        slices.append(
            {
                "name": name,
                "views": list(by_view),
                "metric": metric,
                "groups": shown,
                "charted": charted,
                "ranked": ranked if len(ranked) > 1 else [],
                "n_hidden": len(groups) - len(shown),
            }
        )
    return slices


def _group_by_label(
    by_view: Mapping[str, Any], name: str
) -> dict[str, dict[str, Content]]:
    """Return label -> view -> summary, of a small group without summaries."""
    groups: dict[str, dict[str, Content]] = {}
    for view, slices in by_view.items():
        for label, summary in slices.get(name, {}).items():
            summaries = groups.setdefault(label, {})
            if summary["users"] >= MIN_USERS_SHOWN:
                summaries[view] = summary
    return {label: groups[label] for label in sorted(groups, key=_order_label)}


def _order_label(label: str) -> tuple[int, float, str]:
    """Order labels by their first number, then by letters; `other` and `missing` last."""
    number = _NUMBER.search(label)
    start = float(number.group()) if number else float("inf")
    return {OTHER: 1, MISSING: 2}.get(label, 0), start, label


def describe_data(data: Content, schema: Schema) -> dict[str, Rows]:
    """Return the facts of a data report in tables, title -> label and value of each row."""
    tables: dict[str, Rows] = {}
    for name, value in data.items():
        title = name.replace("_", " ").capitalize()
        if isinstance(value, Mapping):
            tables[title] = list(_flatten(value, "", name in SHARES))
        elif name != "leaks":
            table = "Looks wrong" if isinstance(value, list) else "Habits"
            rows = tables.setdefault(table, [])
            rows.extend(_flatten(value, title, name in SHARES))
    if data["time"] is not None:
        tables["Time"].append(("Time zone", schema.timezone or "times as given"))
    return {title: rows for title, rows in tables.items() if rows}


def _flatten(value: Any, label: str, is_share: bool) -> Iterator[tuple[str, str]]:
    """Yield the label and text of each value in nested dictionaries and lists but None."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            title = f"{label}: {name}"
            if not label:
                title = name[:1].upper() + name[1:].replace("_", " ")
            yield from _flatten(part, title, is_share and name != "gini")
    elif isinstance(value, list):
        for part in value:
            yield label, str(part)
    elif isinstance(value, float):
        yield label, f"{value:.1%}" if is_share else f"{round(value, 3):,}"
    elif value is not None:
        yield label, f"{value:,}" if type(value) is int else str(value)
