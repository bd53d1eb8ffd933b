"""What an evaluation says while it runs: a line before and after each model, and a bar over all that is fitted."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar


class Progress(Protocol):
    """Is told how an evaluation goes on."""

    def say(self, message: str) -> None: ...

    def expect(self, n_steps: int) -> None:
        """Learn how many steps there are in all."""
        ...

    def advance(self, n_steps: int) -> None: ...


class Unwatched:
    """Says nothing."""

    def say(self, message: str) -> None: ...

    def expect(self, n_steps: int) -> None: ...

    def advance(self, n_steps: int) -> None: ...


UNWATCHED = Unwatched()


class Watched:
    """Lines on a console, and below them a bar where it is a terminal, gone at the end."""

    def __init__(self, console: Console, has_bar: bool) -> None:
        columns = TextColumn("baselines"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self._console = console
        self._bar = Bar(*columns, console=console, transient=True, disable=not (has_bar and console.is_terminal))
        self._task = self._bar.add_task("baselines", total=None)

    def __enter__(self) -> Watched:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def say(self, message: str) -> None:
        self._console.log(message)

    def expect(self, n_steps: int) -> None:
        self._bar.update(self._task, total=n_steps)

    def advance(self, n_steps: int) -> None:
        self._bar.advance(self._task, n_steps)
