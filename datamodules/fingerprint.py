"""Fingerprints of data: the same tables, schemas and batches give the same hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pandas as pd

from serve.arrays import holds_numbers


def fingerprint(*parts: Any) -> str:
    """Hash arrays, tensors, tables, and dataclasses, mappings and sequences of them.

    Returns:
        a SHA-256 in hexadecimal.
    """
    digest = hashlib.sha256()
    for piece in _pieces(parts):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(value: Any) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a value and of its members; a line says what follows."""
    # A tensor, whose library is not imported for tables alone.
    if hasattr(value, "numpy"):
        value = value.numpy()
    if is_dataclass(value):
        value = [getattr(value, field.name) for field in fields(value)]
    elif isinstance(value, pd.DataFrame):
        value = [(str(name), cells.to_numpy()) for name, cells in value.items()]
    elif isinstance(value, Mapping):
        value = list(value.items())

    if isinstance(value, (list, tuple)):
        yield f"{type(value).__name__} {len(value)}\n".encode()
        for member in value:
            yield from _pieces(member)
    elif holds_numbers(value):
        yield f"{value.dtype} {value.shape}\n".encode()
        yield np.ascontiguousarray(value).reshape(-1).data
    else:
        plain = value.tolist() if isinstance(value, np.ndarray) else value
        yield f"{plain!r}\n".encode()
