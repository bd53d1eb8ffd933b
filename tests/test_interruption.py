from __future__ import annotations

import os
import signal
import threading

import pytest

from serve.interruption import ENDED, ending_on_signals, undisturbed

SIGNALS = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]


def handlers():
    return [signal.getsignal(number) for number, _ in SIGNALS]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_with_its_status(number, code):
    before = handlers()
    with pytest.raises(SystemExit) as end, ending_on_signals():
        os.kill(os.getpid(), number)
    assert end.value.code == code
    assert code in ENDED
    assert handlers() == before


def test_without_a_signal_nothing_happens():
    before, threads = handlers(), threading.active_count()
    with ending_on_signals():
        assert handlers() != before
    assert handlers() == before
    assert threading.active_count() == threads


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_second_signal_ends_the_process_at_once(number, code, monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with ending_on_signals():
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)
        assert codes == []
        with pytest.raises(SystemExit):  # what stands in for the end comes back
            os.kill(os.getpid(), number)
    assert codes == [code]


def test_what_must_happen_together_is_not_disturbed():
    done = []
    with ending_on_signals():
        before = handlers()
        with undisturbed():
            for number, _ in SIGNALS:
                os.kill(os.getpid(), number)
            done.append(1)
        assert handlers() == before
    assert done == [1]


def test_other_threads_leave_signals_alone():
    before, seen = handlers(), []

    def work() -> None:
        with ending_on_signals(), undisturbed():
            seen.append(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
