"""Several processes behind one address: a parent starts workers, renews them and ends them.

A worker is the same command once more, in a process of its own that inherits the listening
sockets. Whoever connects while a worker ends is answered by another one, or by the next. SIGHUP
renews all workers, one after the other: a new one, of the present code and bundle, answers before
the old one is told to end.

uvicorn's own supervisor keeps none of three promises of the documentation: connections that are
kept break at a renewal, workers outlive a killed parent, and a bundle that cannot be served is
tried for ever at the start.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from service.command_line import FAULT, ending_on_signals, undisturbed

# of a worker: the pid of its parent, its place, and descriptors of a pipe and of the sockets
_WORKER = "BASCULE_WORKER"
_INHERITED = [int(part) for part in os.environ.get(_WORKER, "").split(",") if part]
PARENT = _INHERITED[0] if _INHERITED else None  # pid
PLACE = sum(
    _INHERITED[1:2]
)  # of a worker, which goes on with the counts of the one before
SHARED = "PROMETHEUS_MULTIPROC_DIR"  # folder in which workers count together
_MEMORY = "/dev/shm"  # noqa: S108 - the folder in it admits only the parent's user
_LOOK_SECONDS = 0.1  # between two looks at the workers
_RETRY_SECONDS = 5.0  # between two attempts to start a worker
_END_SECONDS = 15.0  # in which a worker ends: more than uvicorn takes to drain
_RETURN = 6  # code of the Berkeley packet filter, and length 0
_ATTACH_FILTER = 26  # SO_ATTACH_FILTER of Linux
_LOG = logging.getLogger("service.http")


@contextmanager
def bind(host: str, *ports: int) -> Iterator[list[socket.socket]]:
    """Take ports before anything is loaded; a worker has them from its parent.

    Raises:
        ValueError: a port cannot be had.
    """
    with ExitStack() as stack:
        listeners = [socket.socket(fileno=number) for number in _INHERITED[3:]]
        if not is_worker():
            listeners = [_bind(host, port) for port in ports]
        for listener in listeners:
            stack.enter_context(listener)
        yield listeners


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # with protocol 0 asyncio would not set TCP_NODELAY
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", error)
        raise ValueError(f"cannot listen at {host}:{port}: {reason}") from error

    return listener


def admit_no_more(listeners: Sequence[socket.socket]) -> None:
    """Let the kernel drop what would connect: a socket that is closed resets who waits in it.

    A filter of one instruction keeps 0 bytes of each packet. Where there are none, a few are reset.
    """
    instruction = array("Q", [_RETURN])
    program = struct.pack("HL", 1, instruction.buffer_info()[0])
    for listener in listeners:
        with suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, program)


def is_worker() -> bool:
    """Tell whether a parent started this process."""
    return bool(_INHERITED)


def say_ready() -> None:
    """Tell the parent of a worker that it answers from now on."""
    if is_worker():
        os.write(_INHERITED[2], b"1")


def supervise(n_workers: int, listeners: Sequence[socket.socket]) -> int:
    """Keep workers running until SIGTERM or Ctrl-C.

    Args:
        n_workers: number of processes.
        listeners: bound sockets, which the workers inherit.

    Returns:
        The exit status: that of a fault if the first worker cannot start.
    """
    # on a disk, a counter that finds it full would end its worker
    folder = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    with TemporaryDirectory(prefix="bascule-", dir=folder) as shared:
        parent = _Parent(n_workers, listeners, Path(shared))
        try:
            with ending_on_signals():
                parent.run()
        except SystemExit:
            return 0
        finally:
            with undisturbed():
                admit_no_more(listeners)
                parent.end()

    return FAULT


class _Parent:
    def __init__(
        self, n_workers: int, listeners: Sequence[socket.socket], shared: Path
    ) -> None:
        self._n_workers = n_workers
        self._sockets = [listener.fileno() for listener in listeners]
        self._shared = shared
        # place -> the worker in it, which answers
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._is_renewing = False

    def run(self) -> None:
        """Keep the number of workers; return if the first, which says why, does not start."""
        signal.signal(signal.SIGHUP, self._ask_renewal)
        is_complete = self._fill()
        if not self._workers:
            return
        while True:
            time.sleep(_LOOK_SECONDS if is_complete else _RETRY_SECONDS)
            for place, worker in [*self._workers.items()]:
                if worker.poll() is not None:
                    _LOG.error("worker %d ended: %d", worker.pid, worker.returncode)
                    self._drop(place)
            is_complete = self._fill()
            if self._is_renewing:
                self._is_renewing = False
                self._renew()

    def end(self) -> None:
        """Let all workers finish their requests and end."""
        for worker in self._workers.values():
            worker.terminate()
        for place in [*self._workers]:
            self._end(place)

    def _ask_renewal(self, number: int, frame: FrameType | None) -> None:
        self._is_renewing = True

    def _fill(self) -> bool:
        """Start the workers that lack; return False if one does not start."""
        while len(self._workers) < self._n_workers:
            if not self._start():
                return False

        return True

    def _drop(self, place: int) -> None:
        """Take a worker out with its gauges, which would count on."""
        del self._workers[place]
        for path in self._shared.glob(f"gauge_live*_{place}.db"):
            path.unlink()

    def _renew(self) -> None:
        """Put a new worker in the place of each, as long as new ones start."""
        for place in [*self._workers]:
            if not self._start():
                _LOG.error("could not start new workers; keeping the old ones")
                return
            self._workers[place].terminate()
            self._end(place)

        _LOG.info("workers restarted")

    def _start(self) -> bool:
        """Start a worker and wait until it answers; return False if it ends before."""
        reader, writer = os.pipe()
        descriptors = (writer, *self._sockets)
        place = min(set(range(self._n_workers + 1)) - self._workers.keys())
        variables = {
            _WORKER: ",".join(map(str, (os.getpid(), place, *descriptors))),
            SHARED: str(self._shared),
        }
        worker = subprocess.Popen(  # noqa: S603 - this command once more
            [sys.executable, *sys.orig_argv[1:]],
            env=os.environ | variables,
            pass_fds=descriptors,
            process_group=0,  # what a terminal sends is for the parent alone
        )
        os.close(writer)
        with os.fdopen(reader, "rb", 0) as pipe:
            try:
                is_ready = bool(pipe.read(1))
            except SystemExit:
                worker.kill()  # while it imports it may miss a SIGTERM
                raise

        if is_ready:
            self._workers[place] = worker
        else:
            worker.wait()

        return is_ready

    def _end(self, place: int) -> None:
        """Wait for the end of a worker that was told to; kill it if it does not come."""
        worker = self._workers[place]
        try:
            worker.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            _LOG.error("killing worker %d, which did not end", worker.pid)
            worker.kill()
            worker.wait()

        self._drop(place)
