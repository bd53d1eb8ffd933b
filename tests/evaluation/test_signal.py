from __future__ import annotations

import pytest
from evaluation.signal import advise, find_signal

METRIC = "NDCG@20"


def make_content(theirs, low, high, users=200):
    """Return the figures of a test, ours .163, and the interval of ours minus each baseline."""
    test = {"bascule": {"all": {"users": users, METRIC: 0.163}}}
    paired = {}
    for name, value in theirs.items():
        test[name] = {"all": {"users": users, METRIC: value}}
        interval = {METRIC: 0.163 - value, f"{METRIC}_ci95": [low, high]}
        paired[name] = {"all": {"users": users, **interval}}
    return {"test": test, "paired": paired}


@pytest.mark.parametrize(("low", "high"), [(-0.04, -0.01), (-0.04, 0.01)])
def test_lists_that_are_not_better_than_popularity_hold_no_signal(low, high):
    content = make_content({"popularity": 0.188, "ease": 0.3}, low, high)
    sentence = find_signal(content, METRIC)
    assert sentence is not None
    assert sentence.startswith("no signal found: popularity ")
    assert "0.1880" in sentence
    assert "0.1630" in sentence
    assert [*advise({"signal": sentence})] == [sentence]


def test_the_best_plain_baseline_is_the_one_that_counts():
    content = make_content({"popularity": 0.1, "personal": 0.17}, -0.02, 0.01)
    assert "habits" in (find_signal(content, METRIC) or "")
    content["paired"]["personal"]["all"][f"{METRIC}_ci95"] = [0.01, 0.02]
    assert find_signal(content, METRIC) is None


def test_nothing_is_said_of_better_lists_of_few_users_or_without_a_plain_baseline():
    assert find_signal(make_content({"popularity": 0.1}, 0.02, 0.1), METRIC) is None
    assert find_signal(make_content({"popularity": 0.1}, -0.1, 0.1, users=19), METRIC) is None
    assert find_signal(make_content({"ease": 0.3}, -0.2, -0.1), METRIC) is None
    assert [*advise({"signal": None})] == []


def test_a_baseline_that_is_behind_by_chance_is_not_called_better():
    sentence = find_signal(make_content({"popularity": 0.15}, -0.01, 0.04), METRIC)
    assert sentence is not None
    assert "better" not in sentence


def test_a_quick_run_says_which_features_its_lists_do_not_read():
    features = {"user": compared(0.0931), "context": compared(0.0930)}
    content = {"training": {"refinement": {"features": features}}, "signal": "no signal"}
    assert len([*advise(content)]) == 3
    signal, unread = advise({**content, "quick": True})
    assert signal.startswith("no signal; ")
    assert unread.startswith("data.features.user ")


def compared(without, error=0.001):
    return {"ndcg": 0.0931, "without": without, "error": error}


def name_advised(features):
    content = {"training": {"refinement": {"features": features}}}
    return [line.split()[1] for line in advise(content)]


def test_features_that_harm_lists_are_to_be_left_out():
    harmful = {"user": compared(0.0998), "context": compared(0.0998)}
    assert name_advised(harmful) == ["data.features.user", "data.features.context"]


def test_a_context_is_to_gain_something_and_features_of_users_may_serve_the_new_ones_alone():
    lines = [*advise({"training": {"refinement": {"features": {"user": compared(0.0930)}}}})]
    assert [line.split()[:2] for line in lines] == [["keep", "data.features.user"]]
    assert name_advised({"context": compared(0.0930)}) == ["data.features.context"]
    assert name_advised({"context": compared(0.0900), "user": compared(0.0900)}) == []


def test_a_continued_run_chose_nothing():
    assert [*advise({"training": {"refinement": None}})] == []
