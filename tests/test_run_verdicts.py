from __future__ import annotations

import pytest

from models.blending import SHARES, Judged
from models.low_pass import LowPass
from models.pair_filter import PairFilter
from models.popularity import Popularity
from models.shrinkage import Shrunk
from models.trials import Blend
from run_verdicts import (
    describe_blend,
    describe_low_pass,
    describe_pair_filter,
    describe_popularity,
    describe_shrinkage,
)

SAID = ["2.5%", "5%", "10%", "20%", "40%", "80%", "160%", "320%"]


@pytest.mark.parametrize(("share", "said"), list(zip(SHARES, SAID, strict=True)))
def test_each_share_that_is_tried_is_said_as_it_is(share, said):
    """The least, a fortieth, was said to be 2%."""
    judged = Judged(Blend(share, 0.0, 30.0, "correlations"), 0.25, 0.125)
    expected = f"blended in by {said}: validation NDCG@10 0.1250 without, 0.2500 with them"
    assert describe_blend(judged) == f"correlations of items {expected}"


@pytest.mark.parametrize(
    ("days", "said"),
    [
        (None, "all events"),
        (1.0, "1 day"),
        (1.004, "1 day"),
        (0.5, "0.5 days"),
        (30.0, "30 days"),
        (99.96, "100 days"),
        (1071.4, "1,071 days"),
    ],
)
def test_the_window_of_popularity_is_all_events_where_they_have_no_times(days, said):
    described = describe_popularity(Popularity(1.0, 0.8, 0.25, 0.125), days)
    assert described == f"popularity of {said} added by 80%: validation NDCG@10 0.1250 without, 0.2500 with it"


NONE_WITHOUT = "none, validation NDCG@10 0.1250"
NONE_TO_JUDGE_BY = "none, there is nothing to validate it by"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            describe_blend(Judged(Blend(0.0, 0.0, 30.0, "correlations"), 0.125, 0.125)),
            f"correlations of items blended in: {NONE_WITHOUT} is best without",
        ),
        (
            describe_blend(Judged(Blend(0.4, 0.2, 100.0, "transitions", 64))),
            "transitions of items, of 64 neighbours each, blended in by 40%, as is usual: there is nothing to validate "
            "it by",
        ),
        (
            describe_shrinkage(Shrunk(0.0, 0.125, 0.125)),
            "items shrunk towards their content: not at all, validation NDCG@10 0.1250 without, hardly more or less "
            "with it",
        ),
        (describe_low_pass(LowPass(0, 0.0)), f"low-pass filter added: {NONE_TO_JUDGE_BY}"),
        (
            describe_low_pass(LowPass(0, 0.0, 0.25, 0.125)),
            f"low-pass filter added: {NONE_WITHOUT} without, hardly more with it",
        ),
        (describe_pair_filter(PairFilter(0.0)), f"filter of pairs added: {NONE_TO_JUDGE_BY}"),
        (
            describe_pair_filter(PairFilter(0.1, 0.25, 0.125)),
            "filter of pairs added by 10.0%: validation NDCG@10 0.1250 without, 0.2500 with it",
        ),
        (describe_popularity(Popularity(1.0, 0.0), None), f"popularity added: {NONE_TO_JUDGE_BY}"),
    ],
)
def test_what_was_left_out_and_what_nothing_judged_are_said_so(said, expected):
    assert said == expected


def test_one_factor_is_said_in_the_singular():
    assert "filter of 1 factor added by 10.0%" in describe_low_pass(LowPass(1, 0.1, 0.25, 0.125))
    assert "filter of 8 factors added by 2.5%" in describe_low_pass(LowPass(8, 0.025, 0.25, 0.125))


def test_one_event_is_said_in_the_singular():
    assert "worth 1 event:" in describe_shrinkage(Shrunk(1.0, 0.25, 0.125))
    assert "worth 4 events, as is usual" in describe_shrinkage(Shrunk(4.0))
