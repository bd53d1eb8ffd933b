"""From the clocks of a time zone to UTC and back, vectorised over the hours in which nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import numpy as np

from serve.errors import SchemaError, name_nearest

EPOCH = datetime(1970, 1, 1)
SECOND = timedelta(seconds=1)
HOUR = 3600


def find_zone(timezone: str | None) -> tzinfo:
    """Find a time zone by its IANA name; None is UTC."""
    if timezone is None:
        return UTC
    try:
        return ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        nearest = name_nearest(timezone, available_timezones())
        raise SchemaError(f"time zone '{timezone}' is unknown; {nearest}") from error


def to_local(seconds: np.ndarray, zone: tzinfo) -> np.ndarray:
    """Turn UTC seconds into what the clocks of the zone show, in seconds."""
    if zone is UTC:
        return seconds
    aware = EPOCH.replace(tzinfo=UTC)
    offsets = _offsets(seconds, lambda moment: (aware + timedelta(seconds=moment)).astimezone(zone))
    local: np.ndarray = seconds + offsets
    return local


def to_utc(local: np.ndarray, zone: tzinfo) -> np.ndarray:
    """Turn what the clocks of the zone show into UTC seconds; a repeated hour is read as its first pass."""
    if zone is UTC:
        return local
    offsets = _offsets(local, lambda moment: (EPOCH + timedelta(seconds=moment)).replace(tzinfo=zone))
    seconds: np.ndarray = local - offsets
    return seconds


def _offsets(seconds: np.ndarray, clock: Callable[[int], datetime]) -> np.ndarray:
    """Return the UTC offset in seconds at each moment.

    Asked once per distinct hour, at its start and its end; moment by moment only in the few hours in which
    the offset changes.
    """

    def offset_at(moment: int) -> int:
        return (clock(int(moment)).utcoffset() or timedelta()) // SECOND

    hours, hour_of = np.unique(seconds // HOUR, return_inverse=True)
    at_start = np.array([offset_at(hour * HOUR) for hour in hours], np.int64)
    at_end = np.array([offset_at(hour * HOUR + HOUR - 1) for hour in hours], np.int64)
    offsets = at_start[hour_of]
    changing = np.flatnonzero((at_start != at_end)[hour_of])
    offsets[changing] = [offset_at(moment) for moment in seconds[changing]]
    return offsets
