"""What a benchmark keeps: results of one set of options in a folder, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

OPTIONS = "options.json"


def check_options(folder: Path, words: Sequence[str]) -> None:
    """Note what the results of a folder are made with; refuse to mix them with those of other options."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / OPTIONS
    if path.exists() and (kept := json.loads(path.read_bytes())) != list(words):
        raise SystemExit(f"{folder} holds results of {kept}, not of {list(words)}: give another --runs, or remove it")
    path.write_text(json.dumps(list(words)))


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under another name and rename it: a killed call leaves no half of one."""
    unfinished = path.with_name(f"unfinished-{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write(unfinished)
    os.replace(unfinished, path)
