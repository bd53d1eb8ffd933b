"""Console output at the end of a run or an evaluation: one table per view, and where to go from there."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from evaluation.metrics import sign
from serve.bundle import BUNDLE, METRICS

Views = Mapping[str, Mapping[str, Any]]


def print_summary(
    console: Console,
    out: Path,
    metrics: Mapping[str, Any],
    metric: str,
    item_id: str | int,
) -> None:
    """Print the tables of a run in the folder `out`, the paths of its files, and three commands, one on `item_id`."""
    console.rule("results")
    if "test" in metrics:
        print_metrics(console, metrics, metric, ("HR@10", "Recall@20"))
    else:
        console.print(
            "Nothing was held out, so this run does not say how good the recommendations are."
        )
    bundle = out / BUNDLE
    console.print(
        f"metrics  {out / METRICS}\nbundle   {bundle}\n\nTry next:",
        highlight=False,
        markup=False,
    )
    for words in (
        [
            "recommend",
            "--bundle",
            bundle,
            "--all-users",
            "--k",
            10,
            "--out",
            out / "recommendations.csv",
        ],
        ["similar", "--bundle", bundle, f"--item={item_id}", "--k", 5],
        ["verify", "--bundle", bundle],
    ):
        command = shlex.join(map(str, words))
        console.print(
            f"  python -m serve {command}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


def print_metrics(
    console: Console,
    metrics: Mapping[str, Any],
    metric: str,
    others: tuple[str, ...] = (),
) -> None:
    """Print a table per view, also of requests with context: models compared by `metric`, and their `others`."""
    parts = [(metrics["test"], metrics["paired"], "")]
    if "with_context" in metrics:
        (
            asked,
            paired,
        ) = (  # without the model's name in "bascule without context": 80 columns
            {
                name.removeprefix("bascule "): views
                for name, views in metrics[part].items()
            }
            for part in ("with_context", "paired_with_context")
        )
        parts.append((asked, paired, ", with request context"))
    for test, paired, remark in parts:
        for view, figures in test[next(iter(test))].items():
            users = figures["users"]
            title = f"view '{view}'{remark}, {users:,} user{'s' if users != 1 else ''}, 95 % intervals"
            console.print(build_table(view, test, paired, (metric, *others), title))


def build_table(
    view: str,
    test: Mapping[str, Views],
    paired: Mapping[str, Views],
    names: tuple[str, ...],
    title: str,
) -> Table:
    """Lay out one view of `test`, the best model first; the first metric of `names` is compared, with intervals."""
    champion = next(iter(test))
    metric = names[0]
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=0,
    )
    table.add_column("model", no_wrap=True)
    for name in (metric, f"{champion} minus it", *names[1:]):
        table.add_column(name, justify="right", no_wrap=True)
    measured = [model for model in test if metric in test[model].get(view, {})]
    for model in sorted(measured, key=lambda name: -test[name][view][metric]):
        figures = test[model][view]
        difference = paired.get(model, {}).get(view, {})
        low, high = figures[f"{metric}_ci95"]
        ends = f"{low:.3f}, {high:.3f}".replace("0.", ".")  # 80 columns are few
        cells = [f"{figures[metric]:.4f} ({ends})", ""]
        if metric in difference:
            low, high = difference[f"{metric}_ci95"]
            ends = f"{low:+.3f}, {high:+.3f}".replace("0.", ".")
            colour = {1: "green", 0: "default", -1: "red"}[sign(difference, metric)]
            cells[1] = f"[{colour}]{difference[metric]:+.4f}[/] ({ends})"
        style = "bold" if model == champion else None
        table.add_row(
            model, *cells, *(f"{figures[name]:.4f}" for name in names[1:]), style=style
        )
    return table
