"""Read times as UTC seconds (int64), naive ones in a time zone, and look at calendars, in training and serving."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

import numpy as np

from serve.arrays import Flags, Ints
from serve.errors import SchemaError, name_nearest

EPOCH = datetime(1970, 1, 1)
SECOND = timedelta(seconds=1)
HOUR = 3600
DAY = 86_400
# Bounds of the times that are read: the years 1 to 9999.
FIRST_SECOND, LAST_SECOND = (
    (datetime(*day) - EPOCH) // SECOND for day in ((1, 1, 2), (9999, 12, 30))
)
TICKS_PER_SECOND = {
    "seconds": 10**0,
    "milliseconds": 10**3,
    "microseconds": 10**6,
    "nanoseconds": 10**9,
}
MIN_CLEAR = 10**8
MAX_CLEAR = 10**10
"""A number shows its unit if it means 1973-03-03 .. 2286-11-20 in one of them: the windows of two units do not meet.
A number nearer to 0 than all windows takes the unit of its column."""

_QUARTER = 900  # seconds; offsets of time zones change at its ends
_WEEKDAY_OF_EPOCH = 3
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", re.ASCII)
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:([T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?)(?: ?(Z|UTC|[+-]\d\d(?::?\d\d)?))?)?",
    re.ASCII,
)  # groups: date, time, zone. Databases write ` UTC` and ` +00`, which `fromisoformat` does not read.
_PLAIN_ISO = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d:\d\dZ?)?", re.ASCII)
_TO_ZEROS = bytes.maketrans(b"123456789", b"000000000")


def to_seconds(
    values: Sequence[Any] | np.ndarray, timezone: str | None
) -> tuple[Ints, Flags]:
    """Read a column of times as UTC seconds (n,), rounded down, 0 where invalid, and is_valid (n,).

    A column holds either ISO dates and times (as texts, `date`, `datetime` or `datetime64`), naive ones in the given
    time zone, or epoch numbers (also as text) of one unit; the minority is invalid.
    """
    zone = find_zone(timezone)
    kind = values.dtype.kind if isinstance(values, np.ndarray) else "O"
    if kind == "M":
        seconds, is_valid = _read_moments(np.asarray(values), zone)
    elif kind in "iuf":
        seconds, is_valid = _read_numbers(np.asarray(values))
    else:
        seconds, is_valid = _read_alike(values, zone) or _read_cells(values, zone)
    is_valid = is_valid & (seconds >= FIRST_SECOND) & (seconds <= LAST_SECOND)
    return np.where(is_valid, seconds, 0), is_valid


def hour_of_day(seconds: Ints, timezone: str | None) -> Ints:
    """Return the hour 0..23 on the clocks of a zone, (n,)."""
    return to_local(seconds, find_zone(timezone)) // HOUR % 24


def day_of_week(seconds: Ints, timezone: str | None) -> Ints:
    """Return the day of the week in a zone, Monday = 0, (n,)."""
    return (to_local(seconds, find_zone(timezone)) // DAY + _WEEKDAY_OF_EPOCH) % 7


def _read_moments(moments: np.ndarray, zone: tzinfo) -> tuple[Ints, Flags]:
    local = moments.astype("datetime64[s]", copy=False).astype(np.int64)
    is_valid = (local >= FIRST_SECOND) & (
        local <= LAST_SECOND
    )  # NaT is the least number
    return to_utc(np.where(is_valid, local, 0), zone), is_valid


def _read_numbers(ticks: np.ndarray) -> tuple[Ints, Flags]:
    is_valid = np.isfinite(ticks)
    finite = np.where(is_valid, ticks, 0)
    return np.floor_divide(finite, _find_unit(finite[is_valid])).astype(
        np.int64
    ), is_valid


def _find_unit(ticks: np.ndarray) -> int:
    """Return the ticks per second of the one unit that all numbers are in."""
    sizes = np.abs(ticks.astype(np.float64))
    clear = {
        unit: (sizes >= MIN_CLEAR * per) & (sizes < MAX_CLEAR * per)
        for unit, per in TICKS_PER_SECOND.items()
    }
    found = {unit: ticks[is_in][0] for unit, is_in in clear.items() if is_in.any()}
    if len(found) > 1:
        seen = ", ".join(f"'{value}' ({unit})" for unit, value in found.items())
        raise SchemaError(
            f"times are in mixed units: {seen}; give all in one unit, or as ISO times"
        )
    is_clear = np.logical_or.reduce(
        [(sizes < MIN_CLEAR) & bool(found), *clear.values()]
    )
    if not is_clear.all():
        raise SchemaError(
            f"the unit of time '{ticks[~is_clear][0]}' is ambiguous; allowed: epoch {', '.join(TICKS_PER_SECOND)} of "
            "the years 1973 to 2286; give ISO times, or use 'position' if the number is only an order"
        )
    return TICKS_PER_SECOND[next(iter(found), "seconds")]


def _read_alike(
    values: Sequence[Any] | np.ndarray, zone: tzinfo
) -> tuple[Ints, Flags] | None:
    """Read integers, or ISO times of one form as programs write them, at once; None where they are something else."""
    kinds = set(map(type, values))
    try:
        if kinds == {int}:
            return _read_numbers(np.array(values, np.int64))
        if (
            kinds != {str}
            or not _PLAIN_ISO.fullmatch(values[0])
            or len(set(map(len, values))) > 1
        ):
            return None
        form = values[0].encode().translate(_TO_ZEROS)
        if "".join(values).encode().translate(_TO_ZEROS) != form * len(values):
            return None
        moments = np.array([text.removesuffix("Z") for text in values], "datetime64[s]")
    except (ValueError, OverflowError):  # a month 13 among them: find it cell by cell
        return None
    return _read_moments(moments, UTC if values[0].endswith("Z") else zone)


def _read_cells(values: Sequence[Any] | np.ndarray, zone: tzinfo) -> tuple[Ints, Flags]:
    cells = dict(enumerate(map(_read_cell, values)))
    numbers = {
        row: cell for row, cell in cells.items() if isinstance(cell, int | float)
    }
    moments = {row: cell for row, cell in cells.items() if isinstance(cell, datetime)}
    seconds = np.zeros(len(values), np.int64)
    is_valid = np.zeros(len(values), bool)
    if len(numbers) > len(moments):
        seconds[list(numbers)], is_valid[list(numbers)] = _read_numbers(
            np.array(list(numbers.values()))
        )
        return seconds, is_valid
    for is_naive in (True, False):
        some = {
            row: cell
            for row, cell in moments.items()
            if (cell.utcoffset() is None) == is_naive
        }
        epoch = EPOCH if is_naive else EPOCH.replace(tzinfo=UTC)
        shown = [(cell - epoch) // SECOND for cell in some.values()]
        seconds[list(some)] = to_utc(
            np.array(shown, np.int64), zone if is_naive else UTC
        )
    is_valid[list(moments)] = True
    return seconds, is_valid


def _read_cell(value: Any) -> float | datetime | None:
    if isinstance(value, date | np.datetime64):
        value = (
            value.isoformat()
            if isinstance(value, date)
            else str(value.astype("datetime64[us]"))
        )
    if isinstance(value, str):
        return _read_text(value.strip())
    if isinstance(value, bool | np.timedelta64) or not isinstance(
        value, int | float | np.integer | np.floating
    ):
        return None  # a time span is an integer to NumPy
    return _within_int64(value.item() if isinstance(value, np.generic) else value)


def _read_text(text: str) -> float | datetime | None:
    if iso := _ISO.fullmatch(text):
        day, time, zone = iso.groups("")
        try:
            return datetime.fromisoformat(day + time + zone.replace("UTC", "Z"))
        except ValueError:
            return None
    if _NUMBER.fullmatch(text):
        return _within_int64(int(text) if text.lstrip("+-").isdigit() else float(text))
    return None


def _within_int64(number: float) -> float | None:
    return (
        number if abs(number) < 2**63 else None
    )  # false of NaN; an integer may be too large for a float


def find_zone(timezone: str | None) -> tzinfo:
    """Find a time zone by its IANA name; None is UTC."""
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
    aware = EPOCH.replace(tzinfo=UTC)
    return seconds + _offsets(
        seconds, lambda moment: (aware + moment * SECOND).astimezone(zone)
    )


def to_utc(local: Ints, zone: tzinfo) -> Ints:
    """Turn seconds on the clocks of the zone into UTC seconds; a repeated hour is read as its first pass."""
    if zone is UTC:
        return local
    return local - _offsets(
        local, lambda moment: (EPOCH + moment * SECOND).replace(tzinfo=zone)
    )


def _offsets(seconds: Ints, clock: Callable[[int], datetime]) -> Ints:
    """Return the UTC offset in seconds at each moment, asked once per distinct quarter of an hour."""
    quarters, place = np.unique(seconds // _QUARTER, return_inverse=True)
    offsets = [
        (clock(quarter * _QUARTER).utcoffset() or 0 * SECOND) // SECOND
        for quarter in quarters.tolist()
    ]
    return np.array(offsets, np.int64)[place]
