"""Times as they come in, and the calendar: one normaliser for training and serving.

Inside, a time is an int64 of UTC seconds. Naive times are read in the given time zone, by default as UTC.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, tzinfo
from decimal import Decimal
from typing import Any

import numpy as np

from serve.errors import SchemaError
from serve.zones import EPOCH, HOUR, SECOND, find_zone, to_local, to_utc

TICKS_PER_SECOND = {"seconds": 10**0, "milliseconds": 10**3, "microseconds": 10**6, "nanoseconds": 10**9}
FIRST_TOLD, LAST_TOLD = 10**8, 10**10
"""A number tells its unit if it means 1973-03-03 .. 2286-11-20 in one of them: the windows of two units do
not meet. A number nearer to 0 than all windows takes the unit of its column."""

FIRST_SECOND = (datetime(1, 1, 2) - EPOCH) // SECOND
LAST_SECOND = (datetime(9999, 12, 30) - EPOCH) // SECOND
"""Of the times that are read: those of the years 1 to 9999."""
_DAY = 24 * HOUR
_WEEKDAY_OF_EPOCH = 3
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", re.ASCII)
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:([T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?)(?: ?(Z|UTC|[+-]\d\d(?::?\d\d)?))?)?", re.ASCII
)
"""Groups: date, time, zone. Databases write ` UTC` and ` +00`, which `fromisoformat` does not read."""
_TO_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_MOST_DIGITS = 18
"""Of a text that is an integer of 64 bits in any case."""
_PLAIN_ISO = re.compile(
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?: ?(Z|UTC|[+-]\d\d(?::?\d\d)?))?)?", re.ASCII
)
"""Group: zone. Clocks of programs write `.123Z` and `.123456+00:00`."""
_OF_UTC = ("", "Z", "UTC")
"""Zones that hold no digits; the empty one is that of the column."""
_TO_THE_SECOND = len("2017-12-01 10:00:00")


def to_seconds(values: Sequence[Any] | np.ndarray, timezone: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Read a column of times as UTC seconds, rounded down.

    ISO dates and times with or without offset (or ` UTC`), `date`, `datetime`, `datetime64` and epoch numbers (also as
    text) in seconds, milliseconds, microseconds or nanoseconds. A column holds either numbers or dates: the
    minority is invalid. The unit of numbers is one for the column.

    Args:
        values: n cells.
        timezone: IANA name of the zone of naive times; None reads them as UTC.

    Returns:
        int64 seconds (n,), 0 where invalid, and bool is_valid (n,): False for a missing or unreadable cell
        and outside the years 1 to 9999.

    Raises:
        SchemaError: the unit of the numbers is ambiguous or mixed, or the time zone is unknown.
    """
    zone = find_zone(timezone)
    kind = values.dtype.kind if isinstance(values, np.ndarray) else None
    if kind == "M":
        seconds, is_valid = _read_moments(np.asarray(values), zone)
    elif kind in ("i", "u", "f"):
        seconds, is_valid = _read_numbers(np.asarray(values))
    elif set(map(type, values)) == {str}:
        seconds, is_valid = _read_texts(values, zone)
    else:
        seconds, is_valid = _read_cells(values, zone)
    if _are_within_years(seconds) and is_valid.all():
        return seconds, is_valid
    is_valid = is_valid & (seconds >= FIRST_SECOND) & (seconds <= LAST_SECOND)
    return np.where(is_valid, seconds, 0), is_valid


def _are_within_years(seconds: np.ndarray) -> bool:
    return len(seconds) > 0 and bool(seconds.min() >= FIRST_SECOND and seconds.max() <= LAST_SECOND)


def hour_of_day(seconds: np.ndarray, timezone: str | None) -> np.ndarray:
    """Return the hour 0..23 on the clocks of a zone, int64 (n,)."""
    return to_local(seconds, find_zone(timezone)) // HOUR % 24


def day_of_week(seconds: np.ndarray, timezone: str | None) -> np.ndarray:
    """Return the day of the week in a zone, Monday = 0, int64 (n,)."""
    return (to_local(seconds, find_zone(timezone)) // _DAY + _WEEKDAY_OF_EPOCH) % 7


def _read_moments(moments: np.ndarray, zone: tzinfo) -> tuple[np.ndarray, np.ndarray]:
    local = moments.astype("datetime64[s]", copy=False).astype(np.int64)
    if zone is UTC or _are_within_years(local):  # in UTC there is nothing to convert that could overflow
        return to_utc(local, zone), np.ones(len(local), dtype=bool)
    is_valid = (local >= FIRST_SECOND) & (local <= LAST_SECOND)  # NaT is the least number
    return to_utc(np.where(is_valid, local, 0), zone), is_valid


def _read_numbers(ticks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    is_valid = np.isfinite(ticks)
    finite = np.where(is_valid, ticks, 0)
    return np.floor_divide(finite, _tell_ticks_per_second(finite[is_valid])).astype(np.int64), is_valid


def _tell_ticks_per_second(ticks: np.ndarray) -> int:
    """Tell the one unit that all numbers are in."""
    if not len(ticks):
        return 1
    sizes = np.abs(ticks.astype(np.float64))
    told = {
        unit: (sizes >= FIRST_TOLD * factor) & (sizes < LAST_TOLD * factor) for unit, factor in TICKS_PER_SECOND.items()
    }
    found = {unit: ticks[is_in][0] for unit, is_in in told.items() if is_in.any()}
    if len(found) > 1:
        seen = ", ".join(f"'{value}' ({unit})" for unit, value in found.items())
        raise SchemaError(f"times are in mixed units: {seen}; give all in one unit, or as ISO times")
    is_small = (sizes < FIRST_TOLD) & bool(found)
    is_told = np.logical_or.reduce([is_small, *told.values()])
    if not is_told.all():
        raise SchemaError(
            f"the unit of time '{ticks[~is_told][0]}' is ambiguous; allowed: epoch seconds, milliseconds, "
            "microseconds or nanoseconds of the years 1973 to 2286; give ISO times, or use 'position' if the "
            "number is only an order"
        )
    unit = next(iter(found))
    if unit == "milliseconds" and _are_calendar_digits(sizes):
        raise SchemaError(f"times such as '{ticks[0]}' are written as YYYYMMDDHHMM; give ISO times, or epoch times")
    return TICKS_PER_SECOND[unit]


def _are_calendar_digits(numbers: np.ndarray) -> bool:
    """Tell whether all are 202401311230 in form, which as milliseconds would be of 1976."""
    century = numbers // 100**5
    month, day, hour, minute = (numbers // 100**pairs % 100 for pairs in (3, 2, 1, 0))
    parts = ((century, 19, 20), (month, 1, 12), (day, 1, 31), (hour, 0, 23), (minute, 0, 59))
    return all(((part >= least) & (part <= most)).all() for part, least, most in parts)


def _read_texts(texts: Sequence[str] | np.ndarray, zone: tzinfo) -> tuple[np.ndarray, np.ndarray]:
    """Read texts at once where all are digits, or ISO times of one form: the quick cases, and the usual ones of CSV."""
    joined, lengths = "".join(texts), set(map(len, texts))
    if joined.isascii() and joined.isdigit() and min(lengths) > 0 and max(lengths) <= _MOST_DIGITS:
        return _read_numbers(np.array(texts, object).astype(np.int64))
    if len(lengths) == 1 and (written := _tell_zone(texts, joined)) is not None:
        return _read_plain_iso(texts, written, zone)
    return _read_cells(texts, zone)


def _tell_zone(texts: Sequence[str] | np.ndarray, joined: str) -> str | None:
    """Return the zone, if any, that is written in each of texts of one length, `T10:00:00.123Z` or so after a date.

    None: the first is none of `_PLAIN_ISO`, or the others are not alike but for the digits before the zone.
    """
    iso = _PLAIN_ISO.fullmatch(texts[0])
    if iso is None or not joined.isascii():
        return None
    form, zone = texts[0].encode().translate(_TO_ZEROS), iso[1] or ""
    if joined.encode().translate(_TO_ZEROS) != form * len(texts):
        return None
    return zone if zone in _OF_UTC or all(text.endswith(zone) for text in texts) else None


def _read_plain_iso(texts: Sequence[str] | np.ndarray, written: str, zone: tzinfo) -> tuple[np.ndarray, np.ndarray]:
    is_longer = len(texts[0]) > _TO_THE_SECOND
    try:
        moments = np.array([text[:_TO_THE_SECOND] for text in texts] if is_longer else texts, "datetime64[s]")
    except ValueError:  # a month 13 among them: find it cell by cell
        return _read_cells(texts, zone)
    if written in _OF_UTC:
        return _read_moments(moments, UTC if written else zone)
    first = _read_text(texts[0])
    if not isinstance(first, datetime) or (offset := first.utcoffset()) is None:  # an offset of 99 hours
        return _read_cells(texts, zone)
    seconds, is_valid = _read_moments(moments, UTC)
    return seconds - offset // SECOND, is_valid


def _read_cells(values: Sequence[Any] | np.ndarray, zone: tzinfo) -> tuple[np.ndarray, np.ndarray]:
    numbers, moments = {}, {}
    for row, value in enumerate(values):
        cell = _read_cell(value)
        if isinstance(cell, datetime):
            moments[row] = cell
        elif cell is not None:
            numbers[row] = cell
    seconds, is_valid = np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    rows = list(numbers if len(numbers) > len(moments) else moments)
    if len(numbers) > len(moments):
        seconds[rows], is_valid[rows] = _read_numbers(np.array(list(numbers.values())))
    elif moments:
        seconds[rows], is_valid[rows] = _read_datetimes(list(moments.values()), zone), True
    return seconds, is_valid


def _read_cell(value: Any) -> float | datetime | None:
    if isinstance(value, str):
        return _read_text(value.strip())
    if isinstance(value, datetime):
        return value if value == value else None  # pandas' NaT is a datetime that differs from itself
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)
    if isinstance(value, np.datetime64):
        moment = value.astype("datetime64[us]").item()
        return moment if isinstance(moment, datetime) else None
    if isinstance(value, Decimal):  # as databases write seconds with their fractions
        return _within_int64(float(value)) if value.is_finite() else None
    if isinstance(value, bool | np.timedelta64) or not isinstance(value, int | float | np.integer | np.floating):
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
    return number if abs(number) < 2**63 else None  # false of NaN; an integer may be too large for a float


def _read_datetimes(moments: list[datetime], zone: tzinfo) -> np.ndarray:
    """Read naive ones as times of the zone, the others by their own offset."""
    offsets = [moment.utcoffset() for moment in moments]
    local = np.array([(moment.replace(tzinfo=None) - EPOCH) // SECOND for moment in moments], np.int64)
    own = np.array([0 if offset is None else offset // SECOND for offset in offsets], np.int64)
    is_naive = np.array([offset is None for offset in offsets])
    local[is_naive] = to_utc(local[is_naive], zone)
    return local - own
