"""What waits for the thread that computes is answered together: one pass over the catalogue for all of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

from serve.http.worker import Worker

Q = TypeVar("Q")
A = TypeVar("A")


class Waiting(Generic[Q, A]):
    """A question in the queue."""

    def __init__(self, question: Q) -> None:
        self.question = question
        self.outcome: A | Exception | None = None
        """None until it is answered."""
        self.is_wanted = True
        """Does anybody still wait for it."""


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
        one: Waiting[Q, A] = Waiting(question)
        self._queue.append(one)
        try:
            await asyncio.sleep(0)  # what came in at the same moment is in the queue before the thread looks at it
            return await self._worker.run(partial(self._settle, one))
        finally:
            one.is_wanted = False

    def _settle(self, one: Waiting[Q, A]) -> A:
        """Answer a question and what waits behind it, unless one before it did."""
        if one.outcome is None:
            taken = self._take(one)
            try:
                outcomes = self._answer([each.question for each in taken])
            except BaseException:  # of this job; the others are still to be answered by theirs
                self._queue.extendleft(reversed(taken[1:]))
                raise
            for each, outcome in zip(taken, outcomes, strict=True):
                each.outcome = outcome
        if isinstance(one.outcome, Exception):
            raise one.outcome
        return one.outcome  # type: ignore[return-value]  # it is there

    def _take(self, first: Waiting[Q, A]) -> list[Waiting[Q, A]]:
        """Take a question and those behind it that somebody waits for out of the queue."""
        taken = [first]
        while self._queue and len(taken) < self._most:
            one = self._queue.popleft()
            if one.is_wanted and one is not first:
                taken.append(one)
        return taken
