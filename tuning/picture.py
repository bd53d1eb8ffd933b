"""Draw a study: the figure of each trial with the best so far, and beside it each parameter that was searched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tuning.outcome import Tried

COLUMNS = 3
WIDTH, HEIGHT = 4.0, 2.8
"""Inches of one small chart."""
WHOLE, ENDED, MARKED = "#2b6cb0", "#b9c4d0", "#c05621"
LOGARITHMIC = {"learning_rate", "warmup_steps", "negatives", "batch_size"}
TITLE = "validation NDCG@10"


def draw_study(tried: Sequence[Tried]) -> bytes:
    """Draw the trials that have a figure, at least one, as PNG."""
    tried = [one for one in tried if one.figure is not None]
    names = list(tried[0].values)
    n_rows = math.ceil(len(names) / COLUMNS)
    figure = Figure(figsize=(COLUMNS * WIDTH, (n_rows + 1.3) * HEIGHT), layout="constrained")
    grid = figure.add_gridspec(n_rows + 1, COLUMNS, height_ratios=[1.3, *[1.0] * n_rows])
    _draw_course(figure.add_subplot(grid[0, :]), tried)
    for place, name in enumerate(names):
        _draw_parameter(figure.add_subplot(grid[1 + place // COLUMNS, place % COLUMNS]), tried, name)
    content = BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def _draw_course(axes: Axes, tried: Sequence[Tried]) -> None:
    whole = [one for one in tried if one.is_whole]
    ended = [one for one in tried if not one.is_whole]
    axes.scatter([one.number for one in ended], [one.figure or 0.0 for one in ended], c=ENDED, label="ended early")
    axes.scatter([one.number for one in whole], [one.figure or 0.0 for one in whole], c=WHOLE, label="trial")
    best = list(accumulate((one.figure or 0.0 for one in whole), max))
    axes.step([one.number for one in whole], best, where="post", color=WHOLE, label="best so far")
    if tried[0].number == 1:
        axes.axhline(tried[0].figure or 0.0, color=MARKED, linestyle="--", linewidth=1, label="what the data chose")
    axes.set_xlabel("trial")
    axes.set_ylabel(TITLE)
    axes.legend(loc="best", fontsize="small")


def _draw_parameter(axes: Axes, tried: Sequence[Tried], name: str) -> None:
    colours = [WHOLE if one.is_whole else ENDED for one in tried]
    axes.scatter([one.values[name] for one in tried], [one.figure or 0.0 for one in tried], c=colours)
    if tried[0].number == 1:
        axes.scatter([tried[0].values[name]], [tried[0].figure or 0.0], facecolors="none", edgecolors=MARKED, s=90)
    if name in LOGARITHMIC:
        axes.set_xscale("log", base=10 if name == "learning_rate" else 2)
    axes.set_xlabel(name)
    axes.set_ylabel(TITLE)
