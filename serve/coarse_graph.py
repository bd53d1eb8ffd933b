"""The graph of one product with rounded vectors, as bytes of ONNX: serving has no package that writes graphs.

Fields and numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto; a message is its fields, each a
key, then a varint or a length and bytes (https://protobuf.dev/programming-guides/encoding).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

USERS, PRODUCTS = "users", "products"
"""Name of what the graph reads, float32 (T, D), and of what it returns, float32 (T, N)."""
_CODES, _SCALES = "codes", "scales"
_CONTRIBUTED = "com.microsoft"
_INTEGER_PRODUCT = 4  # accuracy_level: what is read may be rounded to 8 bits too, so that the product is of integers
_FLOAT, _UINT8, _INT_ATTRIBUTE = 1, 2, 2
_IR_VERSION, _OPSET = 10, 21
_Field = tuple[int, int | str | bytes]


def product_graph(codes: NDArray[np.uint8], scales: NDArray[np.float32], width: int) -> bytes:
    """Write the graph of `users` times N rounded vectors: MatMulNBits of ONNX Runtime with 8 bits.

    Args:
        codes: (N, blocks, entries of a block), 128 is zero.
        scales: (N, blocks).
        width: D, at most the entries of all blocks; what is beyond it is filling.
    """
    n_items, _, size = codes.shape
    attributes = {"K": width, "N": n_items, "bits": 8, "block_size": size, "accuracy_level": _INTEGER_PRODUCT}
    node: list[_Field] = [(1, USERS), (1, _CODES), (1, _SCALES), (2, PRODUCTS), (4, "MatMulNBits"), (7, _CONTRIBUTED)]
    node += [(5, _message([(1, name), (3, value), (20, _INT_ATTRIBUTE)])) for name, value in attributes.items()]
    graph: list[_Field] = [
        (1, _message(node)),
        (2, "product"),
        (5, _tensor(_CODES, _UINT8, codes)),
        (5, _tensor(_SCALES, _FLOAT, scales)),
        (11, _value(USERS, width)),
        (12, _value(PRODUCTS, n_items)),
    ]
    versions = {"": _OPSET, _CONTRIBUTED: 1}
    opsets: list[_Field] = [(8, _message([(1, domain), (2, version)])) for domain, version in versions.items()]
    return _message([(1, _IR_VERSION), (7, _message(graph)), *opsets])


def _tensor(name: str, dtype: int, values: NDArray[np.generic]) -> bytes:
    dims: list[_Field] = [(1, size) for size in values.shape]
    return _message([*dims, (2, dtype), (8, name), (9, values.astype(values.dtype.newbyteorder("<")).tobytes())])


def _value(name: str, width: int) -> bytes:
    shape = _message([(1, _message([(2, "requests")])), (1, _message([(1, width)]))])
    return _message([(1, name), (2, _message([(1, _message([(1, _FLOAT), (2, shape)]))]))])


def _message(fields: Sequence[_Field]) -> bytes:
    parts: list[bytes] = []
    for number, value in fields:
        if isinstance(value, int):
            parts += [_varint(number << 3), _varint(value)]
            continue
        content = value.encode() if isinstance(value, str) else value
        parts += [_varint(number << 3 | 2), _varint(len(content)), content]
    return b"".join(parts)


def _varint(value: int) -> bytes:
    """Write a number that is not negative: 7 bits a byte, the low ones first."""
    content = bytearray()
    while value > 0x7F:
        content.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*content, value])
