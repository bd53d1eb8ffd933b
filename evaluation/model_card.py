"""`MODEL_CARD.md` of a bundle, and the figures of a run as its templates and those of the report read them.

The card is a file of the bundle, so it holds nothing that differs between two runs of one seed, and no person.
A *summary* is a model's metrics in a view, as in `metrics.json`: metric -> value, `<metric>_ci95` -> [low, high].
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

Content = Mapping[str, Any]  # what `metrics.json` holds, or a part of it

MIN_USERS_SHOWN = 20  # groups of fewer users are not shown: their figures are noise, and may say who they are
SHARES = ("missing", "unlisted", "cold", "long_tail", "repeat_share")
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~&])")
_NUMBER = re.compile(r"(^-)?\d+(\.\d+)?(e[+-]\d+)?")


def render(
    template: str, content: Content, data: Content, schema: Schema, **more: Any
) -> str:
    """Fill a template of this package, HTML escaped; a name that it lacks is an error, not a gap."""
    tables = describe_data(data, schema)
    views = read_views(content)
    slices = read_slices(content)
    filled = environment().get_template(template)
    return filled.render(
        content=content,
        data=data,
        schema=schema,
        tables=tables,
        views=views,
        slices=slices,
        **more,
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
    """Lay out the test by view: summaries of ours, of all models, and of ours minus each baseline, the best first."""
    views = []
    for view, ours in metrics.get("test", {}).get(MODEL, {}).items():
        metric = headline_metric(metrics["protocol"]["repeats"])
        measured = {
            name: views[view]
            for name, views in metrics["test"].items()
            if metric in views.get(view, {})
        }
        models = dict(sorted(measured.items(), key=lambda item: -item[1][metric]))
        paired = {
            name: metrics["paired"][name][view]
            for name in models
            if name in metrics["paired"]
        }
        views.append(
            {
                "name": view,
                "metric": metric,
                "ours": ours,
                "models": models,
                "paired": paired,
            }
        )
    return views


def read_slices(metrics: Content) -> list[dict[str, Any]]:
    """Lay out slices: label -> view -> summary of groups that are large enough, and how many are not.

    `charted` is of the first view; `ranked` are the labels of at least two groups of users there, the worst first.
    """
    by_view: Mapping[str, Any] = metrics.get("slices", {})
    slices = []
    for name in next(iter(by_view.values()), {}):
        metric = headline_metric(metrics["protocol"]["repeats"])
        first = next(iter(by_view))
        labels = {
            label for of_view in by_view.values() for label in of_view.get(name, {})
        }
        groups: dict[str, dict[str, Content]] = {
            label: {} for label in sorted(labels, key=_order_label)
        }
        for view, of_view in by_view.items():
            for label, summary in of_view.get(name, {}).items():
                if summary["users"] >= MIN_USERS_SHOWN:
                    groups[label][view] = summary
        shown = {label: views for label, views in groups.items() if views}
        charted = {
            label: views[first] for label, views in shown.items() if first in views
        }
        known = {
            label: one[metric]
            for label, one in charted.items()
            if label not in (MISSING, OTHER)
        }
        ranked = (
            sorted(known, key=lambda label: known[label])
            if name not in SLICES and len(known) > 1
            else []
        )
        one = {
            "name": name,
            "views": list(by_view),
            "metric": metric,
            "groups": shown,
            "charted": charted,
        }
        slices.append(one | {"ranked": ranked, "n_hidden": len(groups) - len(shown)})
    return slices


def _order_label(label: str) -> tuple[int, float, str]:
    """Order labels by their first number, then by letters; `other` and `missing` last."""
    number = _NUMBER.search(label)
    start = float(number.group()) if number else float("inf")
    is_below = label.lower().startswith(("under", "below", "less", "up to", "<"))
    return {OTHER: 1, MISSING: 2}.get(label, 0), start - is_below / 2, label


def describe_data(data: Content, schema: Schema) -> dict[str, list[tuple[str, str]]]:
    """Return the facts of a data report in tables, title -> label and value of each row."""
    tables: dict[str, list[tuple[str, str]]] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            tables[name.replace("_", " ").capitalize()] = list(
                _flatten(value, "", name in SHARES)
            )
        elif name != "leaks":
            rows = tables.setdefault(
                "Looks wrong" if isinstance(value, list) else "Habits", []
            )
            rows.extend(
                _flatten(value, name.replace("_", " ").capitalize(), name in SHARES)
            )
    if data["time"] is not None:
        tables["Time"].append(("Time zone", schema.timezone or "times as given"))
    return {title: rows for title, rows in tables.items() if rows}


def _flatten(value: Any, label: str, is_share: bool) -> Iterator[tuple[str, str]]:
    """Yield the label and text of every value in nested dictionaries and lists; missing ones are left out."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            title = (
                f"{label}: {name}"
                if label
                else name[:1].upper() + name[1:].replace("_", " ")
            )
            yield from _flatten(part, title, is_share and name != "gini")
    elif isinstance(value, list):
        yield from ((label, str(one)) for one in value)
    elif isinstance(value, float):
        yield label, f"{value:.1%}" if is_share else f"{round(value, 3):,}"
    elif value is not None:
        yield label, f"{value:,}" if type(value) is int else str(value)
