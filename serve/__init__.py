"""Serve a bundle: numpy, onnxruntime, faiss and pyarrow, nothing of training.

The names below are imported when they are first asked for, so that `python -m serve --help` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve.errors import BundleError, SchemaError
    from serve.live_items import LiveItems
    from serve.recommendations import Recommendations
    from serve.recommender import Recommender
    from serve.requests import Request
    from serve.state import StateStore, complete

__all__ = [
    "BundleError",
    "LiveItems",
    "Recommendations",
    "Recommender",
    "Request",
    "SchemaError",
    "StateStore",
    "complete",
]

_MODULES = {
    "BundleError": "serve.errors",
    "LiveItems": "serve.live_items",
    "Recommendations": "serve.recommendations",
    "Recommender": "serve.recommender",
    "Request": "serve.requests",
    "SchemaError": "serve.errors",
    "StateStore": "serve.state",
    "complete": "serve.state",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'serve' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)
