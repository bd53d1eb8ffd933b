"""A disk that may lose its power at any time: what has a name must be there, and so must the name before it counts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from serve import files as durable


class Disk:
    """Notes what is waited for, and which renames come before that."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *pointers: str) -> None:
        """Watch the process.

        Args:
            monkeypatch: ends the watch.
            pointers: names of what makes other files of its folder count.
        """
        self.too_early: list[str] = []
        """What was renamed before it, or what it makes count, was on disk."""
        self._pointers = pointers
        self._kept: dict[int, object] = {}
        self._unnamed: set[Path] = set()
        sync, exchange = os.fsync, durable.exchange
        monkeypatch.setattr(
            os,
            "fsync",
            lambda descriptor: (sync(descriptor), self._keep(descriptor))[0],
        )
        monkeypatch.setattr(
            durable, "exchange", lambda left, right: self._move(exchange, left, right)
        )
        for name in ("rename", "replace"):
            move = getattr(os, name)
            monkeypatch.setattr(
                os,
                name,
                lambda source, target, move=move: self._move(move, source, target),
            )

    @property
    def unnamed(self) -> list[Path]:
        """Folders that are there, with names that are not on disk."""
        return sorted(folder for folder in self._unnamed if folder.exists())

    def holds(self, path: Path) -> bool:
        """Tell whether a file, or the names in a folder, are on disk as they are now."""
        return self._kept.get(path.stat().st_ino) == _describe(path)

    def _keep(self, descriptor: int) -> None:
        inode = os.fstat(descriptor).st_ino
        self._kept[inode] = _describe(descriptor)
        self._unnamed = {
            folder for folder in self._unnamed if folder.exists() and folder.stat().st_ino != inode
        }

    def _move(self, move, source, target):
        source, target = Path(source), Path(target)
        needed = [source, *(source.iterdir() if source.is_dir() else ())]
        if target.name in self._pointers:
            others = (
                path for path in target.parent.iterdir() if path.is_file() and path.name[0] != "."
            )
            needed += [path for path in others if path not in (source, target)]
            self.too_early += [str(target)] * (target.parent in self._unnamed)
        self.too_early += [str(path) for path in needed if not self.holds(path)]
        is_moved = move(source, target)
        is_aside = (
            source.name in self._pointers and source.parent == target.parent
        )  # something takes its place at once
        if is_moved is not False and not is_aside:
            self._unnamed.add(target.parent)
        return is_moved


def _describe(path: Path | int) -> object:
    if os.path.isdir(path):
        return sorted((entry.name, entry.inode()) for entry in os.scandir(path))
    about = os.stat(path)
    return about.st_size, about.st_mtime_ns
