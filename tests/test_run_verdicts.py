from __future__ import annotations

import pytest

from models.blending import SHARES, Judged
from models.low_pass import LowPass
from models.popularity import Popularity
from models.shrinkage import Shrunk
from models.trials import Blend
from run_verdicts import describe_blend, describe_low_pass, describe_popularity, describe_shrinkage

SAID = ["2.5%", "5%", "10%", "20%", "40%", "80%", "160%", "320%"]


@pytest.mark.parametrize(("share", "said"), list(zip(SHARES, SAID, strict=True)))
def test_each_share_that_is_tried_is_said_as_it_is(share, said):
    """The least, a fortieth, was said to be 2%."""
    judged = Judged(Blend(share, 0.0, 30.0, "correlations"), 0.25, 0.125)
    expected = f"blended in by {said}: validation NDCG@10 0.1250 without, 0.2500 with them"
    assert describe_blend(judged) == f"correlations of items {expected}"


@pytest.mark.parametrize(
    ("days", "said"), [(None, "all events"), (1.0, "1 day"), (1.004, "1 day"), (0.5, "0.5 days"), (30.0, "30 days")]
)
def test_the_window_of_popularity_is_all_events_where_they_have_no_times(days, said):
    described = describe_popularity(Popularity(1.0, 0.8, 0.25, 0.125), days)
    assert described == f"popularity of {said} added by 80%: validation NDCG@10 0.1250 without, 0.2500 with it"


def test_one_factor_is_said_in_the_singular():
    assert "filter of 1 factor added by 10.0%" in describe_low_pass(LowPass(1, 0.1, 0.25, 0.125))
    assert "filter of 8 factors added by 2.5%" in describe_low_pass(LowPass(8, 0.025, 0.25, 0.125))


def test_one_event_is_said_in_the_singular():
    assert "worth 1 event:" in describe_shrinkage(Shrunk(1.0, 0.25, 0.125))
    assert "worth 4 events, as is usual" in describe_shrinkage(Shrunk(4.0))
