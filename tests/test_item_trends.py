from __future__ import annotations

import math

import numpy as np
import pytest

from datamodules.popularity import PRIOR_BUYERS, ItemTrends, measure_trends
from serve.events import Events
from tests.tiny_data import BASKETS, DAY, FIRST, N, draw_events, make_world

WINDOWS = (3.0, 11.0)
SCHEMA = make_world(BASKETS).schema
MOMENTS = np.array([FIRST - 5, FIRST + 2 * DAY, FIRST + 7 * DAY, FIRST + 99 * DAY])


@pytest.fixture
def events() -> Events:
    return draw_events([16, 0, 13, 11, 15], SCHEMA, np.random.default_rng(0))


def rows(events: Events) -> list[tuple[int, int, int]]:
    segments = np.repeat(np.arange(len(events)), np.diff(events.offsets))
    return list(zip(segments.tolist(), events.item_row.tolist(), events.time.tolist(), strict=True))


def newest(events: Events, moment: int, days: float) -> list[int]:
    """Return the items of a window, which holds half of what it would had all events come evenly, or more."""
    before = sorted(((time, item) for _, item, time in rows(events) if time < moment), reverse=True)
    if not before:
        return []
    fewest = int(0.5 * len(before) * min(1, days * DAY / (moment - before[-1][0])))
    oldest = before[fewest - 1][0] if fewest else moment
    return [item for time, item in before if time >= min(oldest, moment - days * DAY)]


def test_popularity_equals_a_loop_over_events_strictly_before(events):
    found = measure_trends(events, MOMENTS, WINDOWS, N).popularity
    assert found.shape == (4, N, 2)
    for g, moment in enumerate(MOMENTS):
        for p, days in enumerate(WINDOWS):
            counts = [0] * N
            for item in newest(events, int(moment), days):
                counts[item] += 1
            logs = [math.log(1 + count) for count in counts]
            mean = sum(logs) / N
            deviation = math.sqrt(sum((log - mean) ** 2 for log in logs) / N)
            expected = [(log - mean) / deviation if deviation else 0.0 for log in logs]
            assert found[g, :, p] == pytest.approx(expected, abs=1e-5)


def test_a_few_late_events_do_not_stand_out():
    """A window with one event in it would put its item many deviations above what a hundred took before."""
    time = FIRST + np.append(np.arange(600) * DAY // 30, 80 * DAY)
    item = np.append(np.arange(600) % 6, 7)
    item[:100] = 2
    events = Events(item, time, np.ones(601, np.int64), np.ones(601, np.float32), np.array([0, 601]))
    (found,) = measure_trends(events, np.array([FIRST + 81 * DAY]), WINDOWS, N).popularity
    assert (found[7] < found[2]).all()


def test_repeat_rate_equals_a_loop_over_events_strictly_before(events):
    found = measure_trends(events, MOMENTS, WINDOWS, N).repeat_rate
    for g, moment in enumerate(MOMENTS):
        before = [(user, item) for user, item, time in rows(events) if time < moment]
        overall = len(before) / len(set(before)) if before else 1.0
        for item in range(N):
            lines = sum(row == item for _, row in before)
            buyers = len({user for user, row in before if row == item})
            expected = math.log((lines + PRIOR_BUYERS * overall) / (buyers + PRIOR_BUYERS))
            assert found[g, item] == pytest.approx(expected, abs=1e-5)


def test_later_events_do_not_change_a_byte(events):
    trends = measure_trends(events, MOMENTS, WINDOWS, N)
    for g, moment in enumerate(MOMENTS):
        is_later = events.time >= moment
        rows_after = np.where(is_later, (events.item_row + 5) % N, events.item_row)
        times = np.where(is_later, events.time + 3 * DAY, events.time)
        changed = Events(rows_after, times, events.event, events.weight, events.offsets)
        again = measure_trends(changed, MOMENTS[g : g + 1], WINDOWS, N)
        assert again.popularity[0].tobytes() == trends.popularity[g].tobytes()
        assert again.repeat_rate[0].tobytes() == trends.repeat_rate[g].tobytes()


def test_an_event_at_the_moment_itself_does_not_count():
    at = Events(np.array([4]), np.array([FIRST]), np.array([1]), np.ones(1, np.float32), np.array([0, 1]))
    trends = measure_trends(at, np.array([FIRST, FIRST + 1]), WINDOWS, N)
    assert (trends.popularity[0] == 0).all()
    assert trends.popularity[1, 4, 0] > 1


def test_a_time_is_given_the_last_moment_not_after_it():
    trends = ItemTrends(MOMENTS, np.zeros((4, N, 0), np.float32), np.zeros((4, N), np.float32))
    times = np.sort(np.concatenate([MOMENTS, MOMENTS - 1, MOMENTS + 1]))
    expected = [max([g for g in range(4) if MOMENTS[g] <= time], default=0) for time in times]
    assert trends.at(times).tolist() == expected


def test_without_windows_there_is_no_popularity(events):
    assert measure_trends(events, MOMENTS, (), N).popularity.shape == (4, N, 0)
