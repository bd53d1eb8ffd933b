"""`MODEL_CARD.md` of a bundle, and the figures of a run as the templates read them.

The card is a file of the bundle, so it holds nothing that differs between two runs of one seed,
and no person. A *summary* is a model's metrics in a view, as in `metrics.json`: metric -> value,
`<metric>_ci95` -> [low, high].
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluation.audit import LEVEL
from evaluation.evaluate import MODEL
from evaluation.metrics import MISSING, OTHER, headline_metric, sign
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
    page = environment(template.endswith(".html")).get_template(template)
    return page.render(
        content=content,
        data=data,
        schema=schema,
        tables=describe_data(data, schema),
        views=read_views(content),
        slices=read_slices(content),
        **more,
    )


@cache
def environment(is_escaped: bool = False) -> Environment:
    """Return the templates of this package with their filters.

    Args:
        is_escaped: for HTML, where what a template imports is escaped as well.
    """
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=is_escaped,  # noqa: S701 - Markdown has marks of its own
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.globals |= {"min_users": MIN_USERS_SHOWN, "level": LEVEL}
    templates.filters |= {
        "figure": _write_figure,
        "signed": partial(_write_figure, form="+.4f"),
        "percent": "{:.1%}".format,
        "day": _write_day,
        "sign": sign,
        "markdown": _escape_markdown,
    }

    return templates


def _write_figure(figure: float, form: str = ".4f") -> str:
    return format(figure, form).replace("-", "−")


def _escape_markdown(text: Any) -> str:
    """Put a text of the data on one line, in which no mark has a meaning."""
    return _MARKS.sub(r"\\\1", " ".join(str(text).split()))


def _write_day(moment: str, schema: Schema) -> str:
    day = datetime.fromisoformat(moment).astimezone(find_zone(schema.timezone))
    return f"{day:%-d %B %Y}"


def read_views(metrics: Content) -> list[dict[str, Any]]:
    """Lay out the test by view: summaries of ours, of all models, and of the differences.

    The best model comes first; `paired` holds ours minus each baseline.
    """
    if "test" not in metrics:
        return []

    metric = headline_metric(metrics["protocol"]["repeats"])
    test = metrics["test"]

    views = []
    for view, ours in test[MODEL].items():
        names = [name for name in test if metric in test[name][view]]
        names.sort(key=lambda name: -test[name][view][metric])
        models = {}
        paired = {}
        for name in names:
            models[name] = test[name][view]
            if name != MODEL:
                paired[name] = metrics["paired"][name][view]

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
    """Lay out slices: label -> view -> summary of groups that are large enough.

    `charted` is of the first view.
    """
    if "slices" not in metrics:
        return []

    metric = headline_metric(metrics["protocol"]["repeats"])
    views = list(metrics["slices"])

    slices = []
    for name in metrics["slices"][views[0]]:
        large: dict[str, dict[str, Content]] = defaultdict(dict)
        for view in views:
            for label, summary in metrics["slices"][view].get(name, {}).items():
                if summary["users"] >= MIN_USERS_SHOWN:
                    large[label][view] = summary

        groups = {label: large[label] for label in sorted(large, key=_order_label)}
        charted = {
            label: summaries[views[0]]
            for label, summaries in groups.items()
            if views[0] in summaries
        }
        slices.append(
            {
                "name": name,
                "views": views,
                "metric": metric,
                "groups": groups,
                "charted": charted,
            }
        )

    return slices


def _order_label(label: str) -> tuple[int, float, str]:
    """Order labels by their first number, then by letters; `other` and `missing` last."""
    number = _NUMBER.search(label)
    start = float(number.group()) if number else float("inf")
    return {OTHER: 1, MISSING: 2}.get(label, 0), start, label


def describe_data(data: Content, schema: Schema) -> dict[str, Rows]:
    """Return the facts of a data report in tables, title -> label and value of each row."""
    tables: dict[str, Rows] = defaultdict(list)
    for name, value in data.items():
        title = name.replace("_", " ").capitalize()
        for label, leaf in _flatten(value):
            text = str(leaf)
            if name in SHARES and label != "gini":
                text = f"{leaf:.1%}"
            elif type(leaf) in (int, float):
                text = f"{round(leaf, 3):,}"

            if label:
                first, colon, others = label.partition(": ")
                first = first[:1].upper() + first[1:].replace("_", " ")
                tables[title].append((f"{first}{colon}{others}", text))
            elif name != "leaks":
                table = "Looks wrong" if isinstance(value, list) else "Habits"
                tables[table].append((title, text))

    if "Time" in tables:
        tables["Time"].append(("Time zone", schema.timezone or "times as given"))
    return tables


def _flatten(value: Any, *names: str) -> Iterator[tuple[str, Any]]:
    """Yield the joined names and the value of each leaf but None."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _flatten(part, *names, name)
    elif isinstance(value, list):
        for part in value:
            yield ": ".join(names), part
    elif value is not None:
        yield ": ".join(names), value
