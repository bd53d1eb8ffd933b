"""`python -m serve COMMAND`: another door to the command `bascule`; `http` is its `serve`."""

from __future__ import annotations

import sys
from importlib import import_module

if __name__ == "__main__":
    sys.exit(import_module("bascule.commands").main())
