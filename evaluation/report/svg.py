"""Scales, axes and marks of charts as inline SVG; colours and type come from the page's style sheet.

Charts are `WIDTH` wide and drawn at about that many pixels on a phone, so that their text stays readable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 360
ROOM = 0.05
"""Share of a scale's span that is left free at each end."""
LEAST_SPREAD = 1e-6
"""Values that differ by less, relative to their size, are drawn as one."""
LETTER = 6.6
"""Mean width of a letter of a label, in the units of the drawing."""

Say = Callable[[float], str]
"""Writes the number at a tick."""


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` laid from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float
    ticks: tuple[float, ...]
    transform: Callable[[float], float] = float

    def __call__(self, value: float) -> float:
        low, high = self.transform(self.low), self.transform(self.high)
        return self.start + (self.transform(value) - low) / (high - low) * (self.stop - self.start)


def linear_scale(values: Iterable[float], start: float, stop: float, n_ticks: int = 4) -> Scale:
    """Span the values with a little room at both ends, and about `n_ticks` round steps."""
    given = list(values)
    low, high = min(given), max(given)
    if high - low <= LEAST_SPREAD * max(abs(low), abs(high)):
        half = abs(high) / 2 or 0.5
        low, high = low - half, high + half
    span = high - low
    low, high, step = low - ROOM * span, high + ROOM * span, round_step(span / n_ticks)
    first, last = math.ceil(low / step), math.floor(high / step)
    return Scale(low, high, start, stop, tuple(round(number * step, 10) for number in range(first, last + 1)))


def log_scale(low: float, high: float, start: float, stop: float) -> Scale:
    """Span positive values, with a tick at each power of ten."""
    high = max(high, low * 10)
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    return Scale(low, high, start, stop, tuple(10.0**power for power in range(first, last + 1)), math.log10)


def round_step(least: float) -> float:
    """Return the smallest of 1, 2, 2.5, 5 times a power of ten that is not below `least`."""
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * (1 - 1e-9))


def drawing(height: float, label: str, parts: Iterable[Markup], width: float = WIDTH) -> Markup:
    """Put marks into an image that says what it shows."""
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        f"{width:g}", f"{height:g}", label, Markup("").join(parts)
    )


def text(x: float, y: float, content: str, style: str = "", anchor: str = "start") -> Markup:
    """Write at a point; `style` names classes."""
    return Markup('<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>').format(
        _round(x), _round(y), style, anchor, content
    )


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    """Draw a straight line."""
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(*map(_round, (x1, y1, x2, y2)), style)


def dot(x: float, y: float, radius: float, style: str, title: str = "") -> Markup:
    """Draw a dot; its title is shown where a pointer rests on it."""
    inner = Markup("<title>{}</title>").format(title) if title else ""
    return Markup('<circle cx="{}" cy="{}" r="{}" class="{}">{}</circle>').format(
        _round(x), _round(y), radius, style, inner
    )


def path(points: Sequence[tuple[float, float]], style: str) -> Markup:
    """Join points by a line."""
    joined = " ".join(f"{_round(x)},{_round(y)}" for x, y in points)
    return Markup('<polyline points="{}" class="{}"/>').format(joined, style)


def cloud(points: Iterable[tuple[float, float]], style: str) -> Markup:
    """Draw many equal dots as one mark: lines of no length with round ends."""
    moves = "".join(f"M{_round(x)} {_round(y)}h0" for x, y in points)
    return Markup('<path d="{}" class="{}"/>').format(moves, style)


def x_axis(scale: Scale, top: float, bottom: float, say: Say, title: str) -> list[Markup]:
    """Draw upright guide lines, a number under each, and a title below."""
    marks = [line(scale(tick), top, scale(tick), bottom, "grid") for tick in scale.ticks]
    marks += [text(scale(tick), bottom + 16, say(tick), "tick", "middle") for tick in scale.ticks]
    return [*marks, text((scale.start + scale.stop) / 2, bottom + 34, title, "axis", "middle")]


def y_axis(scale: Scale, left: float, right: float, say: Say) -> list[Markup]:
    """Draw level guide lines and a number beside each."""
    marks = [line(left, scale(tick), right, scale(tick), "grid") for tick in scale.ticks]
    return [*marks, *(text(left - 6, scale(tick) + 4, say(tick), "tick", "end") for tick in scale.ticks)]


def shorten(label: str, most: int) -> str:
    """Cut a label to at most so many letters."""
    return label if len(label) <= most else f"{label[: most - 1]}…"


def _round(value: float) -> str:
    return escape(f"{value:.1f}".rstrip("0").rstrip("."))
