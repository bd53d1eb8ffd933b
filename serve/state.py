"""The state of a service: events of users, what they were shown, and who was forgotten, in `DIR/state/state.db`.

events     what users did, dismissals included
answers    one row per answer: request, user, time, version of the bundle, policy
shown      the items of each answer: position from 1, and score
feedback   a view: every item that was shown, with the events of the user on it that followed; an event that names its
           request follows that answer, whatever the clock of its sender says, another one every earlier answer

An id is kept as it came; 7 and "7" are the same user and the same item.
"""

from __future__ import annotations

import errno
import logging
import re
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from serve.durable import is_forgotten, name_fault, open_database, sync_folder
from serve.encode import to_text
from serve.errors import BundleError, SchemaError
from serve.profiles import Profiles
from serve.requests import (
    INTEGER,
    History,
    Id,
    Request,
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

DISMISS, UNDISMISS = "dismiss", "undismiss"  # hide an item, and take this back; neither is part of the history
RETENTION_DAYS = 365.0
_MAX_RETENTION = 36_500
_DAY = 86_400
_CLOCK_TOLERANCE = _DAY  # seconds that a caller's clock, or its time zone, may be ahead of ours
_MAX_RECALLED, _MAX_LIVE = 10_000, 1000  # latest events of a user: of dismissals, and of those in the history
_LOG = logging.getLogger("serve.http")
_MAX_LISTS = 20_000  # in the queue: if the disk does not keep up, answers wait for it
_MAX_AT_ONCE = 1000  # lists of one transaction: events wait for its end
_PAUSE = 0.1  # seconds between looks at the queue: one transaction holds many lists
_HOUR = 3600.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MARK = 0x42530001  # "BS" and the format
_TABLES = """
CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY, user_id NOT NULL, item_id NOT NULL, event TEXT,
    datetime INTEGER NOT NULL, weight REAL, request_id TEXT);
CREATE INDEX IF NOT EXISTS events_of_user ON events (user_id, datetime);
CREATE INDEX IF NOT EXISTS events_in_time ON events (datetime);
CREATE TABLE IF NOT EXISTS answers (number INTEGER PRIMARY KEY, request_id TEXT NOT NULL, user_id,
    datetime INTEGER NOT NULL, bundle_version TEXT NOT NULL, policy TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS answers_of_user ON answers (user_id);
CREATE INDEX IF NOT EXISTS answers_in_time ON answers (datetime);
CREATE TABLE IF NOT EXISTS shown (answer INTEGER, position INTEGER, item_id NOT NULL, score REAL NOT NULL,
    PRIMARY KEY (answer, position)) WITHOUT ROWID;
CREATE VIEW IF NOT EXISTS feedback AS SELECT a.request_id, a.user_id, a.datetime, a.bundle_version, a.policy,
    s.position, s.item_id, s.score, e.event, e.weight, e.datetime AS event_datetime
    FROM answers a JOIN shown s ON s.answer = a.number LEFT JOIN events e ON e.user_id = a.user_id
    AND e.item_id = s.item_id
    AND (e.request_id = a.request_id OR (e.request_id IS NULL AND e.datetime >= a.datetime));
"""
_INSERT_EVENT = (  # an event that is sent again, since its acknowledgement was lost, counts once, unless it was undone
    "INSERT INTO events (user_id, item_id, event, datetime, weight, request_id) "
    "SELECT :user_id, :item_id, :event, :datetime, :weight, :request_id WHERE NOT EXISTS (SELECT 1 FROM events "
    "WHERE user_id = :user_id AND datetime = :datetime AND item_id = :item_id AND event IS :event "
    "AND weight IS :weight AND number > (SELECT ifnull(max(number), 0) FROM events WHERE user_id = :user_id "
    "AND datetime = :datetime AND item_id = :item_id AND event = :undone_by))"
)
_UNDONE_BY = {DISMISS: UNDISMISS, UNDISMISS: DISMISS}
_INSERT_ANSWER = "INSERT INTO answers (request_id, user_id, datetime, bundle_version, policy) VALUES (?, ?, ?, ?, ?)"
_RECALL = (
    "SELECT item_id, datetime, event, weight, number FROM events WHERE user_id IN (?, ?) "
    "ORDER BY datetime DESC, number DESC LIMIT ?"
)
_DELETE = {
    "shown": "DELETE FROM shown WHERE answer IN (SELECT number FROM answers WHERE {})",
    "events": "DELETE FROM events WHERE {}",
    "answers": "DELETE FROM answers WHERE {}",
}


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


@dataclass(frozen=True)
class Recalled:
    """The live events of a user, oldest first and at one time as they arrived, and their dismissed items."""

    history: History = field(default_factory=lambda: History(np.empty(0, dtype=np.object_)))
    dismissed: tuple[Id, ...] = ()
    is_forgotten: bool = False


class StateStore:
    """The live state of a run; safe to use from many threads, and beside other processes."""

    def __init__(self, path: Path, runs: Sequence[Path] | None = None, retention_days: float = RETENTION_DAYS) -> None:
        """Open `DIR/state/state.db`, made if need be; forgotten users of `runs`, by default DIR, are heeded."""
        if not 0 < retention_days < _MAX_RETENTION:
            raise ValueError(f"retention_days is {retention_days:g}; allowed: above 0, below {_MAX_RETENTION}")
        self.path = path
        self.retention_days = retention_days
        self.fault: Exception | None = None  # why the last write failed
        self._lock = threading.Lock()
        self._runs = runs or [path.absolute().parent.parent]
        self._readers: deque[sqlite3.Connection] = deque()
        self._writer = open_database(path, "application_id", _MARK, _TABLES)
        sync_folder(path.absolute().parent.parent)

    def observe(self, user_id: Id, item_id: Id, event: str | None, time: int, weight: float | None = None) -> bool:
        """Keep one event at a time in UTC seconds, as `observe_many` does; say whether it was kept."""
        return self.observe_many([Observation(user_id, item_id, event, time, weight)]) == 1

    def observe_many(self, observations: Iterable[Observation]) -> int:
        """Keep events, all or none, each once; return how many are on disk now: none of forgotten users."""
        given = list(observations)
        for one in given:
            _check(one)
        with self._writing() as connection:  # whoever is forgotten from here on is erased after it
            rows = [_to_row(one) for one in given if not self._is_forgotten(one.user_id)]
            connection.executemany(_INSERT_EVENT, rows)
        return len(rows)

    def log_impressions(self, answers: Iterable[Impressions]) -> None:
        """Keep what users were shown, all or none; nothing of forgotten users."""
        given = list(answers)
        for one in given:
            check_seconds(one.datetime, "datetime")
            if one.user_id is not None:
                check_id(one.user_id, "user_id")
        with self._writing() as connection:
            for one in given:
                if one.user_id is None or not self._is_forgotten(one.user_id):
                    head = (one.request_id, to_plain(one.user_id), to_plain(one.datetime))
                    number = connection.execute(_INSERT_ANSWER, (*head, one.bundle_version, one.policy)).lastrowid
                    pairs = enumerate(zip(map(to_plain, one.item_ids), map(float, one.scores), strict=True), start=1)
                    rows = [(number, position, *pair) for position, pair in pairs]
                    connection.executemany("INSERT INTO shown VALUES (?, ?, ?, ?)", rows)

    def recall(self, user_id: Id) -> Recalled:
        """Return what there is of a user, of very many events the latest; ids of items as they were stored."""
        if self._is_forgotten(user_id):
            return Recalled(is_forgotten=True)
        rows = self._read(_RECALL, *_forms(user_id), _MAX_RECALLED)[::-1]
        taken = [row for row in rows if row[2] not in _UNDONE_BY][-_MAX_LIVE:]
        item_ids, times, events, weights, _ = zip(*taken, strict=True) if taken else ((), (), (), (), ())
        texts, numbers = np.array(events, dtype=np.object_), np.array(weights, dtype=np.float64)  # None becomes NaN
        history = History(np.array(item_ids, dtype=np.object_), np.array(times, dtype=np.int64), texts, numbers)
        return Recalled(history, _list_dismissed(rows))

    def is_recent(self, time: int, now: int) -> bool:
        """Tell whether `expire` would leave what happened then."""
        return time >= now - self.retention_days * _DAY

    def expire(self, now: int) -> int:
        """Remove what is older than the retention window; return how many events and answers that were."""
        check_seconds(int(now), "now")  # by milliseconds everything would be old
        with self._writing() as connection:
            n_gone = _delete(connection, "datetime < ?", now - self.retention_days * _DAY)
        with self._lock, name_fault(self.path):
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return n_gone["events"] + n_gone["answers"]

    def forget(self, *user_ids: Id) -> dict[str, int]:
        """Erase users, so that no byte of them stays in the file or its log; return how many rows there were."""
        for user_id in user_ids:
            check_id(user_id, "user_id")
        with self._writing() as connection:
            n_gone = [_delete(connection, "user_id IN (?, ?)", *_forms(user_id)) for user_id in user_ids]
        with self._lock, name_fault(self.path):  # `secure_delete` leaves copies of rows that moved between pages
            self._writer.execute("VACUUM")
            is_busy, *_ = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_busy:
            raise OSError(errno.EBUSY, "another process keeps its log from being emptied: try again", str(self.path))
        return {"events": sum(one["events"] for one in n_gone), "impressions": sum(one["shown"] for one in n_gone)}

    def close(self) -> None:
        self._writer.close()
        while self._readers:
            self._readers.pop().close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Yield the writer inside a transaction: on disk at the end, or undone by an error."""
        try:
            with self._lock, name_fault(self.path), self._writer:
                self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
        except (OSError, BundleError) as error:
            self.fault = error
            raise
        self.fault = None

    def _read(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with name_fault(self.path):
            reader = self._readers.pop() if self._readers else open_database(self.path, "application_id", _MARK)
            rows = reader.execute(query, values).fetchall()
        self._readers.append(reader)
        return rows

    def _is_forgotten(self, user_id: Id) -> bool:
        return any(is_forgotten(run, user_id) for run in self._runs)


def _delete(connection: sqlite3.Connection, condition: str, *values: Any) -> dict[str, int]:
    """Delete the rows that meet a condition; return how many of each table."""
    return {name: connection.execute(one.format(condition), values).rowcount for name, one in _DELETE.items()}


def _forms(user_id: Id) -> tuple[Id, Id]:
    """Return an id as a text and, if it is written as one, as an integer: bundles differ in the type of their ids."""
    text = str(user_id)
    is_whole = INTEGER.fullmatch(text) and -(2**63) <= int(text) < 2**63
    return text, int(text) if is_whole else text


def _check(one: Observation) -> None:
    """Refuse an event that nobody could read again; a weight of NaN is none."""
    check_id(one.user_id, "user_id")
    check_id(one.item_id, "item_id")
    check_seconds(one.datetime, "datetime")
    if one.weight == one.weight:
        parse_weight(one.weight, "weight")
    if not (one.event is None or isinstance(one.event, str)):
        raise SchemaError(f"event is {show(one.event)}; expected a text, or None")


def _to_row(one: Observation) -> dict[str, Any]:
    values = vars(one) | {"undone_by": _UNDONE_BY.get(one.event or "")}
    return {name: to_plain(value) for name, value in values.items()}  # SQLite would keep the bytes of a numpy number


def _list_dismissed(rows: Iterable[tuple[Any, ...]]) -> tuple[Id, ...]:
    """Return the items whose dismissal was not taken back: what arrived last counts, whatever the clocks say."""
    dismissed: dict[str, Id] = {}  # 7 and "7" are the same item
    for item_id, _, event, *_ in sorted((row for row in rows if row[2] in _UNDONE_BY), key=lambda row: row[4]):
        if event == DISMISS:
            dismissed.setdefault(str(item_id), item_id)
        else:
            dismissed.pop(str(item_id), None)
    return tuple(dismissed.values())


def parse_observations(raw: Sequence[Mapping[str, Any]], schema: Schema, now: int) -> list[Observation]:
    """Check a list of {user_id, item_id, event?, datetime?, weight?, request_id?}; `now` is the time of the others."""
    return [_parse(event, f"events[{index}]", schema, now) for index, event in enumerate(raw)]


def _parse(raw: Mapping[str, Any], where: str, schema: Schema, now: int) -> Observation:
    time, request_id = raw.get("datetime"), raw.get("request_id")
    seconds = now if time is None else parse_times([time], schema.timezone, lambda _: f"{where}.datetime")[0]
    if seconds > now + _CLOCK_TOLERANCE:
        raise SchemaError(f"{where}.datetime is {show(time)}; expected the time when it happened, not one to come")
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

    A history of its own stays; else it becomes that of the profile and the live events, by time. Dismissed items are
    excluded anyway. The profile of a forgotten user, which a process may have loaded earlier, is not read.
    """
    return request if request.user_id is None else fill_in(request, know_user(request.user_id, profiles, state))


def know_user(user_id: Id, profiles: Profiles, state: StateStore) -> Request:
    """Return a request of a user with all that is to be filled in: nothing where their profile is all there is."""
    ids = profiles.history.item_id
    user_id = _fit(user_id, profiles.user_ids)
    known, recalled = Request(user_id), state.recall(user_id)
    if recalled.is_forgotten:
        return replace(known, history=History(ids[:0]), features={})
    kind = str if ids.dtype == np.object_ else int
    dismissed = tuple(one for one in (_fit(each, ids) for each in recalled.dismissed) if isinstance(one, kind))
    fitted = [_fit(one, ids) for one in recalled.history.item_id.tolist()]
    kept = [place for place, one in enumerate(fitted) if isinstance(one, kind)]
    if not kept:
        return replace(known, exclude=dismissed)
    item_ids = np.array([fitted[place] for place in kept], ids.dtype)
    live, profile = replace(recalled.history.take(np.array(kept)), item_id=item_ids), profiles.get(user_id)
    return replace(known, exclude=dismissed, history=live if profile is None else _join(profile.history, live))


def fill_in(request: Request, known: Request) -> Request:
    """Return a request with what `know_user` knows of its user, where it does not say that itself."""
    given: dict[str, Any] = {"user_id": known.user_id}
    given |= {name: getattr(known, name) for name in ("history", "features") if getattr(request, name) is None}
    if known.exclude:
        given["exclude"] = tuple(dict.fromkeys((*request.exclude, *known.exclude)))
    return replace(request, **given) if any(given[name] != getattr(request, name) for name in given) else request


def _fit(one: Id, ids: np.ndarray) -> Id:
    """Return an id in the type of others if it can be one: a text for 7, an integer for "7"."""
    text, number = _forms(one)
    return text if ids.dtype == np.object_ else number


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
    kept = [place for place, key in enumerate(keys) if place < len(known) or key not in seen]
    return joined.take(np.array(sorted(kept, key=lambda place: keys[place][1])))


def _count_known(known: History, live: History) -> int:
    """Return how many of the first live events are the profile's last ones, in their order: the longest such run."""
    ours = [*zip(*(values.tolist()[-len(live) :] for values in known.columns().values()), strict=True)]
    theirs = [*zip(*(getattr(live, name).tolist() for name in known.columns()), strict=True)]
    ours, theirs = ([tuple(None if one != one else one for one in row) for row in rows] for rows in (ours, theirs))
    return next((n for n in range(len(ours), 0, -1) if ours[-n:] == theirs[:n]), 0)


def _append(known: History, live: History) -> History:
    """Put live events behind a profile's; None and NaN fill a column that the profile lacks."""
    blank = {"event": np.full(len(known), None, dtype=np.object_), "weight": np.full(len(known), np.nan)}
    columns = blank | known.columns()
    return History(**{name: np.concatenate([values, getattr(live, name)]) for name, values in columns.items()})


class ImpressionLog:
    """A thread that writes what was shown behind the answers, and once an hour removes what is too old."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._waiting: deque[Impressions] = deque()
        self._is_closing = threading.Event()
        self._expire_at = 0.0
        self.n_lost = 0  # impressions that could not be written
        self._thread = threading.Thread(target=self._work, name="bascule-impressions", daemon=True)
        self._thread.start()

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    @property
    def notes(self) -> list[str]:
        """Say that nothing is logged any more, if that is so."""
        return [] if self._thread.is_alive() else ["what is shown is no longer logged; start the service again"]

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
            if time.monotonic() >= self._expire_at:
                self._expire_at = time.monotonic() + _HOUR
                try:
                    self._store.expire(int(time.time()))
                except (OSError, BundleError, sqlite3.Error) as error:
                    _LOG.error("nothing was removed for its age: %s", type(error).__name__)
        self._write()

    def _write(self) -> None:
        while self._waiting:
            taken = [self._waiting.popleft() for _ in range(min(_MAX_AT_ONCE, len(self._waiting)))]
            try:
                self._store.log_impressions(taken)
            except (OSError, BundleError, sqlite3.Error) as error:
                is_busy = isinstance(error, OSError) and error.errno == errno.EBUSY
                if is_busy and len(self._waiting) < _MAX_LISTS // 2 and not self._is_closing.is_set():
                    self._waiting.extendleft(reversed(taken))  # a file that is written anew is free again in a while
                    return
                self.n_lost += len(taken)
                _LOG.error("%d impressions could not be written: %s", len(taken), type(error).__name__)
