from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from datamodules.clean import clean
from datamodules.config import DataConfig, SplitConfig
from datamodules.far_times import SHORTEST, count_far, hint_at_far_times
from datamodules.report import print_report, report_data
from datamodules.splits import split_interactions
from datamodules.tables import tables_from_frames

DAY, BEGIN = 86_400, 1_700_000_000
TIMES = BEGIN + np.arange(1_000) * DAY // 4


def hints(*times: int) -> list[str]:
    found = np.concatenate([TIMES, np.array(times, np.int64)])
    return list(hint_at_far_times(pd.DataFrame({"datetime": np.random.default_rng(0).permutation(found)})))


def test_a_mistyped_year_and_an_unknown_time_are_named():
    assert hints(4_102_444_800, 0, 86_400) == [
        "1 of 1,003 events is of 2100-01-01, long after all others, which are of 2023-11-14 to 2024-07-21: mend such "
        "rows or take them out; what is recent, and what is the test by time, is told from the last event",
        "2 of 1,003 events are of times such as 1970-01-01, long before all others, which are of 2023-11-14 to "
        "2024-07-21: mend such rows or take them out",
    ]


def test_what_many_have_or_follows_soon_is_no_slip():
    assert not hints()
    assert not hints(int(TIMES[-1]) + 200 * DAY)  # the others take 250 days
    assert hints(int(TIMES[-1]) + 260 * DAY)
    assert not hints(*[int(TIMES[-1]) + 260 * DAY] * 20)


def test_up_to_a_hundredth_is_far_and_whatever_lies_beyond_the_first_gap():
    last = int(TIMES[-1])
    (ten_of_a_day,) = hints(*[last + 260 * DAY] * 10)
    assert ten_of_a_day.startswith("10 of 1,010 events are of times such as ")
    (beyond_two_gaps,) = hints(last + 260 * DAY, 4_102_444_800)
    assert beyond_two_gaps.startswith("2 of 1,002 events are of times such as 2100-01-01, long after all others, ")


def test_a_few_days_after_events_of_one_moment_are_no_slip():
    times = np.full(500, BEGIN)
    assert not count_far(np.append(times, BEGIN + SHORTEST - 1))
    assert count_far(np.append(times, BEGIN + SHORTEST)) == 1


@given(st.lists(st.integers(-(10**9), 10**10), max_size=300))
def test_what_is_far_comes_after_a_gap_that_is_longer_than_most_events_take(times):
    ordered = np.sort(np.array(times, np.int64))
    n_far, n_most = count_far(ordered), len(times) // 100
    assert n_far <= n_most
    if n_far:
        assert ordered[-n_far] - ordered[-n_far - 1] > ordered[-n_most - 1] - ordered[n_most]


@pytest.mark.parametrize("has_times", [True, False])
def test_the_report_has_them(has_times):
    ids = np.arange(400)
    events = pd.DataFrame({"user_id": ids % 40, "item_id": ids % 100, "datetime": BEGIN + ids})
    events.loc[7, "datetime"] = 4_102_444_800
    events = events if has_times else events.drop(columns="datetime").drop_duplicates()
    config = DataConfig(split=SplitConfig(kind="leave_one_out" if has_times else "pairs"))
    users, items = (pd.DataFrame({name: events[name].unique()}) for name in ("user_id", "item_id"))
    tables, rejects = tables_from_frames(config, events, users, items)
    tables, cleaning = clean(tables)
    report = report_data(tables, rejects, cleaning, split_interactions(tables.interactions, config, 0), config, ())
    text = io.StringIO()
    print_report(report, Console(file=text, width=400))
    assert ("far times" in text.getvalue()) == bool(report["far_times"]) == has_times
