"""Read events from a stream into the state: Redis Streams; Kafka in `examples/kafka_events.py`.

A message is what `POST /v1/events` takes as its body. It is acknowledged only after the state has
its events durably: after a crash in between it comes again, and the state counts an event once. An
event without a datetime happened when its message was sent, which is the same each time. A message
that cannot be read blocks nothing: the log names its place in the stream, where it stays, and why.

Nothing more is read while the storage fails: what waits stays in the stream.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Event
from typing import Any, NamedTuple, Protocol

from serve.errors import SchemaError, import_extra, say
from serve.schema import Schema
from service.engine import State
from service.event_log import Observation, parse_observations
from service.http.errors import hide_values
from service.http.schemas import read_events

_BATCH = 500  # messages that are read, kept and acknowledged together
_BLOCK = 1000  # milliseconds to wait for a message
_WAIT = 1.0  # seconds before a storage that failed is tried again
_TIMEOUT = 30.0  # seconds in which a server must answer
_IDLE = 30_000  # milliseconds after which what a dead consumer read is taken over
_LOG = logging.getLogger("service.http")


class Message(NamedTuple):
    """A message of a stream."""

    place: Any  # by which the stream knows it
    body: bytes
    time: int  # UTC seconds when it was sent


class Stream(Protocol):
    """A stream as one consumer of a group reads it."""

    fault: type[Exception]  # of its client

    def join(self) -> None:
        """Begin with what was not acknowledged, at the start and after a fault."""

    def read(self) -> list[Message]:
        """Return the next messages, none after a while without any."""

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """Let nobody of the group read these messages again."""


def consume(
    stream: Stream,
    state: State,
    find_schema: Callable[[], Schema],
    stopping: Event,
) -> None:
    """Read events from a stream into the state until it is to stop.

    Args:
        stream: where messages come from.
        state: where their events go.
        find_schema: returns the schema of the bundle that is current.
        stopping: set to stop after the messages at hand.
    """
    has_joined = False
    while not stopping.is_set():
        try:
            if not has_joined:
                stream.join()
            has_joined = True
            if messages := stream.read():
                schema = find_schema()
                observations = []
                for message in messages:
                    observations += _parse(message, schema)
                state.observe_many(observations)
                stream.acknowledge(messages)
        except (OSError, stream.fault) as error:
            _LOG.error("events wait in the stream: %s", say(error))
            has_joined = False
            stopping.wait(_WAIT)


def _parse(message: Message, schema: Schema) -> list[Observation]:
    """Return the events of a message, none if it cannot be read."""
    try:
        return parse_observations(read_events(message.body), schema, message.time)
    except SchemaError as error:
        reason = hide_values(str(error), frozenset())
        _LOG.error("message %s is passed over: %s", message.place, reason)
        return []


class RedisStream:
    """A stream of Redis or Valkey, read as one consumer of a group."""

    def __init__(self, url: str, name: str, group: str, consumer: str) -> None:
        """Prepare a connection.

        Args:
            url: of the server.
            name: of the stream.
            group: whose consumers share the messages.
            consumer: name of this one in the group.
        """
        redis = import_extra("redis", "state")
        self.fault: type[Exception] = redis.RedisError
        # the replies of the second version of the protocol are lists
        self._redis = redis.Redis.from_url(url, protocol=2, socket_timeout=_TIMEOUT)
        self._name = name
        self._group = group
        self._consumer = consumer
        self._start = ""

    def join(self) -> None:
        """Make the group if need be, and begin with what this consumer did not acknowledge."""
        with suppress(self.fault):  # the group is there, or the next read fails as well
            self._redis.xgroup_create(self._name, self._group, id="0", mkstream=True)
        self._start = "0"

    def read(self) -> list[Message]:
        """Return the next messages; what a dead consumer left comes first."""
        who = (self._group, self._consumer)
        _, entries, *_ = self._redis.xautoclaim(self._name, *who, _IDLE, count=_BATCH)
        if not entries:
            places = {self._name: self._start}
            reply = self._redis.xreadgroup(*who, places, count=_BATCH, block=_BLOCK)
            entries = reply[0][1] if reply else []
        if not entries:
            self._start = ">"  # what no consumer has read

        messages = []
        for place, fields in entries:
            body = (fields or {}).get(b"body", b"")
            messages.append(Message(place, body, int(place.split(b"-")[0]) // 1000))
        return messages

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """Let nobody of the group read these messages again; they stay in the stream."""
        places = [message.place for message in messages]
        self._redis.xack(self._name, self._group, *places)
