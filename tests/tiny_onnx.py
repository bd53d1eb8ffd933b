"""Write ONNX files field by field: the serve tests also run where the `onnx` package is not installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

FLOAT, INT64 = 1, 7


def onnx_model(
    nodes: Sequence[bytes],
    inputs: Sequence[bytes],
    outputs: Sequence[bytes],
    weights: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
) -> bytes:
    graph = b"".join(
        [
            *(_field(1, node) for node in nodes),
            _field(2, b"tiny"),
            *(_field(5, _tensor(name, array)) for name, array in weights.items()),
            *(_field(11, value) for value in inputs),
            *(_field(12, value) for value in outputs),
        ]
    )
    properties = [
        _field(1, key.encode()) + _field(2, value.encode()) for key, value in metadata.items()
    ]
    opset = _field(1, b"") + _number(2, 20)
    return b"".join(
        [
            _number(1, 10),
            _field(7, graph),
            _field(8, opset),
            *(_field(14, entry) for entry in properties),
        ]
    )


def merge_graph(
    model: bytes,
    nodes: Sequence[bytes],
    outputs: Sequence[bytes],
    constants: Mapping[str, np.ndarray],
    element: int,
) -> bytes:
    """Return a model with more nodes, outputs and constants: what follows a message adds to it."""
    graph = b"".join(
        [
            *(_field(1, each) for each in nodes),
            *(_field(5, _tensor(name, array, element)) for name, array in constants.items()),
            *(_field(12, each) for each in outputs),
        ]
    )
    return model + _field(7, graph)


def node(kind: str, inputs: Sequence[str], output: str) -> bytes:
    return (
        b"".join(_field(1, name.encode()) for name in inputs)
        + _field(2, output.encode())
        + _field(4, kind.encode())
    )


def value(name: str, element: int, shape: Sequence[int | str]) -> bytes:
    dims = [
        _number(1, size) if isinstance(size, int) else _field(2, size.encode()) for size in shape
    ]
    tensor = _number(1, element) + _field(2, b"".join(_field(1, dim) for dim in dims))
    return _field(1, name.encode()) + _field(2, _field(1, tensor))


def _tensor(name: str, array: np.ndarray, element: int = FLOAT) -> bytes:
    dims = b"".join(_number(1, size) for size in array.shape)
    return (
        dims
        + _number(2, element)
        + _field(8, name.encode())
        + _field(9, array.astype("<f4" if element == FLOAT else "<i8").tobytes())
    )


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, content: int) -> bytes:
    return _varint(number << 3) + _varint(content)


def _varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])
