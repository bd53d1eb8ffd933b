"""One thread that computes, with a bounded queue before it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class OverloadError(Exception):
    """More work waits than can be done in time."""


@dataclass(frozen=True)
class _Job(Generic[T]):
    compute: Callable[[], T]
    future: asyncio.Future[T]
    begin_by: float
    """On the monotonic clock."""


class Worker:
    """Compute one job after the other, so that answers do not take the processor from each other."""

    def __init__(self, name: str, waiting: int, deadline: float) -> None:
        """Start the thread.

        Args:
            name: of the thread.
            waiting: jobs that may wait or run at once.
            deadline: seconds in which a job must have begun.
        """
        self._waiting = waiting
        self._deadline = deadline
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._n_jobs = 0
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def n_jobs(self) -> int:
        """How many jobs wait or run."""
        return self._n_jobs

    @property
    def is_full(self) -> bool:
        """Would a job be refused now."""
        return self._n_jobs >= self._waiting

    @property
    def is_idle(self) -> bool:
        return self._n_jobs == 0

    async def run(self, compute: Callable[[], T]) -> T:
        """Compute in the thread.

        Raises:
            OverloadError: too many jobs wait, or this one waited for too long.
        """
        if self.is_full:
            raise OverloadError
        loop = asyncio.get_running_loop()
        job = _Job(compute, loop.create_future(), time.monotonic() + self._deadline)
        self._n_jobs += 1
        self._jobs.put(job)
        try:
            result: T = await job.future
            return result
        finally:
            self._n_jobs -= 1

    def close(self) -> None:
        """Finish the jobs that wait, then end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not job.future.cancelled():
                self._compute(job)

    def _compute(self, job: _Job[Any]) -> None:
        loop = job.future.get_loop()
        try:
            if time.monotonic() > job.begin_by:
                raise OverloadError
            result = job.compute()
        except BaseException as error:
            loop.call_soon_threadsafe(_fail, job.future, error)
        else:
            loop.call_soon_threadsafe(_succeed, job.future, result)


def _succeed(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
