"""Sessions of ONNX Runtime as serving runs them."""

from __future__ import annotations

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from serve.errors import BundleError

ORT_ERRORS = tuple(kind for kind in vars(ort_errors).values() if isinstance(kind, type) and issubclass(kind, Exception))
"""ONNX Runtime's own errors; they share no base but Exception."""


def start_session(name: str, content: bytes, n_threads: int) -> onnxruntime.InferenceSession:
    """Start a session that runs a graph on the processor.

    Args:
        name: of the graph, for messages.
        content: its bytes.
        n_threads: threads of one run.

    Raises:
        BundleError: no graph that this ONNX Runtime can run.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # fatal ones only: errors reach the caller as exceptions
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        raise BundleError(f"{name} is no ONNX graph that runs here: {error}") from error
