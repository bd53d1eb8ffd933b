"""The charts of figures: dots with intervals, curves over epochs, and the long tail of a catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from evaluation.report import svg
from evaluation.report.figures import Figure
from evaluation.report.svg import LETTER, WIDTH
from evaluation.report.wording import figure

_ROW, _TOP, _RIGHT = 26, 8, 16
_MOST_LETTERS = 21
_PLOT = 210
_LEFT = 46


@dataclass(frozen=True)
class Interval:
    """A row of a dot chart."""

    label: str
    figure: Figure
    style: str
    """`ours`, `theirs`, `better`, `worse` or `even`."""


@dataclass(frozen=True)
class Curve:
    """A line through points."""

    label: str
    points: Sequence[tuple[float, float]]
    style: str


def draw_intervals(rows: Sequence[Interval], title: str, label: str, zero: bool = False) -> Markup:
    """Draw a dot and its 95 % interval per row.

    Args:
        rows: from the top; at least one.
        title: of the axis.
        label: what the chart shows, for those who do not see it.
        zero: let the axis hold 0 and mark it, for differences.
    """
    left = 12 + LETTER * max(min(len(row.label), _MOST_LETTERS) for row in rows)
    bottom = _TOP + _ROW * len(rows)
    values = [value for row in rows for value in (row.figure.low, row.figure.high)] + [0.0] * zero
    scale = svg.linear_scale(values, left + 8, WIDTH - _RIGHT, n_ticks=4)
    marks = svg.x_axis(scale, _TOP, bottom, _say_tick, title)
    if zero:
        marks.append(svg.line(scale(0), _TOP, scale(0), bottom, "zero"))
    for number, row in enumerate(rows):
        marks += _draw_interval(row, scale, left, _TOP + _ROW * (number + 0.5))
    return svg.drawing(bottom + 42, label, marks)


def _draw_interval(row: Interval, scale: svg.Scale, left: float, y: float) -> list[Markup]:
    low, high = scale(row.figure.low), scale(row.figure.high)
    title = f"{row.label}: {figure(row.figure.value)} ({figure(row.figure.low)} to {figure(row.figure.high)})"
    return [
        svg.text(left, y + 4, svg.shorten(row.label, _MOST_LETTERS), f"label {row.style}", "end"),
        svg.line(low, y, high, y, f"interval {row.style}"),
        svg.dot(scale(row.figure.value), y, 4.5, f"dot {row.style}", title),
    ]


def draw_curves(curves: Sequence[Curve], title: str, label: str, chosen: float | None = None) -> Markup:
    """Draw figures over epochs.

    Args:
        curves: with at least one point.
        title: of the level axis.
        label: what the chart shows, for those who do not see it.
        chosen: the epoch to mark.
    """
    epochs = [x for curve in curves for x, _ in curve.points]
    across = svg.linear_scale([*epochs, min(epochs) + 1], _LEFT, WIDTH - _RIGHT, n_ticks=6)
    whole = tuple(tick for tick in across.ticks if tick == int(tick))
    across = svg.Scale(across.low, across.high, across.start, across.stop, whole)
    up = svg.linear_scale([y for curve in curves for _, y in curve.points], _PLOT, _TOP)
    marks = svg.x_axis(across, _TOP, _PLOT, _say_tick, title) + svg.y_axis(up, _LEFT, WIDTH - _RIGHT, _say_tick)
    if chosen is not None:
        marks.append(svg.line(across(chosen), _TOP, across(chosen), _PLOT, "zero"))
    for curve in curves:
        points = [(across(x), up(y)) for x, y in curve.points]
        marks.append(svg.path(points, f"curve {curve.style}"))
        titles = [f"{curve.label}, epoch {x:g}: {y:.4f}" for x, y in curve.points]
        marks += [svg.dot(*point, 3, f"dot {curve.style}", said) for point, said in zip(points, titles, strict=True)]
    return svg.drawing(_PLOT + 42, label, marks)


def draw_shares(curves: Sequence[Curve], title: str, label: str) -> Markup:
    """Draw shares of a whole, from 0 to 1, against shares of the catalogue on a logarithmic axis."""
    least = min(x for curve in curves for x, _ in curve.points)
    across = svg.log_scale(min(least, 0.1), 1.0, _LEFT, WIDTH - _RIGHT)
    up = svg.Scale(0, 1, _PLOT, _TOP, (0, 0.25, 0.5, 0.75, 1))
    marks = svg.x_axis(across, _TOP, _PLOT, _say_share, title) + svg.y_axis(up, _LEFT, WIDTH - _RIGHT, _say_share)
    marks += [svg.path([(across(x), up(y)) for x, y in curve.points], f"curve {curve.style}") for curve in curves]
    return svg.drawing(_PLOT + 42, label, marks)


def draw_ranks(curve: Curve, title: str, label: str) -> Markup:
    """Draw counts of 1 and more by rank, both on logarithmic axes."""
    across = svg.log_scale(1, curve.points[-1][0], _LEFT, WIDTH - _RIGHT)
    up = svg.log_scale(1, max(y for _, y in curve.points), _PLOT, _TOP)
    marks = svg.x_axis(across, _TOP, _PLOT, _say_tick, title) + svg.y_axis(up, _LEFT, WIDTH - _RIGHT, _say_tick)
    marks.append(svg.path([(across(x), up(y)) for x, y in curve.points], f"curve {curve.style}"))
    return svg.drawing(_PLOT + 42, label, marks)


def _say_tick(value: float) -> str:
    text = f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"
    return text.replace("-", "−")


def _say_share(value: float) -> str:
    return f"{value * 100:g} %"
