"""SQLite databases that several processes open."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from serve.errors import BundleError
from serve.files import PRIVATE, make_private

PATIENCE = 2.0  # seconds in which other threads, and then processes, give a file free
DAMAGED = errno.EUCLEAN
_CODES = {  # of SQLite -> of the operating system
    sqlite3.SQLITE_BUSY: errno.EBUSY,
    sqlite3.SQLITE_CORRUPT: DAMAGED,
    sqlite3.SQLITE_NOTADB: DAMAGED,
    sqlite3.SQLITE_FULL: errno.ENOSPC,
}
_PRIMARY = 0xFF  # mask of the primary code in an extended error code of SQLite
_SETTINGS = (
    "journal_mode = WAL",
    "synchronous = FULL",
    "secure_delete = ON",
    "temp_store = MEMORY",
)


def open_database(path: Path, mark: int, tables: str = "") -> sqlite3.Connection:
    """Open a SQLite file in write-ahead mode: what is committed is on disk, what is deleted erased.

    Args:
        path: the file, which is made if there is none.
        mark: its `application_id`, which tells it from other databases and formats.
        tables: SQL statements that are run in a new file.

    Returns:
        A connection that may be used from any thread.

    Raises:
        BundleError: the file is a database of another kind.
        OSError: the file is no database, the disk fails, or another process keeps the file for too
            long.
    """
    make_private(path.parent)
    # made before SQLite makes it, so that its log and index get the same mode; an existing file is
    # not opened, since closing it would end the locks of this process
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, PRIVATE))

    with name_fault(path):
        connection = sqlite3.connect(
            path, timeout=PATIENCE, isolation_level=None, check_same_thread=False
        )
        try:
            _prepare(connection, path, mark, tables)
        except (sqlite3.Error, BundleError):
            connection.close()
            raise

    return connection


def _prepare(
    connection: sqlite3.Connection, path: Path, mark: int, tables: str
) -> None:
    tables_there = connection.execute("SELECT 1 FROM sqlite_schema").fetchall()
    # read after the tables are counted: another process may make both
    found_mark = _read_mark(connection)
    if found_mark != mark and (found_mark or tables_there):
        raise BundleError(
            f"{path} is of another kind or format: move it away to begin a new one"
        )

    for setting in _SETTINGS:
        connection.execute(f"PRAGMA {setting}")

    connection.create_function("new_number", 0, lambda: secrets.randbits(62) | 1 << 62)
    if not tables or found_mark == mark:
        return

    connection.execute("BEGIN IMMEDIATE")
    if _read_mark(connection) != mark:  # no other process came first
        for statement in tables.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {mark}")

    connection.execute("COMMIT")


def _read_mark(connection: sqlite3.Connection) -> int:
    (mark,) = connection.execute("PRAGMA application_id").fetchone()
    return int(mark)


@contextmanager
def name_fault(path: Path) -> Iterator[None]:
    """Turn SQLite's errors of the disk or the file into an OSError that names the file.

    Raises:
        OSError: its `errno` is EBUSY if another process keeps the file, `DAMAGED` if what it holds
            cannot be read, ENOSPC if the disk is full, else EIO.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        # subclasses other than these are mistakes in our SQL
        if type(error) not in (sqlite3.OperationalError, sqlite3.DatabaseError):
            raise
        code = _CODES.get(error.sqlite_errorcode & _PRIMARY, errno.EIO)
        raise OSError(code, str(error), str(path)) from error


@contextmanager
def taking(lock: threading.Lock, path: Path) -> Iterator[None]:
    """Take the lock of a connection, or raise OSError after as long as another process has."""
    if not lock.acquire(timeout=PATIENCE):
        raise OSError(errno.EBUSY, "the file is locked", str(path))
    try:
        yield
    finally:
        lock.release()


def check_database(path: Path) -> None:
    """Look through a file, if there is one.

    Raises:
        OSError: its `errno` is `DAMAGED`.
    """
    if not path.exists():
        return
    with name_fault(path), closing(sqlite3.connect(path)) as connection:
        (finding,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if finding != "ok":
        raise OSError(DAMAGED, "the file is damaged: restore a copy", str(path))


def user_key(salt: bytes, user_id: str) -> bytes:
    """Return the key by which a database finds a user; without the salt nobody can make it."""
    return hashlib.blake2b(user_id.encode(), key=salt, digest_size=16).digest()
