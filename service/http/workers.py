"""Several processes behind one address: a parent starts workers, puts new ones in the place of old ones, and ends them.

A worker is the same command once more, in a process of its own that inherits the listening sockets. Whoever connects
while a worker ends is answered by another one, or by the next. SIGHUP renews all workers, one after the other: a new
one, of the code and the bundle of now, answers before the old one is told to end.
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
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from service.command_line import FAULT

_WORKER = "BASCULE_WORKER"  # of a worker: the pid of its parent, and descriptors of a pipe to it and of the sockets
_SHARED = "PROMETHEUS_MULTIPROC_DIR"  # folder in which workers count together
_MEMORY = "/dev/shm"  # only to the parent's user  # noqa: S108
_INHERITED = [int(part) for part in os.environ.get(_WORKER, "").split(",") if part]
_PAUSE = 5.0  # seconds between two attempts to start a worker
_GRACE = 15.0  # seconds in which a worker ends: more than uvicorn takes to drain
_LOG = logging.getLogger("service.http")


@contextmanager
def bind(host: str, *ports: int) -> Iterator[list[socket.socket]]:
    """Take ports before anything is loaded, in a worker from its parent; raise ValueError if one cannot be had."""
    with ExitStack() as stack:
        if is_worker():
            taken = (socket.socket(fileno=descriptor) for descriptor in _INHERITED[2:])
        else:
            taken = (_bind(host, port) for port in ports)
        yield [stack.enter_context(one) for one in taken]


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(
        family, socket.SOCK_STREAM, socket.IPPROTO_TCP
    )  # of 0 asyncio would not set TCP_NODELAY
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ValueError(
            f"cannot listen at {host}:{port}: {getattr(error, 'strerror', error)}"
        ) from error
    return listener


def is_worker() -> bool:
    """Tell whether a parent started this process."""
    return bool(_INHERITED)


def is_orphan() -> bool:
    """Tell whether this is a worker whose parent has ended."""
    return is_worker() and os.getppid() != _INHERITED[0]


def say_ready() -> None:
    """Tell the parent of a worker that it answers from now on."""
    if is_worker():
        os.write(_INHERITED[1], b"1")


def supervise(n_workers: int, listeners: Sequence[socket.socket]) -> int:
    """Keep workers running until SIGTERM or Ctrl-C; return the exit status: of a fault if the first cannot start."""
    # in memory where that can be: it is mapped, and a write that finds the disk full would end a worker
    with TemporaryDirectory(
        prefix="bascule-", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None
    ) as shared:
        return asyncio.run(_Parent(n_workers, listeners, Path(shared)).run())


class _Parent:
    def __init__(
        self, n_workers: int, listeners: Sequence[socket.socket], shared: Path
    ) -> None:
        self._sockets = [listener.fileno() for listener in listeners]
        self._shared = shared
        self._workers: list[Process | None] = [None] * n_workers
        self._living: dict[
            Process, asyncio.Task[None]
        ] = {}  # those that start or end, too, and what waits for the end
        self._starting = (
            asyncio.Lock()
        )  # one at a time: each needs a processor and memory

    async def run(self) -> int:
        ending = asyncio.Event()
        renewal = asyncio.Event()
        for number, event in (
            (signal.SIGTERM, ending),
            (signal.SIGINT, ending),
            (signal.SIGHUP, renewal),
        ):
            asyncio.get_running_loop().add_signal_handler(number, event.set)
        tasks = [
            asyncio.ensure_future(one)
            for one in (ending.wait(), self._keep_all(), self._renew_at(renewal))
        ]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*map(self._end, [*self._living]))
        return 0 if ending.is_set() else FAULT

    async def _keep_all(self) -> None:
        """Keep the number of workers; return if the first does not start, which said why."""
        if await self._replace(0, None):
            await asyncio.gather(*map(self._keep, range(len(self._workers))))

    async def _keep(self, place: int) -> None:
        """Put new workers in the place of those that end by themselves."""
        while True:
            worker = self._workers[place]
            if worker is not None and await worker.wait():
                _LOG.error(
                    "worker %d ended with status %d", worker.pid, worker.returncode
                )
            if not await self._replace(place, worker):
                await asyncio.sleep(_PAUSE)

    async def _renew_at(self, renewal: asyncio.Event) -> None:
        """Put a new worker in the place of each whenever that is asked for, as long as new ones start."""
        while await renewal.wait():
            renewal.clear()
            for place in range(len(self._workers)):
                async with (
                    self._starting
                ):  # one that starts now may be of the code of before
                    old = self._workers[place]
                if not await self._replace(place, old):
                    _LOG.error("no new worker could be started: the present ones go on")
                    break
                if old is not None:
                    await self._end(old)
            else:
                _LOG.info("all workers are new")

    async def _replace(self, place: int, old: Process | None) -> bool:
        """Put a new worker that answers in the place of another, if it still has it; return False if none starts."""
        async with self._starting:
            if self._workers[place] is old:
                new = await self._start()
                self._workers[place] = new or old
                return new is not None
            return True

    async def _start(self) -> Process | None:
        """Start a worker; return once it answers, with None if it ended before."""
        reader, writer = os.pipe()
        descriptors = (writer, *self._sockets)
        variables = {
            _WORKER: ",".join(map(str, (os.getpid(), *descriptors))),
            _SHARED: str(self._shared),
        }
        command = (
            sys.executable,
            *sys.orig_argv[1:],
        )  # in a group of its own: what a terminal sends is for the parent
        try:
            worker = await asyncio.create_subprocess_exec(
                *command,
                env=os.environ | variables,
                pass_fds=descriptors,
                process_group=0,
            )
        finally:
            os.close(writer)
        self._living[worker] = asyncio.ensure_future(self._clear(worker))
        with os.fdopen(reader, "rb", 0) as pipe:
            try:
                return worker if await asyncio.to_thread(pipe.read, 1) else None
            except asyncio.CancelledError:
                worker.kill()  # it has taken no request, and while it imports it may miss a SIGTERM
                raise

    async def _clear(self, worker: Process) -> None:
        """Forget a worker at its end, and what it counted of its present."""
        await worker.wait()
        del self._living[worker]
        for path in self._shared.glob(f"gauge_live*_{worker.pid}.db"):
            path.unlink()

    async def _end(self, worker: Process) -> None:
        """Let a worker answer what it was asked, and end; kill it if it does not."""
        if worker.returncode is None:
            worker.terminate()
        try:
            await asyncio.wait_for(worker.wait(), _GRACE)
        except TimeoutError:
            _LOG.error("worker %d did not end: it is killed", worker.pid)
            worker.kill()
