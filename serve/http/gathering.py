"""What waits for the thread that computes is answered together: one pass over the catalogue for all of it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from serve.http.worker import OverloadError, Worker

Q = TypeVar("Q")
A = TypeVar("A")


class Waiting(Generic[Q, A]):
    """A question in the queue."""

    def __init__(self, question: Q, begin_by: float) -> None:
        self.question = question
        self.begin_by = begin_by
        """On `monotonic`: after that it is answered with no other any more."""
        self.outcome: A | Exception | None = None
        """None until it is answered."""
        self.is_left = False
        """Nobody waits for it any more."""

    def is_answered(self) -> bool:
        return self.outcome is not None

    def is_due(self) -> bool:
        """Tell whether it is to be answered still."""
        return not self.is_left and time.monotonic() <= self.begin_by


class Gathering(Generic[Q, A]):
    """Each question is a job of the worker; the first to begin answers those that wait behind it too."""

    def __init__(self, worker: Worker, answer: Callable[[Sequence[Q]], Sequence[A | Exception]], most: int) -> None:
        """Gather questions for a worker.

        Args:
            worker: bounds how many wait, and for how long.
            answer: gives an answer, or an error to raise, for each of up to `most` questions.
            most: questions that are answered together.
        """
        self._worker = worker
        self._answer = answer
        self._most = most
        self._queue: deque[Waiting[Q, A]] = deque()

    async def run(self, question: Q) -> A:
        """Answer a question in the thread.

        Raises:
            OverloadError: see `Worker.run`.
            Exception: what `answer` gave for it.
        """
        await asyncio.sleep(0)  # what came in at the same moment goes into the queue before the thread looks at it
        if self._worker.is_full:
            raise OverloadError
        one: Waiting[Q, A] = Waiting(question, time.monotonic() + self._worker.deadline)
        self._queue.append(one)
        try:
            return await self._worker.run(partial(self._settle, one), one.is_answered)
        finally:
            one.is_left = True

    def _settle(self, one: Waiting[Q, A]) -> A:
        """Answer a question and what waits behind it, unless one before it did."""
        if not one.is_answered():
            taken = self._take(one)
            try:
                outcomes = self._answer([each.question for each in taken])
            except (OSError, ValueError):  # whose fault it is, nobody knows: each of the others is left to its own job
                if len(taken) == 1:
                    raise
                taken = [one]
                outcomes = self._answer([one.question])
            for each, outcome in zip(taken, outcomes, strict=True):
                each.outcome = outcome
        if isinstance(one.outcome, Exception):
            raise one.outcome
        return one.outcome  # type: ignore[return-value]  # it is there

    def _take(self, first: Waiting[Q, A]) -> list[Waiting[Q, A]]:
        """Take a question out of the queue, and those behind it that are still due."""
        taken = [first]
        while self._queue and len(taken) < self._most:
            one = self._queue.popleft()
            if one.is_due() and one is not first:
                taken.append(one)
        return taken
