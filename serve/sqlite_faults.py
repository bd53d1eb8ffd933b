"""What SQLite says of the disk or of another process, as the errors that everything else raises of them."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PRIMARY = 0xFF  # of an extended code of SQLite
_FAULTS = (sqlite3.OperationalError, sqlite3.DatabaseError)  # of the disk or the file; its subclasses are ours


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn a fault of the disk or of the file into an OSError that names it; EBUSY where another process keeps it."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if type(error) not in _FAULTS:
            raise
        is_busy = getattr(error, "sqlite_errorcode", 0) & _PRIMARY == sqlite3.SQLITE_BUSY
        code = errno.EBUSY if is_busy else errno.EIO
        raise OSError(code, str(error), str(path)) from error


def is_no_database(error: sqlite3.DatabaseError) -> bool:
    """Tell a file of something else from a fault of the disk."""
    return getattr(error, "sqlite_errorcode", 0) & _PRIMARY == sqlite3.SQLITE_NOTADB
