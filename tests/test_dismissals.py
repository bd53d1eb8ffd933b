from __future__ import annotations

from contextlib import closing

import pytest

from serve.state.observations import Observation
from serve.state.store import StateStore

NOW, DAY = 1_750_000_000, 86_400


@pytest.fixture
def path(tmp_path):
    """Of a store that is not yet there."""
    return tmp_path / "state" / "state.db"


def test_what_arrived_last_says_whether_an_item_is_dismissed_whatever_the_clocks_of_its_senders_say(path):
    ahead, behind = Observation("u", 4, "dismiss", NOW + 3_600), Observation("u", 4, "undismiss", NOW)
    with closing(StateStore(path)) as store:
        for one, expected in ((ahead, (4,)), (behind, ()), (ahead, ())):  # the last is sent again, as a queue does
            store.observe_many([one])
            assert store.dismissed("u") == expected
        store.observe("u", 5, "undismiss", NOW + 3_600)
        store.observe("u", 5, "dismiss", NOW)
    with closing(StateStore(path)) as store:
        assert store.dismissed("u") == (5,)


def test_a_dismissal_does_not_come_back_when_what_took_it_back_expires(path):
    with closing(StateStore(path, retention_days=10)) as store:
        for item_id, event, time in (
            (4, "dismiss", NOW + 9),
            (4, "undismiss", NOW),
            (5, "undismiss", NOW),
            (5, "dismiss", NOW + 9),
        ):
            store.observe("u", item_id, event, time)
        store.observe("v", 4, "dismiss", NOW + 9)
        assert store.expire(NOW + 10 * DAY + 5) == 3
        assert (store.dismissed("u"), store.dismissed("v")) == ((5,), (4,))
