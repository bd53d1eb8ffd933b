"""The state of a service: events of users, what they were shown, and who was forgotten.

`StateStore` keeps it in the SQLite file `DIR/state/state.db`, whose records and tables are in
`service/event_log.py`; `service/engine.py` has the protocol of all engines.
"""

from __future__ import annotations

import errno
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from serve.arrays import Id
from serve.cells import check_id, to_plain
from serve.clock import DAY, check_seconds
from serve.errors import BundleError
from serve.files import (
    FORGOTTEN,
    ErasureList,
    read_erasure_list,
    read_opt_outs,
    sync_folder,
)
from service.database import (
    DAMAGED,
    name_fault,
    open_database,
    taking,
    user_key,
)
from service.engine import check_retention, limit_expiry
from service.event_log import (
    AGE,
    MARK,
    TABLES,
    UNDONE_BY,
    Impressions,
    Observation,
    Recalled,
    gather,
    open_log,
)

RETENTION_DAYS = 365.0
_TABLE_OF = {"events": "event_rows", "impressions": "answer_rows"}
MAX_RECALLED = 10_000  # latest events of a user that are looked at for dismissals
_PAUSE = 0.1  # seconds between attempts to empty the write-ahead log
_SLICE = 200  # rows deleted in one transaction, so that no event waits for long
_LOG_TIMEOUT = 20  # milliseconds that writers wait for the log to be emptied
_LOG_PATIENCE = 10.0  # seconds of attempts to empty it

# A user has a place (their row in `users`), a number (which the rows of events and answers bear)
# and a key (the salted hash of their id, by which they are found).

# Of a forgotten user of whom the write-ahead log may still hold something, the number is NULL.
_FIND_USER = """SELECT u.place, iif(u.id = ?, u.number, NULL)
    FROM user_keys k JOIN users u ON u.place = k.place WHERE k.key = ?"""
# A free row that is as long is overwritten, so that no byte of its former id stays; else one is
# appended.
_ADD_USER = """INSERT INTO users VALUES (
    (SELECT place FROM users WHERE typeof(id) = 'blob'
     AND length(id) = length(CAST(:id AS BLOB)) LIMIT 1),
    :id, :is_integer, new_number()) ON CONFLICT DO UPDATE SET id = :id,
    is_integer = :is_integer, number = excluded.number RETURNING place, number"""
_ERASE_USER = """UPDATE users SET id = zeroblob(length(CAST(id AS BLOB))), is_integer = 0,
    number = new_number() WHERE place = ?"""
_IS_UNUSED = """AND EXISTS
    (SELECT 1 FROM unused_users u WHERE u.place = users.place AND u.id = ?)"""
_DELETE_KEY = "DELETE FROM user_keys WHERE key = ? AND place = ?"
# An event that is sent again counts once, unless it was undone in between.
_INSERT_EVENT = """INSERT INTO event_rows
    (user, item_id, event, datetime, weight, request_id, context, context_key)
    SELECT :user, :item_id, :event, :datetime, :weight, :request_id, :context, :context_key
    WHERE NOT EXISTS
    (SELECT 1 FROM event_rows WHERE user = :user AND datetime = :datetime
     AND item_id = :item_id AND event IS :event AND weight IS :weight AND number >
     (SELECT ifnull(max(number), 0) FROM event_rows WHERE user = :user
      AND datetime = :datetime AND item_id = :item_id AND event = :undone_by))"""
_DELETE = """DELETE FROM {table} WHERE number IN
    (SELECT number FROM {table} WHERE {condition} LIMIT {n}) RETURNING number"""
_DELETE_SHOWN = "DELETE FROM shown WHERE answer = ?"
_INSERT_ANSWER = "INSERT INTO answer_rows VALUES (NULL, ?, ?, ?, ?, ?, ?)"
_INSERT_SHOWN = "INSERT INTO shown VALUES (?, ?, ?, ?, ?)"
_NUMBER_OF_USER = """(SELECT u.number FROM user_keys k JOIN users u
    ON u.place = k.place WHERE k.key = ? AND u.id = ?)"""
_FIND_NUMBER = f"SELECT {_NUMBER_OF_USER}"
_RECALL = f"""SELECT item_id, datetime, event, weight, ifnull(context_key, 0), number
    FROM event_rows
    WHERE user = {_NUMBER_OF_USER}
    ORDER BY datetime DESC, number DESC LIMIT ?"""  # noqa: S608
_COUNT_ANSWERS = f"""SELECT count(*) FROM answer_rows
    WHERE user = {_NUMBER_OF_USER} AND datetime >= ? AND policy GLOB ?"""  # noqa: S608


class StateStore:
    """The live state in a SQLite file; safe to use from many threads and processes."""

    def __init__(
        self,
        path: Path,
        runs: Sequence[Path] | None = None,
        retention_days: float = RETENTION_DAYS,
        impression_days: float | None = None,
    ) -> None:
        """Open the file, made if need be.

        Args:
            path: `DIR/state/state.db`.
            runs: folders whose erasure lists are heeded; DIR by default.
            retention_days: age at which events are removed.
            impression_days: age at which answers are removed; by default the same.

        Raises:
            BundleError: the file is of another kind or format.
            OSError: the file cannot be opened.
        """
        self.days = check_retention(retention_days, impression_days)
        self.path = path
        self.fault: Exception | None = None
        self._lock = threading.Lock()
        self._home = path.absolute().parent.parent
        self._runs = runs or [self._home]
        self._readers: deque[sqlite3.Connection] = deque()
        self._writer = open_log(path, TABLES)
        (self._salt,) = self._writer.execute("SELECT value FROM salt").fetchone()
        sync_folder(self._home)
        self.n_forgotten = self._remember_forgotten()

    def observe(
        self,
        user_id: Id,
        item_id: Id,
        event: str | None,
        time: int,
        weight: float | None = None,
    ) -> bool:
        """Keep one event.

        Args:
            user_id: the user; 7 and "7" are the same.
            item_id: the item, which the bundle need not know.
            event: type of the event, if the bundle has types.
            time: UTC seconds.
            weight: such as a rating, at least 0.

        Returns:
            Whether it is on disk now: not if the user is forgotten or has opted out.

        Raises:
            SchemaError: a value is of the wrong type or out of range.
            OSError: the disk is full or fails.
        """
        observation = Observation(user_id, item_id, event, time, weight)
        return self.observe_many([observation]) == 1

    def observe_many(self, observations: Iterable[Observation]) -> int:
        """Keep events, all or none, each once; return how many are on disk."""
        observations = list(observations)
        user_ids = [observation.user_id for observation in observations]
        rows = []
        with self._writing() as connection:
            numbers = self._number_users(user_ids)
            for observation in observations:
                # SQLite would keep the bytes of a numpy number.
                row = {
                    name: to_plain(value) for name, value in vars(observation).items()
                }
                row["user"] = numbers.get(str(observation.user_id))
                row["undone_by"] = UNDONE_BY.get(observation.event or "")
                if row["user"] is not None:
                    rows.append(row)

            connection.executemany(_INSERT_EVENT, rows)

        return len(rows)

    def log_impressions(self, answers: Iterable[Impressions]) -> None:
        """Keep what users were shown, all or none; nothing of users who are left out."""
        answers = list(answers)
        user_ids = [answer.user_id for answer in answers if answer.user_id is not None]
        with self._writing() as connection:
            numbers = self._number_users(user_ids)
            for answer in answers:
                user = numbers.get(str(answer.user_id))
                if user is None and answer.user_id is not None:
                    continue
                facts = (answer.request_id, user, answer.datetime)
                values = (*facts, answer.bundle_version, answer.policy, answer.arm)
                number = connection.execute(_INSERT_ANSWER, values).lastrowid
                columns = (answer.item_ids, answer.scores, answer.propensities)
                slots = enumerate(zip(*columns, strict=True), start=1)
                rows = [(number, position, *slot) for position, slot in slots]
                connection.executemany(_INSERT_SHOWN, rows)

    def recall(self, user_id: Id) -> Recalled:
        """Return the latest events of a user."""
        if any(erased.holds(user_id) for erased in self._read_erased()):
            return Recalled(is_forgotten=True)
        if read_opt_outs(self._home).holds(user_id):
            return Recalled(is_opted_out=True)

        text = str(user_id)
        rows = self._read(_RECALL, user_key(self._salt, text), text, MAX_RECALLED)
        rows.reverse()
        return gather(rows)

    def count_answers(self, user_id: Id, since: int, policy: str) -> int:
        """Count the lists of a user since a time, of policies that begin with a text."""
        text = str(user_id)
        key = user_key(self._salt, text)
        ((count,),) = self._read(_COUNT_ANSWERS, key, text, since, f"{policy}*")
        return int(count)

    def date_expiry(self, now: int) -> int:
        """Return the time from which age is counted; see `limit_expiry`."""
        begins = [now - days * DAY for days in self.days.values()]
        return limit_expiry(now, self._read(AGE, *begins))

    def expire_slices(self, now: int) -> Iterator[Counter[str]]:
        """Remove what is too old, a slice at a time, so that no event waits for long."""
        check_seconds(int(now), "now")  # milliseconds would make everything old
        for kind, days in self.days.items():
            table = _TABLE_OF[kind]
            begin = now - days * DAY
            for n_deleted in self._delete_slices("datetime < ?", begin, (table,)):
                yield Counter({kind: n_deleted[table]})

        unused = self._read("SELECT place, id FROM unused_users")
        for start in range(0, len(unused), _SLICE):
            with self._writing() as connection:
                for place, text in unused[start : start + _SLICE]:
                    erase = f"{_ERASE_USER} {_IS_UNUSED}"
                    if connection.execute(erase, (place, text)).rowcount:
                        key = user_key(self._salt, text)
                        connection.execute(_DELETE_KEY, (key, place))
            yield Counter()

        self._empty_log()

    def list_known(self, user_ids: Iterable[Id]) -> set[str]:
        """Return, as texts, the users who have events or answers."""
        known = set()
        for text in map(str, user_ids):
            ((number,),) = self._read(_FIND_NUMBER, user_key(self._salt, text), text)
            if number is not None:
                known.add(text)

        return known

    def forget(self, *user_ids: Id) -> dict[str, int]:
        """Erase users, so that nothing in the file or its log leads to them.

        Others read and write meanwhile. After an error it may be done again.

        Args:
            user_ids: users, who need not be known.

        Returns:
            How many `events` and `impressions` (items that were shown) were erased.

        Raises:
            OSError: the disk fails, or another process keeps what was erased in the log (EBUSY).
        """
        for user_id in user_ids:
            check_id(user_id, "user_id")

        rows = []  # key, place, number
        for text in dict.fromkeys(map(str, user_ids)):
            key = user_key(self._salt, text)
            rows += [(key, *row) for row in self._read(_FIND_USER, text, key)]

        n_deleted: Counter[str] = Counter()
        for _, _, number in rows:
            for n_of_slice in self._delete_slices("user = ?", number):
                n_deleted.update(n_of_slice)

        if rows:
            with self._writing() as connection:
                users = [(place, number) for _, place, number in rows]
                connection.executemany(f"{_ERASE_USER} AND number = ?", users)
            self._empty_log()
            # the keys last: they lead a second call here
            with self._writing() as connection:
                keys = [(key, place) for key, place, _ in rows]
                connection.executemany(_DELETE_KEY, keys)

        self.n_forgotten = self._remember_forgotten()
        return {"events": n_deleted["event_rows"], "impressions": n_deleted["shown"]}

    def close(self) -> None:
        self._writer.close()
        while self._readers:
            self._readers.pop().close()

    def _remember_forgotten(self) -> int:
        """Return how long the erasure list is or was; the file keeps the number."""
        ((known,),) = self._read("PRAGMA user_version")
        n_listed = len(read_erasure_list(self._home))
        if n_listed > known:
            with self._writing() as connection:
                connection.execute(f"PRAGMA user_version = {n_listed}")

        return max(int(known), n_listed)

    def _read_erased(self) -> list[ErasureList]:
        """Read the erasure lists.

        Raises:
            BundleError: a list is damaged, or it was longer: users would come back.
        """
        n_listed = len(read_erasure_list(self._home))
        if n_listed < self.n_forgotten:
            raise BundleError(
                f"{self._home / FORGOTTEN} lists {n_listed} users of {self.n_forgotten}: restore it"
            )

        self.n_forgotten = n_listed
        return [read_erasure_list(run) for run in self._runs]

    def _number_users(self, user_ids: Iterable[Id]) -> dict[str, int]:
        """Return id as a text -> number, old or new, of users who are not left out."""
        left_out = [*self._read_erased(), read_opt_outs(self._home)]
        # A user who is added to a list after this is erased by the call that adds them.
        numbers: dict[str, int] = {}
        for user_id in user_ids:
            text = str(user_id)
            if text in numbers or any(who.holds(user_id) for who in left_out):
                continue

            key = user_key(self._salt, text)
            number: int | None
            (number,) = self._writer.execute(_FIND_NUMBER, (key, text)).fetchone()
            if number is None:
                user = {"id": text, "is_integer": not isinstance(user_id, str)}
                ((place, number),) = self._writer.execute(_ADD_USER, user).fetchall()
                self._writer.execute(
                    "REPLACE INTO user_keys VALUES (?, ?)", (key, place)
                )

            numbers[text] = number

        return numbers

    def _delete_slices(
        self,
        condition: str,
        value: float | None,
        tables: Sequence[str] = tuple(_TABLE_OF.values()),
    ) -> Iterator[Counter[str]]:
        """Delete rows that meet a condition, while others write; yield how many of each table."""
        n_most = _SLICE
        while n_most == _SLICE:
            begin = time.monotonic()
            n_deleted = Counter[str]()
            with self._writing() as connection:
                for table in tables:
                    delete = _DELETE.format(table=table, condition=condition, n=_SLICE)
                    numbers = connection.execute(delete, (value,)).fetchall()
                    n_deleted[table] = len(numbers)
                    if table == _TABLE_OF["impressions"]:
                        shown = connection.executemany(_DELETE_SHOWN, numbers)
                        n_deleted["shown"] = shown.rowcount

            seconds = time.monotonic() - begin

            # Here, so that the commits of others need not do it.
            self._read("PRAGMA wal_checkpoint(PASSIVE)")
            n_most = max(n_deleted["event_rows"], n_deleted["answer_rows"])
            time.sleep(seconds if n_most == _SLICE else 0)
            yield n_deleted

    def _empty_log(self) -> None:
        """Empty the write-ahead log, between the queries of others."""
        is_busy = True
        end = time.monotonic() + _LOG_PATIENCE
        with (
            name_fault(self.path),
            closing(open_database(self.path, MARK)) as connection,
        ):
            connection.execute(f"PRAGMA busy_timeout = {_LOG_TIMEOUT}")
            while is_busy and time.monotonic() < end:
                # The first call does most of the work while others write.
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
                cursor = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                is_busy = cursor.fetchone()[0]
                time.sleep(_PAUSE * is_busy)

        if is_busy:
            raise OSError(
                errno.EBUSY,
                "another process keeps its log from being emptied: try again",
                str(self.path),
            )

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Yield the writer inside a transaction: on disk at the end, or undone by an error."""
        try:
            with (
                name_fault(self.path),
                taking(self._lock, self.path),
                self._writer,
            ):
                n_changes = self._writer.total_changes
                self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
        except (OSError, BundleError) as error:
            self.fault = error
            raise

        # A transaction without a change does not show that the disk has room again.
        if self._writer.total_changes > n_changes:
            self.fault = None

    def _read(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            with name_fault(self.path):
                readers = self._readers
                reader = readers.pop() if readers else open_database(self.path, MARK)
                rows = reader.execute(query, values).fetchall()
        except OSError as error:
            if error.errno == DAMAGED:
                self.fault = error
            raise

        self._readers.append(reader)
        return rows
