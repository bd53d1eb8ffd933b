"""The audit finds what is planted, finds nothing where nothing is, and its figures are those of plain counts."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from evaluation.audit import audit, compare_users, correct, find_failures, measure_lists
from evaluation.holdout import Events
from evaluation.metrics import Targets
from fairlearn.metrics import MetricFrame, mean_prediction
from tests.evaluation.naive import as_sets

PATH = Path(__file__).parents[1] / "benchmarks" / "audit_worlds.py"
SPEC = importlib.util.spec_from_file_location("audit_worlds", PATH)
worlds = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(worlds)


@pytest.mark.parametrize("bias", [bias for bias, place in worlds.BIASES.items() if place])
def test_a_planted_bias_is_found_and_nothing_beside_it(bias):
    column, figure = worlds.BIASES[bias]
    found = worlds.find(bias, 0, worlds.HITS[1])
    assert (column, "1", figure) in found
    assert {one[0] for one in found} == {column}


def test_where_nothing_is_wrong_nothing_is_found():
    assert [
        worlds.find("nothing is wrong", 3 + seed, hit) for seed, hit in enumerate(worlds.HITS)
    ] == [
        set(),
        set(),
        set(),
    ]


def test_figures_of_a_list_are_plain_counts():
    """Item 0 has 8 of 10 events: it is the head. Two lists share it; user 1 had no event."""
    past = Events(np.array([0] * 5 + [2] * 5), np.array([0] * 4 + [1] + [0] * 4 + [2]), None, 3, 4)
    lists = np.array([[0, 1, -1, -1], [2, 3, -1, -1], [0, 2, -1, -1]])
    targets = Targets(as_sets([[1], [3, -1], [0]]), np.arange(3))
    got = measure_lists(lists, targets, past)
    assert got["HR@10"].tolist() == [1, 1, 1]
    assert got["coverage@10"].tolist() == [1.5, 1.5, 1.0]
    assert got["coverage@10"].sum() == 4  # items in any list
    shown = np.log([9 * 2, 2 * 1, 9 * 2]) / 4  # an empty place is an item without events
    assert np.allclose(got["popularity_lift@10"], shown - np.log([2, 1, 9]))
    assert np.allclose(got["miscalibration@10"], np.abs(np.array([1, 0, 1]) / 4 - 0.8))


def test_probabilities_are_corrected_as_holm_says():
    given = [{"p": p} for p in (0.04, 0.01, 0.02, 0.9)]
    assert [record["p"] for record in correct(given)] == pytest.approx([0.04, 0.06, 0.08, 0.9])
    assert correct([]) == []


def test_groups_of_few_users_are_not_compared_and_nobody_can_be_reckoned_out():
    """The others are those of large groups alone, so no difference of sums gives a small group's."""
    names = pd.Series(["a"] * 30 + ["b"] * 25 + ["c"] * 19)
    values = pd.DataFrame({"HR@10": [1.0] * 20 + [0.0] * 10 + [0.5] * 25 + [100.0] * 19})
    got = {record["group"]: record for record in compare_users("town", names, values)}
    assert sorted(got) == ["a", "b"]
    assert (got["a"]["value"], got["a"]["base"]) == pytest.approx((2 / 3, 1 / 2))
    assert got["b"]["ratio"] == pytest.approx(3 / 4)
    assert got["b"]["lost"] == pytest.approx(1 / 6)
    assert [*compare_users("town", pd.Series(["a"] * 74), values)] == []


def test_figures_of_groups_are_those_of_fairlearn():
    rng = np.random.default_rng(4)
    names = pd.Series(rng.choice(["a", "b", "c"], 200, p=[0.5, 0.3, 0.2]))
    values = pd.DataFrame({"NDCG@10": rng.random(200), "miscalibration@10": rng.random(200)})
    got = [*compare_users("town", names, values)]
    assert len(got) == 6
    for record in got:
        taken = values[record["figure"]]
        is_own = names == record["group"]
        frame = MetricFrame(
            metrics=mean_prediction, y_true=taken, y_pred=taken, sensitive_features=is_own
        )
        pair = [record["value"], record["base"]]
        assert pair == pytest.approx([frame.by_group[True], frame.by_group[False]])
        low = min(pair) / max(pair)
        assert min(record["ratio"], 1 / record["ratio"]) == pytest.approx(low)
        assert frame.ratio() == pytest.approx(low)


def test_exposure_counts_places_as_ndcg_does_and_merit_users():
    lists = np.tile([0, 1], (40, 5))
    targets = Targets(as_sets([[0, 1]] * 20 + [[1]] * 20), np.arange(40))
    past = Events(np.arange(40), np.tile([0, 1], 20), None, 40, 2)
    got = audit(lists, targets, past, {}, {"seller": np.array(["x", "y"])})
    shares = {record["group"]: (record["value"], record["base"]) for record in got}
    weights = 1 / np.log2(np.arange(10) + 2)
    exposed = weights[::2].sum() / weights.sum()
    assert shares["x"] == pytest.approx((exposed, 1 / 4))
    assert shares["y"] == pytest.approx((1 - exposed, 3 / 4))
    assert got[0]["group"] == "y"  # shown less than it is taken


def test_only_what_is_sure_and_below_its_limit_fails():
    record = {"column": "sex", "group": "f", "figure": "HR@10", "value": 0.1, "base": 0.2}
    sure = {**record, "ratio": 0.5, "p": 0.01}
    unsure = {**record, "ratio": 0.5, "p": 0.06}
    of_items = {**sure, "figure": "exposure@10", "column": "seller"}
    assert len(find_failures([sure, unsure, of_items], 0.8, 0)) == 1
    assert find_failures([sure, unsure], 0.4, 0.8) == []
    assert ["seller" in text for text in find_failures([sure, of_items], 0, 0.8)] == [True]
