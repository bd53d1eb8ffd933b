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


def _pieces(value: Any) -> Iterator[bytes]:
    """Yield the bytes of a value and of what it is made of."""
    value = value.numpy() if isinstance(value, Tensor) else value
    if isinstance(value, np.ndarray):
        yield f"{value.dtype} {value.shape}".encode()
        yield value.tobytes() if value.dtype.kind in "biuf" else repr(value.tolist()).encode()
        return
    yield type(value).__name__.encode()
    if isinstance(value, Mapping):
        value = [part for item in value.items() for part in item]
    elif is_dataclass(value):
        value = [getattr(value, field.name) for field in fields(value)]
    if not isinstance(value, (list, tuple)):
        yield repr(value).encode()
        return
    yield str(len(value)).encode()
    for member in value:
        yield from _pieces(member)
