"""`python -m bascule COMMAND`: the command `bascule`."""

from __future__ import annotations

import sys

from bascule.commands import main

if __name__ == "__main__":
    sys.exit(main())
