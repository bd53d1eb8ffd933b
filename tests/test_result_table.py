from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from evaluation.result_table import build_table, print_metrics, print_results


def figures(value: float, users: int = 1234) -> dict:
    return {
        "users": users,
        "NDCG@20": value,
        "NDCG@20_ci95": [value - 0.01, value + 0.02],
        "HR@10": 2 * value,
    }


TEST = {
    "bascule": {"all": figures(0.31), "novel": figures(0.05)},
    "ease": {"all": figures(0.35), "novel": figures(0.04)},
    "popularity": {"novel": figures(0.03), "all": {"users": 0}},
}
PAIRED = {"ease": {"all": {"users": 1234, "NDCG@20": -0.04, "NDCG@20_ci95": [-0.06, -0.02]}}}


def show(*tables) -> str:
    console = Console(file=io.StringIO(), width=120)
    for table in tables:
        console.print(table)
    return console.file.getvalue()


def test_models_stand_in_order_with_intervals_and_differences():
    text = show(build_table("all", TEST, PAIRED, "NDCG@20", ("HR@10",)))
    cells = [re.findall(r"[^ ]+ \(.*?\)|[^ ]+", line) for line in text.splitlines() if "(" in line]
    assert cells == [
        ["ease", "0.3500 (.340, .370)", "-0.0400 (-.060, -.020)", "0.7000"],
        ["bascule", "0.3100 (.300, .330)", "0.6200"],
    ]
    assert "bascule minus it" in text
    assert "1,234 users" in text
    assert "'all', 1 user, " in show(build_table("all", {"bascule": {"all": figures(0.5, users=1)}}, {}, "NDCG@20"))


@pytest.mark.parametrize(
    ("users", "low", "high", "colour"),
    [
        (20, 0.125, 0.25, "green"),
        (20, -0.25, -0.125, "red"),
        (20, 0.0, 0.25, "default"),
        (20, -0.25, 0.0, "default"),
        (19, 0.125, 0.25, "default"),
    ],
)
def test_a_difference_has_a_colour_where_its_interval_is_on_one_side(users, low, high, colour):
    paired = {"ease": {"all": {"users": users, "NDCG@20": 0.125, "NDCG@20_ci95": [low, high]}}}
    table = build_table("all", TEST, paired, "NDCG@20")
    assert next(cell for cell in table.columns[2].cells if cell).startswith(f"[{colour}]+0.1250[/] (")


def test_a_table_fits_in_80_columns():
    console = Console(file=io.StringIO(), width=80)
    longest = {"bascule": TEST["bascule"], "popularity-recent": TEST["ease"]}
    console.print(build_table("all", longest, {"popularity-recent": PAIRED["ease"]}, "NDCG@20", ("HR@10", "HR@10")))
    assert "popularity-recent" in console.file.getvalue()
    assert "\N{HORIZONTAL ELLIPSIS}" not in console.file.getvalue()


def test_every_view_has_a_table():
    console = Console(file=io.StringIO(), width=120)
    print_results(console, TEST, PAIRED, "NDCG@20")
    text = console.file.getvalue()
    assert text.index("view 'all'") < text.index("view 'novel'")
    assert text.count("popularity") == 1  # no figure of it in `all`


def test_colours_say_whether_a_difference_is_one():
    def style(low, high, users=20):
        paired = {"ease": {"all": {"users": users, "NDCG@20": (low + high) / 2, "NDCG@20_ci95": [low, high]}}}
        return next(iter(build_table("all", TEST, paired, "NDCG@20").columns[2].cells))

    assert "green" in style(0.01, 0.02)
    assert "red" in style(-0.03, -0.02)
    assert "default" in style(-0.01, 0.02)
    assert "default" in style(0.01, 0.02, users=19)


def test_figures_with_context_have_tables_of_their_own():
    console = Console(file=io.StringIO(), width=120)
    metrics = {"test": {"bascule": {"novel": figures(0.31)}}, "paired": {}}
    print_metrics(console, metrics, "NDCG@20")
    assert "context" not in console.file.getvalue()
    asked = {"bascule": {"novel": figures(0.21)}, "bascule without context": {"novel": figures(0.18)}}
    gain = {"bascule without context": {"novel": {"users": 1234, "NDCG@20": 0.03, "NDCG@20_ci95": [0.01, 0.05]}}}
    print_metrics(console, metrics | {"with_context": asked, "paired_with_context": gain}, "NDCG@20", ("HR@10",))
    text = console.file.getvalue().split("view 'novel', with request context, 1,234 users")[1]
    assert re.search(r"bascule +0\.2100", text)
    assert re.search(r"(?m)^without context +0\.1800 .* \+0\.0300 \(\+\.010, \+\.050\)", text)
