from __future__ import annotations

import pytest

from models.blending import SHARES, Judged
from models.shrinkage import Shrunk
from models.trials import Blend
from run_verdicts import describe_blend, describe_shrinkage

SAID = ["2.5%", "5%", "10%", "20%", "40%", "80%", "160%", "320%"]


@pytest.mark.parametrize(("share", "said"), list(zip(SHARES, SAID, strict=True)))
def test_each_share_that_is_tried_is_said_as_it_is(share, said):
    """The least, a fortieth, was said to be 2%."""
    judged = Judged(Blend(share, 0.0, 30.0, "correlations"), 0.25, 0.125)
    expected = f"blended in by {said}: validation NDCG@10 0.1250 without, 0.2500 with them"
    assert describe_blend(judged) == f"correlations of items {expected}"


def test_one_event_is_said_in_the_singular():
    assert "worth 1 event:" in describe_shrinkage(Shrunk(1.0, 0.25, 0.125))
    assert "worth 4 events, as is usual" in describe_shrinkage(Shrunk(4.0))
