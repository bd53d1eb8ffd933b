from __future__ import annotations

import io

import pytest
from rich.console import Console

from evaluation.progress import Watched
from tests.test_evaluate import AT, ITEMS, MODELS_ALLOW, NEW_USER, USERS, VALIDATION, make_recommender, run


class Heard:
    def __init__(self):
        self.said, self.expected, self.done = [], 0, 0

    def say(self, message):
        self.said.append(message)

    def expect(self, n_steps):
        self.expected = n_steps

    def advance(self, n_steps):
        self.done += n_steps


def listen(validation=VALIDATION):
    heard = Heard()
    run(make_recommender(repeats="allow"), AT, validation=validation, progress=heard)
    return heard


def test_every_model_is_named_before_and_after_it_is_computed():
    heard = listen()
    assert [message.split(":")[0] for message in heard.said] == [name for name in MODELS_ALLOW for _ in range(2)]
    size = f"{len(ITEMS)} items, {len({*USERS, NEW_USER})} users"
    assert f"ease: {size}, 5 fits to choose lambda from 3 to 300, then one on all events" in heard.said
    assert f"personal: {size}, one fit" in heard.said


@pytest.mark.parametrize(("validation", "n_fits"), [(VALIDATION, 2 * 1 + 4 * 6), (VALIDATION[:0], 6)])
def test_every_fit_is_a_step(validation, n_fits):
    heard = listen(validation)
    assert heard.done == heard.expected == n_fits


def test_a_skipped_baseline_takes_all_its_steps(monkeypatch):
    monkeypatch.setattr("evaluation.tuning.read_free_bytes", lambda: 0)
    heard = listen()
    assert "skipped" in heard.said[-1]
    assert heard.done == heard.expected


@pytest.mark.parametrize(("is_terminal", "has_bar"), [(True, True), (True, False), (False, True)])
def test_lines_are_always_there_and_the_bar_on_a_terminal(is_terminal, has_bar):
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=100)
    with Watched(console, has_bar) as progress:
        progress.expect(7)
        progress.advance(3)
        progress.say("ease: now")
    text = console.file.getvalue()
    assert "ease: now" in text
    assert ("3/7" in text) == (is_terminal and has_bar)
