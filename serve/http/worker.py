"""One thread that computes, with a bounded queue before it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class OverloadError(Exception):
    """More work waits than can be done in time."""


class Worker:
    """Compute one job after the other, so that answers do not take the processor from each other."""

    def __init__(self, name: str, waiting: int, deadline: float) -> None:
        """Make the thread.

        Args:
            name: of the thread.
            waiting: jobs that may wait or run at once.
            deadline: seconds in which a job must have begun.
        """
        self._waiting = waiting
        self._deadline = deadline
        self._thread = ThreadPoolExecutor(1, name)
        self._n_jobs = 0

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

    @property
    def deadline(self) -> float:
        """Seconds in which a job must have begun."""
        return self._deadline

    async def run(self, compute: Callable[[], T], is_ready: Callable[[], bool] = lambda: False) -> T:
        """Compute in the thread; what nobody waits for any more is not begun.

        Args:
            compute: the job.
            is_ready: tells that there is nothing left to compute, so that the job is not too late.

        Raises:
            OverloadError: too many jobs wait, or this one waited for too long.
        """
        if self.is_full:
            raise OverloadError
        begin_by = time.monotonic() + self._deadline
        self._n_jobs += 1
        try:
            return await asyncio.wrap_future(self._thread.submit(_begin, compute, is_ready, begin_by))
        finally:
            self._n_jobs -= 1

    def close(self) -> None:
        """Finish the jobs that wait, then end the thread."""
        self._thread.shutdown()


def _begin(compute: Callable[[], T], is_ready: Callable[[], bool], begin_by: float) -> T:
    if time.monotonic() > begin_by and not is_ready():
        raise OverloadError
    return compute()
