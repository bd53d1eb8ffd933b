from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.report import svg
from evaluation.report.charts import Curve, Interval, draw_curves, draw_intervals, draw_ranks, draw_shares
from evaluation.report.figures import Figure
from evaluation.report.map_chart import draw_cloud, draw_map, list_categories
from evaluation.report.projection import OTHER, Colouring

VALUES = st.floats(-1e6, 1e6, allow_nan=False).filter(lambda value: value == 0 or abs(value) > 1e-6)


def circles(chart):
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([-\d.]+)" cy="([-\d.]+)"', chart)]


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=9))
def test_a_linear_scale_holds_its_values_and_has_round_ticks(values):
    scale = svg.linear_scale(values, 50, 350)
    assert all(50 <= scale(value) <= 350 for value in values)
    assert 1 <= len(scale.ticks) <= 12
    assert all(50 <= scale(tick) <= 350 for tick in scale.ticks)


@pytest.mark.parametrize("high", [1, 7, 100, 12_526])
def test_a_log_scale_has_ticks_at_powers_of_ten(high):
    scale = svg.log_scale(1, high, 0, 300)
    assert [scale(tick) for tick in scale.ticks] == sorted(scale(tick) for tick in scale.ticks)
    assert scale.ticks[0] == 1
    assert scale(1) == 0
    assert scale(max(high, 10)) == pytest.approx(300)


def test_an_interval_chart_places_dots_by_value():
    rows = [
        Interval("<a>", Figure(0.2, 0.1, 0.3, 99), "ours"),
        Interval("b" * 40, Figure(0.4, 0.35, 0.5, 99), "theirs"),
    ]
    chart = draw_intervals(rows, "NDCG", "what & why")
    ET.fromstring(chart)
    (x1, y1), (x2, y2) = circles(chart)
    assert (x1 < x2, y1 < y2) == (True, True)
    assert "what &amp; why" in chart
    assert "&lt;a&gt;" in chart
    assert f"{'b' * 20}…" in chart


def test_a_difference_chart_marks_zero():
    rows = [Interval("a", Figure(0.2, 0.1, 0.3, 99), "better")]
    assert 'class="zero"' in draw_intervals(rows, "", "x", zero=True)
    assert 'class="zero"' not in draw_intervals(rows, "", "x")


@pytest.mark.parametrize("n", [1, 2, 40])
def test_curves_have_whole_epochs(n):
    points = [(epoch + 1, 1 / (epoch + 1)) for epoch in range(n)]
    chart = draw_curves([Curve("loss", points, "ours")], "epoch", "Loss", chosen=1)
    ET.fromstring(chart)
    assert len(circles(chart)) == n
    ticks = re.findall(r'class="tick" text-anchor="middle">([^<]+)<', chart)
    assert all("." not in tick for tick in ticks)
    assert ticks


def test_tails_are_drawn_for_one_item_and_for_many():
    for n in (1, 2, 500):
        ranks = Curve("items", [(place + 1, n - place) for place in range(n)], "theirs")
        shares = Curve("events", [((place + 1) / n, (place + 1) / n) for place in range(n)], "ours")
        ET.fromstring(draw_ranks(ranks, "items", "Ranks"))
        ET.fromstring(draw_shares([shares], "share", "Shares"))


def test_the_map_has_a_number_and_a_small_map_per_category():
    rng = np.random.default_rng(3)
    colouring = Colouring("kind", ("tea & co", "bread", OTHER), np.array([0] * 9 + [1] * 5 + [2] * 3))
    points = rng.standard_normal((17, 2))
    chart = draw_map(points, colouring, "Map")
    ET.fromstring(chart)
    assert re.findall(r'class="number" text-anchor="middle">(\d)<', chart) == ["1", "2"]
    assert chart.count("h0") == 17
    categories = list_categories(points, colouring)
    assert [(one.number, one.items) for one in categories] == [(1, 9), (2, 5), (0, 3)]
    assert categories[2].small_map is None
    assert categories[0].small_map.count("h0") == 17


def test_equal_points_have_a_map_and_badges_do_not_cover_each_other():
    colouring = Colouring("kind", ("a", "b", "c"), np.arange(12) % 3)
    badges = np.array(circles(draw_map(np.zeros((12, 2)), colouring, "Map")))
    gaps = np.linalg.norm(badges[:, None] - badges[None], axis=2)[~np.eye(3, dtype=bool)]
    assert gaps.min() >= 18
    ET.fromstring(draw_cloud(np.zeros((12, 2)), "Map"))
