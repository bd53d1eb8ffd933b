"""The state of a service: events of users, what they were shown, and who was forgotten, in `DIR/state/state.db`.

events     what users did, dismissals included
dismissed  the items that users do not want to see
answers    one row per answer: request, user, time, version of the bundle, policy
shown      the items of each answer: position from 1, and score
feedback   a view: every item that was shown, with the events of the user on it that followed; an event that names its
           request follows that answer, whatever the clock of its sender says, another one every earlier answer

An id is kept as it came; 7 and "7" are the same user and the same item.
"""

from __future__ import annotations

import errno
import hmac
import json
import logging
import os
import re
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from serve.durable import name_fault, open_database, sync_folder
from serve.encode import to_text
from serve.errors import BundleError, SchemaError, name_nearest
from serve.profiles import Profiles
from serve.requests import (
    INTEGER,
    MAX_SHOWN,
    History,
    Id,
    Request,
    check_id,
    check_list,
    check_seconds,
    parse_id,
    parse_label,
    parse_times,
    parse_weight,
    show,
    to_plain,
)
from serve.schema import Schema

DISMISS, UNDISMISS = "dismiss", "undismiss"
"""Events that hide their item from the user, and that take this back; neither is part of the history."""
FORGOTTEN = "forgotten.json"
"""File of a run with the erasure list."""
ERASURE_FORMAT = 1
RETENTION_DAYS = 365.0
_MAX_RETENTION = 36_500
_DAY = 86_400
_CLOCK_TOLERANCE = _DAY  # seconds that a caller's clock, or its time zone, may be ahead of ours
_MAX_RECALLED = 10_000  # events of a user, the latest
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MARK = 0x42530001  # "BS" and the format
_TABLES = (
    "CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY, user_id NOT NULL, item_id NOT NULL, event TEXT, "
    "datetime INTEGER NOT NULL, weight REAL, request_id TEXT)",
    "CREATE INDEX IF NOT EXISTS events_of_user ON events (user_id, datetime)",
    "CREATE INDEX IF NOT EXISTS events_in_time ON events (datetime)",
    "CREATE TABLE IF NOT EXISTS answers (number INTEGER PRIMARY KEY, request_id TEXT NOT NULL, user_id, "
    "datetime INTEGER NOT NULL, bundle_version TEXT NOT NULL, policy TEXT NOT NULL)",
    "CREATE INDEX IF NOT EXISTS answers_of_user ON answers (user_id)",
    "CREATE INDEX IF NOT EXISTS answers_in_time ON answers (datetime)",
    "CREATE TABLE IF NOT EXISTS shown (answer INTEGER, position INTEGER, item_id NOT NULL, score REAL NOT NULL, "
    "PRIMARY KEY (answer, position)) WITHOUT ROWID",
    "DROP VIEW IF EXISTS feedback",
    "CREATE VIEW feedback AS SELECT a.request_id, a.user_id, a.datetime, a.bundle_version, a.policy, "
    "s.position, s.item_id, s.score, e.event, e.weight, e.datetime AS event_datetime "
    "FROM answers a JOIN shown s ON s.answer = a.number LEFT JOIN events e ON e.user_id = a.user_id "
    "AND e.item_id = s.item_id "
    "AND (e.request_id = a.request_id OR (e.request_id IS NULL AND e.datetime >= a.datetime))",
)
_DISMISSED = (  # files of earlier releases have no such table: their dismissals are those that came last of an item
    "CREATE TABLE dismissed (user_id NOT NULL, item_id NOT NULL, datetime INTEGER NOT NULL, "
    "PRIMARY KEY (user_id, item_id))",
    "INSERT INTO dismissed SELECT user_id, item_id, datetime FROM events WHERE event = 'dismiss' AND number IN "
    "(SELECT max(number) FROM events WHERE event IN ('dismiss', 'undismiss') GROUP BY user_id, item_id)",
)
_INSERT_EVENT = (  # an event that is sent again, since its acknowledgement was lost, counts once, unless it was undone
    "INSERT INTO events (user_id, item_id, event, datetime, weight, request_id) "
    "SELECT :user_id, :item_id, :event, :datetime, :weight, :request_id WHERE NOT EXISTS (SELECT 1 FROM events "
    "WHERE user_id = :user_id AND datetime = :datetime AND item_id = :item_id AND event IS :event "
    "AND weight IS :weight AND number > (SELECT ifnull(max(number), 0) FROM events WHERE user_id = :user_id "
    "AND datetime = :datetime AND item_id = :item_id AND event = :undone_by))"
)
_UNDONE_BY = {DISMISS: UNDISMISS, UNDISMISS: DISMISS}
_INSERT_DISMISSED = "INSERT INTO dismissed VALUES (:user_id, :item_id, :datetime)"
_DELETE_DISMISSED = "DELETE FROM dismissed WHERE user_id IN (?, ?) AND item_id IN (?, ?)"
_INSERT_ANSWER = "INSERT INTO answers (request_id, user_id, datetime, bundle_version, policy) VALUES (?, ?, ?, ?, ?)"
_RECALL = (
    "SELECT item_id, datetime, event, weight FROM events WHERE user_id IN (?, ?) "
    "AND ifnull(event, '') NOT IN ('dismiss', 'undismiss') ORDER BY datetime DESC, number DESC LIMIT ?"
)
_DELETE = {
    "shown": "DELETE FROM shown WHERE answer IN (SELECT number FROM answers WHERE {})",
    "events": "DELETE FROM events WHERE {}",
    "dismissed": "DELETE FROM dismissed WHERE {}",
    "answers": "DELETE FROM answers WHERE {}",
}


@dataclass(frozen=True)
class Observation:
    """An event of a user; its item need not be known to the bundle, which may come to know it."""

    user_id: Id
    item_id: Id
    event: str | None
    """Type, such as `purchase` or `DISMISS`."""
    datetime: int
    """UTC seconds."""
    weight: float | None = None
    request_id: str | None = None
    """The answer that the user reacted to."""

    def check(self) -> None:
        """Refuse an event that nobody could read again; a weight of NaN is none."""
        check_id(self.user_id, "user_id")
        check_id(self.item_id, "item_id")
        check_seconds(self.datetime, "datetime")
        if self.weight is not None and self.weight == self.weight:
            parse_weight(self.weight, "weight")
        for name in ("event", "request_id"):
            value = getattr(self, name)
            if not (value is None or isinstance(value, str)):
                raise SchemaError(f"{name} is {show(value)}; expected a text, or None")


@dataclass(frozen=True)
class Impressions:
    """The items of one answer, best first: the item at index i was shown at position i + 1."""

    request_id: str
    """One call may ask for many users: its answers share it."""
    user_id: Id | None
    datetime: int
    """UTC seconds."""
    bundle_version: str
    policy: str
    """How the order came about, such as `greedy`: by falling score."""
    item_ids: Sequence[Id]
    scores: Sequence[float]


@dataclass(frozen=True)
class Recalled:
    """What the store has of a user: events oldest first, at one time as they arrived, and dismissed items."""

    history: History = field(default_factory=lambda: History(np.empty(0, dtype=np.object_)))
    dismissed: tuple[Id, ...] = ()
    is_forgotten: bool = False


@dataclass(frozen=True)
class ErasureList:
    """Keyed hashes of forgotten users, by salt; several salts where one run took over the list of another."""

    sets: tuple[tuple[bytes, frozenset[bytes]], ...] = ()

    def __len__(self) -> int:
        return sum(len(hashes) for _, hashes in self.sets)

    def holds(self, user_id: Id) -> bool:
        """Tell whether a user was forgotten; 7 and "7" are the same id."""
        return any(hash_id(salt, user_id) in hashes for salt, hashes in self.sets)


NOBODY = ErasureList()


def hash_id(salt: bytes, user_id: Id) -> bytes:
    return hmac.digest(salt, str(user_id).encode(errors="surrogatepass"), "sha256")


def read_erasure_list(run: Path) -> ErasureList:
    """Read the erasure list of a run's folder; empty if there is no file.

    Raises:
        BundleError: the file is damaged.
    """
    path = run / FORGOTTEN
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != ERASURE_FORMAT:
            raise BundleError(f"{path} is of format {content['format']}; allowed: {ERASURE_FORMAT}")
        if not all(isinstance(one, list) for one in (content["users"], *(one["hashes"] for one in content["users"]))):
            raise TypeError("expected lists of users and hashes")  # anything else that is empty names nobody, too
        entries = [(bytes.fromhex(one["salt"]), [*map(bytes.fromhex, one["hashes"])]) for one in content["users"]]
    except FileNotFoundError:
        return NOBODY
    except BundleError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is damaged: {error!r}; restore it, or users would not stay forgotten") from error
    return ErasureList(tuple((salt, frozenset(hashes)) for salt, hashes in entries))


class WatchedErasureList:
    """The erasure list of a run, read again when another process has changed it."""

    def __init__(self, run: Path) -> None:
        self._run, self._path = run, str(run / FORGOTTEN)
        self._latest: tuple[tuple[int, int], ErasureList] = (0, 0), NOBODY
        """A mark of the file and what it held, exchanged as one: many threads ask."""

    def holds(self, user_id: Id) -> bool:
        """Tell whether a user was forgotten.

        Raises:
            BundleError: the file is damaged.
        """
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return False
        mark, (seen, erased) = (status.st_ino, status.st_mtime_ns), self._latest
        if seen != mark:
            erased = read_erasure_list(self._run)
            self._latest = mark, erased
        return erased.holds(user_id)


class StateStore:
    """The live state of a run; safe to use from many threads, and beside other processes."""

    def __init__(self, path: Path, runs: Sequence[Path] | None = None, retention_days: float = RETENTION_DAYS) -> None:
        """Open the file, `DIR/state/state.db` of a run, made if need be.

        Args:
            path: of the file.
            runs: folders whose forgotten users are heeded: nothing of theirs is kept. Default: DIR alone.
            retention_days: how long `expire` leaves events and impressions.

        Raises:
            ValueError: `retention_days` is not above 0, or more than a century.
            BundleError: the file is something else.
            OSError: the disk is full or fails.
        """
        check_retention(retention_days, "retention_days")
        self.path = path
        self.retention_days = retention_days
        self._lock = threading.Lock()
        self._writer = open_database(path, "application_id", _MARK)
        self._readers: deque[sqlite3.Connection] = deque()
        self._erased = [WatchedErasureList(run) for run in runs or [path.absolute().parent.parent]]
        with self._writing() as connection:
            for statement in (*_TABLES, f"PRAGMA application_id = {_MARK}"):
                connection.execute(statement)
            if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'dismissed'").fetchone():
                for statement in _DISMISSED:
                    connection.execute(statement)
        sync_folder(path.absolute().parent.parent)

    def observe(self, user_id: Id, item_id: Id, event: str | None, time: int, weight: float | None = None) -> bool:
        """Keep one event, as `observe_many` does; say whether it was kept.

        Args:
            user_id: who did it.
            item_id: what it was done to.
            event: its type; None where there are none.
            time: whole UTC seconds.
            weight: such as a rating or a quantity.
        """
        return self.observe_many([Observation(user_id, item_id, event, time, weight)]) == 1

    def observe_many(self, observations: Iterable[Observation]) -> int:
        """Keep events, all or none; they are on disk when this returns.

        Returns:
            How many there are now: those of forgotten users are not kept. An event that is there already, equal in
            user, item, type, time and weight, is there once.

        Raises:
            SchemaError: a value of another type or out of range; none is kept.
            OSError: the disk is full or fails; none is kept.
        """
        given = list(observations)
        for one in given:
            one.check()
        with self._writing() as connection:  # whoever is forgotten from here on is erased after it
            rows = [_to_row(one) for one in given if not self._is_forgotten(one.user_id)]
            for row in rows:
                is_new = connection.execute(_INSERT_EVENT, row).rowcount
                if is_new and row["event"] in (DISMISS, UNDISMISS):
                    connection.execute(_DELETE_DISMISSED, (*_forms(row["user_id"]), *_forms(row["item_id"])))
                if is_new and row["event"] == DISMISS:
                    connection.execute(_INSERT_DISMISSED, row)
        return len(rows)

    def log_impressions(self, answers: Iterable[Impressions]) -> None:
        """Keep what users were shown, all or none; nothing of forgotten users.

        Raises:
            SchemaError: a time or a user of another type or out of range; none is kept.
            OSError: the disk is full or fails; none is kept.
        """
        given = list(answers)
        for one in given:
            check_seconds(one.datetime, "datetime")
            if one.user_id is not None:
                check_id(one.user_id, "user_id")
        with self._writing() as connection:
            for one in given:
                if one.user_id is None or not self._is_forgotten(one.user_id):
                    _insert_answer(connection, one)

    def recall(self, user_id: Id) -> Recalled:
        """Return what there is of a user, of very many events the latest; nothing of a forgotten one.

        Ids of items come as they were stored, in the type of the bundle of that time.
        """
        if self._is_forgotten(user_id):
            return Recalled(is_forgotten=True)
        rows = self._read(_RECALL, *_forms(user_id), _MAX_RECALLED)[::-1]
        dismissed = self._read("SELECT item_id FROM dismissed WHERE user_id IN (?, ?) ORDER BY rowid", *_forms(user_id))
        item_ids, times, events, weights = zip(*rows, strict=True) if rows else ((), (), (), ())
        history = History(
            np.array(item_ids, dtype=np.object_),
            np.array(times, dtype=np.int64),
            np.array(events, dtype=np.object_),
            np.array(weights, dtype=np.float64),  # None becomes NaN
        )
        return Recalled(history, tuple(item_id for (item_id,) in dismissed))

    def history(self, user_id: Id) -> History:
        """Return a user's events, oldest first, without dismissals."""
        return self.recall(user_id).history

    def dismissed(self, user_id: Id) -> tuple[Id, ...]:
        """Return the items that a user does not want to see."""
        return self.recall(user_id).dismissed

    def is_recent(self, time: int, now: int) -> bool:
        """Tell whether `expire` would leave what happened then."""
        return time >= now - self.retention_days * _DAY

    def expire(self, now: int) -> int:
        """Remove what is older than the retention window; return how many events and answers that were.

        Raises:
            SchemaError: `now` is not in seconds: by milliseconds everything would be old.
            OSError: the disk is full or fails.
        """
        check_seconds(int(now), "now")
        with self._writing() as connection:
            n_gone = self._delete(connection, "datetime < ?", now - self.retention_days * _DAY)
        with self._lock, name_fault(self.path):
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return n_gone["events"] + n_gone["answers"]

    def forget(self, *user_ids: Id) -> dict[str, int]:
        """Erase users, so that no byte of them stays in the file or its log.

        What arrives of them later is kept again, unless they are on the erasure list: see `serve.erasure`.

        Returns:
            How many `events` and `impressions` there were.

        Raises:
            SchemaError: no id, such as a list of ids; nothing is erased.
            OSError: the disk is full or fails, or another process reads on and on. Call it again then.
        """
        for user_id in user_ids:
            check_id(user_id, "user_id")
        counts = {"events": 0, "impressions": 0}
        with self._writing() as connection:
            for user_id in user_ids:
                n_gone = self._delete(connection, "user_id IN (?, ?)", *_forms(user_id))
                counts = {
                    "events": counts["events"] + n_gone["events"],
                    "impressions": counts["impressions"] + n_gone["shown"],
                }
        with self._lock, name_fault(self.path):  # `secure_delete` leaves copies of rows that moved between pages
            self._writer.execute("VACUUM")
            is_busy, *_ = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_busy:
            raise OSError(errno.EBUSY, "another process keeps its log from being emptied: try again", str(self.path))
        return counts

    def close(self) -> None:
        self._writer.close()
        while self._readers:
            self._readers.pop().close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Yield the writer inside a transaction: on disk at the end, or undone by an error."""
        with self._lock, name_fault(self.path), self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            yield self._writer

    def _read(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with name_fault(self.path):
            reader = self._readers.pop() if self._readers else open_database(self.path, "application_id", _MARK)
            rows = reader.execute(query, values).fetchall()
        self._readers.append(reader)
        return rows

    def _delete(self, connection: sqlite3.Connection, condition: str, *values: Any) -> dict[str, int]:
        """Delete the rows that meet a condition; return how many of each table."""
        counts = ((name, connection.execute(one.format(condition), values).rowcount) for name, one in _DELETE.items())
        return dict(counts)

    def _is_forgotten(self, user_id: Id) -> bool:
        return any(one.holds(user_id) for one in self._erased)


def check_retention(days: float, name: str) -> None:
    """Refuse a retention that would keep nothing, or everything for ever.

    Raises:
        ValueError: names it as it was given.
    """
    if not 0 < days < _MAX_RETENTION:
        raise ValueError(f"{name} is {days:g}; allowed: above 0, below {_MAX_RETENTION}")


def _forms(user_id: Id) -> tuple[Id, Id]:
    """Return an id as a text and, if it is written as one, as an integer: bundles differ in the type of their ids."""
    text = str(user_id)
    is_whole = INTEGER.fullmatch(text) and -(2**63) <= int(text) < 2**63
    return text, int(text) if is_whole else text


def _to_row(one: Observation) -> dict[str, Any]:
    values = vars(one) | {"undone_by": _UNDONE_BY.get(one.event or "")}
    return {name: to_plain(value) for name, value in values.items()}  # SQLite would keep the bytes of a numpy number


def _insert_answer(connection: sqlite3.Connection, one: Impressions) -> None:
    head = (one.request_id, to_plain(one.user_id), to_plain(one.datetime), one.bundle_version, one.policy)
    number = connection.execute(_INSERT_ANSWER, head).lastrowid
    pairs = zip(map(to_plain, one.item_ids), one.scores, strict=True)
    rows = [(number, position, item_id, float(score)) for position, (item_id, score) in enumerate(pairs, start=1)]
    connection.executemany("INSERT INTO shown VALUES (?, ?, ?, ?)", rows)


def parse_observations(raw: Any, schema: Schema, now: int) -> list[Observation]:
    """Check a list of {user_id, item_id, event?, datetime?, weight?, request_id?}.

    Args:
        raw: as it came.
        schema: of the bundle, for the types of ids and the time zone.
        now: UTC seconds, the time of events that have none.

    Raises:
        SchemaError: an unknown field, a value of the wrong type, or a time to come; names the event.
    """
    return [
        _parse_event(event, f"events[{index}]", schema, now) for index, event in enumerate(check_list(raw, "events"))
    ]


def _parse_event(raw: Any, where: str, schema: Schema, now: int) -> Observation:
    if not isinstance(raw, Mapping):
        raise SchemaError(f"{where} is {show(raw)}; expected a mapping of names to values")
    names = [field.name for field in fields(Observation)]
    for name in raw:
        if name not in names:
            raise SchemaError(f"{where}: unknown name {show(name)}; {name_nearest(str(name)[:MAX_SHOWN], names)}")
    time, request_id = raw.get("datetime"), raw.get("request_id")
    (seconds,) = [now] if time is None else parse_times([time], schema.timezone, lambda _: f"{where}.datetime")
    if seconds > now + _CLOCK_TOLERANCE:
        advice = "more than a day to come; give the time when it happened"
        raise SchemaError(f"{where}.datetime is {show(time)}, {advice}")
    if not (request_id is None or (isinstance(request_id, str) and _REQUEST_ID.fullmatch(request_id))):
        raise SchemaError(f"{where}.request_id is {show(request_id)}; expected the request_id of an answer")
    return Observation(
        user_id=parse_id(raw.get("user_id"), schema.user_id_type, f"{where}.user_id"),
        item_id=parse_id(raw.get("item_id"), schema.item_id_type, f"{where}.item_id"),
        event=to_text(parse_label(raw.get("event"), f"{where}.event")),
        datetime=seconds,
        weight=parse_weight(raw.get("weight"), f"{where}.weight"),
        request_id=request_id,
    )


def complete(request: Request, profiles: Profiles, state: StateStore) -> Request:
    """Return the request with the user's live events and dismissals in it.

    If it brings no history of its own, its history becomes that of the profile and the live events, by time. Dismissed
    items are excluded, whatever history it has. The profile of a forgotten user, which a process that loaded it earlier
    may still hold, is not read.
    """
    user_id = _to_kind(request.user_id, profiles.user_ids)
    if user_id != request.user_id or type(user_id) is not type(request.user_id):
        request = replace(request, user_id=user_id)
    return complete_with(request, profiles, recall(request, state))


def recall(request: Request, state: StateStore) -> Recalled:
    """Return what the store has of the user of a request; nothing of an anonymous one."""
    return Recalled() if request.user_id is None else state.recall(request.user_id)


def complete_with(request: Request, profiles: Profiles, recalled: Recalled) -> Request:
    """Do as `complete` with what was recalled for the request."""
    if recalled.is_forgotten:
        history = History(profiles.history.item_id[:0]) if request.history is None else request.history
        return replace(request, history=history, features=request.features or {})
    dismissed = _fit_ids(recalled.dismissed, profiles)
    if dismissed:
        request = replace(request, exclude=tuple(dict.fromkeys((*request.exclude, *dismissed.values()))))
    if request.user_id is None or request.history is not None:
        return request
    fitted = _fit_ids(recalled.history.item_id.tolist(), profiles)
    if not fitted:
        return request
    ids = np.array([*fitted.values()], dtype=profiles.history.item_id.dtype)
    live = replace(recalled.history.take(np.array([*fitted])), item_id=ids)
    profile = profiles.get(request.user_id)
    return replace(request, history=live if profile is None else _join(profile.history, live))


def _to_kind(one: Id | None, ids: np.ndarray) -> Id | None:
    """Return an id in the type of others if it can be one: a text for 7, an integer for "7"."""
    if one is None:
        return None
    text, number = _forms(one)
    return text if ids.dtype == np.object_ else number


def _fit_ids(item_ids: Sequence[Id], profiles: Profiles) -> dict[int, Id]:
    """Return position -> id in the type of the profiles' items, without those that cannot be one."""
    ids = profiles.history.item_id
    kind = str if ids.dtype == np.object_ else int
    fitted = ((place, _to_kind(one, ids)) for place, one in enumerate(item_ids))
    return {place: one for place, one in fitted if isinstance(one, kind)}


def _join(known: History, live: History) -> History:
    """Put a profile's events and live ones in the order of time; at one time the profile's come first.

    Live events that the profile has too do not count again: data may have been trained on since they came.
    """
    if not len(known):
        return live
    if known.datetime is None:  # nothing tells when they happened, but that it was before
        return _append(known, live.take(slice(_count_known(known, live), None)))
    joined = _append(known, live)
    columns = (joined.item_id, joined.datetime, None if known.event is None else joined.event)
    keys = list(zip(*(one.tolist() for one in columns if one is not None), strict=True))
    seen = set(keys[: len(known)])
    kept = np.array([place for place, key in enumerate(keys) if place < len(known) or key not in seen])
    order = np.argsort(np.array([keys[place][1] for place in kept]), kind="stable")
    return joined.take(kept[order])


def _count_known(known: History, live: History) -> int:
    """Return how many of the first live events are the profile's last ones, in their order: the longest such run."""
    ours = [*zip(*(values.tolist()[-len(live) :] for values in known.columns().values()), strict=True)]
    theirs = [*zip(*(getattr(live, name).tolist() for name in known.columns()), strict=True)]
    ours, theirs = ([tuple(None if one != one else one for one in row) for row in rows] for rows in (ours, theirs))
    return next((n for n in range(len(ours), 0, -1) if ours[-n:] == theirs[:n]), 0)


def _append(known: History, live: History) -> History:
    """Put live events behind a profile's; None and NaN fill a column that the profile lacks."""
    n = len(known)
    blank = {"event": np.full(n, None, dtype=np.object_), "weight": np.full(n, np.nan)}
    columns = blank | known.columns()
    return History(**{name: np.concatenate([values, getattr(live, name)]) for name, values in columns.items()})


_LOG = logging.getLogger("serve.http")
_MAX_WAITING = 250_000  # items of the lists in the queue: if the disk does not keep up, answers wait for it
_MAX_AT_ONCE = 50_000  # items of one transaction: events wait for its end
_PAUSE = 0.1  # seconds between looks at the queue: one transaction holds many lists
_HOUR = 3600.0


class ImpressionLog:
    """A thread that writes what was shown behind the answers, and once an hour removes what is too old."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._waiting: deque[Impressions] = deque()
        self._n_items = 0
        self._counting = threading.Lock()
        self._is_closing = threading.Event()
        self._expire_at = 0.0
        self.n_lost = 0
        """Impressions that could not be written."""
        self._thread = threading.Thread(target=self._work, name="bascule-impressions", daemon=True)
        self._thread.start()

    @property
    def is_full(self) -> bool:
        """Whether `add` would wait for the disk now."""
        return self._n_items >= _MAX_WAITING and self._thread.is_alive()

    @property
    def notes(self) -> list[str]:
        """Say that nothing is logged any more, if that is so."""
        if self._thread.is_alive():
            return []
        return ["what is shown is no longer logged: the log of the service has failed; start it again"]

    def add(self, impressions: Sequence[Impressions]) -> None:
        """Let impressions be written soon."""
        while self.is_full:
            time.sleep(_PAUSE)
        if not self._thread.is_alive():
            self.n_lost += len(impressions)
            return
        with self._counting:
            self._n_items += sum(map(_size, impressions))
            self._waiting.extend(impressions)

    def close(self) -> None:
        """Write what waits, then end."""
        self._is_closing.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._is_closing.wait(_PAUSE):
            self._write()
            if time.monotonic() >= self._expire_at:
                self._expire_at = time.monotonic() + _HOUR
                try:
                    self._store.expire(int(time.time()))
                except (OSError, BundleError, sqlite3.Error) as error:
                    _LOG.error("nothing was removed for its age: %s", type(error).__name__)
        self._write()

    def _write(self) -> None:
        while taken := self._take():
            try:
                self._store.log_impressions(taken)
            except (OSError, BundleError, sqlite3.Error) as error:
                if self._may_wait(error):
                    self._waiting.extendleft(reversed(taken))
                    return
                self.n_lost += len(taken)
                _LOG.error("%d impressions could not be written: %s", len(taken), type(error).__name__)
            with self._counting:
                self._n_items -= sum(map(_size, taken))

    def _may_wait(self, error: Exception) -> bool:
        """Tell whether to try again: a file that is written anew, to forget somebody, is free again in a while."""
        is_busy = isinstance(error, OSError) and error.errno == errno.EBUSY
        return is_busy and self._n_items < _MAX_WAITING // 2 and not self._is_closing.is_set()

    def _take(self) -> list[Impressions]:
        """Take the next lists from the queue, not more than one transaction should hold."""
        taken: list[Impressions] = []
        while self._waiting and sum(map(_size, taken)) < _MAX_AT_ONCE:
            taken.append(self._waiting.popleft())
        return taken


def _size(one: Impressions) -> int:
    """Return how many items a list counts as: an empty one takes room too."""
    return max(1, len(one.item_ids))
