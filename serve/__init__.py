"""Serve a bundle: numpy, onnxruntime, faiss and pyarrow, nothing of training.

The names below are imported when they are first asked for, so that `python -m serve --help` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve.errors import BundleError as BundleError
    from serve.errors import SchemaError as SchemaError
    from serve.live_items import LiveItems as LiveItems
    from serve.recommendations import Recommendations as Recommendations
    from serve.recommender import Recommender as Recommender
    from serve.requests import Request as Request
    from serve.requests import ask_now as ask_now
    from serve.state import StateStore as StateStore
    from serve.state import complete as complete

_MODULES = {
    "errors": ("BundleError", "SchemaError"),
    "live_items": ("LiveItems",),
    "recommendations": ("Recommendations",),
    "recommender": ("Recommender",),
    "requests": ("Request", "ask_now"),
    "state": ("StateStore", "complete"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module 'serve' has no attribute '{name}'")
