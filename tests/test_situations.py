"""With context, requests are one per situation; the figure without context beside it is of the same requests."""

from __future__ import annotations

import numpy as np
import pytest
from tests.test_evaluate import HOLDOUT, KEEP, assert_figures, make_recommender, naive_evaluation, run

UNTIMED = HOLDOUT.drop(columns="datetime")
PAIRS = {(user, item): {item} for user, item in zip(UNTIMED["user_id"], UNTIMED["item_id"], strict=True)}


@pytest.fixture(scope="module")
def evaluated():
    recommender = make_recommender(repeats="exclude", has_datetime=False, ties="simultaneous")
    return recommender, run(recommender, at=None, holdout=UNTIMED)


@pytest.mark.parametrize(
    ("model", "extra"), [("bascule", {"context": {}}), ("bascule without context", {})], ids=["with", "without"]
)
def test_in_a_set_both_answers_are_judged_by_the_same_pairs(evaluated, model, extra):
    recommender, metrics = evaluated
    expected = naive_evaluation(recommender, PAIRS, KEEP["novel"], KEEP["all"], lambda key: extra)
    assert_figures(metrics["with_context"][model]["novel"], expected)
    assert metrics["with_context"][model]["novel"]["targets"] == len(PAIRS)


def test_the_headline_asks_once_per_user_and_is_another_average(evaluated):
    recommender, metrics = evaluated
    wanted = {(user,): set(items) for user, items in UNTIMED.groupby("user_id")["item_id"]}
    headline = metrics["test"]["bascule"]["novel"]
    assert_figures(headline, naive_evaluation(recommender, wanted, KEEP["novel"], KEEP["all"]))
    assert headline["NDCG@10"] != metrics["with_context"]["bascule without context"]["novel"]["NDCG@10"]
    assert [len(requests) for requests in recommender.asked] == [len(wanted), len(PAIRS)]


def test_the_gain_of_context_is_paired(evaluated):
    _, metrics = evaluated
    gain = metrics["paired_with_context"]["bascule without context"]["novel"]
    informed, plain = (metrics["with_context"][name]["novel"] for name in ("bascule", "bascule without context"))
    assert gain["NDCG@10"] == pytest.approx(informed["NDCG@10"] - plain["NDCG@10"])
    assert np.diff(gain["NDCG@10_ci95"]) > 0


def test_the_protocol_says_what_was_asked_with_context(evaluated):
    said = evaluated[1]["protocol"]["with_context"]
    assert said.startswith(f"{len(PAIRS)} requests, one per user and item of the holdout")
    timed = run(make_recommender(repeats="exclude"), at=None)["protocol"]["with_context"]
    n_requests = len(HOLDOUT.drop_duplicates(["user_id", "datetime"]))
    assert timed.startswith(f"{n_requests} requests, one per user and time of the holdout")
