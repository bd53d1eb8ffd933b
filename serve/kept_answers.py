"""Lists are kept for a minute: whoever asks the same again, by a reload or a second widget, gets what was ranked."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from serve.errors import SchemaError
from serve.questions import Name, Outcome, Question, Ranked, rank_together
from serve.recommendations import Recommendations
from serve.recommender import Recommender
from serve.state.store import Recalled

MINUTE = 60
"""Seconds: whoever asks within them without saying when asks at their beginning, see `serve.incoming`."""
_MOST_BYTES = 2**22
"""Of what is kept, by a rough count: some thousand answers. More take longer to be looked through for garbage."""
_MOST_OF_ONE = 2**16
"""Of an answer that is kept: long ones are seldom asked for again."""
_OF_ANSWER, _OF_ITEM, _OF_EVENT = 1_000, 20, 200
"""Bytes of any answer, of an item in its list, of a live event in the name of its question."""


@dataclass(frozen=True)
class _Now:
    """What answers, itself and no other, the minute, and the era: what was made under another one is dropped."""

    recommender: Recommender | None
    minute: int
    era: int


_NEVER = _Now(None, 0, 0)


class KeptAnswers:
    """The latest lists of this minute; those of another one, of another version or catalogue are dropped."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self.n_found = 0
        """Questions that were answered by what was kept."""
        self.era = 0
        """Another one begins with each `drop`."""
        self._most_bytes = most_bytes
        self._lock = Lock()
        self._now = _NEVER
        self._lists: OrderedDict[Name, Recommendations] = OrderedDict()
        self._n_bytes = 0

    def rank(
        self, recommender: Recommender, minute: int, era: int, questions: Sequence[Question | SchemaError]
    ) -> list[Outcome]:
        """Answer as `rank_together` does; what was answered in this minute, with the list that was made.

        Args:
            recommender: what ranks.
            minute: in which it is asked.
            era: as it was before the recommender was taken and the questions were read: nothing is kept of another one.
            questions: or errors in their place.
        """
        now = _Now(recommender, minute, era)
        outcomes: dict[int, Outcome] = {**self._find(now, questions)}
        missing = {place: one for place, one in enumerate(questions) if place not in outcomes}
        ranked = rank_together(recommender, [*missing.values()])
        self._keep(now, zip(missing.values(), ranked, strict=True))
        outcomes |= zip(missing, ranked, strict=True)
        return [outcomes[place] for place in range(len(questions))]

    def drop(self) -> None:
        """Let go of all lists and of what made them; what is being asked now will not be kept either."""
        with self._lock:
            self.era += 1
            self._begin(_NEVER)

    def _find(self, now: _Now, questions: Sequence[Question | SchemaError]) -> dict[int, Ranked]:
        """Return what is kept, by the place of its question."""
        found = {}
        with self._lock:
            if now.era != self.era:
                return {}
            if self._now != now:
                self._begin(now)
            for place, one in enumerate(questions):
                if isinstance(one, SchemaError) or one.name is None:
                    continue
                if (lists := self._lists.get(one.name)) is not None:
                    found[place] = Ranked(one.requests, lists)
            self.n_found += len(found)
        return found

    def _keep(self, now: _Now, ranked: Iterable[tuple[Question | SchemaError, Outcome]]) -> None:
        with self._lock:
            if self._now != now:  # overtaken, or dropped, meanwhile
                return
            for question, outcome in ranked:
                if not isinstance(question, SchemaError) and isinstance(outcome, Ranked):
                    self._add(question.name, outcome.lists)
            while self._n_bytes > self._most_bytes:
                self._n_bytes -= _measure(*self._lists.popitem(last=False))

    def _add(self, name: Name | None, lists: Recommendations) -> None:
        if name is None or name in self._lists or _measure(name, lists) > _MOST_OF_ONE:
            return
        self._lists[name] = lists.apart()
        self._n_bytes += _measure(name, lists)

    def _begin(self, now: _Now) -> None:
        self._now = now
        self._lists, self._n_bytes = OrderedDict(), 0


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
        None of somebody who was forgotten, of what is too long to be kept, and where a value is none that JSON knows:
        nobody can tell then.
    """
    if recalled.is_forgotten or _OF_EVENT * _count(recalled) > _MOST_OF_ONE:
        return None
    try:
        words = json.dumps(raw)  # tells 1 from true and from 1.0
    except TypeError:
        return None
    return words, k, filter_viewed, moment, recalled


def _measure(name: Name, lists: Recommendations) -> int:
    words, *_, recalled = name
    return _OF_ANSWER + len(words) + _OF_ITEM * len(lists.item_row) + _OF_EVENT * _count(recalled)


def _count(recalled: Recalled) -> int:
    return len(recalled.history) + len(recalled.dismissed)
