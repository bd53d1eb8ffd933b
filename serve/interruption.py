"""End when told to: SIGTERM with status 143, Ctrl-C with 130, within seconds, never between two halves of a change."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

GRACE = 8.0
"""Seconds for the work at hand to end; a call that stays in C for longer is cut off."""

_STOPPING = (signal.SIGTERM, signal.SIGINT)
ENDED = frozenset(128 + number for number in _STOPPING)
"""Statuses of a process that was told to stop."""


@contextmanager
def ending_on_signals() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C raise SystemExit within; a second one ends the process at once.

    Python runs a handler only between two of its own steps. A thread watches over calls that take longer than
    `GRACE`: it ends the process as a kill would, which whatever writes files here must survive anyway.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's alone
        return
    watched, told = os.pipe()
    os.set_blocking(told, False)
    is_over = threading.Event()
    watch = threading.Thread(target=_cut_off, args=(watched, is_over), daemon=True)
    watch.start()
    handle = _raise_once()
    before = {number: signal.signal(number, handle) for number in _STOPPING}
    wakeup = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        is_over.set()
        os.write(told, bytes(1))  # wakes the thread
        watch.join()
        os.close(watched)
        os.close(told)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore SIGTERM and Ctrl-C within: for changes that must happen together and take an instant."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_once() -> Callable[[int, FrameType | None], None]:
    is_told = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal is_told
        if is_told:
            os._exit(128 + number)
        is_told = True
        raise SystemExit(128 + number)

    return handle


def _cut_off(watched: int, is_over: threading.Event) -> None:
    while not is_over.is_set():
        number = os.read(watched, 1)[0]
        if number in _STOPPING and not is_over.wait(GRACE):
            os._exit(128 + number)
