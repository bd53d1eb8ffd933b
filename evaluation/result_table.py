"""The console tables at the end of a run: a model against its baselines, one table per view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from evaluation.intervals import FEWEST_TO_TELL
from evaluation.report.wording import amount

Views = Mapping[str, Mapping[str, Any]]
"""view -> metric -> figure, and `<metric>_ci95` -> [low, high]."""


def print_metrics(console: Console, metrics: Mapping[str, Any], metric: str, others: tuple[str, ...] = ()) -> None:
    """Print the tables of an evaluation, and those of requests with context where there are any.

    Args:
        console: where to.
        metrics: as `evaluate` returns them.
        metric: the one that is compared, with intervals.
        others: metrics printed beside it.
    """
    print_results(console, metrics["test"], metrics["paired"], metric, others)
    if "with_context" in metrics:
        asked, paired = (_shorten_names(metrics[part]) for part in ("with_context", "paired_with_context"))
        print_results(console, asked, paired, metric, others, ", with request context")


def _shorten_names(models: Mapping[str, Views]) -> dict[str, Views]:
    """Leave out the model's name before what it is asked without, so that a table fits in 80 columns."""
    return {name[name.find(" without ") + 1 :]: views for name, views in models.items()}


def print_results(
    console: Console,
    test: Mapping[str, Views],
    paired: Mapping[str, Views],
    metric: str,
    others: tuple[str, ...] = (),
    remark: str = "",
) -> None:
    """Print one table per view.

    Args:
        console: where to.
        test: model -> view -> figures; the first model is the one the others are compared with.
        paired: baseline -> view -> the first model's figures minus the baseline's.
        metric: the one that is compared, with intervals.
        others: metrics printed beside it.
        remark: follows the name of the view in its title.
    """
    champion = next(iter(test))
    for view in test[champion]:
        console.print(build_table(view, test, paired, metric, others, remark))


def build_table(
    view: str,
    test: Mapping[str, Views],
    paired: Mapping[str, Views],
    metric: str,
    others: tuple[str, ...] = (),
    remark: str = "",
) -> Table:
    """Lay out one view, the best model on `metric` first."""
    champion = next(iter(test))
    users = test[champion][view]["users"]
    title = f"view '{view}'{remark}, {amount(users, 'user')}, 95 % intervals"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("model", no_wrap=True)
    for name in (metric, f"{champion} minus it", *others):
        table.add_column(name, justify="right", no_wrap=True)
    with_view = [model for model in test if metric in test[model].get(view, {})]
    for model in sorted(with_view, key=lambda name: -test[name][view][metric]):
        figures, difference = test[model][view], paired.get(model, {}).get(view, {})
        cells = [_format(figures, metric), _compare(difference, metric)]
        style = "bold" if model == champion else None
        table.add_row(model, *cells, *(f"{figures[name]:.4f}" for name in others), style=style)
    return table


def _compare(difference: Mapping[str, Any], metric: str) -> str:
    """Format a difference: green where its interval is above 0, red where it is below, if it is of enough users."""
    if metric not in difference:
        return ""
    low, high = difference[f"{metric}_ci95"]
    colour = "green" if low > 0 else "red" if high < 0 else "default"
    colour = "default" if difference["users"] < FEWEST_TO_TELL else colour
    ends = _shorten(f"{low:+.3f}, {high:+.3f}")
    return f"[{colour}]{difference[metric]:+.4f}[/] ({ends})"


def _format(figures: Mapping[str, Any], metric: str) -> str:
    low, high = figures[f"{metric}_ci95"]
    ends = _shorten(f"{low:.3f}, {high:.3f}")
    return f"{figures[metric]:.4f} ({ends})"


def _shorten(numbers: str) -> str:
    """Leave out the 0 before a point, so that a table fits in 80 columns."""
    return numbers.replace("0.", ".")
