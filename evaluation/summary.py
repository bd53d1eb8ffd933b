"""The last words of a run: how good it is, where everything lies, and what to try next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich.console import Console

from evaluation.report.plain_words import NOTHING_HELD_OUT
from evaluation.result_table import print_metrics
from serve.interpreter import name_interpreter
from serve.layout import BUNDLE, METRICS


def print_summary(console: Console, out: Path, metrics: dict[str, Any], metric: str, item_id: str | int) -> None:
    """Print the tables of a run's metrics, or that there are none, the paths of what it left, and three commands.

    Args:
        console: where to.
        out: the run's folder.
        metrics: as `evaluate` returns them; without `test`, where nothing was held out.
        metric: the one that models are compared by.
        item_id: an item to try.
    """
    console.rule("results")
    if "test" in metrics:
        print_metrics(console, metrics, metric, ("HR@10", "Recall@20"))
    else:
        console.print(NOTHING_HELD_OUT, highlight=False)
    bundle = out / BUNDLE
    paths = f"metrics  {out / METRICS}\nbundle   {bundle}\n\nTry next:"
    console.print(paths, highlight=False, markup=False)
    for words in (
        ["recommend", "--bundle", bundle, "--all-users", "--k", 10, "--out", out / "recommendations.csv"],
        ["similar", "--bundle", bundle, *_name_item(item_id), "--k", 5],
        ["verify", "--bundle", bundle],
    ):
        command = f"  {name_interpreter()} -m serve {shlex.join(map(str, words))}"
        console.print(command, highlight=False, markup=False, soft_wrap=True)


def _name_item(item_id: str | int) -> list[str]:
    """Return the option that names an item; an id that begins with a hyphen would be read as an option itself."""
    return [f"--item={item_id}"] if str(item_id).startswith("-") else ["--item", str(item_id)]
