"""How far a long command is: one line on a terminal, redrawn as it goes; nothing where nobody looks."""

from __future__ import annotations

import time
from typing import TextIO

_BETWEEN = 0.2  # seconds
_WIDTH = 30


class Progress:
    """A bar over rows."""

    def __init__(self, n_rows: int, stream: TextIO) -> None:
        """Begin at 0.

        Args:
            n_rows: in all, at least about.
            stream: where the bar goes, if it is a terminal.
        """
        self._n_rows = n_rows
        self._stream = stream
        self._is_shown = stream.isatty()
        self._skipped = self._worked = 0
        self._started = time.monotonic()
        self._drawn = -_BETWEEN

    def skip(self, n_rows: int) -> None:
        """Count rows that were there already: they say nothing of the speed."""
        self._skipped += n_rows
        self._draw()

    def advance(self, n_rows: int) -> None:
        """Count rows that were worked on."""
        self._worked += n_rows
        self._draw()

    def close(self) -> None:
        """Leave the line as it is."""
        if self._is_shown:
            self._stream.write(f"\r{self._describe()}\n")
            self._stream.flush()

    def _draw(self) -> None:
        now = time.monotonic()
        if self._is_shown and now >= self._drawn + _BETWEEN:
            self._drawn = now
            self._stream.write(f"\r{self._describe()}")
            self._stream.flush()

    def _describe(self) -> str:
        done = self._skipped + self._worked
        share = min(1.0, done / max(1, self._n_rows))
        bar = ("#" * int(_WIDTH * share)).ljust(_WIDTH, ".")
        speed = self._worked / max(1e-9, time.monotonic() - self._started)
        return f"[{bar}] {share:4.0%}  {done:,} rows, {speed:,.0f} a second "
