"""Writes that survive a crash: on disk before they count, and folders that change places in one step."""

from __future__ import annotations

import ctypes
import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HERE = -100  # AT_FDCWD: paths are relative to the working directory
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file and wait until it is on disk; an existing one is replaced in one step.

    Raises:
        OSError: the disk is full or fails; names the file. The existing one stays.
    """
    partial = path.with_name(f"{path.name}.part")
    try:
        with name_file(path), partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def name_file(path: Path) -> Iterator[None]:
    """Let an error of the disk say which file it is about: one of `write` does not, unlike one of `open`."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error


def sync_files(folder: Path) -> None:
    """Wait until the content of every file of a folder, and the folder itself, is on disk."""
    for path in sorted(folder.iterdir()):
        _sync(path, os.O_RDONLY)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        with name_file(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def place_folder(new: Path, target: Path) -> Path | None:
    """Let `new` take the place of the folder `target`, both in one directory.

    Where the file system can exchange two names, a reader finds the old or the new folder at every instant.
    Elsewhere there is an instant between two renames with neither.

    Returns:
        Where the old folder is now, None if there was none.
    """
    if not target.exists():
        os.rename(new, target)
        return None
    if exchange(new, target):
        return new
    aside = target.with_name(f".{target.name}-old-{uuid.uuid4().hex}")
    os.rename(target, aside)
    try:
        os.rename(new, target)
    except OSError:
        os.rename(aside, target)
        raise
    return aside


def exchange(left: Path, right: Path) -> bool:
    """Exchange two names in one step; say False, with nothing done, where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_HERE, os.fsencode(left), _HERE, os.fsencode(right), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(left))
