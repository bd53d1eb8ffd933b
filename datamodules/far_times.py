"""Few events so long before or after all others that a slip is likely: a mistyped year, or 0 for an unknown time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

MOST = 0.01
"""Share of the events that may be far on either side: what more have is no slip."""
SHORTEST = 30 * 86_400
"""Seconds of the gap between them and the others, which is also longer than those between take in all."""


def hint_at_far_times(events: pd.DataFrame) -> Iterator[str]:
    """Say whether few events are far before or after all others, and what to do about them."""
    if "datetime" not in events:
        return
    times = np.sort(events["datetime"].to_numpy(np.int64))
    n_before, n_after = count_far(-times[::-1]), count_far(times)
    before, others, after = np.split(times, [n_before, len(times) - n_after])
    if n_after:
        harm = "; what is recent, and what is the test by time, is told from the last event"
        yield _describe(after[::-1], others, len(times), "after") + harm
    if n_before:
        yield _describe(before, others, len(times), "before")


def count_far(times: np.ndarray) -> int:
    """Count the last of ordered times (n,) that come after a gap longer than those between the outer ones take."""
    n_most = int(MOST * len(times))
    if not n_most:
        return 0
    span = times[-n_most - 1] - times[n_most]
    gaps = np.diff(times[-n_most - 1 :])
    is_gap = (gaps >= SHORTEST) & (gaps > span)
    return n_most - int(is_gap.argmax()) if is_gap.any() else 0


def _describe(far: np.ndarray, others: np.ndarray, n_events: int, side: str) -> str:
    """Describe far times, the farthest first."""
    days = np.array([far[0], others[0], others[-1]]) // 86_400
    farthest, first, last = days.astype("datetime64[D]")
    which = f"is of {farthest}" if len(far) == 1 else f"are of times such as {farthest}"
    return (
        f"{len(far):,} of {n_events:,} events {which}, long {side} all others, which are of {first} to {last}: mend "
        "such rows or take them out"
    )
