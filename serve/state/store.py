"""Events of users and the log of what they were shown, in one SQLite file: what is acknowledged survives a kill.

events     what users did, dismissals included
answers    one row per answer: request, user, time, version of the bundle, policy
shown      the items of each answer: position from 1, and score
feedback   a view: every item that was shown, with the events of the user on it that followed; an event that names its
           request follows that answer, whatever the clock of its sender says, another one every earlier answer
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.requests import (
    History,
    Id,
    check_id,
    check_seconds,
    to_plain,
)
from serve.state.database import Database
from serve.state.impressions import Impressions, check_impressions
from serve.state.observations import DISMISS, UNDISMISS, Observation, check_observation
from serve.state.tombstones import TombstoneFile, both_forms

RETENTION_DAYS = 365.0
_LONGEST_RETENTION = 36_500
_DAY = 86_400
_MARK = 0x42530001  # "BS" and the format
_TABLES = (
    "CREATE TABLE events (number INTEGER PRIMARY KEY, user_id NOT NULL, item_id NOT NULL, event TEXT, "
    "datetime INTEGER NOT NULL, weight REAL, request_id TEXT)",
    "CREATE INDEX events_of_user ON events (user_id, datetime)",
    "CREATE INDEX events_in_time ON events (datetime)",
    "CREATE TABLE answers (number INTEGER PRIMARY KEY, request_id TEXT NOT NULL, user_id, "
    "datetime INTEGER NOT NULL, bundle_version TEXT NOT NULL, policy TEXT NOT NULL)",
    "CREATE INDEX answers_of_user ON answers (user_id)",
    "CREATE INDEX answers_in_time ON answers (datetime)",
    "CREATE TABLE shown (answer INTEGER, position INTEGER, item_id NOT NULL, score REAL NOT NULL, "
    "PRIMARY KEY (answer, position)) WITHOUT ROWID",
)
_VIEWS = {
    "feedback": "CREATE VIEW feedback AS SELECT a.request_id, a.user_id, a.datetime, a.bundle_version, a.policy, "
    "s.position, s.item_id, s.score, e.event, e.weight, e.datetime AS event_datetime "
    "FROM answers a JOIN shown s ON s.answer = a.number LEFT JOIN events e ON e.user_id = a.user_id "
    "AND e.item_id = s.item_id "
    "AND (e.request_id = a.request_id OR (e.request_id IS NULL AND e.datetime >= a.datetime))",
}
_INSERT_EVENT = (  # what is sent again since its acknowledgement was lost is there once, unless it was undone meanwhile
    "INSERT INTO events (user_id, item_id, event, datetime, weight, request_id) "
    "SELECT :user_id, :item_id, :event, :datetime, :weight, :request_id WHERE NOT EXISTS (SELECT 1 FROM events "
    "WHERE user_id = :user_id AND datetime = :datetime AND item_id = :item_id AND event IS :event "
    "AND weight IS :weight AND number > (SELECT ifnull(max(number), 0) FROM events WHERE user_id = :user_id "
    "AND datetime = :datetime AND item_id = :item_id AND event = :undone_by))"
)
_UNDONE_BY: dict[str | None, str] = {DISMISS: UNDISMISS, UNDISMISS: DISMISS}
_INSERT_ANSWER = "INSERT INTO answers (request_id, user_id, datetime, bundle_version, policy) VALUES (?, ?, ?, ?, ?)"
_MOST_RECALLED = 10_000
_RECALL = (  # the latest, so that nobody's past holds up the others
    "SELECT item_id, datetime, event, weight, number FROM events WHERE user_id = ? "
    "ORDER BY datetime DESC, number DESC LIMIT ?"
)
_DELETE_UNDONE = (  # before what undid it goes: the clock of its sender may have been ahead
    "DELETE FROM events WHERE number IN (SELECT d.number FROM events u CROSS JOIN events d ON d.user_id = u.user_id "
    "AND d.item_id = u.item_id AND d.number < u.number "
    "WHERE u.datetime < ? AND u.event = 'undismiss' AND d.event = 'dismiss')"
)
_RECALL_BOTH = _RECALL.replace("= ?", "IN (?, ?)")


_NOTHING = History(())


@dataclass(frozen=True)
class Recalled:
    """What the store has of a user; equal, and hashed alike, where that is the same: all of it is tuples."""

    history: History = _NOTHING
    """Oldest first; what happened at one time, in the order in which it arrived."""
    dismissed: tuple[Id, ...] = ()
    is_forgotten: bool = False


class StateStore:
    """The live state of a run; safe to use from many threads, and beside other processes."""

    def __init__(self, path: Path, runs: Sequence[Path] | None = None, retention_days: float = RETENTION_DAYS) -> None:
        """Open the file, `DIR/state/state.db` of a run, made if need be.

        Args:
            path: of the file.
            runs: whose forgotten users are heeded: what of theirs still arrives is not kept. Default: DIR alone.
            retention_days: how long `expire` leaves events and impressions.

        Raises:
            ValueError: `retention_days` is none that anything would be kept for, or more than a century.
            BundleError: the file is something else.
            OSError: the disk is full or fails.
        """
        check_retention(retention_days, "retention_days")
        self.retention_days = retention_days
        self._database = Database(path, _MARK, _TABLES, _VIEWS)
        self._tombstones = [TombstoneFile(run) for run in runs or [path.absolute().parent.parent]]

    def observe(self, user_id: Id, item_id: Id, event: str | None, time: int, weight: float | None = None) -> bool:
        """Keep one event, as `observe_many` does; say whether it was kept.

        Args:
            user_id: who did it.
            item_id: what it was done to.
            event: its type; None where there are none.
            time: whole UTC seconds.
            weight: such as a rating or a quantity.

        Raises:
            SchemaError: a value of another type or out of range, which nobody could read again.
            OSError: the disk is full or fails; it is not kept.
        """
        return self.observe_many([Observation(user_id, item_id, event, time, weight)]) == 1

    def observe_many(self, observations: Iterable[Observation]) -> int:
        """Keep events, all or none; they are on disk when this returns.

        Returns:
            How many there are now: those of forgotten users are not kept. An event that is there already, equal in
            user, item, type, time and weight, is there once, unless it says anew whether an item is dismissed.

        Raises:
            SchemaError: a value of another type or out of range, which nobody could read again; none is kept.
            OSError: the disk is full or fails; none is kept.
        """
        given = list(observations)
        for one in given:
            check_observation(one)
        with self._database.writing() as connection:  # who is forgotten from here on is erased after it
            rows = [_write_event(one) for one in given if not self._is_forgotten(one.user_id)]
            connection.executemany(_INSERT_EVENT, rows)
        return len(rows)

    def log_impressions(self, answers: Iterable[Impressions]) -> None:
        """Keep what users were shown, all or none; nothing of forgotten users.

        Raises:
            SchemaError: a time or a user of another type or out of range; none is kept.
            OSError: the disk is full or fails; none is kept.
        """
        given = list(answers)
        for one in given:
            check_impressions(one)
        with self._database.writing() as connection:
            for one in given:
                if one.user_id is None or not self._is_forgotten(one.user_id):
                    _insert_answer(connection, one)

    def recall(self, user_id: Id) -> Recalled:
        """Return what there is of a user, of very many events the latest; nothing of one who was forgotten.

        7 and "7" are the same user. Ids of items come as they were stored, in the type of the bundle of that time.
        """
        if self._is_forgotten(user_id):
            return Recalled(is_forgotten=True)
        rows = self._read_latest(user_id)[::-1]
        taken = [row[:4] for row in rows if row[2] not in (DISMISS, UNDISMISS)]
        return Recalled(History(*zip(*taken, strict=True)) if taken else _NOTHING, _list_dismissed(rows))

    def history(self, user_id: Id) -> History:
        """Return a user's events, oldest first, without dismissals."""
        return self.recall(user_id).history

    def dismissed(self, user_id: Id) -> tuple[Id, ...]:
        """Return the items that a user does not want to see."""
        return self.recall(user_id).dismissed

    def is_recent(self, time: int, now: int) -> bool:
        """Say whether `expire` would leave what happened then."""
        return time >= self._limit(now)

    def expire(self, now: int) -> int:
        """Remove what is older than the retention window; return how many events and answers that were.

        Raises:
            SchemaError: a time that is not in seconds: as of milliseconds of today everything would be old.
            OSError: the disk is full or fails.
        """
        check_seconds(int(now), "now")
        limits = [self._limit(now)]
        with self._database.writing() as connection:
            _delete(
                connection, "DELETE FROM shown WHERE answer IN (SELECT number FROM answers WHERE datetime < ?)", limits
            )
            n_events = _delete(connection, _DELETE_UNDONE, limits)
            n_events += _delete(connection, "DELETE FROM events WHERE datetime < ?", limits)
            n_answers = _delete(connection, "DELETE FROM answers WHERE datetime < ?", limits)
        self._database.truncate_log()
        return n_events + n_answers

    def forget(self, *user_ids: Id) -> dict[str, int]:
        """Erase users, so that no byte of them stays in the file or its log.

        What arrives of them later is kept again, unless they have a tombstone: see `serve.state.forgetting`.

        Returns:
            How many `events` and `impressions` there were.

        Raises:
            SchemaError: no id, such as a list of ids; nothing is erased.
            OSError: the disk is full or fails, or another process reads on and on. Call it again then.
        """
        for user_id in user_ids:
            check_id(user_id, "user_id")
        forms = [form for user_id in user_ids for form in both_forms(user_id)]
        with self._database.writing() as connection:
            erased = {
                "events": _delete(connection, "DELETE FROM events WHERE user_id = ?", forms),
                "impressions": _delete(
                    connection,
                    "DELETE FROM shown WHERE answer IN (SELECT number FROM answers WHERE user_id = ?)",
                    forms,
                ),
            }
            _delete(connection, "DELETE FROM answers WHERE user_id = ?", forms)
        self._database.shrink()
        return erased

    def close(self) -> None:
        self._database.close()

    def _read_latest(self, user_id: Id) -> list[tuple[Any, ...]]:
        """Return a user's events, the latest first: under both forms of her id, where two bundles had either."""
        forms = both_forms(user_id)
        found = [rows for form in forms if (rows := self._database.read(_RECALL, form, _MOST_RECALLED))]
        if len(found) > 1:
            return self._database.read(_RECALL_BOTH, *forms, _MOST_RECALLED)
        return found[0] if found else []

    def _is_forgotten(self, user_id: Id) -> bool:
        return any(one.holds(user_id) for one in self._tombstones)

    def _limit(self, now: int) -> float:
        return now - self.retention_days * _DAY


def check_retention(days: float, name: str) -> None:
    """Refuse a retention by which nothing, or everything for ever, would be kept.

    Raises:
        ValueError: names it as it was given.
    """
    if not 0 < days < _LONGEST_RETENTION:
        raise ValueError(f"{name} is {days:g}; allowed: above 0, below {_LONGEST_RETENTION}")


def _write_event(one: Observation) -> dict[str, Id | float | None]:
    values = vars(one) | {"undone_by": _UNDONE_BY.get(one.event)}
    return {name: to_plain(value) for name, value in values.items()}  # SQLite would keep the bytes of a numpy number


def _insert_answer(connection: sqlite3.Connection, one: Impressions) -> None:
    head = (one.request_id, to_plain(one.user_id), to_plain(one.datetime), one.bundle_version, one.policy)
    number = connection.execute(_INSERT_ANSWER, head).lastrowid
    pairs = zip(map(to_plain, one.item_ids), one.scores, strict=True)
    rows = [(number, position, item_id, float(score)) for position, (item_id, score) in enumerate(pairs, start=1)]
    connection.executemany("INSERT INTO shown VALUES (?, ?, ?, ?)", rows)


def _list_dismissed(rows: Iterable[tuple[Any, ...]]) -> tuple[Id, ...]:
    """Return the items of a user's events whose dismissal was not taken back: only that undoes it.

    Other events do not: which of them say that she wants it after all, and which that it was shown, nobody declares.
    What arrived last counts: she took back what she saw, and the clocks of two senders differ.
    """
    said = sorted((number, event, item_id) for item_id, _, event, _, number in rows if event in (DISMISS, UNDISMISS))
    dismissed: dict[str, Id] = {}  # 7 and "7" are the same item
    for _, event, item_id in said:
        if event == DISMISS:
            dismissed.setdefault(str(item_id), item_id)
        else:
            dismissed.pop(str(item_id), None)
    return tuple(dismissed.values())


def _delete(connection: sqlite3.Connection, statement: str, values: Sequence[Id | float]) -> int:
    """Run a statement for each value; return how many rows went."""
    return sum(connection.execute(statement, (value,)).rowcount for value in values)
