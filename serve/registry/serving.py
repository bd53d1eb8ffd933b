"""The version that answers, and its change by one reference while requests come."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from serve.registry.snapshot import Snapshot
from serve.registry.sources import LOADING_ERRORS, Source

Change = Callable[[Snapshot], Snapshot]


@dataclass(frozen=True)
class Outcome:
    """How a reload ended."""

    is_loaded: bool
    """False: what answered before answers on."""
    version: str
    """What answers now."""
    reason: str | None
    """Why nothing was loaded, in one line; without paths of this machine or values of users."""
    time: float
    """UTC seconds."""


@dataclass(eq=False)
class _Load:
    """A reload that is going on."""

    wanted: tuple[Source, Hashable]
    is_over: threading.Event = field(default_factory=threading.Event)
    outcome: Outcome | None = None


class Serving:
    """Holds one snapshot at a time. `current` never waits: neither for a reload nor for a change."""

    def __init__(self, snapshot: Snapshot, complete: Change, reason: str | None = None) -> None:
        """Begin to serve; see `start`.

        Args:
            snapshot: what answers first.
            complete: what is put on top of every version that is loaded, such as items that were added live.
            reason: why it is not the version that was wanted.
        """
        self._current = complete(snapshot)
        self._complete = complete
        self._changing = threading.Lock()
        self._joining = threading.Lock()
        self._load: _Load | None = None
        self.last_reload = None if reason is None else Outcome(False, snapshot.version, reason, time.time())
        """How the latest reload ended, None before the first; or why the first start took another version."""

    @classmethod
    def start(cls, source: Source, complete: Change = lambda snapshot: snapshot) -> Serving:
        """Load the first snapshot.

        Raises:
            BundleError: no version can be loaded.
        """
        snapshot, reason = source.start()
        return cls(snapshot, complete, reason)

    def current(self) -> Snapshot:
        """Return what answers now: take it once for a request and ask nothing else."""
        return self._current

    def change(self, make: Change) -> Snapshot:
        """Let a snapshot made of the present one answer from now on; no reload comes between the two."""
        with self._changing:
            self._current = make(self._current)
            return self._current

    def reload(self, source: Source) -> Outcome:
        """Load a version and let it answer from now on; whatever fails, the present one answers on.

        One load goes on at a time. Who asks for what is being loaded already waits and is told its outcome.
        """
        wanted = (source, source.identify())
        while True:
            load, is_ours = self._join(wanted)
            if is_ours:
                return self._lead(load)
            load.is_over.wait()
            if load.outcome is not None and load.wanted == wanted:
                return load.outcome

    def _join(self, wanted: tuple[Source, Hashable]) -> tuple[_Load, bool]:
        """Return the load that is going on, or begin one, which then is the caller's."""
        with self._joining:
            if self._load is not None:
                return self._load, False
            self._load = _Load(wanted)
            return self._load, True

    def _lead(self, load: _Load) -> Outcome:
        outcome = Outcome(False, self._current.version, "an error that was not foreseen", time.time())
        try:
            outcome = load.outcome = self._take_up(load.wanted[0])
        finally:  # an error of another kind goes to the caller, and those who wait try themselves
            self.last_reload = outcome
            with self._joining:
                self._load = None
            load.is_over.set()
        return outcome

    def _take_up(self, source: Source) -> Outcome:
        try:
            loaded = source.load()
            with self._changing:
                self._current = self._complete(loaded)
        except LOADING_ERRORS as error:
            return Outcome(False, self._current.version, source.explain(error), time.time())
        return Outcome(True, loaded.version, None, time.time())
