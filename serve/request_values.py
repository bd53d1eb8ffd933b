"""The single values of a request: ids, texts, numbers and times, each checked and named in the message if it is wrong.

Messages show at most 40 characters of a value, since requests come from strangers.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import numpy as np

from serve.clock import FIRST_SECOND, LAST_SECOND, to_seconds
from serve.errors import SchemaError
from serve.schema import IdType

Id = str | int

MOST_SHOWN = 40
"""Characters of a value in a message."""

INTEGER = re.compile(r"0|-?[1-9][0-9]{0,18}")
"""How an id that is a whole number is written: "007" is a text."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = MOST_SHOWN


def parse_id(value: Any, id_type: IdType, where: str) -> Id:
    """Check an id and return it in the type of the bundle: 7 and "7" are the same id.

    Raises:
        SchemaError: the value is no id of that type.
    """
    value = _to_whole(to_plain(value))
    most = 2**63 if id_type == "integer" else 2**64  # unsigned ids above are texts in a bundle
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < most:
        return value if id_type == "integer" else str(value)
    if isinstance(value, str) and id_type == "integer" and INTEGER.fullmatch(value):
        return parse_id(int(value), id_type, where)
    if isinstance(value, str) and id_type == "string" and value.strip() and is_writable(value):
        return value
    kinds = {"integer": "a whole number of 64 bits", "string": "a text that is not empty"}
    raise SchemaError(f"{where} is {show(value)}; expected {kinds[id_type]}, as the ids of the training data")


def show(value: Any) -> str:
    """Describe a value for a message, with its type: escaped, and cut so that nothing long is echoed."""
    if isinstance(value, int) and abs(value) >= 2**63:
        return "an integer of more than 64 bits"
    return f"{_SHORT.repr(value)[: MOST_SHOWN + 2]} ({type(value).__name__})"


def check_list(raw: Any, where: str) -> Sequence[Any]:
    if isinstance(raw, np.ndarray):
        raw = raw.tolist()
    if not isinstance(raw, (list, tuple)):
        raise SchemaError(f"{where} is {show(raw)}; expected a list")
    return raw


def parse_distinct_ids(raw: Any, id_type: IdType, where: str) -> tuple[Id, ...]:
    values = enumerate(check_list(raw, where))
    return tuple(dict.fromkeys(parse_id(value, id_type, f"{where}[{index}]") for index, value in values))


def parse_number(value: Any, where: str) -> float:
    """Return a finite float; a bool or a text is no number."""
    value = to_plain(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        raise SchemaError(f"{where} is {show(value)}; expected a number")
    if (isinstance(value, int) and abs(value) >= 2**1023) or not math.isfinite(value):
        raise SchemaError(f"{where} is {show(value)}; expected a finite number, or null if missing")
    return float(value)


def parse_label(value: Any, where: str) -> Any:
    """Return a text, number or bool as it is: `to_text` makes them equal to the vocabulary's."""
    value = to_plain(value)
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, (float, Decimal)) and math.isfinite(value):
        return value
    raise SchemaError(f"{where} is {show(value)}; expected a text or finite number, or null")


def parse_ids(values: list[Any], id_type: IdType, name_of: Callable[[int], str]) -> list[Id]:
    """Check ids as `parse_id` does.

    Args:
        values: of one column.
        id_type: of the bundle.
        name_of: says where the value at an index stands.

    Raises:
        SchemaError: a value is no id of that type.
    """
    if _are_plain_ids(values, id_type):
        return values
    return [parse_id(value, id_type, name_of(index)) for index, value in enumerate(values)]


def _are_plain_ids(values: list[Any], id_type: IdType) -> bool:
    """Tell at one look that `parse_id` would return every value as it is; False where it takes a second look."""
    kinds = set(map(type, values))
    if id_type == "integer":
        return kinds == {int} and min(values) >= -(2**63) and max(values) < 2**63
    return kinds == {str} and all(map(str.strip, values)) and "".join(values).isascii()


def parse_weight(value: Any, where: str) -> float | None:
    weight = None if value is None else parse_number(value, where)
    if weight is not None and weight < 0:
        raise SchemaError(f"{where} is {weight}; expected 0 or more")
    return weight


def parse_times(values: list[Any], timezone: str | None, name_of: Callable[[int], str]) -> list[int]:
    """Return UTC seconds; all values are read in one unit."""
    kinds = set(map(type, values))
    if Decimal in kinds:
        values = list(map(_to_whole, values))
    if not kinds <= {str, date, datetime}:
        for index, value in enumerate(values):
            if not _is_time(value):
                message = f"{name_of(index)} is {show(value)}; expected an ISO date or time, or seconds since 1970"
                raise SchemaError(message)
    try:
        seconds, is_valid = to_seconds(np.array(values, dtype=np.int64) if kinds == {int} else values, timezone)
    except SchemaError as error:
        raise SchemaError(f"{name_of(0)}: {error}") from error
    if not is_valid.all():
        index = int(np.argmin(is_valid))
        raise SchemaError(f"{name_of(index)} is {show(values[index])}; it cannot be read as a date or time")
    times: list[int] = seconds.tolist()
    return times


def check_id(value: Id, where: str) -> None:
    """Refuse what is no id of any bundle, of texts or of integers.

    Raises:
        SchemaError: naming `where`.
    """
    parse_id(value, "string" if isinstance(value, str) else "integer", where)


def check_seconds(value: Any, where: str) -> None:
    """Refuse what is no whole UTC seconds of the years 1 to 9999: milliseconds of today are not among these.

    Raises:
        SchemaError: naming `where`.
    """
    seconds = to_plain(value)
    if type(seconds) is not int or not FIRST_SECOND <= seconds <= LAST_SECOND:
        raise SchemaError(f"{where} is {show(value)}; expected whole UTC seconds since 1970, of the years 1 to 9999")


def _is_time(value: Any) -> bool:
    if isinstance(value, (bool, np.bool_)):
        return False
    if isinstance(value, (int, float, np.integer, np.floating)):
        return math.isfinite(value) if isinstance(value, (float, np.floating)) else abs(int(value)) < 2**63
    return isinstance(value, (str, date, np.datetime64)) or (isinstance(value, Decimal) and value.is_finite())


def to_plain(value: Any) -> Any:
    """Return the Python value of a numpy scalar; a decimal NaN that signals becomes one that does not."""
    if isinstance(value, Decimal) and value.is_snan():  # whatever looks at it would raise
        return Decimal("NaN")
    return value.item() if isinstance(value, np.generic) else value


def _to_whole(value: Any) -> Any:
    """Return a decimal without a fraction, as databases write keys and times, as the integer that training reads."""
    if not isinstance(value, Decimal) or not value.is_finite() or abs(value) >= 2**64:
        return value
    return int(value) if value == value.to_integral_value() else value


def is_writable(text: str) -> bool:
    """Tell a text from one with half a surrogate pair, which no file or answer can hold."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)
