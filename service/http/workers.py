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

import asyncio
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from service.command_line import FAULT

# of a worker: the pid of its parent, and descriptors of a pipe to it and of the sockets
_WORKER = "BASCULE_WORKER"
_INHERITED = [int(part) for part in os.environ.get(_WORKER, "").split(",") if part]
PARENT = _INHERITED[0] if _INHERITED else None  # pid
_SHARED = "PROMETHEUS_MULTIPROC_DIR"  # folder in which workers count together
_MEMORY = "/dev/shm"  # the folder in it admits only the parent's user
_RETRY_SECONDS = 5.0  # between two attempts to start a worker
_END_SECONDS = 15.0  # in which a worker ends: more than uvicorn takes to drain
_LOG = logging.getLogger("service.http")


@contextmanager
def bind(host: str, *ports: int) -> Iterator[list[socket.socket]]:
    """Take ports before anything is loaded; a worker has them from its parent.

    Raises:
        ValueError: a port cannot be had.
    """
    with ExitStack() as stack:
        listeners = []
        if is_worker():
            for descriptor in _INHERITED[2:]:
                listener = socket.socket(fileno=descriptor)
                listeners.append(stack.enter_context(listener))
        else:
            for port in ports:
                listeners.append(stack.enter_context(_bind(host, port)))
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


def is_worker() -> bool:
    """Tell whether a parent started this process."""
    return bool(_INHERITED)


def say_ready() -> None:
    """Tell the parent of a worker that it answers from now on."""
    if is_worker():
        os.write(_INHERITED[1], b"1")


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
        return asyncio.run(_Parent(n_workers, listeners, Path(shared)).run())


class _Parent:
    def __init__(
        self, n_workers: int, listeners: Sequence[socket.socket], shared: Path
    ) -> None:
        self._n_workers = n_workers
        self._sockets = [listener.fileno() for listener in listeners]
        self._shared = shared
        self._workers: list[Process] = []  # those that answer
        self._watches: dict[Process, asyncio.Task[None]] = {}  # of all that live
        self._is_due = asyncio.Event()  # a worker ended, or a renewal is asked for
        self._is_renewing = False

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        is_ending = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, is_ending.set)
        loop.add_signal_handler(signal.SIGINT, is_ending.set)
        loop.add_signal_handler(signal.SIGHUP, self._ask_renewal)

        tasks = [
            asyncio.create_task(is_ending.wait()),
            asyncio.create_task(self._maintain()),
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*map(self._end, [*self._watches]))
        return 0 if is_ending.is_set() else FAULT

    def _ask_renewal(self) -> None:
        self._is_renewing = True
        self._is_due.set()

    async def _maintain(self) -> None:
        """Keep the number of workers and renew them; return if the first, which says why, fails."""
        is_complete = await self._fill()
        if not self._workers:
            return
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(None if is_complete else _RETRY_SECONDS):
                    await self._is_due.wait()
            is_complete = await self._fill()
            if self._is_renewing:
                self._is_renewing = False
                await self._renew()

    async def _fill(self) -> bool:
        """Start the workers that lack; return False if one does not start."""
        self._is_due.clear()
        while len(self._workers) < self._n_workers:
            worker = await self._start()
            if worker is None:
                return False
            self._workers.append(worker)
        return True

    async def _renew(self) -> None:
        """Put a new worker in the place of each, as long as new ones start."""
        for old in [*self._workers]:
            new = await self._start()
            if new is None:
                _LOG.error("could not start new workers; keeping the old ones")
                return
            self._workers.append(new)
            if old in self._workers:
                self._workers.remove(old)
            await self._end(old)
        _LOG.info("workers restarted")

    async def _start(self) -> Process | None:
        """Start a worker; return it once it answers, or None if it ends before."""
        reader, writer = os.pipe()
        descriptors = (writer, *self._sockets)
        variables = {
            _WORKER: ",".join(map(str, (os.getpid(), *descriptors))),
            _SHARED: str(self._shared),
        }
        try:
            worker = await asyncio.create_subprocess_exec(
                sys.executable,
                *sys.orig_argv[1:],
                env=os.environ | variables,
                pass_fds=descriptors,
                process_group=0,  # what a terminal sends is for the parent alone
            )
        finally:
            os.close(writer)
        self._watches[worker] = asyncio.create_task(self._watch(worker))
        with os.fdopen(reader, "rb", 0) as pipe:
            try:
                is_ready = await asyncio.to_thread(pipe.read, 1)
            except asyncio.CancelledError:
                worker.kill()  # while it imports it may miss a SIGTERM
                raise
        if not is_ready:
            await worker.wait()
            return None
        return worker

    async def _watch(self, worker: Process) -> None:
        """Wait for the end of a worker, then drop its gauges and let it be replaced."""
        status = await worker.wait()
        del self._watches[worker]
        for path in self._shared.glob(f"gauge_live*_{worker.pid}.db"):
            path.unlink()
        if worker in self._workers:
            self._workers.remove(worker)
            _LOG.error("worker %d ended with status %d", worker.pid, status)
            self._is_due.set()

    async def _end(self, worker: Process) -> None:
        """Let a worker finish its requests and end; kill it if it does not."""
        if worker.returncode is None:
            worker.terminate()
        try:
            await asyncio.wait_for(worker.wait(), _END_SECONDS)
        except TimeoutError:
            _LOG.error("killing worker %d, which did not end", worker.pid)
            worker.kill()
