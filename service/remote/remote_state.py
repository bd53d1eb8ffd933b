"""A state on a server that several services share: what all engines have in common.

An engine has nine procedures that run in the server, each of them whole or not at all: `start`,
`add`, `fetch`, `count`, `age`, `expire`, `forget`, `choose` and `read`. They keep rows, in JSON, of
events and of answers. A user is found by the hash of their id, keyed by a salt that the server
holds, and has a name, their id in JSON. A forgotten user keeps the hash, without a name: so all
services refuse what still comes of them, and of those whose hashes are on the list of opt-outs.

A server that does not answer within a second raises `ServerError`; for a second after that nothing
is asked, so that no thread waits again and again. Then the next call connects anew.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import secrets
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from serve.arrays import Id
from serve.cells import check_id, to_plain
from serve.clock import DAY, check_seconds
from serve.errors import SchemaError
from serve.files import ErasureList, hash_id, is_forgotten, read_erasure_list
from service.engine import ServerError, State, check_retention, limit_expiry
from service.event_log import UNDONE_BY, Impressions, Observation, Recalled, gather
from service.state import MAX_RECALLED

PATIENCE = 1.0  # seconds in which a server answers
_PAUSE = 1.0  # seconds after a fault in which it is not asked
_EVENTS = "events"
_ANSWERS = "answers"
_STORED_AS = {_EVENTS: _EVENTS, "impressions": _ANSWERS}  # kind of data -> kind of rows
_NOBODY = "nobody"  # begins the keys of answers without a user: 256, by their requests
_END = "0"  # cursor behind the last page
_NONE = "-"  # begins no record
_SLICE = 1000  # records of a call, which a server keeps within its time
_LOG = logging.getLogger("service.http")


class RemoteState(ABC):
    """The live state on a server; safe to use from many threads, and beside other services."""

    n_forgotten = 0  # the list lies on the server itself
    errors: tuple[type[Exception], ...]  # of the settings, the network and the server

    def __init__(
        self,
        address: str,
        runs: Sequence[Path],
        retention_days: float,
        impression_days: float | None = None,
    ) -> None:
        """Open the state; a server that does not answer is asked again by the next call.

        Args:
            address: of the server.
            runs: folders whose erasure lists are heeded.
            retention_days: age at which events are removed.
            impression_days: age at which answers are removed; by default the same.

        Raises:
            SchemaError: the address cannot be read, or the server could lose what it has
                acknowledged.
        """
        self.days = check_retention(retention_days, impression_days)
        self.fault: Exception | None = None
        self._runs = runs
        self._ask_again = 0.0
        self._salt = b""
        try:
            self._connect(address)
        except self.errors:  # whose message may hold a password
            raise SchemaError(
                "the address of the state cannot be read; "
                "expected postgresql://USER@HOST:PORT/DB"
            ) from None

        try:
            self._start()
        except ServerError as error:
            if isinstance(error.__cause__, SchemaError):
                self.close()
                raise error.__cause__ from None
            _LOG.error("%s", error)

    @abstractmethod
    def _connect(self, address: str) -> None:
        """Take the address, without asking the server; raise an error if it cannot be read."""

    @abstractmethod
    def _prepare(self) -> None:
        """Install procedures; raise SchemaError if writes would not be durable."""

    @abstractmethod
    def _run(self, procedure: str, *values: str | int) -> Any:
        """Run a procedure; what it wrote is on disk then."""

    @abstractmethod
    def close(self) -> None:
        """Release the connections."""

    def observe_many(self, observations: Iterable[Observation]) -> int:
        """Keep events, each once; return how many are on the server's disk.

        A thousand are kept all or none. After an error, send all again.
        """
        return self._add(_EVENTS, observations)

    def log_impressions(self, answers: Iterable[Impressions]) -> None:
        """Keep what users were shown; nothing of users who are left out."""
        self._add(_ANSWERS, answers)

    def recall(self, user_id: Id) -> Recalled:
        """Return the latest events of a user."""
        if any(is_forgotten(run, user_id) for run in self._runs):
            return Recalled(is_forgotten=True)

        user = self._fetch(user_id) or {"name": "", "rows": [], "opted_out": 0}
        if user["name"] is None:
            return Recalled(is_forgotten=True)
        if user["opted_out"]:
            return Recalled(is_opted_out=True)

        rows = []
        for number, (item_id, event, seconds, weight, *_, key) in reversed(
            user["rows"]
        ):
            rows.append((item_id, seconds, event, weight, key, number))
        return gather(rows)

    def count_answers(self, user_id: Id, since: int, policy: str) -> int:
        """Count the lists of a user since a time, of policies that begin with a text."""
        return int(self._call("count", self._key(user_id), since, policy))

    def date_expiry(self, now: int) -> int:
        """Return the time from which age is counted; see `limit_expiry`."""
        begins = [math.ceil(now - days * DAY) for days in self.days.values()]
        return limit_expiry(now, [age for _, age in self._read("age", *begins)])

    def expire_slices(self, now: int) -> Iterator[Counter[str]]:
        """Remove what is too old, a slice at a time, so that no event waits for long."""
        check_seconds(int(now), "now")  # milliseconds would make everything old
        for kind, days in self.days.items():
            begin = math.ceil(now - days * DAY)
            expire = partial(self._call, "expire", _STORED_AS[kind], begin)
            for n_removed in iter(expire, None):
                yield Counter({kind: int(n_removed)})

    def list_known(self, user_ids: Iterable[Id]) -> set[str]:
        """Return, as texts, the users who have events or answers."""
        users = {str(user_id): self._fetch(user_id) for user_id in user_ids}
        return {text for text, user in users.items() if user and user["name"]}

    def forget(self, *user_ids: Id) -> dict[str, int]:
        """Erase users, whom from now on no service knows or keeps anything of.

        Args:
            user_ids: users, who need not be known.

        Returns:
            How many `events` and `impressions` (items that were shown) were erased.
        """
        for user_id in user_ids:
            check_id(user_id, "user_id")

        keys = sorted({self._key(user_id) for user_id in user_ids})
        erased: dict[str, int] = self._call("forget", json.dumps(keys))
        return erased

    def choose(self, user_id: Id, is_out: bool) -> None:
        """Note for all services that a user opts out or in."""
        self._call("choose", self._key(user_id), int(is_out))

    def list_users(self, kind: str) -> ErasureList:
        """Return who was `forgotten` or `opted_out` at any of the services that share the state."""
        keys = [bytes.fromhex(key) for key, _ in self._read("read", kind)]
        return ErasureList(((self._start(), frozenset(keys)),))

    def copy(self, store: State) -> None:
        """Keep everything in another state, too; events come first, then the lists they name."""
        store.observe_many(
            Observation(json.loads(name), *record)
            for _, (name, record) in self._read("read", _EVENTS)
        )
        store.log_impressions(
            Impressions(user_id=json.loads(name), **record)
            for _, (name, record) in self._read("read", _ANSWERS)
        )

    def _read(self, procedure: str, *values: str | int) -> list[tuple[Any, Any]]:
        """Return the rows of a procedure that gives a page a call, in the order of their numbers.

        Those of `read` are events or answers: their numbers by arrival, then name of the user and
        record. Those of `age` are for `limit_expiry`, one a page.
        """
        rows: dict[Any, Any] = {}
        cursor = ""
        while cursor != _END:
            page = self._call(procedure, *values, cursor)
            cursor = page["next"]
            rows.update(page["rows"])

        return sorted(rows.items())

    def _fetch(self, user_id: Id) -> Any:
        """Return name and latest events of a user, the last one first; None of an unknown one."""
        return self._call("fetch", self._key(user_id), MAX_RECALLED)

    def _key(self, user_id: Id) -> str:
        return hash_id(self._salt or self._start(), user_id).hex()

    def _start(self) -> bytes:
        """Return the salt; one is made on a new server."""
        salt: str = self._call("start", secrets.token_hex(32))
        return bytes.fromhex(salt)

    def _add(self, kind: str, records: Iterable[Observation | Impressions]) -> int:
        """Keep what is of no user on an erasure list; return how much."""
        erased = [read_erasure_list(run) for run in self._runs]
        rows = []
        for kept in records:
            user_id = kept.user_id
            if user_id is None or not any(who.holds(user_id) for who in erased):
                if user_id is None:
                    key = _NOBODY + self._key(str(kept.request_id))[:2]
                else:
                    key = self._key(user_id)
                row = [key, _write(user_id), kept.datetime]
                rows.append([*row, *_describe(kept)])

        slices = (rows[start : start + _SLICE] for start in range(0, len(rows), _SLICE))
        return sum(int(self._call("add", kind, _write(part))) for part in slices)

    def _call(self, procedure: str, *values: str | int) -> Any:
        """Run a procedure, unless the server has just failed.

        Raises:
            ServerError: the server does not answer, or refuses.
        """
        if self.fault is not None and time.monotonic() < self._ask_again:
            raise ServerError(*self.fault.args)
        try:
            if not self._salt:
                self._prepare()
                salt = self._run("start", secrets.token_hex(32))
                self._salt = bytes.fromhex(salt)
            result = self._run(procedure, *values)
        except self.errors as error:
            self._salt = b""  # what answers next may be another server
            self._ask_again = time.monotonic() + _PAUSE
            reason = (str(error) or type(error).__name__).splitlines()[0]
            self.fault = ServerError(errno.EIO, reason, "the server of the state")
            raise self.fault from error

        self.fault = None
        return result


def _describe(kept: Observation | Impressions) -> tuple[str, str, str, int, str]:
    """Describe what is to be kept.

    Returns:
        Its record in JSON, how a record of the same event begins, how one begins that undoes it,
        the number of items of an answer, and its policy.
    """
    facts = vars(kept).copy()
    del facts["user_id"]
    if isinstance(kept, Impressions):
        return _write(facts), _NONE, _NONE, len(kept.item_ids), kept.policy

    weight = kept.weight
    facts["weight"] = None
    if weight is not None and weight == weight:  # NaN is missing
        facts["weight"] = float(weight)
    record = [*facts.values()]  # item_id, event, datetime and weight tell events apart
    undone = _NONE
    if kept.event in UNDONE_BY:
        undone = _open([kept.item_id, UNDONE_BY[kept.event]])
    return _write(record), _open(record[:4]), undone, 0, ""


def _write(content: Any) -> str:
    return json.dumps(content, default=to_plain)


def _open(values: Sequence[Any]) -> str:
    """Write how an array begins that has more values."""
    return f"{_write(values)[:-1]},"
