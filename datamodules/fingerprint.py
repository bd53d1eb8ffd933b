"""Tell whether data is the same as it was: a hash of everything that training reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor


def fingerprint(*parts: Any) -> str:
    """Hash arrays, tensors and what is made of them (dataclasses, mappings, sequences), type and shape included."""
    digest = hashlib.sha256()
    for part in parts:
        for piece in _pieces(part):
            digest.update(len(piece).to_bytes(8, "little"))
            digest.update(piece)
    return digest.hexdigest()


def fingerprint_rows(*frames: pd.DataFrame) -> str:
    """Hash the names and the values of all columns."""
    return fingerprint(*((str(name), frame[name].to_numpy()) for frame in frames for name in frame))


def _pieces(value: Any) -> Iterator[bytes | memoryview]:
    if isinstance(value, Tensor):
        yield from _array_pieces(value.numpy())
    elif isinstance(value, np.ndarray):
        yield from _array_pieces(value)
    else:
        yield type(value).__name__.encode()
        members = _members(value)
        if members is None:
            yield repr(value).encode()
        else:
            yield str(len(members)).encode()
            for member in members:
                yield from _pieces(member)


def _members(value: Any) -> list[Any] | None:
    """List what a value is made of, None for one that is not made of others."""
    if isinstance(value, Mapping):
        return [part for item in value.items() for part in item]
    if isinstance(value, (list, tuple)):
        return list(value)
    return [getattr(value, field.name) for field in fields(value)] if is_dataclass(value) else None


def _array_pieces(array: np.ndarray) -> Iterator[bytes | memoryview]:
    yield f"{array.dtype} {array.shape}".encode()
    if not array.size:  # of (n, 0) a list would be n empty lists
        yield b""
    elif array.dtype.kind in "biuf":
        yield np.ascontiguousarray(array).data.cast("B")
    else:
        yield repr(array.tolist()).encode()
