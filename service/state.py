"""The state of a service: events of users, what they were shown, and who was forgotten, in `DIR/state/state.db`.

events     a view: what users did, dismissals included
answers    a view: one row per answer: request, user, time, version of the bundle, policy, arm of an experiment
shown      the items of each answer: position from 1, score, and the probability with which it was shown there
feedback   a view: every item that was shown, with the events of the user on it that followed; an event that names its
           request follows that answer, whatever the clock of its sender says, another one every earlier answer

An id of an item is kept as it came, that of a user as it came first; 7 and "7" are the same.

SQLite zeroes what is deleted, but leaves copies of rows that moved to other pages. So all rows bear a random number in
place of the user. `users` says whose it is, and its rows never move: they are appended, and overwritten in their place
by as many bytes. What stays of other rows then bears a number that nobody can link.
"""

from __future__ import annotations

import errno
import logging
import re
import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from serve.clock import DAY
from serve.encode import to_text
from serve.errors import BundleError, SchemaError
from serve.files import current_erasure_list, is_forgotten, sync_folder
from serve.requests import (
    History,
    Id,
    check_id,
    check_seconds,
    parse_id,
    parse_label,
    parse_times,
    parse_weight,
    show,
    to_plain,
)
from serve.schema import Schema
from service.database import name_fault, open_database, user_key

DISMISS = "dismiss"  # hide an item, and take this back; neither is part of the history
UNDISMISS = "undismiss"
RETENTION_DAYS = 365.0
_MAX_RETENTION = 36_500
_CLOCK_TOLERANCE = (
    DAY  # seconds that a caller's clock, or its time zone, may be ahead of ours
)
_MAX_RECALLED = (
    10_000  # latest events of a user: of dismissals, and of those in the history
)
_MAX_LIVE = 1000
_LOG = logging.getLogger("service.http")
_MAX_LISTS = 20_000  # in the queue: if the disk does not keep up, answers wait for it
_MAX_AT_ONCE = 1000  # lists of one transaction: events wait for its end
_PAUSE = 0.1  # seconds between looks at the queue: one transaction holds many lists
_HOUR = 3600.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_SLICE = 0.01  # seconds of deleting in one transaction, and events or answers at most
_MAX_SLICE = 1000
_LOG_TIMEOUT = (
    20  # milliseconds, with writers waiting, and seconds in all, to empty the log
)
_LOG_PATIENCE = 10.0
MARK = 0x42530003  # "BS" and the format
_TABLES = """
CREATE TABLE salt (value BLOB NOT NULL);
INSERT INTO salt VALUES (randomblob(32));
CREATE TABLE users (place INTEGER PRIMARY KEY, id NOT NULL, is_integer INTEGER NOT NULL, number INTEGER NOT NULL);
CREATE TABLE user_keys (key BLOB PRIMARY KEY, place INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE event_rows (number INTEGER PRIMARY KEY, user INTEGER NOT NULL, item_id NOT NULL, event TEXT,
    datetime INTEGER NOT NULL, weight REAL, request_id TEXT);
CREATE TABLE answer_rows (number INTEGER PRIMARY KEY, request_id TEXT NOT NULL, user INTEGER,
    datetime INTEGER NOT NULL, bundle_version TEXT NOT NULL, policy TEXT NOT NULL, arm TEXT);
CREATE TABLE shown (answer INTEGER, position INTEGER, item_id NOT NULL, score REAL NOT NULL,
    propensity REAL, PRIMARY KEY (answer, position)) WITHOUT ROWID;
CREATE INDEX free_places ON users (length(id)) WHERE typeof(id) = 'blob';
CREATE INDEX event_rows_of_user ON event_rows (user, datetime);
CREATE INDEX event_rows_in_time ON event_rows (datetime);
CREATE INDEX answer_rows_of_user ON answer_rows (user);
CREATE INDEX answer_rows_in_time ON answer_rows (datetime);
CREATE VIEW unused_users AS SELECT place, id FROM users u WHERE typeof(id) = 'text'
    AND NOT EXISTS (SELECT 1 FROM event_rows e WHERE e.user = u.number)
    AND NOT EXISTS (SELECT 1 FROM answer_rows a WHERE a.user = u.number);
CREATE VIEW named AS SELECT number AS user, iif(is_integer, CAST(id AS INTEGER), id) AS user_id FROM users;
CREATE VIEW events AS SELECT e.number, u.user_id, e.item_id, e.event, e.datetime, e.weight, e.request_id
    FROM event_rows e JOIN named u ON u.user = e.user;
CREATE VIEW named_answers AS SELECT a.*, u.user_id FROM named u JOIN answer_rows a ON a.user = u.user
    UNION ALL SELECT a.*, NULL FROM answer_rows a WHERE a.user IS NULL;
CREATE VIEW answers AS SELECT number, request_id, user_id, datetime, bundle_version, policy, arm FROM named_answers;
CREATE VIEW feedback AS SELECT a.request_id, a.user_id, a.datetime, a.bundle_version, a.policy,
    s.position, s.item_id, s.score, e.event, e.weight, e.datetime AS event_datetime, a.arm, s.propensity
    FROM named_answers a CROSS JOIN shown s ON s.answer = a.number -- in this order: a user has few answers
    LEFT JOIN event_rows e ON e.user = a.user AND e.item_id = s.item_id
    AND (e.request_id = a.request_id OR (e.request_id IS NULL AND e.datetime >= a.datetime));
"""
_FIND_USER = (  # without a number: of someone who is forgotten but for what the log may hold
    "SELECT u.place, iif(u.id = ?, u.number, NULL) FROM user_keys k JOIN users u ON u.place = k.place WHERE k.key = ?"
)
_ADD_USER = (  # over a row that is free and as long, else a new one
    "INSERT INTO users VALUES ((SELECT place FROM users WHERE typeof(id) = 'blob' "
    "AND length(id) = length(CAST(:id AS BLOB)) LIMIT 1), :id, :is_integer, new_number()) ON CONFLICT DO UPDATE "
    "SET id = :id, is_integer = :is_integer, number = excluded.number RETURNING place, number"
)
_ERASE_USER = """UPDATE users SET id = zeroblob(length(CAST(id AS BLOB))), is_integer = 0, number = new_number()
    WHERE place = ? """
_IS_UNUSED = (
    "AND EXISTS (SELECT 1 FROM unused_users u WHERE u.place = users.place AND u.id = ?)"
)
_DELETE_KEY = "DELETE FROM user_keys WHERE key = ? AND place = ?"
_INSERT_EVENT = (  # an event that is sent again, since its acknowledgement was lost, counts once, unless it was undone
    "INSERT INTO event_rows (user, item_id, event, datetime, weight, request_id) "
    "SELECT :user, :item_id, :event, :datetime, :weight, :request_id WHERE NOT EXISTS (SELECT 1 FROM event_rows "
    "WHERE user = :user AND datetime = :datetime AND item_id = :item_id AND event IS :event "
    "AND weight IS :weight AND number > (SELECT ifnull(max(number), 0) FROM event_rows WHERE user = :user "
    "AND datetime = :datetime AND item_id = :item_id AND event = :undone_by))"
)
_UNDONE_BY = {DISMISS: UNDISMISS, UNDISMISS: DISMISS}
_INSERT_ANSWER = "INSERT INTO answer_rows VALUES (NULL, ?, ?, ?, ?, ?, ?)"
_NUMBER_OF_USER = "(SELECT u.number FROM user_keys k JOIN users u ON u.place = k.place WHERE k.key = ? AND u.id = ?)"
_RECALL = (
    f"SELECT item_id, datetime, event, weight, number FROM event_rows WHERE user = {_NUMBER_OF_USER} "  # noqa: S608
    "ORDER BY datetime DESC, number DESC LIMIT ?"
)
_COUNT_ANSWERS = f"SELECT count(*) FROM answer_rows WHERE user = {_NUMBER_OF_USER} AND datetime >= ? AND policy GLOB ?"  # noqa: S608


@dataclass(frozen=True)
class Observation:
    """An event of a user; its item need not be known to the bundle, which may come to know it."""

    user_id: Id
    item_id: Id
    event: str | None  # type, such as `purchase` or `DISMISS`
    datetime: int  # UTC seconds
    weight: float | None = None
    request_id: str | None = None  # the answer that the user reacted to


@dataclass(frozen=True)
class Impressions:
    """The items of one answer, best first: the item at index i was shown at position i + 1."""

    request_id: str  # one call may ask for many users: its answers share it
    user_id: Id | None
    datetime: int  # UTC seconds
    bundle_version: str
    policy: str  # how the order came about, such as `greedy`: by falling score
    item_ids: Sequence[Id]
    scores: Sequence[float]
    propensities: Sequence[
        float
    ]  # of each item at its position, given the request; 1 where nothing was drawn
    arm: str | None = None


@dataclass(frozen=True)
class Recalled:
    """The live events of a user, oldest first and at one time as they arrived, and their dismissed items."""

    history: History = field(
        default_factory=lambda: History(np.empty(0, dtype=np.object_))
    )
    dismissed: tuple[Id, ...] = ()
    is_forgotten: bool = False


class StateStore:
    """The live state of a run; safe to use from many threads, and beside other processes."""

    def __init__(
        self,
        path: Path,
        runs: Sequence[Path] | None = None,
        retention_days: float = RETENTION_DAYS,
    ) -> None:
        """Open `DIR/state/state.db`, made if need be; forgotten users of `runs`, by default DIR, are heeded."""
        if not 0 < retention_days < _MAX_RETENTION:
            raise ValueError(
                f"retention_days is {retention_days:g}; allowed: above 0, below {_MAX_RETENTION}"
            )
        self.path = path
        self.retention_days = retention_days
        self.fault: Exception | None = None  # why the last write failed
        self._lock = threading.Lock()
        self._runs = runs or [path.absolute().parent.parent]
        self._readers: deque[sqlite3.Connection] = deque()
        self._writer = open_database(path, MARK, _TABLES)
        (self._salt,) = self._writer.execute("SELECT value FROM salt").fetchone()
        sync_folder(path.absolute().parent.parent)

    def observe(
        self,
        user_id: Id,
        item_id: Id,
        event: str | None,
        time: int,
        weight: float | None = None,
    ) -> bool:
        """Keep one event at a time in UTC seconds, as `observe_many` does; say whether it was kept."""
        return (
            self.observe_many([Observation(user_id, item_id, event, time, weight)]) == 1
        )

    def observe_many(self, observations: Iterable[Observation]) -> int:
        """Keep events, all or none, each once; return how many are on disk now: none of forgotten users."""
        given = list(observations)
        for one in given:
            _check(one)
        with self._writing() as connection:
            numbers = self._number_users(connection, (one.user_id for one in given))
            kept = [
                (one, numbers[str(one.user_id)])
                for one in given
                if str(one.user_id) in numbers
            ]
            rows = (
                vars(one)
                | {"user": number, "undone_by": _UNDONE_BY.get(one.event or "")}
                for one, number in kept
            )
            plain = [
                {name: to_plain(value) for name, value in row.items()} for row in rows
            ]
            connection.executemany(
                _INSERT_EVENT, plain
            )  # SQLite would keep the bytes of a numpy number
        return len(kept)

    def log_impressions(self, answers: Iterable[Impressions]) -> None:
        """Keep what users were shown, all or none; nothing of forgotten users."""
        given = list(answers)
        for one in given:
            check_seconds(one.datetime, "datetime")
            if one.user_id is not None:
                check_id(one.user_id, "user_id")
        with self._writing() as connection:
            numbers = self._number_users(
                connection, (one.user_id for one in given if one.user_id is not None)
            )
            for one in given:
                if one.user_id is None or str(one.user_id) in numbers:
                    head = (
                        one.request_id,
                        numbers.get(str(one.user_id)),
                        to_plain(one.datetime),
                    )
                    values = (*head, one.bundle_version, one.policy, one.arm)
                    number = connection.execute(_INSERT_ANSWER, values).lastrowid
                    figures = (
                        map(float, each) for each in (one.scores, one.propensities)
                    )
                    slots = enumerate(
                        zip(map(to_plain, one.item_ids), *figures, strict=True), start=1
                    )
                    rows = [(number, position, *slot) for position, slot in slots]
                    connection.executemany(
                        "INSERT INTO shown VALUES (?, ?, ?, ?, ?)", rows
                    )

    def recall(self, user_id: Id) -> Recalled:
        """Return what there is of a user, of very many events the latest; ids of items as they were stored."""
        if any(is_forgotten(run, user_id) for run in self._runs):
            return Recalled(is_forgotten=True)
        rows = self._read(
            _RECALL, user_key(self._salt, str(user_id)), str(user_id), _MAX_RECALLED
        )[::-1]
        taken = [row for row in rows if row[2] not in _UNDONE_BY][-_MAX_LIVE:]
        item_ids, times, events, weights, _ = (
            zip(*taken, strict=True) if taken else ((), (), (), (), ())
        )
        texts = np.array(events, dtype=np.object_)  # None becomes NaN
        numbers = np.array(weights, dtype=np.float64)
        history = History(
            np.array(item_ids, dtype=np.object_),
            np.array(times, dtype=np.int64),
            texts,
            numbers,
        )
        return Recalled(history, _list_dismissed(rows))

    def count_answers(self, user_id: Id, since: int, policy: str) -> int:
        """Count the lists that a user was shown since a moment, of policies that begin so."""
        ((count,),) = self._read(
            _COUNT_ANSWERS,
            user_key(self._salt, str(user_id)),
            str(user_id),
            since,
            f"{policy}*",
        )
        return int(count)

    def is_recent(self, time: int, now: int) -> bool:
        """Tell whether `expire_slices` would leave what happened then."""
        return time >= now - self.retention_days * DAY

    def expire_slices(self, now: int) -> Iterator[int]:
        """Remove what is older than the retention window, a slice at a time, so that no event waits for long.

        Yield how many events and answers each slice was.
        """
        check_seconds(int(now), "now")  # by milliseconds everything would be old
        for gone in self._delete_slices(
            "datetime < ?", now - self.retention_days * DAY
        ):
            yield gone["event_rows"] + gone["answer_rows"]
        unused = self._read("SELECT place, id FROM unused_users")
        for start in range(0, len(unused), _MAX_SLICE):
            with self._writing() as connection:
                for place, text in unused[start : start + _MAX_SLICE]:
                    if connection.execute(
                        f"{_ERASE_USER} {_IS_UNUSED}", (place, text)
                    ).rowcount:
                        connection.execute(
                            _DELETE_KEY, (user_key(self._salt, text), place)
                        )
            yield 0
        self._empty_log()

    def list_known(self, user_ids: Iterable[Id]) -> set[str]:
        """Return, as texts, the users of whom there are events or answers."""
        keys = {text: user_key(self._salt, text) for text in map(str, user_ids)}
        found = {text: self._read(_FIND_USER, text, key) for text, key in keys.items()}
        return {
            text
            for text, rows in found.items()
            if any(number is not None for _, number in rows)
        }

    def forget(self, *user_ids: Id) -> dict[str, int]:
        """Erase users, so that nothing in the file or its log leads to them; return how many rows there were.

        Others read and write meanwhile. After an error it may be done again.
        """
        for user_id in user_ids:
            check_id(user_id, "user_id")
        keys = {
            str(user_id): user_key(self._salt, str(user_id)) for user_id in user_ids
        }
        found = [
            (key, *row)
            for text, key in keys.items()
            for row in self._read(_FIND_USER, text, key)
        ]
        n_gone: Counter[str] = Counter()
        for *_, number in found:
            for gone in self._delete_slices("user = ?", number):
                n_gone.update(gone)
        if found:
            with self._writing() as connection:
                connection.executemany(
                    f"{_ERASE_USER} AND number = ?", [one[1:] for one in found]
                )
            self._empty_log()
            with (
                self._writing() as connection
            ):  # not before: who is forgotten again has their log emptied
                connection.executemany(_DELETE_KEY, [one[:2] for one in found])
        return {"events": n_gone["event_rows"], "impressions": n_gone["shown"]}

    def close(self) -> None:
        self._writer.close()
        while self._readers:
            self._readers.pop().close()

    def _number_users(
        self, connection: sqlite3.Connection, user_ids: Iterable[Id]
    ) -> dict[str, int]:
        """Return id as a text -> number of the users that are not forgotten; whoever is new gets one."""
        erased = [
            current_erasure_list(run) for run in self._runs
        ]  # whoever comes on it from here on is erased later
        kept = {
            str(one): one
            for one in user_ids
            if not any(each.holds(one) for each in erased)
        }
        return {
            text: self._number_user(connection, text, isinstance(one, str))
            for text, one in kept.items()
        }

    def _number_user(
        self, connection: sqlite3.Connection, text: str, is_text: bool
    ) -> int:
        key = user_key(self._salt, text)
        for _, number in connection.execute(_FIND_USER, (text, key)):
            if number is not None:
                return int(number)
        ((place, number),) = connection.execute(
            _ADD_USER, {"id": text, "is_integer": not is_text}
        ).fetchall()
        connection.execute("REPLACE INTO user_keys VALUES (?, ?)", (key, place))
        return int(number)

    def _delete_slices(
        self, condition: str, value: float | None
    ) -> Iterator[Counter[str]]:
        """Delete events and answers that meet a condition; others write between; yield how many went each time."""
        is_done = False
        while not is_done:
            begun = time.monotonic()
            with self._writing() as connection:
                gone, is_done = _delete_some(connection, condition, value)
            took = time.monotonic() - begun
            self._read(
                "PRAGMA wal_checkpoint(PASSIVE)"
            )  # while others write, so that their commits need not do it
            time.sleep(0 if is_done else took)
            yield gone

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
                connection.execute(
                    "PRAGMA wal_checkpoint(PASSIVE)"
                )  # most of the work, while others write
                is_busy = connection.execute(
                    "PRAGMA wal_checkpoint(TRUNCATE)"
                ).fetchone()[0]
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
            with self._lock, name_fault(self.path), self._writer:
                n_changes = self._writer.total_changes
                self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
        except (OSError, BundleError) as error:
            self.fault = (
                self.fault if getattr(error, "errno", None) == errno.EBUSY else error
            )
            raise
        if (
            self._writer.total_changes > n_changes
        ):  # where nothing was to be written, the disk may still be full
            self.fault = None

    def _read(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with name_fault(self.path):
            reader = (
                self._readers.pop() if self._readers else open_database(self.path, MARK)
            )
            rows = reader.execute(query, values).fetchall()
        self._readers.append(reader)
        return rows


def _delete_some(
    connection: sqlite3.Connection, condition: str, value: float | None
) -> tuple[Counter[str], bool]:
    """Delete rows that meet a condition for a moment; return how many of each table, and whether these were all."""
    n_gone = Counter[str]()
    end = time.monotonic() + _SLICE
    for table in ("event_rows", "answer_rows"):
        query = f"SELECT number FROM {table} WHERE {condition} LIMIT {_MAX_SLICE}"  # noqa: S608
        for number in connection.execute(query, (value,)).fetchall():
            if table == "answer_rows":
                n_gone["shown"] += connection.execute(
                    "DELETE FROM shown WHERE answer = ?", number
                ).rowcount
            n_gone[table] += connection.execute(
                f"DELETE FROM {table} WHERE number = ?",  # noqa: S608
                number,
            ).rowcount
            if time.monotonic() > end:
                return n_gone, False
    return n_gone, max(n_gone["event_rows"], n_gone["answer_rows"]) < _MAX_SLICE


def _check(one: Observation) -> None:
    """Refuse an event that nobody could read again; a weight of NaN is none."""
    check_id(one.user_id, "user_id")
    check_id(one.item_id, "item_id")
    check_seconds(one.datetime, "datetime")
    if one.weight == one.weight:
        parse_weight(one.weight, "weight")
    if not (one.event is None or isinstance(one.event, str)):
        raise SchemaError(f"event is {show(one.event)}; expected a text, or None")


def _list_dismissed(rows: Iterable[tuple[Any, ...]]) -> tuple[Id, ...]:
    """Return the items whose dismissal was not taken back: what arrived last counts, whatever the clocks say."""
    dismissed: dict[str, Id] = {}  # 7 and "7" are the same item
    for item_id, _, event, *_ in sorted(
        (row for row in rows if row[2] in _UNDONE_BY), key=lambda row: row[4]
    ):
        if event == DISMISS:
            dismissed.setdefault(str(item_id), item_id)
        else:
            dismissed.pop(str(item_id), None)
    return tuple(dismissed.values())


def parse_observations(
    raw: Sequence[Mapping[str, Any]], schema: Schema, now: int
) -> list[Observation]:
    """Check a list of {user_id, item_id, event?, datetime?, weight?, request_id?}; `now` is the time of the others."""
    return [
        _parse(event, f"events[{index}]", schema, now)
        for index, event in enumerate(raw)
    ]


def _parse(raw: Mapping[str, Any], where: str, schema: Schema, now: int) -> Observation:
    time = raw.get("datetime")
    request_id = raw.get("request_id")
    seconds = (
        now
        if time is None
        else parse_times([time], schema.timezone, lambda _: f"{where}.datetime")[0]
    )
    if seconds > now + _CLOCK_TOLERANCE:
        raise SchemaError(
            f"{where}.datetime is {show(time)}; expected the time when it happened, not one to come"
        )
    if not (
        request_id is None
        or (isinstance(request_id, str) and _REQUEST_ID.fullmatch(request_id))
    ):
        raise SchemaError(
            f"{where}.request_id is {show(request_id)}; expected the request_id of an answer"
        )
    return Observation(
        user_id=parse_id(raw.get("user_id"), schema.user_id_type, f"{where}.user_id"),
        item_id=parse_id(raw.get("item_id"), schema.item_id_type, f"{where}.item_id"),
        event=to_text(parse_label(raw.get("event"), f"{where}.event")),
        datetime=seconds,
        weight=parse_weight(raw.get("weight"), f"{where}.weight"),
        request_id=request_id,
    )


class ImpressionLog:
    """A thread that writes what was shown behind the answers, and once an hour removes what is too old."""

    def __init__(self, store: StateStore) -> None:
        self.store = store
        self._waiting: deque[Impressions] = deque()
        self._is_closing = threading.Event()
        self._expire_at = 0.0
        self._expiring: Iterator[int] = iter(())
        self.n_lost = 0  # impressions that could not be written
        self._thread = threading.Thread(
            target=self._work, name="bascule-impressions", daemon=True
        )
        self._thread.start()

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def notes(self) -> list[str]:
        """Say that nothing is logged any more, if that is so."""
        return (
            []
            if self._thread.is_alive()
            else ["what is shown is no longer logged; start the service again"]
        )

    def add(self, impressions: Sequence[Impressions]) -> None:
        """Let impressions be written soon."""
        while len(self._waiting) >= _MAX_LISTS and self._thread.is_alive():
            time.sleep(_PAUSE)
        if self._thread.is_alive():
            self._waiting.extend(impressions)
        else:
            self.n_lost += len(impressions)

    def close(self) -> None:
        """Write what waits, then end."""
        self._is_closing.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._is_closing.wait(_PAUSE):
            self._write()
            self._expire()
        self._write()

    def _expire(self) -> None:
        """Remove a slice of what is too old; begin anew once an hour."""
        try:
            if time.monotonic() >= self._expire_at:
                self._expire_at = time.monotonic() + _HOUR
                self._expiring = self.store.expire_slices(int(time.time()))
            next(self._expiring, None)
        except (OSError, BundleError, sqlite3.Error) as error:
            _LOG.error("not all was removed for its age: %s", type(error).__name__)

    def _write(self) -> None:
        while self._waiting:
            taken = [
                self._waiting.popleft()
                for _ in range(min(_MAX_AT_ONCE, len(self._waiting)))
            ]
            try:
                self.store.log_impressions(taken)
            except (OSError, BundleError, sqlite3.Error) as error:
                self.n_lost += len(taken)
                _LOG.error(
                    "%d impressions could not be written: %s",
                    len(taken),
                    type(error).__name__,
                )
