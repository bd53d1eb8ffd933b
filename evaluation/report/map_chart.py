"""The map of item vectors, and one small map per category that shows where its items lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from evaluation.metrics import Floats
from evaluation.report import svg
from evaluation.report.projection import OTHER, Colouring

_EDGE = 14
_SMALL = 130
_BADGE = 9
_MOST_PUSHES = 200


@dataclass(frozen=True)
class Category:
    """One colour of the map."""

    number: int
    """Of its label and its colour, from 1; 0 for all that is left."""
    label: str
    items: int
    small_map: Markup | None
    """None for all that is left."""


def draw_map(points: Floats, colouring: Colouring, label: str) -> Markup:
    """Draw items (n, 2) in the colours of their categories, with each category's number at its middle."""
    placed = _place(points, svg.WIDTH, _EDGE)
    number_of = [_number(colouring, code) for code in range(len(colouring.labels))]
    codes = sorted(range(len(number_of)), key=lambda code: number_of[code])  # what is left lies below
    marks = [svg.cloud(placed[colouring.codes == code], f"cloud colour{number_of[code]}") for code in codes]
    named = [code for code in codes if number_of[code]]
    middles = np.array([np.median(placed[colouring.codes == code], axis=0) for code in named])
    for code, (x, y) in zip(named, _part(middles), strict=True):
        marks += [svg.dot(x, y, _BADGE, f"badge colour{number_of[code]}", colouring.labels[code])]
        marks += [svg.text(x, y + 4, str(number_of[code]), "number", "middle")]
    return svg.drawing(svg.WIDTH, label, marks)


def draw_cloud(points: Floats, label: str) -> Markup:
    """Draw items (n, 2) that have no category to colour them by."""
    return svg.drawing(svg.WIDTH, label, [svg.cloud(_place(points, svg.WIDTH, _EDGE), "cloud colour1")])


def list_categories(points: Floats, colouring: Colouring) -> list[Category]:
    """Return the legend of the map."""
    placed = _place(points, _SMALL, 5)
    counts = np.bincount(colouring.codes, minlength=len(colouring.labels)).tolist()
    categories = []
    for code, label in enumerate(colouring.labels):
        number = _number(colouring, code)
        small = _draw_small(placed, colouring.codes == code, number, label) if number else None
        categories.append(Category(number, label, counts[code], small))
    return categories


def _draw_small(placed: Floats, is_member: np.ndarray, number: int, label: str) -> Markup:
    marks = [
        svg.cloud(placed[~is_member], "cloud small faint"),
        svg.cloud(placed[is_member], f"cloud small colour{number}"),
    ]
    return svg.drawing(_SMALL, f"Where the items of {label} lie on the map", marks, width=_SMALL)


def _number(colouring: Colouring, code: int) -> int:
    return 0 if colouring.labels[code] == OTHER else code + 1


def _part(middles: Floats) -> Floats:
    """Push badges (n, 2) apart until none covers another."""
    placed = middles + np.arange(len(middles))[:, None] * [1e-3, -2e-3]  # equal ones need a direction
    for _ in range(_MOST_PUSHES):
        away = placed[:, None] - placed[None]  # (n, n, 2)
        distance = np.linalg.norm(away, axis=2, keepdims=True)
        lack = np.where(distance > 0, (2 * _BADGE + 3 - distance).clip(min=0), 0)
        if not lack.any():
            break
        placed = placed + (away / np.maximum(distance, 1e-9) * lack / 2).sum(axis=1)
    return placed.clip(_BADGE + 2, svg.WIDTH - _BADGE - 2)


def _place(points: Floats, size: float, edge: float) -> Floats:
    """Fit points into a square; a few that lie far out are set to its edge."""
    low, high = np.quantile(points, [0.005, 0.995], axis=0)
    middle, half = (low + high) / 2, max(float((high - low).max()) / 2, 1e-12)
    unit = ((points - middle) / half).clip(-1, 1)
    placed: Floats = size / 2 + unit * np.array([1, -1]) * (size / 2 - edge)
    return placed
