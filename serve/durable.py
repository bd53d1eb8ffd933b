"""Files that survive a crash: writes, locks, folders exchanged in one step, SQLite databases, the erasure list."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hmac
import json
import os
import sqlite3
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
_PATIENCE = 10.0  # seconds to wait for another process
_PRIMARY = 0xFF  # of an extended error code of SQLite


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file and wait until it is on disk; an existing one is replaced in one step."""
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
    """Name the file in an error of the disk: one of `write` does not, unlike one of `open`."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error


def take_lock(path: Path, wait: bool = True) -> BinaryIO:
    """Return an exclusive lock: a file, made if need be, that holds it until it is closed or the process dies."""
    lock = path.open("ab")
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


def open_database(path: Path, pragma: str, mark: int, tables: str = "") -> sqlite3.Connection:
    """Open a SQLite file in write-ahead mode: what is committed is on disk, what is deleted is erased.

    `tables` makes what is not there yet; `pragma` has the value `mark`, which tells the file from other databases.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with name_fault(path):
        connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            (found,) = connection.execute(f"PRAGMA {pragma}").fetchone()
            (n_tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            if found != mark and (found or n_tables):
                raise BundleError(f"{path} is of another kind or format: move it away to begin a new one")
            for setting in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
                connection.execute(f"PRAGMA {setting}")
            if tables:
                connection.executescript(f"BEGIN IMMEDIATE; {tables} PRAGMA {pragma} = {mark}; COMMIT;")
        except (sqlite3.Error, BundleError) as error:
            connection.close()
            if getattr(error, "sqlite_errorcode", 0) & _PRIMARY == sqlite3.SQLITE_NOTADB:
                raise BundleError(f"{path} is no database: move it away to begin a new one") from error
            raise
    return connection


@contextmanager
def name_fault(path: Path) -> Iterator[None]:
    """Turn SQLite's errors of the disk or the file into an OSError that names it; EBUSY if another process keeps it."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if type(error) not in (sqlite3.OperationalError, sqlite3.DatabaseError):  # a fault of ours
            raise
        is_busy = getattr(error, "sqlite_errorcode", 0) & _PRIMARY == sqlite3.SQLITE_BUSY
        raise OSError(errno.EBUSY if is_busy else errno.EIO, str(error), str(path)) from error


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
        if content["format"] != ERASURE_FORMAT or not all(isinstance(one, list) for one in lists):
            raise ValueError(f"expected format {ERASURE_FORMAT}")
        sets = ((one["salt"], one["hashes"]) for one in content["users"])
        return ErasureList(tuple((bytes.fromhex(salt), frozenset(map(bytes.fromhex, some))) for salt, some in sets))
    except FileNotFoundError:
        return NOBODY
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is damaged: {error!r}; restore it, or users would not stay forgotten") from error


def is_forgotten(run: Path, user_id: str | int) -> bool:
    """Tell whether a user was forgotten; the list of a run is read again when another process has changed it."""
    try:
        status = os.stat(run / FORGOTTEN)
    except FileNotFoundError:
        return False
    return _read_changed(run, status.st_ino, status.st_mtime_ns).holds(user_id)


@lru_cache(maxsize=16)
def _read_changed(run: Path, *_mark: int) -> ErasureList:
    return read_erasure_list(run)
