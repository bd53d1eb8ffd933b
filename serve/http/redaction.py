"""What may be said to a stranger of an error: the message without anything that the stranger sent."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|`[^`]*`")
_VALUE = re.compile(r" is .*; expected ", re.DOTALL)
_SHOWN = re.compile(r"\S+ \((?:int|float|bool|NoneType)\)")
"""What `show` makes of a value without quotes, however short it is."""
_SHORTEST = 3
"""Characters of a text that is told from the words of a message."""


def without_values(message: str, names: Collection[str], sent: Any) -> str:
    """Take out of a message what is not ours.

    What is quoted or said to be a value is cut out; then whatever is left of all that was sent, so that nothing of it
    passes, however the message was written.

    Args:
        message: of an error.
        names: that are ours: fields, features and columns.
        sent: all that was, as values of JSON.
    """
    said = _SHOWN.sub("…", _VALUE.sub(": expected ", message))
    said = _QUOTED.sub(lambda found: found[0] if found[0][1:-1] in names else "…", said)
    left = {text for text in _texts(sent) if len(text) >= _SHORTEST and text in said and text not in names}
    for text in sorted(left, key=len, reverse=True):
        said = re.sub(rf"(?<!\w){re.escape(text)}(?!\w)", "…", said)
    return said


def _texts(value: Any) -> Iterator[str]:
    """Return all names, texts and numbers of a value of JSON, without recursion."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            pending.extend((*one, *one.values()))
        elif isinstance(one, list):
            pending.extend(one)
        elif one is not None and not isinstance(one, bool):
            yield str(one)
