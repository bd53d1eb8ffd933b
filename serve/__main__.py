"""Keep `python -m serve COMMAND` working: the commands are those of `bascule`."""

from __future__ import annotations

import sys
from importlib import import_module

if __name__ == "__main__":
    sys.exit(import_module("bascule.commands").main())
