"""The changes of the catalogue on disk: a SQLite file that one process writes."""

from __future__ import annotations

import fcntl
import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from serve.errors import BundleError, SchemaError
from serve.live.columns import Values
from serve.requests import Id, parse_id
from serve.schema import IdType
from serve.sqlite_faults import is_no_database, naming

FORMAT = 1

_CREATE = """CREATE TABLE IF NOT EXISTS items (
    place INTEGER PRIMARY KEY,
    item_id TEXT NOT NULL UNIQUE,
    columns TEXT NOT NULL,
    is_added INTEGER NOT NULL,
    is_removed INTEGER NOT NULL
) STRICT"""
_READ = "SELECT item_id, columns, is_added, is_removed FROM items ORDER BY place"
_WRITE = """INSERT INTO items (item_id, columns, is_added, is_removed) VALUES (?, ?, ?, ?)
ON CONFLICT (item_id) DO UPDATE SET
    columns = excluded.columns, is_added = excluded.is_added, is_removed = excluded.is_removed"""


@dataclass(frozen=True)
class Change:
    """What was said of an item since the bundle was made."""

    item_id: Id
    columns: Values
    """Of a removed item as they were before: its vector stays in histories."""
    is_added: bool
    """Whether it was new to the bundle of that time: only such an item is listed by a bundle that does not have it."""
    is_removed: bool = False


class ItemStore:
    """One change per item, in the order in which the items came."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            BundleError: the file is no store of items.
            OSError: it cannot be written, or another process has it.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._lock = path.with_name(f"{path.name}.lock").open("w")
        try:
            self._take_lock()
            self._connection = _connect(path)
        except (OSError, BundleError):
            self._lock.close()
            raise

    def read(self, id_type: IdType) -> tuple[list[Change], list[str]]:
        """Return the changes, but those of items whose ids are not of this type, and such ids of items not removed.

        Raises:
            OSError: the file is damaged, or the disk fails.
        """
        with naming(self._path):
            rows = self._connection.execute(_READ).fetchall()
        changes, others = [], []
        for text, columns, is_added, is_removed in rows:
            try:
                item_id = parse_id(text, id_type, "item_id")
            except SchemaError:
                others += [] if is_removed else [text]
            else:
                changes.append(Change(item_id, json.loads(columns), bool(is_added), bool(is_removed)))
        return changes, others

    def write(self, changes: Iterable[Change]) -> None:
        """Keep changes, all or none; they are on disk when this returns.

        Raises:
            OSError: the disk is full or fails.
        """
        rows = [
            (str(one.item_id), json.dumps(one.columns, allow_nan=False), one.is_added, one.is_removed)
            for one in changes
        ]
        with naming(self._path), self._connection:
            self._connection.executemany(_WRITE, rows)

    def close(self) -> None:
        self._connection.close()
        self._lock.close()

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = "another process changes the items of this file: stop it first, or give another folder of state"
            raise BlockingIOError(error.errno, message, str(self._path)) from error


def _connect(path: Path) -> sqlite3.Connection:
    with naming(path):
        connection = sqlite3.connect(path, check_same_thread=False)
        try:
            _prepare(connection, path)
        except (sqlite3.DatabaseError, BundleError):
            connection.close()
            raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        _check_format(connection, path)
    except sqlite3.DatabaseError as error:
        if not is_no_database(error):
            raise
        raise BundleError(f"{path} is no store of live items: move it away to begin a new one") from error


def _check_format(connection: sqlite3.Connection, path: Path) -> None:
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    (n_tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if found != FORMAT and n_tables:
        fault = f"{path} is no store of live items: its format is {found}; expected {FORMAT}"
        raise BundleError(f"{fault}: move it away to begin a new one")
    with connection:
        connection.execute(_CREATE)
        connection.execute(f"PRAGMA user_version = {FORMAT}")
