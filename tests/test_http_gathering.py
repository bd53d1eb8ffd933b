"""What waits is answered together, each question with its own answer or its own error."""

import asyncio
import threading
import time
from itertools import chain

import pytest

from serve.errors import BundleError
from serve.http.gathering import Gathering
from serve.http.worker import OverloadError, Worker


class Answers:
    """Note which questions come together; negative ones are errors, with 666 the call fails."""

    def __init__(self, fault=OSError):
        self.entered, self.gate = threading.Event(), threading.Event()
        self.together = []
        self.fault = fault
        self.seconds = 0

    def __call__(self, questions):
        self.entered.set()
        self.gate.wait(20)
        self.together.append([*questions])
        time.sleep(self.seconds if len(self.together) > 1 else 0)
        if 666 in questions:
            raise self.fault("the disk fails")
        return [ValueError(question) if question < 0 else question * 10 for question in questions]


async def turn_around():
    """Let every task go on to where it waits for the thread."""
    for _ in range(5):
        await asyncio.sleep(0)


def ask(answers, questions, most=4, waiting=30, then=None, deadline=30, slowly=0):
    """Ask while a first question, 0, holds the thread; return what comes of the others."""

    async def main():
        worker = Worker("test", waiting, deadline)
        gathering = Gathering(worker, answers, most)
        first = asyncio.ensure_future(gathering.run(0))
        while not answers.entered.is_set():
            await asyncio.sleep(0.001)
        tasks = [asyncio.ensure_future(gathering.run(question)) for question in questions]
        await turn_around()
        if then is not None:
            then(tasks)
            await turn_around()
        answers.seconds = slowly
        answers.gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert await first == 0
        worker.close()
        return outcomes

    return asyncio.run(main())


def test_what_waits_is_answered_together_as_many_as_may_be():
    answers = Answers()
    assert ask(answers, [1, 2, 3, 4, 5, 6]) == [10, 20, 30, 40, 50, 60]
    assert answers.together == [[0], [1, 2, 3, 4], [5, 6]]


def test_an_error_is_its_own_questions():
    outcomes = ask(Answers(), [1, -2, 3])
    assert (outcomes[0], outcomes[2]) == (10, 30)
    assert isinstance(outcomes[1], ValueError)


@pytest.mark.parametrize("fault", [OSError, BundleError])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_call_that_fails_is_the_failure_of_its_own_question(place, fault):
    questions = [1, 2, 3]
    questions[place] = 666
    answers = Answers(fault)
    outcomes = ask(answers, questions)
    assert isinstance(outcomes.pop(place), fault)
    assert outcomes == [10 * question for question in questions if question != 666]
    assert answers.together[1] == questions


def test_a_question_that_fails_alone_is_asked_once():
    answers = Answers()
    (outcome,) = ask(answers, [666])
    assert isinstance(outcome, OSError)
    assert answers.together == [[0], [666]]


def test_what_was_answered_in_time_is_given_however_long_it_took():
    answers = Answers()
    outcomes = ask(answers, [1, 2, 3], deadline=1, slowly=1.2)
    assert outcomes == [10, 20, 30]
    assert answers.together == [[0], [1, 2, 3]]


def test_what_waited_too_long_is_not_asked_with_others():
    answers = Answers()

    async def main():
        worker = Worker("test", 30, deadline=1)
        gathering = Gathering(worker, answers, 9)
        first = asyncio.ensure_future(gathering.run(0))
        while not answers.entered.is_set():
            await asyncio.sleep(0.001)
        others = [asyncio.ensure_future(gathering.run(question)) for question in (1, 2)]
        await asyncio.sleep(1.3)
        late = asyncio.ensure_future(gathering.run(3))
        await turn_around()
        answers.gate.set()
        outcomes = await asyncio.gather(first, late, *others, return_exceptions=True)
        worker.close()
        return outcomes

    first, late, *others = asyncio.run(main())
    assert (first, late) == (0, 30)
    assert answers.together == [[0], [3]]
    assert all(isinstance(one, OverloadError) for one in others)


def test_what_nobody_waits_for_any_more_is_not_asked():
    answers = Answers()
    outcomes = ask(answers, [1, 2, 3], then=lambda tasks: tasks[1].cancel())
    assert (outcomes[0], outcomes[2]) == (10, 30)
    assert answers.together == [[0], [1, 3]]


def test_more_than_may_wait_is_refused_and_not_asked():
    answers = Answers()
    outcomes = ask(answers, [1, 2, 3], waiting=3)
    assert outcomes[:2] == [10, 20]
    assert isinstance(outcomes[2], OverloadError)
    assert answers.together == [[0], [1, 2]]


@pytest.mark.parametrize("n_questions", [1, 5, 30])
def test_questions_that_come_at_once_are_all_answered(n_questions):
    answers = Answers()
    answers.gate.set()

    async def main():
        worker = Worker("test", 64, deadline=30)
        gathering = Gathering(worker, answers, 4)
        outcomes = await asyncio.gather(*map(gathering.run, range(1, n_questions + 1)))
        worker.close()
        return outcomes

    assert asyncio.run(main()) == [10 * number for number in range(1, n_questions + 1)]
    assert sorted(chain.from_iterable(answers.together)) == [*range(1, n_questions + 1)]
    assert max(map(len, answers.together)) <= 4
