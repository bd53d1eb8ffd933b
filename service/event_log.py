"""The log of a service: its records, its tables, and how they are read as a whole.

An event has one record on its way from the body of a request over the log to the table that
training reads. A new field goes into `Observation` and `parse_observations`, into a statement like
`_ADD_CONTEXT`, which files of earlier versions need as well, and into `_EVENTS`, into
the statement that `service/state.py` writes it by, and into the body in `service/http/schemas.py`.
The tables of `DIR/state/state.db` are:

events     a view: what users did, dismissals included
answers    a view: one row per answer: request, user, time, version of the bundle, policy, arm;
           one without items, whose policy is `shown`, confirms that a request's lists were seen
shown      the items of each answer: position from 1, score, probability of being shown there
feedback   a view: each item that was shown, with the events of the user on it that followed: an
           event that names its request follows that answer, another one every earlier answer

An id of an item is kept as it came, that of a user as it came first; 7 and "7" are the same.

SQLite zeroes what is deleted, but leaves copies of rows that moved to other pages. So all rows bear
a random number in place of the user. `users` says whose it is, and its rows never move: they are
appended, and overwritten in their place by as many bytes. What stays of other rows then bears a
number that nobody can link.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from difflib import get_close_matches
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from serve.arrays import Id
from serve.cells import check_id, parse_id, parse_label, parse_number, to_text
from serve.clock import DAY, check_seconds, parse_times
from serve.errors import SchemaError, show
from serve.requests import History, key_contexts, parse_context
from serve.schema import Schema
from service.database import name_fault, open_database

Raw = Mapping[str, Any]  # a request or an event as a caller sends it
DISMISS = "dismiss"  # hides an item and, like its opposite, is no part of a history
UNDISMISS = "undismiss"
SHOWN = "shown"  # policy of an answer without items: its request's lists were seen
UNDONE_BY = {DISMISS: UNDISMISS, UNDISMISS: DISMISS}
MISTYPED = 0.85  # likeness (difflib) from which on a type is a slip: purchse, views
_MAX_LIVE = 1000  # latest events of a user in the history
_CLOCK_TOLERANCE = DAY  # seconds that a caller's clock or time zone may be ahead
REQUEST_ID = "^[A-Za-z0-9_.-]{1,64}$"
MARK = 0x42530003  # "BS" and the format
TABLES = """
CREATE TABLE salt (value BLOB NOT NULL);
INSERT INTO salt VALUES (randomblob(32));
CREATE TABLE users (place INTEGER PRIMARY KEY, id NOT NULL, is_integer INTEGER NOT NULL,
    number INTEGER NOT NULL);
CREATE TABLE user_keys (key BLOB PRIMARY KEY, place INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE event_rows (number INTEGER PRIMARY KEY, user INTEGER NOT NULL, item_id NOT NULL,
    event TEXT, datetime INTEGER NOT NULL, weight REAL, request_id TEXT);
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
CREATE VIEW named AS
    SELECT number AS user, iif(is_integer, CAST(id AS INTEGER), id) AS user_id FROM users;
CREATE VIEW events AS
    SELECT e.number, u.user_id, e.item_id, e.event, e.datetime, e.weight, e.request_id
    FROM event_rows e JOIN named u ON u.user = e.user;
CREATE VIEW named_answers AS
    SELECT a.*, u.user_id FROM named u JOIN answer_rows a ON a.user = u.user
    UNION ALL SELECT a.*, NULL FROM answer_rows a WHERE a.user IS NULL;
CREATE VIEW answers AS
    SELECT number, request_id, user_id, datetime, bundle_version, policy, arm FROM named_answers;
CREATE VIEW feedback AS SELECT a.request_id, a.user_id, a.datetime, a.bundle_version, a.policy,
    s.position, s.item_id, s.score, e.event, e.weight, e.datetime AS event_datetime,
    a.arm, s.propensity
    FROM named_answers a CROSS JOIN shown s ON s.answer = a.number -- a user has few answers
    LEFT JOIN event_rows e ON e.user = a.user AND e.item_id = s.item_id
    AND (e.request_id = a.request_id OR (e.request_id IS NULL AND e.datetime >= a.datetime));
"""
# A file of an earlier version gets this, too.
_ADD_CONTEXT = """ALTER TABLE event_rows ADD COLUMN context TEXT;
ALTER TABLE event_rows ADD COLUMN context_key INTEGER;
DROP VIEW events;
CREATE VIEW events AS SELECT e.number, u.user_id, e.item_id, e.event, e.datetime, e.weight,
    e.request_id, e.context
    FROM event_rows e JOIN named u ON u.user = e.user"""
_FIND_CONTEXT = "SELECT 1 FROM pragma_table_info('event_rows') WHERE name = 'context'"
_LISTS = """SELECT number AS list, request_id, CAST(user_id AS TEXT) AS user_id,
    datetime, bundle_version AS version, policy, arm FROM answers ORDER BY number"""
_SLOTS = """SELECT answer AS list, position, CAST(item_id AS TEXT) AS item_id, score,
    propensity FROM shown ORDER BY 1, 2"""
_EVENTS = """SELECT CAST(user_id AS TEXT) AS user_id, CAST(item_id AS TEXT) AS item_id,
    event, datetime, weight, request_id, context FROM events ORDER BY datetime, number"""
_TYPES = {
    **dict.fromkeys(("list", "position", "datetime"), pa.int64()),
    **dict.fromkeys(("score", "propensity", "weight"), pa.float64()),
}  # other columns are texts
_BATCH_ROWS = 100_000
_NO_EVENTS = History(np.empty(0, dtype=np.object_))

# The latest time of an event or answer, and the number of those before a time each less that of all
# others.
AGE = """SELECT ifnull(max(latest), 0), ifnull(sum(surplus), 0) FROM (
    SELECT max(datetime) latest, sum(iif(datetime < ?1, 1, -1)) surplus FROM event_rows UNION ALL
    SELECT max(datetime), sum(iif(datetime < ?2, 1, -1)) FROM answer_rows)"""


def open_log(path: Path, tables: str = "") -> sqlite3.Connection:
    """Open the file of a state; see `open_database`."""
    connection = open_database(path, MARK, tables)
    if _lacks_context(connection):
        with name_fault(path), connection:
            connection.execute("BEGIN IMMEDIATE")
            if _lacks_context(connection):  # no other process came first
                for statement in _ADD_CONTEXT.split(";"):
                    connection.execute(statement)

    return connection


def _lacks_context(connection: sqlite3.Connection) -> bool:
    return connection.execute(_FIND_CONTEXT).fetchone() is None


# ---- records


@dataclass(frozen=True)
class Observation:
    """An event of a user. The bundle need not know the item: a later one may.

    Raises:
        SchemaError: the state could not read the event again, such as a time in milliseconds.
    """

    user_id: Id
    item_id: Id
    event: str | None  # type, such as `purchase` or `DISMISS`
    datetime: int  # UTC seconds
    weight: float | None = None  # NaN is None, too; below 0 it takes an event back
    request_id: str | None = None  # the answer that the user reacted to
    context: str | None = None  # in which it happened, in JSON
    context_key: int = 0  # of `serve.encode.context_keys`

    def __post_init__(self) -> None:
        check_id(self.user_id, "user_id")
        check_id(self.item_id, "item_id")
        check_seconds(self.datetime, "datetime")

        if self.weight is not None and self.weight == self.weight:  # no NaN
            parse_number(self.weight, "weight")

        if not isinstance(self.event, str | None):
            raise SchemaError(f"event is {show(self.event)}; expected a text, or None")


@dataclass(frozen=True)
class Impressions:
    """The items of one answer, best first: the item at index i was shown at position i + 1."""

    request_id: str  # a request for many users has many answers
    user_id: Id | None
    datetime: int  # UTC seconds
    bundle_version: str
    policy: str  # how the order came about, such as `greedy`: by falling score
    item_ids: Sequence[Id]
    scores: Sequence[float]
    propensities: Sequence[float]  # P(item at its position | request), 1 if not drawn
    arm: str | None = None

    @classmethod
    def confirm(cls, request_id: str, seconds: int) -> Impressions:
        """Return the answer without items that says that a request's lists were seen."""
        return cls(request_id, None, seconds, "", SHOWN, (), (), ())


@dataclass(frozen=True)
class Recalled:
    """The live events of a user, oldest first, and their dismissed items."""

    history: History = _NO_EVENTS
    dismissed: tuple[Id, ...] = ()
    is_forgotten: bool = False
    is_opted_out: bool = False


def gather(rows: Sequence[tuple[Any, ...]]) -> Recalled:
    """Make the live state of a user.

    Args:
        rows: item_id, datetime, event, weight, key of the context, number by arrival; oldest first.
    """
    done = [row for row in rows if row[2] not in UNDONE_BY][-_MAX_LIVE:]
    *columns, keys, _ = tuple(zip(*done, strict=True)) or ((),) * 6
    dtypes = (np.object_, np.int64, np.object_, np.float64)  # None becomes NaN
    history = History(*map(np.array, columns, dtypes))
    if any(keys):
        history = replace(history, context=np.array(keys, np.int64))
    return Recalled(history, _list_dismissed(rows))


def _list_dismissed(rows: Iterable[tuple[Any, ...]]) -> tuple[Id, ...]:
    """Return the dismissed items: the sign that arrived last counts, whatever the clocks say."""
    dismissed: dict[str, Id] = {}  # 7 and "7" are the same item
    for item_id, _, event, *_ in sorted(rows, key=itemgetter(5)):  # by number
        if event == DISMISS:
            dismissed.setdefault(str(item_id), item_id)
        elif event == UNDISMISS:
            dismissed.pop(str(item_id), None)

    return tuple(dismissed.values())


def parse_observations(
    raw: Sequence[Raw], schema: Schema, now: int
) -> list[Observation]:
    """Read events as a caller sends them, with ids of the types of the bundle.

    Args:
        raw: mappings with user_id, item_id and, optionally, event, datetime, weight, request_id,
            context.
        schema: the schema of the bundle that answers.
        now: UTC seconds, the time of events without one.

    Raises:
        SchemaError: names the first event and field that cannot be read, as `events[3].weight`.
    """
    observations = []
    for index, event in enumerate(raw):
        where = f"events[{index}]"
        seconds = now
        moment = event.get("datetime")
        if moment is not None:
            names = [f"{where}.datetime"]
            (seconds,) = parse_times([moment], schema.timezone, names.__getitem__)
        if seconds > now + _CLOCK_TOLERANCE:
            raise SchemaError(
                f"{where}.datetime is {show(moment)}; expected the time when it "
                "happened, not one to come"
            )

        request_id = event.get("request_id")
        if request_id is not None and not re.fullmatch(REQUEST_ID, request_id):
            raise SchemaError(
                f"{where}.request_id is {show(request_id)}; expected the request_id of "
                "an answer"
            )

        user_id = event.get("user_id")
        user_id = schema.parse_user_id(user_id, f"{where}.user_id")
        item_id = event.get("item_id")
        item_id = parse_id(item_id, schema.item_id_type, f"{where}.item_id")
        label = to_text(parse_label(event.get("event"), f"{where}.event"))
        refuse_mistyped(label, schema, f"{where}.event")
        weight = event.get("weight")
        if weight is not None:
            weight = parse_number(weight, f"{where}.weight")
        context = event.get("context") or {}
        values = parse_context(context, schema, f"{where}.context")
        keys = key_contexts([values], np.array([seconds]), schema)
        key = 0 if keys is None else int(keys[0])
        written = json.dumps(context, sort_keys=True) if context else None
        observations.append(
            Observation(
                user_id, item_id, label, seconds, weight, request_id, written, key
            )
        )

    return observations


def refuse_mistyped(label: str | None, schema: Schema, where: str) -> None:
    """Refuse a type of events that is nearly one of the data's; others, such as clicks, are kept.

    Raises:
        SchemaError: proposes the nearest.
    """
    declared = schema.event_types
    if label is None or label in (*declared, *UNDONE_BY):
        return
    for nearest in get_close_matches(label, declared, 1, MISTYPED):
        raise SchemaError(f"{where} is {show(label)}; did you mean {nearest!r}?")


def keep_recent(
    keep: Callable[[list[Observation]], int],
    observations: Sequence[Observation],
    now: int,
    days: float,
) -> tuple[int, str | None]:
    """Keep events, all or none, but old ones and those of users who left.

    Args:
        keep: writes events into a state, and returns how many are on disk.
        observations: what is to be kept.
        now: UTC seconds.
        days: age at which events are removed.

    Returns:
        How many are on disk, and why others are not.
    """
    recent = [each for each in observations if each.datetime >= now - days * DAY]
    n_kept = keep(recent)
    told = []
    if n_old := len(observations) - len(recent):
        told.append(f"{n_old} older than {days:g} days, the retention")
    if n_left := len(recent) - n_kept:
        told.append(f"{n_left} of users who were forgotten or have opted out")
    return n_kept, "; ".join(told) or None


# ---- the log as a whole


class Log(NamedTuple):
    """The log of a service at one moment. Ids are texts, times UTC seconds."""

    lists: pa.Table  # list, request_id, user_id, datetime, version, policy, arm
    slots: pa.Table  # list, position, item_id, score, propensity
    events: pa.Table  # user_id, item_id, event, datetime, weight, request_id, context


def read_log(path: Path) -> Log:
    """Read the whole log from a state, which a service may be writing meanwhile.

    Args:
        path: the file of the state.

    Returns:
        Lists and slots in the order of answers, events in the order of time.

    Raises:
        SchemaError: there is no such file.
        BundleError: the file is no state of this version.
        OSError: the file cannot be read.
    """
    if not path.exists():
        raise SchemaError(
            f"{path} does not exist; give the folder of a run or a registry that a "
            "service has served, or its state"
        )

    with name_fault(path), closing(open_log(path)) as connection:
        connection.execute("BEGIN")  # all tables of one moment
        tables = (_read_table(connection, sql) for sql in (_LISTS, _SLOTS, _EVENTS))
        return Log(*tables)


def _read_table(connection: sqlite3.Connection, query: str) -> pa.Table:
    """Read the rows of a query into Arrow columns."""
    cursor = connection.execute(query)
    fields = []
    for name, *_ in cursor.description:
        fields.append(pa.field(name, _TYPES.get(name, pa.large_string())))

    schema = pa.schema(fields)
    tables = [schema.empty_table()]
    while rows := cursor.fetchmany(_BATCH_ROWS):
        columns = zip(*rows, strict=True)
        arrays = list(map(pa.array, columns, schema.types))
        tables.append(pa.table(arrays, schema=schema))

    return pa.concat_tables(tables)
