"""Arrays in the format of `np.save`, viewed in the verified bytes of a file; nothing is copied, nothing unpickled."""

from __future__ import annotations

import io
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LONGEST_HEADER = 1024


def open_array(content: NDArray[np.uint8], dtype: np.dtype[Any], n_axes: int) -> NDArray[Any]:
    """View an array in C order.

    Raises:
        ValueError: no such array, or another type, number of axes or length than its header says.
    """
    head = io.BytesIO(content[:_LONGEST_HEADER].tobytes())
    try:
        version = np.lib.format.read_magic(head)
        if version != (1, 0):
            raise ValueError(f"its version is {version}")
        shape, is_fortran, found = np.lib.format.read_array_header_1_0(head)
    except (ValueError, TypeError, IndexError, SyntaxError, TokenError, RecursionError) as error:
        raise ValueError(f"it begins with no header of an array: {error}") from error
    if is_fortran or found != dtype or len(shape) != n_axes:
        raise ValueError(f"it holds {found} {shape}, fortran_order {is_fortran}; expected {dtype} in C order")
    body = content[head.tell() :]
    if len(body) != int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise ValueError(f"it holds {len(body)} bytes; its header says {shape} of {dtype.itemsize} each")
    return body.view(dtype).reshape(shape)
