"""Answer from a bundle: numpy, onnxruntime, faiss and pyarrow, nothing of training.

A name below is imported when it is first used, so that `import serve` is quick. Those of `service`
stand here for code that was written before `service` was a package of its own.
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
_MODULE_OF_NAME = {
    "BundleError": "serve.errors",
    "LiveItems": "service.live_items",
    "Profiles": "serve.profiles",
    "Recommendations": "serve.recommendations",
    "Recommender": "serve.recommender",
    "Request": "serve.requests",
    "SchemaError": "serve.errors",
    "StateStore": "service.state",
    "ask_now": "serve.requests",
    "complete": "service.known_users",
    "forget_users": "service.forget",
    "read_erasure_list": "serve.files",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module 'serve' has no attribute '{name}'")
    return getattr(import_module(f"{_HOME}{_MODULE_OF_NAME[name]}"), name)
