"""The value of a feature as a caller gives it: checked, and written as the text that is read as the value was."""

from __future__ import annotations

from typing import Any

import numpy as np

from serve.encoding import join_text, split_cell, to_text
from serve.errors import SchemaError
from serve.request_values import parse_label, parse_number, show, to_plain
from serve.schema import Feature
from serve.vectors import Vector, read_vector


def parse_value(value: Any, feature: Feature, where: str) -> Any:
    """Check the value of a feature; None is missing.

    Raises:
        SchemaError: the value is of another kind, not finite, or a vector of another width; the message names `where`.
    """
    value = to_plain(value)
    if value is None:
        return None
    if feature.kind == "numeric":
        return parse_number(value, where)
    if feature.kind == "vector":
        return _parse_vector(value, feature, where)
    if feature.kind in ("multi_categorical", "text") and isinstance(value, (list, tuple, np.ndarray)):
        return [parse_label(part, f"{where}[{index}]") for index, part in enumerate(value)]
    return parse_label(value, where)


def write_cell(feature: Feature | None, cell: Any) -> str | None:
    """Write the cell of a column that a feature reads, or none does, as a text that is read as the cell was."""
    if feature is not None and feature.kind == "multi_categorical":
        return to_text(feature.separator.join(split_cell(cell, feature.separator)))
    return join_text(cell)


def _parse_vector(value: Any, feature: Feature, where: str) -> Vector | None:
    """Read a list of numbers, or the text that a CSV cell holds; None if it is empty, which is missing."""
    try:
        entries = read_vector(value)
    except ValueError as error:
        raise SchemaError(f"{where} is {show(value)}: {error}; expected {feature.width} finite numbers") from error
    if entries is None:
        return None
    if len(entries) != feature.width:
        raise SchemaError(f"{where} has {len(entries)} numbers; expected {feature.width}, as in the training data")
    return Vector.pack(entries)
