"""Lists are kept for a moment: whoever asks the same again, by a reload or a second widget, gets them without work."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

from serve.errors import SchemaError
from serve.questions import Name, Outcome, Question, Ranked, rank_together
from serve.recommender import Recommender
from serve.state.store import Recalled

MOMENT = 60
"""Seconds: whoever asks within them without saying when asks at their beginning."""
_MOST_BYTES = 2**22
"""Of what is kept, by a rough count: some thousand answers. More take longer to be looked through for garbage."""
_OF_ANSWER, _OF_ITEM, _OF_EVENT = 1_000, 20, 100
"""Bytes of any answer, of an item in its list, of a live event in the name of its question."""


class KeptAnswers:
    """The latest answers of one recommender: those of another version or catalogue are dropped at once."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._lock = Lock()
        self._recommender: Recommender | None = None
        self._answers: OrderedDict[Name, Ranked] = OrderedDict()
        self._n_bytes = 0

    def rank(self, recommender: Recommender, questions: Sequence[Question | SchemaError]) -> list[Outcome]:
        """Answer as `rank_together` does; what was answered already, by what came of it."""
        names = [None if isinstance(one, SchemaError) else one.name for one in questions]
        outcomes: dict[int, Outcome] = {**self._find(recommender, names)}
        missing = [place for place in range(len(questions)) if place not in outcomes]
        ranked = rank_together(recommender, [questions[place] for place in missing])
        outcomes |= zip(missing, ranked, strict=True)
        self._keep(recommender, {names[place]: outcomes[place] for place in missing})
        return [outcomes[place] for place in range(len(questions))]

    def drop(self) -> None:
        """Let go of all answers."""
        with self._lock:
            self._begin(None)

    def _find(self, recommender: Recommender, names: Sequence[Name | None]) -> dict[int, Ranked]:
        """Return what is kept, by the place of its question."""
        with self._lock:
            if self._recommender is not recommender:
                self._begin(recommender)
            answers = self._answers
            return {place: answers[name] for place, name in enumerate(names) if name is not None and name in answers}

    def _keep(self, recommender: Recommender, outcomes: Mapping[Name | None, Outcome]) -> None:
        with self._lock:
            if self._recommender is not recommender:  # another one has answered meanwhile
                return
            for name, outcome in outcomes.items():
                if name is not None and name not in self._answers and isinstance(outcome, Ranked):
                    self._answers[name] = outcome
                    self._n_bytes += _measure(name, outcome)
            while self._n_bytes > self._most_bytes:
                self._n_bytes -= _measure(*self._answers.popitem(last=False))

    def _begin(self, recommender: Recommender | None) -> None:
        self._recommender = recommender
        self._answers, self._n_bytes = OrderedDict(), 0


def name_question(
    raw: Mapping[str, Any], k: int, filter_viewed: bool | None, moment: int | None, recalled: Recalled
) -> Name | None:
    """Return what questions share if and only if they ask the same, word by word, of a user in the same state.

    Args:
        raw: the request.
        k: as of `Recommender.recommend`.
        filter_viewed: as of `Recommender.recommend`.
        moment: when it is asked.
        recalled: what the store has of who asks.

    Returns:
        None where it holds a value that JSON does not know: then nobody can tell.
    """
    try:
        words = json.dumps(raw)  # tells 1 from true and from 1.0
    except TypeError:
        return None
    return words, k, filter_viewed, moment, recalled


def _measure(name: Name, ranked: Ranked) -> int:
    words, *_, recalled = name
    n_events = len(recalled.history) + len(recalled.dismissed)
    return _OF_ANSWER + len(words) + _OF_ITEM * len(ranked.lists.item_row) + _OF_EVENT * n_events
