"""The pictures of the page: figures, curves, slices, the long tail and the map, each with what is said beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from evaluation.report.charts import Curve, Interval, draw_curves, draw_intervals, draw_ranks, draw_shares
from evaluation.report.exposure import Exposure
from evaluation.report.figures import ViewResult
from evaluation.report.groups import Slice
from evaluation.report.map_chart import Category, draw_cloud, draw_map, list_categories
from evaluation.report.projection import MOST_ITEMS, NEIGHBOURS, choose_colouring, project, share_of_alike
from evaluation.report.training_log import StageLog
from evaluation.report.wording import PRODUCT
from evaluation.targets import Ints
from serve.recommender import Recommender
from serve.tower_runs import TowerRuns

LOSS, VALIDATION = "train_loss", "val_ndcg"
CAPTION = (
    "Share of events and of recommendations that the most popular items have: above the grey line, lists favour them"
)
_STYLES = ("ours", "theirs", "third", "fourth")
_SIGN_STYLES = {1: "better", 0: "even", -1: "worse"}


@dataclass(frozen=True)
class Picture:
    """A chart with its caption; the legend is label -> style."""

    chart: Markup
    caption: str
    legend: dict[str, str]


@dataclass(frozen=True)
class Map:
    """The map of item vectors."""

    chart: Markup
    n_items: int
    variance: float
    """Share of the vectors' variance that the plane shows."""
    column: str | None
    """Of the categories; None without any."""
    categories: list[Category]
    alike: float
    by_chance: float
    neighbours: int


def picture_view(view: ViewResult) -> list[Picture]:
    """Draw all models of a view, and how ours differs from each baseline."""
    if not view.rows:
        return []
    rows = [Interval(row.label, row.headline, "ours" if row.is_ours else "theirs") for row in view.rows]
    label = f"{view.metric} of each model with 95 % intervals, {view.title.lower()}"
    pictures = [Picture(draw_intervals(rows, view.metric, label), f"{view.metric} of each model", {})]
    differences = [
        Interval(row.label, row.difference, _SIGN_STYLES[row.difference.sign]) for row in view.rows if row.difference
    ]
    if differences:
        label = f"{PRODUCT} minus each baseline in {view.metric}, with 95 % intervals, {view.title.lower()}"
        chart = draw_intervals(differences, f"{PRODUCT} minus baseline", label, zero=True)
        pictures.append(Picture(chart, f"{PRODUCT} minus each baseline, user by user: right of 0 it is better", {}))
    return pictures


def picture_training(logs: Sequence[StageLog], epochs: int | None) -> list[Picture]:
    """Draw the loss of all trainings, and what validation said."""
    losses = [
        Curve(log.title, log.curves[LOSS], style)
        for log, style in zip(logs, _STYLES, strict=False)
        if LOSS in log.curves
    ]
    pictures = []
    if losses:
        legend = {curve.label: curve.style for curve in losses}
        chart = draw_curves(losses, "epoch", "Training loss by epoch")
        pictures.append(Picture(chart, "Training loss: lower is better", legend))
    return pictures + [_picture_validation(log, epochs) for log in logs if VALIDATION in log.curves]


def _picture_validation(log: StageLog, epochs: int | None) -> Picture:
    names = [name for name in log.curves if name.startswith(VALIDATION)]
    curves = [Curve(_name_curve(name), log.curves[name], style) for name, style in zip(names, _STYLES, strict=False)]
    chart = draw_curves(curves, "epoch", "Validation NDCG by epoch", epochs)
    marked = "" if epochs is None else f"; the upright line is the chosen epoch, {epochs}"
    legend = {curve.label: curve.style for curve in curves}
    return Picture(chart, f"NDCG on validation users: higher is better{marked}", legend)


def _name_curve(name: str) -> str:
    view = name.removeprefix(VALIDATION).strip("_")
    return f"view {view}" if view else "what training stops by"


def picture_slice(one: Slice, metric: str) -> Picture | None:
    """Draw the groups of a slice in the first view, None if there are not two to compare."""
    view = one.views[0]
    rows = [Interval(group.label, group.by_view[view][1], "group") for group in one.groups if view in group.by_view]
    if len(rows) < 2:
        return None
    chart = draw_intervals(rows, metric, f"{metric} by group of {one.title}, with 95 % intervals")
    return Picture(chart, "", {})


def picture_tail(exposure: Exposure) -> list[Picture]:
    """Draw events by rank, and the shares that popular items have of events and of recommendations."""
    pictures = []
    if exposure.events.any():
        chart = draw_ranks(exposure.ranks(), "items, most popular first", "Events of each item by rank")
        pictures.append(Picture(chart, "Events of each item: the long tail", {}))
    curves = exposure.curves()
    chart = draw_shares(
        curves, "share of the catalogue, most popular first", "Share of events and of recommendations on popular items"
    )
    legend = {curve.label: curve.style for curve in curves}
    return [*pictures, Picture(chart, CAPTION, legend)]


def picture_map(recommender: Recommender, event_count: Ints) -> Map | None:
    """Draw the most popular items by the taste part of their vectors, None for a catalogue of fewer than 3 items."""
    bundle = recommender.bundle
    top = np.argsort(-event_count, kind="stable")[:MOST_ITEMS]
    if len(top) < 3:
        return None
    vectors = bundle.vectors[top, : TowerRuns(bundle).taste_dim].astype(np.float64)
    points, variance = project(vectors)
    neighbours = min(NEIGHBOURS, len(top) - 1)
    colouring = choose_colouring(bundle.items.take(top.tolist()), bundle.schema)
    if colouring is None:
        chart = draw_cloud(points, "Map of the item vectors")
        return Map(chart, len(top), variance, None, [], 0.0, 0.0, neighbours)
    alike, by_chance = share_of_alike(vectors, colouring.named, neighbours)
    chart = draw_map(points, colouring, f"Map of the item vectors, coloured by {colouring.column}")
    categories = list_categories(points, colouring)
    return Map(chart, len(top), variance, colouring.column, categories, alike, by_chance, neighbours)
