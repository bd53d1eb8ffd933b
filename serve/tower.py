"""A tower as ONNX Runtime runs it: named arrays in, named arrays out, checked at the edge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from serve.session import ORT_ERRORS, start_session

SPACE_ID = "space_id"
"""Key in a tower's metadata."""

Arrays = dict[str, np.ndarray]

_DTYPES = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(bool)": np.dtype(np.bool_),
}


class Tower:
    """One ONNX graph in a session of its own."""

    def __init__(self, name: str, content: bytes, n_threads: int) -> None:
        """Start a session.

        Args:
            name: file name, for messages.
            content: the verified bytes of the file.
            n_threads: threads of one run.

        Raises:
            BundleError: no graph that this ONNX Runtime can run.
        """
        self.name = name
        self._session = start_session(name, content, n_threads)
        self.inputs: dict[str, Any] = {entry.name: entry for entry in self._session.get_inputs()}
        """Name -> type and shape."""
        self._outputs = self._session.get_outputs()
        self._output_names = [output.name for output in self._outputs]
        self._dtypes = {name: _DTYPES.get(entry.type) for name, entry in self.inputs.items()}

    @property
    def space_id(self) -> str | None:
        """The space the tower was exported for, None if it does not say."""
        space_id: str | None = self._session.get_modelmeta().custom_metadata_map.get(SPACE_ID)
        return space_id

    @property
    def width(self) -> int | None:
        """Columns of the first output, None if the graph leaves them open."""
        last = self._outputs[0].shape[-1]
        return last if isinstance(last, int) else None

    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """Run the graph.

        Args:
            inputs: an array for each input of the graph, of its dtype. Codes and rows must not be negative: a
                Gather takes -1 as the last row.

        Returns:
            Output name -> array, all finite.

        Raises:
            ValueError: a missing or unknown name, another dtype or shape, or an output that is not finite.
        """
        self._check(inputs)
        try:
            values = self._session.run(self._output_names, dict(inputs))
        except ORT_ERRORS as error:
            raise ValueError(f"{self.name} refuses its inputs: {error}") from error
        outputs = dict(zip(self._output_names, values, strict=True))
        for name, value in outputs.items():
            if not np.isfinite(value).all():
                raise ValueError(f"{self.name}: output '{name}' is not finite; check the inputs' numbers")
        return outputs

    def _check(self, inputs: Mapping[str, np.ndarray]) -> None:
        if inputs.keys() != self._dtypes.keys():
            names = sorted(inputs.keys() ^ self._dtypes.keys())
            takes = ", ".join(self.inputs)
            raise ValueError(f"{self.name}: inputs differ in {', '.join(names)}; it takes {takes}")
        for name, dtype in self._dtypes.items():
            if inputs[name].dtype != dtype:
                raise ValueError(f"{self.name}: input '{name}' is {inputs[name].dtype}; expected {dtype}")
