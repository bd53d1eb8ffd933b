"""Serve a bundle: numpy, onnxruntime, faiss and pyarrow, nothing of training.

The names below are imported when they are first asked for, so that `python -m serve --help` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve.errors import BundleError as BundleError
    from serve.errors import SchemaError as SchemaError
    from serve.recommendations import Recommendations as Recommendations
    from serve.recommender import Recommender as Recommender
    from serve.requests import Request as Request
    from serve.requests import ask_now as ask_now

_HOME = __name__.removesuffix("serve")  # `bascule.` in the wheel
_MODULES = {
    "serve.errors": ("BundleError", "SchemaError"),
    "service.live_items": ("LiveItems",),
    "serve.recommendations": ("Recommendations",),
    "serve.recommender": ("Recommender",),
    "serve.requests": ("Request", "ask_now"),
    "service.known_users": ("complete",),
    "service.state": ("StateStore",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{_HOME}{module}"), name)
    raise AttributeError(f"module 'serve' has no attribute '{name}'")
