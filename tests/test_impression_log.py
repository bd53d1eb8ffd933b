"""Impressions are written behind the answers: all of them at the end, and a fault of the disk ends nothing."""

import errno
import sqlite3
import threading
import time
from types import SimpleNamespace

import pytest

from serve import impression_log
from serve.errors import BundleError
from serve.impression_log import ImpressionLog
from serve.state import Impressions


class Store:
    """Writes into a list, once the gate is open and no fault is left."""

    def __init__(self, *faults):
        self.faults = list(faults)
        self.gate = threading.Event()
        self.written = []
        self.n_expired = 0
        self.fault_of_expiry = None

    def log_impressions(self, answers):
        assert self.gate.wait(20)
        if self.faults:
            raise self.faults.pop()
        self.written += answers

    def expire(self, _):
        self.n_expired += 1
        if self.fault_of_expiry is not None:
            raise self.fault_of_expiry


def answer_of(number, n_items=2):
    return Impressions(f"r{number}", "u", 5, "v", "greedy", list(range(n_items)), [0.5] * n_items)


def test_what_waits_is_written_in_order_before_the_end():
    store = Store()
    log, batches = ImpressionLog(store), [[answer_of(number)] * 3 for number in range(300)]
    for batch in batches:
        log.add(batch)
    store.gate.set()
    log.close()
    assert store.written == [one for batch in batches for one in batch]
    assert log.n_lost == 0


@pytest.mark.parametrize(
    "fault",
    [
        OSError(28, "no room"),
        BundleError("/run/forgotten.json is damaged: u77123"),
        sqlite3.InterfaceError("nobody foresaw this"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_what_cannot_be_written_is_counted_and_later_ones_are_written(fault, caplog):
    store = Store(fault)
    log = ImpressionLog(store)
    log.add([answer_of(1), answer_of(2)])
    store.gate.set()
    while not log.n_lost:
        pass
    log.add([answer_of(3)])
    log.close()
    assert log.n_lost == 2
    assert store.written == [answer_of(3)]
    assert "77123" not in caplog.text
    assert "2 impressions could not be written" in caplog.text


def test_impressions_are_written_though_taking_out_old_ones_fails(caplog):
    store = Store()
    store.fault_of_expiry = OSError(28, "no room")
    store.gate.set()
    log = ImpressionLog(store)
    while not store.n_expired:
        time.sleep(0.01)
    log.add([answer_of(1)])
    log.close()
    assert store.written == [answer_of(1)]
    assert "nothing was taken out for its age: no room" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_thread_that_an_unforeseen_error_ended(monkeypatch):
    monkeypatch.setattr(impression_log, "_MOST_WAITING", 6)  # items
    store = Store(RuntimeError("nobody foresaw this"))
    log = ImpressionLog(store)
    log.add([answer_of(1), answer_of(2)])
    time.sleep(0.3)  # it is being written
    log.add([answer_of(3)])
    assert log.is_full
    assert log.notes == []
    store.gate.set()
    while log.is_running:
        time.sleep(0.01)
    assert not log.is_full
    log.add([answer_of(4)])  # an answer that would wait for good
    assert log.n_lost == 4
    assert "start it again" in log.notes[0]
    log.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_waits_for_room_while_the_thread_ends_is_counted(monkeypatch):
    monkeypatch.setattr(impression_log, "_MOST_WAITING", 6)  # items
    store = Store(RuntimeError("nobody foresaw this"))
    log = ImpressionLog(store)
    log.add([answer_of(1), answer_of(2), answer_of(3)])
    asked = threading.Event()
    monkeypatch.setattr(impression_log.time, "sleep", lambda _: asked.set() or threading.Event().wait(0.01))
    adding = threading.Thread(target=log.add, args=([answer_of(4)],))
    adding.start()
    assert asked.wait(20)  # there is no room for it
    store.gate.set()
    adding.join()
    assert log.n_lost == 4
    log.close()


def test_while_another_process_keeps_the_file_nothing_is_lost(caplog):
    store = Store(*[OSError(errno.EBUSY, "database is locked")] * 3)
    log = ImpressionLog(store)
    log.add([answer_of(1), answer_of(2)])
    store.gate.set()
    while store.faults:
        log.add([answer_of(3)])
        time.sleep(0.05)
    log.close()
    n_later = len(store.written) - 2
    assert store.written == [answer_of(1), answer_of(2), *[answer_of(3)] * n_later]
    assert n_later > 0
    assert log.n_lost == 0
    assert not caplog.records


@pytest.mark.parametrize("is_full", [True, False], ids=["there is no room", "it ends"])
def test_nobody_waits_for_a_file_that_is_kept_for_good(is_full):
    store = Store(*[OSError(errno.EBUSY, "database is locked")] * 99)
    log = ImpressionLog(store)
    log.add([answer_of(number, 1000) for number in range(250 if is_full else 1)])
    store.gate.set()
    while is_full and not log.n_lost:
        pass
    log.close()
    assert log.n_lost == (250 if is_full else 1)
    assert not log.is_full


def test_the_room_is_counted_in_items_since_answers_differ_in_size():
    store = Store()
    log = ImpressionLog(store)
    assert not log.is_full
    for number in range(2):
        log.add([answer_of(number, 1000)] * 125)
    assert log.is_full
    waiting = threading.Thread(target=log.add, args=([answer_of(3)],))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    store.gate.set()
    waiting.join(20)
    log.close()
    assert len(store.written) == 251
    assert not log.is_full


def test_empty_lists_take_room_too(monkeypatch):
    monkeypatch.setattr(impression_log, "_MOST_WAITING", 6)
    store = Store()
    log = ImpressionLog(store)
    for number in range(6):
        assert not log.is_full
        log.add([answer_of(number, 0)])
    assert log.is_full
    store.gate.set()
    log.close()
    assert len(store.written) == 6
    assert not log.is_full


def test_no_transaction_holds_much_more_than_its_share():
    store, sizes = Store(), []
    log = ImpressionLog(store)
    write = store.log_impressions

    def note_and_write(answers):
        write(answers)
        sizes.append(sum(len(one.item_ids) for one in answers))

    store.log_impressions = note_and_write
    log.add([answer_of(number, 999) for number in range(240)])
    store.gate.set()
    log.close()
    assert len(store.written) == 240
    assert max(sizes) < 50_000 + 999


def test_what_is_old_is_taken_out_once_an_hour(monkeypatch):
    now, looks = [1000.0], threading.Semaphore(0)

    def look():
        looks.release()
        return now[0]

    monkeypatch.setattr(impression_log, "_PAUSE", 0.001)
    monkeypatch.setattr(impression_log, "time", SimpleNamespace(monotonic=look, time=time.time))
    store = Store()
    log = ImpressionLog(store)
    for hours, n_expired in ((0, 1), (0.9, 1), (1.1, 2), (1.9, 2), (2.2, 3)):
        now[0] = 1000 + 3600 * hours
        for _ in range(looks._value + 4):  # those before, one under way, and the two or three of whoever looks now
            assert looks.acquire(timeout=20)
        assert store.n_expired == n_expired
    log.close()
