"""Service without live items and state, while their files cannot be opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from serve.arrays import Id
from serve.files import is_forgotten
from serve.recommender import Recommender
from service.log import Recalled


class MissingState:
    """Stands for both: it holds nothing, and to ask for any other method raises why."""

    n_changed = 0
    notes = ("live items and state cannot be opened: what is sent is not kept",)

    def __init__(
        self, recommender: Recommender, runs: Sequence[Path], fault: OSError
    ) -> None:
        self.recommender = recommender
        self.fault = fault
        self._runs = runs

    def __getattr__(self, name: str) -> NoReturn:
        """Refuse to keep anything."""
        raise OSError(*self.fault.args)

    def recall(self, user_id: Id) -> Recalled:
        is_erased = any(is_forgotten(run, user_id) for run in self._runs)
        return Recalled(is_forgotten=is_erased)

    def count_answers(self, *_: Any) -> int:
        return 0

    def rebase(self, recommender: Recommender) -> None:
        self.recommender = recommender

    def follow(self) -> tuple[int, str]:
        return 0, ""

    def close(self) -> None: ...
