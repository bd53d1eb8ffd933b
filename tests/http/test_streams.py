"""A consumer of streams: what is acknowledged is in the state, and counts once; what is no event blocks nothing."""

import importlib.util
import json
import sys
from threading import Event
from types import SimpleNamespace

import pytest
from service.http.schemas import read_events
from service.remote.streams import Message, consume
from tests.linear_bundle import SHOP, UNTIL, item_ids
from tests.served import ROOT

IDS = item_ids(SHOP)


def event(number, **fields):
    return json.dumps(
        {"user_id": "u1", "item_id": IDS[number], "datetime": UNTIL, **fields}
    ).encode()


class Ended(OSError):
    pass


class FakeStream:
    """Hands out batches, again from the first one that was not settled after each `join`."""

    fault = ZeroDivisionError

    def __init__(self, *batches, breaks=()):
        self.batches, self.breaks = list(batches), list(breaks)
        self.settled, self.stopping = [], Event()
        self.kept_before = []

    def join(self):
        self.unread = list(self.batches)

    def read(self):
        if not self.unread:
            self.stopping.set()
            return []
        return [Message(place, body, UNTIL) for place, body in self.unread.pop(0)]

    def acknowledge(self, messages):
        if self.breaks and self.breaks.pop(0):
            raise ZeroDivisionError("the connection broke")
        self.settled += [message.place for message in messages]
        del self.batches[0]


@pytest.fixture
def run(monkeypatch, store):
    monkeypatch.setattr("service.remote.streams._WAIT", 0.01)

    def consume_all(stream, state=store):
        consume(stream, state, lambda: SHOP, stream.stopping)
        return store.recall("u1").history.item_id.tolist()

    return consume_all


def test_a_message_is_what_the_route_takes_one_event_or_many(run):
    many = json.dumps({"events": [json.loads(event(1)), json.loads(event(2))]}).encode()
    assert run(FakeStream([(1, many), (2, event(3))])) == [IDS[1], IDS[2], IDS[3]]


def test_what_was_kept_but_not_acknowledged_comes_again_and_counts_once(run):
    stream = FakeStream([(1, event(1)), (2, event(2))], [(3, event(3))], breaks=[True, False, True])
    assert run(stream) == [IDS[1], IDS[2], IDS[3]]
    assert stream.settled == [1, 2, 3]


def test_an_event_without_a_time_that_comes_again_counts_once(run, store, monkeypatch):
    timeless = json.dumps({"user_id": "u1", "item_id": IDS[4]}).encode()
    stream = FakeStream([(1, timeless)], breaks=[True, True])
    assert run(stream) == [IDS[4]]
    assert store.recall("u1").history.datetime.tolist() == [UNTIL]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"events": []}',
        event(1, extra=1),
        event(1, weight=True),
        event(1, weight="1"),
        event(1, request_id="no id!"),
        event(1, request_id=7),
        event(1, datetime="yesterday"),
        event(1, datetime=UNTIL + 10 * 86_400),
        event(1, context={"nobody": 1}),
        event(1).replace(str(UNTIL).encode(), b"NaN"),
        json.dumps({"events": [json.loads(event(1)), {"user_id": "u1"}]}).encode(),
    ],
    ids=str,
)
def test_what_is_no_event_is_named_in_the_log_and_blocks_nothing(run, caplog, body):
    stream = FakeStream([(1, event(1)), (2, body), (3, event(3))])
    assert run(stream) == [IDS[1], IDS[3]]
    assert stream.settled == [1, 2, 3]
    (line,) = caplog.messages
    assert "message 2 is" in line
    assert "yesterday" not in line


def test_nothing_is_acknowledged_or_read_on_while_the_state_fails(run, store):
    asked = []

    class Failing:
        def observe_many(self, observations):
            asked.append([each.item_id for each in observations])
            assert stream.settled == []
            if len(asked) < 3:
                raise OSError("the disk is full")
            return store.observe_many(observations)

    stream = FakeStream([(1, event(1))])
    assert run(stream, Failing()) == [IDS[1]]
    assert asked == [[IDS[1]]] * 3
    assert stream.settled == [1]


def test_the_events_of_a_forgotten_user_are_acknowledged_and_not_kept(run, store):
    from service.forget import forget_users

    store.observe("u1", IDS[1], None, UNTIL)
    forget_users(store.path.parent.parent, ["u1"])
    stream = FakeStream([(1, event(2))])
    assert run(stream) == []
    assert stream.settled == [1]


def test_the_reader_gives_what_the_caller_wrote():
    body = {"user_id": "u1", "item_id": IDS[0], "weight": 2, "context": {"device": "phone"}}
    assert read_events(json.dumps(body).encode()) == [body]


# ---- Kafka


class FakeKafka:
    """A topic of one partition with a group."""

    class KafkaException(Exception):
        pass

    def __init__(self, *bodies):
        self.bodies, self.committed, self.faults = list(bodies), 0, []
        self.stopping = Event()

    def Consumer(self, settings):
        assert settings["enable.auto.commit"] is False
        self.position = self.committed
        return SimpleNamespace(
            subscribe=lambda names: None,
            consume=self.consume,
            commit=self.commit,
            close=lambda: None,
        )

    def consume(self, number, seconds):
        if self.faults and self.faults.pop(0):
            return [SimpleNamespace(error=lambda: "the broker is gone")]
        bodies = self.bodies[self.position : self.position + 2]
        self.position += len(bodies)
        if not bodies:
            self.stopping.set()
        return [
            SimpleNamespace(
                error=lambda: None,
                value=lambda body=body: body,
                timestamp=lambda: (1, UNTIL * 1000),
                partition=lambda: 0,
                offset=lambda: 0,
            )
            for body in bodies
        ]

    def commit(self, asynchronous):
        if self.faults and self.faults.pop(0):
            raise self.KafkaException("another consumer has the partition")
        self.committed = self.position


@pytest.mark.parametrize("faults", [[], [True], [False, True], [False, False, True, False, True]])
def test_the_example_of_kafka_commits_what_the_state_has(run, store, monkeypatch, faults):
    kafka = FakeKafka(event(1), b"{", event(2), event(3), event(4))
    kafka.faults = list(faults)
    monkeypatch.setitem(sys.modules, "confluent_kafka", kafka)
    place = ROOT / "examples" / "kafka_events.py"
    spec = importlib.util.spec_from_file_location("kafka_events", place)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    stream = example.KafkaTopic("events", "bascule", {"bootstrap.servers": "none"})
    consume(stream, store, lambda: SHOP, kafka.stopping)
    assert store.recall("u1").history.item_id.tolist() == IDS[1:5]
    assert kafka.committed == 5
