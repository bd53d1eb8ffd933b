"""Files that survive a crash: writes, locks, folders exchanged in one step, SQLite databases, the erasure list."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hmac
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from serve.errors import BundleError

FORGOTTEN = "forgotten.json"  # file of a run with the erasure list
ERASURE_FORMAT = 1
_HERE = -100  # AT_FDCWD: paths are relative to the working directory
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
PATIENCE = 10.0  # seconds to wait for another process
PRIVATE = 0o600  # modes of files, of which the umask may take more away
_PUBLIC = 0o666


def make_private(folder: Path) -> None:
    """Make a folder, where there is none, that only its owner may enter."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def write_file(path: Path, content: bytes | memoryview, mode: int = _PUBLIC) -> None:
    """Write a file and wait until it is on disk; an existing one is replaced in one step."""
    with replacing(path, mode) as file:
        file.write(content)


@contextmanager
def replacing(path: Path, mode: int = _PUBLIC) -> Iterator[BinaryIO]:
    """Yield a file to write that is named by the path when it is on disk, and not after an error."""
    partial = path.with_name(f"{path.name}.part")
    try:
        with (
            name_file(path),
            open(
                partial, "wb", opener=lambda name, flags: os.open(name, flags, mode)
            ) as file,
        ):
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def name_file(path: Path) -> Iterator[None]:
    """Name the file in an error of the disk: one of `write` does not, unlike one of `open`."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error


def take_lock(path: Path, wait: bool = True, mode: int = _PUBLIC) -> BinaryIO:
    """Return an exclusive lock: a file, made if need be, that holds it until it is closed or the process dies."""
    lock = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, mode), "wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise
    return lock


def sync_files(folder: Path) -> None:
    """Wait until the content of every file of a folder, and the folder itself, is on disk."""
    for path in (*sorted(folder.iterdir()), folder):
        sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder, or the content of a file, are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with name_file(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def place_folder(new: Path, target: Path) -> Path | None:
    """Put the folder `new` in the place of the folder `target`, both in one directory.

    Where the file system can exchange two names, a reader finds the old or the new folder at every instant. Elsewhere
    there is an instant between two renames with neither. Return where the old folder is now, None if there was none.
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
    """Exchange two names in one step; return False, with nothing done, where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_HERE, os.fsencode(left), _HERE, os.fsencode(right), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(left))


@dataclass(frozen=True)
class ErasureList:
    """Keyed hashes of forgotten users, by salt; several salts where one run took over the list of another."""

    sets: tuple[tuple[bytes, frozenset[bytes]], ...] = ()

    def __len__(self) -> int:
        return sum(len(hashes) for _, hashes in self.sets)

    def holds(self, user_id: str | int) -> bool:
        """Tell whether a user was forgotten; 7 and "7" are the same id."""
        return any(hash_id(salt, user_id) in hashes for salt, hashes in self.sets)


NOBODY = ErasureList()


def hash_id(salt: bytes, user_id: str | int) -> bytes:
    return hmac.digest(salt, str(user_id).encode(errors="surrogatepass"), "sha256")


def read_erasure_list(run: Path) -> ErasureList:
    """Read the erasure list of a run's folder; empty if there is no file."""
    path = run / FORGOTTEN
    try:
        content = json.loads(path.read_bytes())
        lists = (content["users"], *(one["hashes"] for one in content["users"]))
        if content["format"] != ERASURE_FORMAT or not all(
            isinstance(one, list) for one in lists
        ):
            raise ValueError(f"expected format {ERASURE_FORMAT}")
        sets = ((one["salt"], one["hashes"]) for one in content["users"])
        return ErasureList(
            tuple(
                (bytes.fromhex(salt), frozenset(map(bytes.fromhex, some)))
                for salt, some in sets
            )
        )
    except FileNotFoundError:
        return NOBODY
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{path} is damaged: {error!r}; restore it, or users would not stay forgotten"
        ) from error


_read_changed = lru_cache(maxsize=16)(lambda run, *_mark: read_erasure_list(run))


def current_erasure_list(run: Path) -> ErasureList:
    """Return the erasure list of a run; it is read again when another process has changed it."""
    try:
        status = os.stat(run / FORGOTTEN)
    except FileNotFoundError:
        return NOBODY
    return _read_changed(run, status.st_ino, status.st_mtime_ns)


def is_forgotten(run: Path, user_id: str | int) -> bool:
    """Tell whether a user is on the present erasure list of a run."""
    return current_erasure_list(run).holds(user_id)
