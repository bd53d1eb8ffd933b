"""SQLite databases that several processes open."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from serve.errors import BundleError
from serve.files import PATIENCE, PRIVATE, make_private

_PRIMARY = 0xFF  # of an extended error code of SQLite


def open_database(path: Path, mark: int, tables: str = "") -> sqlite3.Connection:
    """Open a SQLite file in write-ahead mode: what is committed is on disk, what is deleted is erased.

    `mark` tells the file, by its `application_id`, from other databases and formats. `tables` is run in a new file.
    """
    make_private(path.parent)
    with suppress(
        FileExistsError
    ):  # before SQLite would: its log and index get the same mode
        os.close(
            os.open(path, os.O_CREAT | os.O_EXCL, PRIVATE)
        )  # else closing it would end the locks of this process
    with name_fault(path):
        connection = sqlite3.connect(
            path, timeout=PATIENCE, isolation_level=None, check_same_thread=False
        )
        try:
            (n_tables,) = connection.execute(
                "SELECT count(*) FROM sqlite_schema"
            ).fetchone()
            (found,) = connection.execute(
                "PRAGMA application_id"
            ).fetchone()  # after it: another process may make both
            if found != mark and (found or n_tables):
                raise BundleError(
                    f"{path} is of another kind or format: move it away to begin a new one"
                )
            for setting in (
                "journal_mode = WAL",
                "synchronous = FULL",
                "secure_delete = ON",
                "temp_store = MEMORY",
            ):
                connection.execute(f"PRAGMA {setting}")
            connection.create_function(
                "new_number", 0, lambda: secrets.randbits(62) | 1 << 62
            )
            if tables and found != mark:
                connection.execute("BEGIN IMMEDIATE")
                (found,) = connection.execute(
                    "PRAGMA application_id"
                ).fetchone()  # another process may have come first
                made = (
                    ()
                    if found == mark
                    else (*tables.split(";"), f"PRAGMA application_id = {mark}")
                )
                for each in (*made, "COMMIT"):
                    connection.execute(each)
        except (sqlite3.Error, BundleError) as error:
            connection.close()
            if (
                getattr(error, "sqlite_errorcode", 0) & _PRIMARY
                == sqlite3.SQLITE_NOTADB
            ):
                raise BundleError(
                    f"{path} is no database: move it away to begin a new one"
                ) from error
            raise
    return connection


@contextmanager
def name_fault(path: Path) -> Iterator[None]:
    """Turn SQLite's errors of the disk or the file into an OSError that names it; EBUSY if another process keeps it."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if type(error) not in (
            sqlite3.OperationalError,
            sqlite3.DatabaseError,
        ):  # a fault of ours
            raise
        is_busy = (
            getattr(error, "sqlite_errorcode", 0) & _PRIMARY == sqlite3.SQLITE_BUSY
        )
        raise OSError(
            errno.EBUSY if is_busy else errno.EIO, str(error), str(path)
        ) from error


def user_key(salt: bytes, user_id: str) -> bytes:
    """Return the key by which a database finds a user: without the salt nobody can make it."""
    return hashlib.blake2b(user_id.encode(), key=salt, digest_size=16).digest()
