"""Console output at the end of a run or an evaluation: a table per view, and what to try next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from evaluation.metrics import sign
from evaluation.signal import advise
from serve.bundle import BUNDLE, METRICS

Views = Mapping[str, Mapping[str, Any]]


def print_results(console: Console, metrics: Mapping[str, Any], metric: str) -> None:
    """Print the tables of a run.

    Args:
        console: where to print.
        metrics: `metrics.json`.
        metric: the one that models are compared by.
    """
    console.rule("results")
    if "test" in metrics:
        print_metrics(console, metrics, metric, ("HR@10", "Recall@20"))
    else:
        console.print(
            "Nothing was held out, so this run does not say how good the recommendations are."
        )
    for sentence in advise(metrics):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def print_commands(
    console: Console,
    out: Path,
    item_id: str | int,
    seen: Mapping[str, Mapping[str, Any]],
) -> None:
    """Print the paths of a run's files, what they have seen, and three commands to try.

    Args:
        console: where to print.
        out: folder of the run.
        item_id: an item for the command `similar`.
        seen: part of the run -> the number of events that it knows, and the latest time.
    """
    bundle = shlex.quote(str(out / BUNDLE))
    table = shlex.quote(str(out / "recommendations.csv"))
    item = shlex.quote(f"--item={item_id}")
    lines = [
        f"metrics  {out / METRICS}",
        f"bundle   {out / BUNDLE}",
        *describe_seen(seen),
        "\nTry next:",
    ]
    lines += [
        f"  bascule recommend --bundle {bundle} --all-users --k 10 --out {table}",
        f"  bascule similar --bundle {bundle} {item} --k 5",
        f"  bascule verify --bundle {bundle}",
    ]

    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def describe_seen(seen: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say which events each part of a run has seen, a line for each."""
    lines = []
    for part, figures in seen.items():
        line = f"{part:9}{figures['events']:,} events"
        if figures["until"]:
            line += f", up to {figures['until']}"
        lines.append(line)
    return lines


def print_metrics(
    console: Console,
    metrics: Mapping[str, Any],
    metric: str,
    others: tuple[str, ...] = (),
) -> None:
    """Print a table per view, also of requests with context.

    Args:
        console: where to print.
        metrics: `metrics.json`.
        metric: the one that models are compared by.
        others: further metrics to show.
    """
    tables = {"": (metrics["test"], metrics["paired"])}
    if "with_context" in metrics:
        tables[", with request context"] = (
            metrics["with_context"],
            metrics["paired_with_context"],
        )

    for remark, (test, paired) in tables.items():
        for view in next(iter(test.values())):
            title = f"view '{view}'{remark}"
            console.print(build_table(view, test, paired, (metric, *others), title))


def build_table(
    view: str,
    test: Mapping[str, Views],
    paired: Mapping[str, Views],
    names: tuple[str, ...],
    title: str,
) -> Table:
    """Lay out one view of `test`, the best model first.

    The first model is compared with the others by the first metric of `names`, with intervals.
    """
    champion = next(iter(test))
    metric, *others = names
    n_users = test[champion][view]["users"]
    table = Table(
        title=f"{title}, users: {n_users:,}, 95 % intervals",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
    )
    table.add_column("model", no_wrap=True)

    for name in (metric, f"{champion} minus it", *others):
        table.add_column(name, justify="right", no_wrap=True)
    measured = [model for model in test if metric in test[model].get(view, {})]
    measured.sort(key=lambda model: -test[model][view][metric])

    for model in measured:
        figures = test[model][view]
        comparison = ""
        difference = paired.get(model, {}).get(view, {})
        if metric in difference:
            ends = _write_ends(difference, metric, "+.3f")
            colour = {1: "green", 0: "default", -1: "red"}[sign(difference, metric)]
            comparison = f"[{colour}]{difference[metric]:+.4f}[/] ({ends})"

        ends = _write_ends(figures, metric, ".3f")
        cells = [f"{figures[metric]:.4f} ({ends})", comparison]
        cells += [f"{figures[name]:.4f}" for name in others]
        style = "bold" if model == champion else None
        label = model.removeprefix("bascule ")  # for 80 columns
        table.add_row(label, *cells, style=style)

    return table


def _write_ends(figures: Mapping[str, Any], metric: str, form: str) -> str:
    """Write an interval without leading zeros, for 80 columns."""
    ends = [format(end, form) for end in figures[f"{metric}_ci95"]]
    return ", ".join(ends).replace("0.", ".")
