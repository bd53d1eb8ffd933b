"""Read times as UTC seconds (int64), naive ones in a time zone; calendars and rhythms."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from itertools import pairwise
from statistics import median
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import numpy as np

from serve.arrays import Flags, Id, Ints
from serve.errors import SchemaError, name_nearest, show

DAY = 86_400
# Bounds of the times that are read: the years 1 to 9999.
FIRST_SECOND = int(datetime(1, 1, 2, tzinfo=UTC).timestamp())
LAST_SECOND = int(datetime(9999, 12, 30, tzinfo=UTC).timestamp())

# Ticks per second: seconds, milliseconds, microseconds, nanoseconds.
_UNITS = (1, 10**3, 10**6, 10**9)
# Where each unit's window begins and ends. A number shows its unit if it means
# 1973-03-03 .. 2286-11-20 in it; one nearer to 0 than all windows takes the unit of its column.
_WINDOWS = np.multiply.outer(_UNITS, [1e8, 1e10]).ravel()
_QUARTER = 900  # seconds; offsets of time zones change at its ends
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", re.ASCII)
# Groups: date, time, zone. Databases write ` UTC` and ` +00`, which `fromisoformat` does not read.
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)"
    r"(?:([T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?)(?: ?(Z|UTC|[+-]\d\d(?::?\d\d)?))?)?",
    re.ASCII,
)
_PLAIN_ISO = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d:\d\dZ?)?", re.ASCII)


# ---- columns of times


def to_seconds(
    values: Sequence[Any] | np.ndarray, timezone: str | None
) -> tuple[Ints, Flags]:
    """Read a column of times as UTC seconds, rounded down.

    Args:
        values: (n,) either ISO dates and times (as texts, `date`, `datetime` or `datetime64`), or
            epoch numbers of one unit (also as texts); of a mixture, the minority is invalid.
        timezone: IANA name of the zone of naive times; None is UTC.

    Returns:
        Seconds (n,), 0 where invalid, and is_valid (n,).

    Raises:
        SchemaError: the zone is unknown, or the unit of the numbers is unclear.
    """
    zone = find_zone(timezone)
    dtype = values.dtype if isinstance(values, np.ndarray) else np.dtype(object)
    if np.issubdtype(dtype, np.datetime64):
        seconds, is_valid = _read_moments(np.asarray(values), zone)
    elif np.issubdtype(dtype, np.number):
        seconds, is_valid = _read_numbers(np.asarray(values))
    else:
        seconds, is_valid = _read_alike(values, zone) or _read_cells(values, zone)

    is_valid = is_valid & (seconds >= FIRST_SECOND) & (seconds <= LAST_SECOND)
    return np.where(is_valid, seconds, 0), is_valid


def parse_times(
    values: list[Any], timezone: str | None, name_of: Callable[[int], str]
) -> list[int]:
    """Return UTC seconds of times that must all be valid; they are read in one unit.

    Args:
        values: times as `to_seconds` reads them.
        timezone: zone of naive times.
        name_of: index of a value -> where it stands, for the message.

    Raises:
        SchemaError: a value is no time.
    """
    try:
        seconds, is_valid = to_seconds(values, timezone)
    except SchemaError as error:
        raise SchemaError(f"{name_of(0)}: {error}") from error

    if not is_valid.all():
        index = int(np.argmin(is_valid))
        raise SchemaError(
            f"{name_of(index)} is {show(values[index])}; "
            "expected an ISO time, or seconds since 1970"
        )

    return list(seconds.tolist())


def check_seconds(value: Any, where: str) -> None:
    """Refuse anything but whole UTC seconds of the years 1 to 9999: today's milliseconds too."""
    is_whole = type(value) is int or isinstance(value, np.integer)
    if not is_whole or not FIRST_SECOND <= value <= LAST_SECOND:
        raise SchemaError(
            f"{where} is {show(value)}; "
            "expected whole UTC seconds since 1970, of the years 1 to 9999"
        )


def to_iso(seconds: int) -> str:
    """Write UTC seconds as an ISO time, as in 2024-05-31T00:00:00Z."""
    return f"{np.datetime64(seconds, 's')}Z"


# ---- calendars


def read_calendar(kind: str, seconds: Ints, timezone: str | None) -> Ints:
    """Return what a kind of feature takes from times on the clocks of a zone, (n,).

    The hour 0..23, the day of the week (Monday = 0), the month (January = 0), or the week of the
    year 0..52, of which 1 January begins the first.
    """
    return _CALENDARS[kind](to_local(seconds, find_zone(timezone)))


def _hour_of_day(local: Ints) -> Ints:
    return local // 3600 % 24


def _day_of_week(local: Ints) -> Ints:
    # 1970 began on a Thursday.
    return (local // DAY + 3) % 7


def _month_of_year(local: Ints) -> Ints:
    moments = local.astype("datetime64[s]")
    return moments.astype("datetime64[M]").astype(np.int64) % 12


def _week_of_year(local: Ints) -> Ints:
    moments = local.astype("datetime64[s]")
    new_year = moments.astype("datetime64[Y]").astype(moments.dtype)
    return (local - new_year.astype(np.int64)) // (7 * DAY)


_CALENDARS = {
    "hour_of_day": _hour_of_day,
    "day_of_week": _day_of_week,
    "month_of_year": _month_of_year,
    "week_of_year": _week_of_year,
}
SEASONS = (12, 53)  # months and weeks of a year


# ---- rhythms


@dataclass(frozen=True)
class Rhythm:
    """How often a user takes an item.

    Attributes:
        days: UTC seconds of the last event of each day (UTC), ascending.
        n_times: number of different times.
        event: type of the last event.
        gap: the typical seconds between two of the days; 0 where there is one alone.
        irregularity: from 0, for many gaps of one length, to 1, for gaps as if by chance.
    """

    days: Sequence[int]
    n_times: int
    event: str | None
    gap: int
    irregularity: float

    @property
    def every_days(self) -> float:
        """The typical gap in days."""
        return round(self.gap / DAY, 2)


# Item -> UTC seconds, ascending -> type of the event that took it then.
Takings = dict[Id, dict[int, str | None]]


def measure_rhythms(takings: Takings, item_ids: Iterable[Id]) -> dict[Id, Rhythm]:
    """Measure how often a user takes some items.

    Gaps are those between the last events of the days on which an item was taken. The typical gap
    is their median, drawn towards the median of all gaps of the user: less if there are many or if
    they are regular.

    Args:
        takings: of all items of the user.
        item_ids: some of them.
    """
    days = {}
    for item_id, times in takings.items():
        days[item_id] = [*{time // DAY: time for time in times}.values()]

    usual_gap = find_usual_gap(days.values())
    return {
        item_id: _measure(takings[item_id], days[item_id], usual_gap)
        for item_id in item_ids
    }


def find_usual_gap(times_of_items: Iterable[Iterable[int]]) -> float:
    """Return the median of the seconds between two times of an item, 0 if none came again."""
    gaps = []
    for times in times_of_items:
        gaps += _find_gaps(times)
    return median(gaps or [0])


def _find_gaps(times: Iterable[int]) -> list[int]:
    return [later - earlier for earlier, later in pairwise(times)]


def _measure(
    events: dict[int, str | None], days: Sequence[int], usual_gap: float
) -> Rhythm:
    *_, event = events.values()
    gaps = _find_gaps(days)
    if not gaps:
        return Rhythm(days, len(events), event, 0, 1.0)

    mean = sum(gaps) / len(gaps)
    deviation = sum((gap / mean - 1) ** 2 for gap in gaps)
    # As if one more gap deviated by the mean.
    irregularity = min(1.0, math.sqrt((1 + deviation) / len(days)))
    share_of_user = irregularity / (len(gaps) + irregularity)
    own = median(gaps) ** (1 - share_of_user)
    gap = round(own * usual_gap**share_of_user)
    return Rhythm(days, len(events), event, gap, irregularity)


# ---- moments and numbers


def _read_moments(moments: np.ndarray, zone: tzinfo) -> tuple[Ints, Flags]:
    local = moments.astype("datetime64[s]", copy=False).astype(np.int64)
    # NaT is the least number.
    is_valid = (local >= FIRST_SECOND) & (local <= LAST_SECOND)
    return to_utc(np.where(is_valid, local, 0), zone), is_valid


def _read_numbers(ticks: np.ndarray) -> tuple[Ints, Flags]:
    is_valid = np.isfinite(ticks)
    finite = np.where(is_valid, ticks, 0)
    seconds = np.floor_divide(finite, _find_unit(finite[is_valid]))
    return seconds.astype(np.int64), is_valid


def _find_unit(ticks: np.ndarray) -> int:
    """Return the ticks per second of the one unit that all numbers are in."""
    # Odd within a window, 0 below all of them.
    places = np.searchsorted(_WINDOWS, np.abs(ticks.astype(np.float64)), side="right")
    is_clear = places % 2 == 1
    windows, firsts = np.unique(places[is_clear], return_index=True)
    if len(windows) > 1:
        first, second, *_ = ticks[is_clear][firsts]
        raise SchemaError(
            f"times are in mixed units, as '{first}' and '{second}'; give all in one unit "
            "(seconds, milliseconds, microseconds or nanoseconds), or as ISO times"
        )

    is_unclear = ~is_clear & ((places > 0) | (len(windows) == 0))
    if is_unclear.any():
        raise SchemaError(
            f"the unit of time '{ticks[is_unclear][0]}' is ambiguous; "
            "allowed: epoch seconds, milliseconds, microseconds, nanoseconds "
            "of the years 1973 to 2286; "
            "give ISO times, or use 'position' if the number is only an order"
        )

    return _UNITS[windows[0] // 2] if len(windows) else 1


# ---- texts and other cells


def _read_alike(
    values: Sequence[Any] | np.ndarray, zone: tzinfo
) -> tuple[Ints, Flags] | None:
    """Read ISO times of one form at once; None if they are something else."""
    texts = list(values)
    if {type(text) for text in texts} != {str} or len(set(map(len, texts))) > 1:
        return None
    if not all(map(_PLAIN_ISO.fullmatch, texts)):
        return None

    try:
        moments = np.array([text.removesuffix("Z") for text in texts], "datetime64[s]")
    except ValueError:  # a month 13 among them: find it cell by cell
        return None

    return _read_moments(moments, UTC if texts[0].endswith("Z") else zone)


def _read_cells(values: Sequence[Any] | np.ndarray, zone: tzinfo) -> tuple[Ints, Flags]:
    ticks: dict[int, float] = {}
    moments: dict[int, int] = {}
    for row, value in enumerate(values):
        cell = _read_cell(value)
        if isinstance(cell, datetime):
            moment = cell.replace(microsecond=0, tzinfo=cell.tzinfo or zone)
            moments[row] = int(moment.timestamp())
        # False of NaN; an integer may be too large for a float.
        elif cell is not None and abs(cell) < 2**63:
            ticks[row] = cell

    seconds = np.zeros(len(values), np.int64)
    is_valid = np.zeros(len(values), bool)
    if len(ticks) > len(moments):
        numbers = np.array(list(ticks.values()))
        seconds[list(ticks)], is_valid[list(ticks)] = _read_numbers(numbers)
    else:
        seconds[list(moments)] = list(moments.values())
        is_valid[list(moments)] = True

    return seconds, is_valid


def _read_cell(value: Any) -> float | datetime | None:
    if isinstance(value, np.datetime64):
        value = str(value.astype("datetime64[us]"))
    elif isinstance(value, date):
        value = value.isoformat()
    elif isinstance(value, np.number) and not isinstance(value, np.timedelta64):
        value = value.item()

    if isinstance(value, str):
        return _read_text(value.strip())
    return value if type(value) in (int, float) else None


def _read_text(text: str) -> float | datetime | None:
    if iso := _ISO.fullmatch(text):
        day, time, zone = iso.groups("")
        try:
            return datetime.fromisoformat(day + time + zone.replace("UTC", "Z"))
        except ValueError:
            return None

    if not _NUMBER.fullmatch(text):
        return None
    return int(text) if text.lstrip("+-").isdigit() else float(text)


# ---- zones


def find_zone(timezone: str | None) -> tzinfo:
    """Find a time zone by its IANA name; None is UTC.

    Raises:
        SchemaError: there is no zone of this name.
    """
    if timezone is None:
        return UTC
    try:
        return ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        nearest = name_nearest(timezone, available_timezones())
        raise SchemaError(f"time zone '{timezone}' is unknown; {nearest}") from error


def to_local(seconds: Ints, zone: tzinfo) -> Ints:
    """Turn UTC seconds into seconds on the clocks of the zone."""
    if zone is UTC:
        return seconds
    return seconds + _offsets(seconds, lambda utc: utc.astimezone(zone))


def to_utc(local: Ints, zone: tzinfo) -> Ints:
    """Turn seconds on the clocks of the zone into UTC; a repeated hour is its first pass."""
    if zone is UTC:
        return local
    return local - _offsets(local, lambda utc: utc.replace(tzinfo=zone))


def _offsets(seconds: Ints, move: Callable[[datetime], datetime]) -> Ints:
    """Return the UTC offset in seconds at each moment: one look-up per quarter of an hour."""
    quarters, inverse = np.unique(seconds // _QUARTER, return_inverse=True)
    offsets = []
    for quarter in quarters.tolist():
        moment = move(datetime.fromtimestamp(quarter * _QUARTER, UTC))
        offset = moment.utcoffset() or timedelta(0)
        offsets.append(int(offset.total_seconds()))

    return np.array(offsets, np.int64)[inverse]
