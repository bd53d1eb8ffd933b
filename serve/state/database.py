"""One SQLite file in write-ahead mode: one writer at a time, readers beside it, on disk before it counts.

What is deleted is overwritten (`secure_delete`), and `shrink` writes the file anew, so that no byte of it stays.
"""

from __future__ import annotations

import errno
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serve.durable import sync_folder
from serve.errors import BundleError
from serve.sqlite_faults import is_no_database, naming

_PATIENCE = 10.0  # seconds to wait for another process
_PAUSE = 0.02
_NEW, _FOREIGN = 0, -1


class Database:
    """A file and its tables; safe to use from many threads."""

    def __init__(self, path: Path, mark: int, tables: Sequence[str], views: Mapping[str, str]) -> None:
        """Open the file, made if need be.

        Args:
            path: of the file.
            mark: the application id that tells it from other databases, its format included.
            tables: statements that make the tables of a new file.
            views: name -> statement that makes it; where a file has another one of that name it is replaced.

        Raises:
            BundleError: the file is no database, or not of this mark.
            OSError: the disk is full or fails.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._readers: deque[sqlite3.Connection] = deque()
        self._mark = mark
        self._writer = self._open()
        with self.writing() as connection:
            if _read_mark(connection) != mark:  # still new, now that no other process can write
                for statement in (*tables, f"PRAGMA application_id = {mark}"):
                    connection.execute(statement)
            for name, statement in views.items():
                _renew_view(connection, name, statement)
        sync_folder(path.absolute().parent.parent)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Yield the writer inside a transaction: on disk at the end, or undone by an error.

        Raises:
            OSError: the disk is full or fails, or another process keeps the file.
        """
        with self._lock, naming(self.path), self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            yield self._writer

    def read(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query, of one moment.

        Raises:
            OSError: the disk fails.
        """
        with naming(self.path):
            reader = self._take_reader()
            rows = reader.execute(query, values).fetchall()
        self._readers.append(reader)
        return rows

    def truncate_log(self) -> bool:
        """Move the write-ahead log into the file and empty it; say whether that could be done."""
        with self._lock, naming(self.path):
            is_busy, *_ = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not is_busy

    def shrink(self) -> None:
        """Write the file anew without what was deleted, and empty the log; who writes meanwhile waits.

        `secure_delete` alone leaves copies of rows that SQLite has moved from one page to another.

        Raises:
            OSError: another process reads on and on, or the disk is full or fails.
        """
        with self._lock, naming(self.path):
            self._writer.execute("VACUUM")
        end = time.monotonic() + _PATIENCE
        while not self.truncate_log():  # SQLite waits for readers and writers, but not for who moves the log as well
            if time.monotonic() >= end:
                why = "another process keeps its log from being emptied: try again"
                raise OSError(errno.EBUSY, why, str(self.path))
            time.sleep(_PAUSE)

    def close(self) -> None:
        self._writer.close()
        while self._readers:
            self._readers.pop().close()

    def _take_reader(self) -> sqlite3.Connection:
        try:
            return self._readers.pop()
        except IndexError:
            return self._open()

    def _open(self) -> sqlite3.Connection:
        with naming(self.path):
            connection = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
            try:
                self._check(connection)
                for pragma in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
                    connection.execute(f"PRAGMA {pragma}")
            except (sqlite3.Error, BundleError):
                connection.close()
                raise
        return connection

    def _check(self, connection: sqlite3.Connection) -> None:
        """Refuse a file that is not ours before anything in it is changed."""
        try:
            found = _read_mark(connection)
        except sqlite3.DatabaseError as error:
            if not is_no_database(error):
                raise
            raise BundleError(f"{self.path} is no database: move it away to begin a new one") from error
        if found not in (_NEW, self._mark):
            raise BundleError(f"{self.path} is of another kind or format: move it away to begin a new one")


def _read_mark(connection: sqlite3.Connection) -> int:
    """Return the application id; `_NEW` of a file without tables alone."""
    ((mark,),) = connection.execute("PRAGMA application_id")
    ((n_tables,),) = connection.execute("SELECT count(*) FROM sqlite_schema")
    return int(mark) if mark or not n_tables else _FOREIGN


def _renew_view(connection: sqlite3.Connection, name: str, statement: str) -> None:
    """Make a view, in place of the one that an earlier release made."""
    if connection.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (name,)).fetchone() != (statement,):
        connection.execute(f"DROP VIEW IF EXISTS {name}")
        connection.execute(statement)
