"""JSON as strangers send it: read whole or refused, in time and memory that the size of the body bounds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from serve.http.faults import Fault
from serve.http.limits import MOST_NAMES

_MOST_PAIRS = 4 * MOST_NAMES
_LOOKED_AT = (b"\\u0000", b"\\ud", b"\\uD")
"""Escapes that can write what no text may hold: NUL, and halves of surrogate pairs."""


def read_json(body: bytes) -> Any:
    """Read a body.

    Raises:
        Fault: 400; no UTF-8, no JSON, a name twice or too many names in one object, NaN or Infinity, numbers or depths
            without end, NUL or half a surrogate pair in a text.
    """
    try:
        value = _DECODER.decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Fault(400, f"the body is no UTF-8: byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise Fault(400, f"the body is no JSON: {error.msg}, at character {error.pos}") from error
    except RecursionError as error:
        raise Fault(400, "the body is nested too deep") from error
    except ValueError as error:  # the limit of digits
        raise Fault(400, "the body has a number of too many digits") from error
    if any(escape in body for escape in _LOOKED_AT):
        _check_texts(value)
    return value


def _read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > _MOST_PAIRS:  # a fault each, where they are not known
        raise Fault(400, f"the body has an object of too many names; allowed: {_MOST_PAIRS}")
    value = dict(pairs)
    if len(value) != len(pairs):
        raise Fault(400, "the body has an object with the same name twice")
    return value


def _refuse_constant(_: str) -> None:
    raise Fault(400, "the body has NaN or Infinity: these are no JSON; null is a missing value")


def _check_texts(value: Any) -> None:
    for text in _texts(value):
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise Fault(400, "the body has a text with NUL or half a surrogate pair")


def _texts(value: Any) -> Iterator[str]:
    """Return all names and texts, without recursion."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, list):
            pending.extend(one)
        elif isinstance(one, dict):
            pending.extend(one)
            pending.extend(one.values())


_DECODER = json.JSONDecoder(object_pairs_hook=_read_object, parse_constant=_refuse_constant)
