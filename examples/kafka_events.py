"""Read the events of a topic of Kafka into the state of a service.

    pip install confluent-kafka
    python kafka_events.py localhost:9092 events runs/demo

It does what `bascule consume` does for Redis Streams. A message is what POST /v1/events takes as
its body. Its offset is committed once the state has its events on disk. What cannot be read is
named in the log, and stays where it is. It stops on SIGTERM after the events at hand. The imports
of an installed package begin with `bascule.`, as in `bascule.service.state`.
"""

import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import confluent_kafka

from serve.bundle import SCHEMA
from serve.schema import Schema
from service.remote.streams import Message, consume
from service.state import StateStore


class KafkaTopic:
    """A topic, read as one consumer of a group."""

    fault = confluent_kafka.KafkaException

    def __init__(self, name: str, group: str, settings: dict[str, Any]) -> None:
        reading = {
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
        self._settings = settings | reading
        self._name = name
        self._consumer: Any = None

    def join(self) -> None:
        """Begin with what the group has not committed."""
        if self._consumer is not None:
            self._consumer.close()
        self._consumer = confluent_kafka.Consumer(self._settings)
        self._consumer.subscribe([self._name])

    def read(self) -> list[Message]:
        """Return the next messages."""
        messages = []
        for message in self._consumer.consume(500, 1.0):
            if message.error():
                raise confluent_kafka.KafkaException(message.error())
            _, milliseconds = message.timestamp()
            place = (message.partition(), message.offset())
            body = message.value() or b""
            messages.append(Message(place, body, milliseconds // 1000))

        return messages

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """Commit what was read."""
        self._consumer.commit(asynchronous=False)


def read_schema(bundle: Path) -> Schema:
    return Schema.from_json((bundle / SCHEMA).read_text(encoding="utf-8"))


def main(servers: str, topic: str, run: Path) -> None:
    stopping = Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    stream = KafkaTopic(topic, "bascule", {"bootstrap.servers": servers})
    with closing(StateStore(run / "state" / "state.db")) as state:
        consume(stream, state, lambda: read_schema(run / "bundle"), stopping)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
