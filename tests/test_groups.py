from __future__ import annotations

import pytest

from evaluation.report.groups import find_gaps, read_slices
from evaluation.report.plain_words import say_gap


def summary(users, value):
    return {"users": users, "NDCG@10": value, "NDCG@10_ci95": [value - 0.125, value + 0.125]}


def content(name, groups):
    slices = {"novel": {name: {label: summary(*figures) for label, figures in groups.items()}}}
    return {"protocol": {"repeats": "exclude"}, "slices": slices}


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("history", ["0", "1-4", "5-19", "20+"]),
        ("income", ["Under 15K", "15-24K", "100-124K", "250K+"]),
        ("age", ["7 to 25", "25 to 31", "43 to 73", "missing"]),
        ("balance", ["-40 to -20", "-20 to 0", "0 to 20", "20 to 40"]),
        ("mood", ["-1", "0", "1"]),
        ("balance", ["500000 to 1e+17", "1e+17 to 2e+17"]),
        ("job", ["artist", "writer", "other", "missing"]),
    ],
)
def test_groups_are_in_the_order_people_expect(name, labels):
    groups = {label: (20, 0.5) for label in sorted(labels)}
    (one,) = read_slices(content(name, groups))
    assert [group.label for group in one.groups] == labels


def test_small_groups_are_hidden_and_counted():
    (one,) = read_slices(content("age", {"a": (19, 0.5), "b": (20, 0.5), "c": (1, 0.5)}))
    assert [group.label for group in one.groups] == ["b"]
    assert one.hidden == 2


def test_the_gap_is_between_known_groups_of_users():
    groups = {"a": (20, 0.25), "b": (31, 0.75), "c": (3, 0.9), "missing": (27, 0.1), "other": (40, 0.95)}
    (gap,) = find_gaps(read_slices(content("shoe_size", groups)))
    assert (gap.title, gap.best, gap.worst, gap.size, gap.is_clear) == ("Shoe size", "b", "a", 0.5, True)
    assert (gap.best_users, gap.worst_users) == (31, 20)
    assert (gap.best_figure.value, gap.worst_figure.value) == (0.75, 0.25)
    assert gap.unknown is not None
    assert gap.unknown[0] == 27
    assert not find_gaps(read_slices(content("history", {"0": (20, 0.25), "20+": (31, 0.75)})))
    assert not find_gaps(read_slices(content("age", {"a": (20, 0.25), "b": (19, 0.75)})))


@pytest.mark.parametrize(
    ("value", "are"), [(0.5, "are apart."), (0.625, "overlap, so this may be chance.")], ids=["apart", "overlapping"]
)
def test_a_gap_is_said_with_its_intervals_and_whether_they_are_apart(value, are):
    (gap,) = find_gaps(read_slices(content("town", {"a": (20, value), "b": (31, 0.8125)})))
    ends = f"0.6875 to 0.9375, {value - 0.125:.4f} to {value + 0.125:.4f}"
    assert say_gap(gap, "NDCG@10").replace("\N{NO-BREAK SPACE}", " ") == (
        f"Town: NDCG@10 is 0.8125 for “b” (31 users) and {value:.4f} for “a” (20 users), a gap of "
        f"{0.8125 - value:.4f}. The 95 % intervals ({ends}) {are}"
    )


def test_nothing_held_out_has_no_slices():
    assert read_slices({"protocol": {"split": "none"}}) == []
