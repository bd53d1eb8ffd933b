"""Draw a study: the figure of each trial with the best so far, and beside it each parameter that was searched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from itertools import accumulate
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tuning.outcome import Tried

COLUMNS = 3
WIDTH, HEIGHT = 4.0, 2.8
"""Inches of one small chart."""
WHOLE, ENDED, MARKED = "#2b6cb0", "#b9c4d0", "#c05621"
MOST_PLACES = 8
"""Distinct values up to which each has a place of its own on the axis."""
MOST_LETTERS = 7
"""Of a value that is written level."""
WIDE = 4
"""Ratio of the largest to the smallest value from which on the axis is logarithmic."""
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
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))  # there is no trial 1.5
    axes.set_xlabel("trial")
    axes.set_ylabel(TITLE)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _draw_parameter(axes: Axes, tried: Sequence[Tried], name: str) -> None:
    colours = [WHOLE if one.is_whole else ENDED for one in tried]
    places = _place(axes, [one.values[name] for one in tried])
    figures = [one.figure or 0.0 for one in tried]
    axes.scatter(places, figures, c=colours)
    if tried[0].number == 1:
        axes.scatter(places[:1], figures[:1], facecolors="none", edgecolors=MARKED, s=90)
    axes.set_xlabel(name)
    axes.set_ylabel(TITLE)


def _place(axes: Axes, values: Sequence[Any]) -> list[float]:
    """Return where values lie on the level axis, and say so on it."""
    distinct = sorted(set(values))
    if len(distinct) <= MOST_PLACES:
        labels = [f"{value}" for value in distinct]
        axes.set_xticks(range(len(distinct)), labels, rotation=0 if max(map(len, labels)) < MOST_LETTERS else 30)
        axes.set_xlim(-0.5, len(distinct) - 0.5)
        return [float(distinct.index(value)) for value in values]
    if 0 < WIDE * distinct[0] <= distinct[-1]:
        axes.set_xscale("log")
        axes.set_xticks([distinct[0], values[0], distinct[-1]], [f"{distinct[0]}", f"{values[0]}", f"{distinct[-1]}"])
        axes.set_xticks([], minor=True)
    return [float(value) for value in values]
