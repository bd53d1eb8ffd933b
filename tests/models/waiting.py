"""Jobs that do nothing for long, of a module that is soon imported."""

from __future__ import annotations

import os
import time
from pathlib import Path


def wait(folder: Path) -> None:
    """Name this process in a file, and wait."""
    path = folder / os.environ["LOCAL_RANK"]
    path.with_suffix(".part").write_text(str(os.getpid()))
    path.with_suffix(".part").rename(path)
    time.sleep(600)


def fail(folder: Path) -> None:
    """Wait in one process, and fail in the other."""
    if os.environ["LOCAL_RANK"] == "0":
        wait(folder)
    while not (folder / "0").exists():
        time.sleep(0.05)
    raise FloatingPointError("the loss is nan")
