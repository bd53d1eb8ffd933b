"""Say what each engine of the live state does, a file of SQLite or a server that machines share.

`StateStore` in `service/state.py` is the file; engines on servers are in `service/remote`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from serve.arrays import Id
from serve.errors import BundleError
from service.event_log import Impressions, Observation, Recalled

_MAX_RETENTION = 36_500  # days


class ServerError(OSError):
    """The server of a state does not answer, or refuses."""


class State(Protocol):
    """The live state that services and erasure need; safe to use from many threads.

    Each write is kept whole or not at all, and is durable when its call returns. Nothing is kept of
    users who are forgotten or have opted out. Errors of the storage are `OSError`.
    """

    fault: Exception | None  # of the last write, None if it succeeded
    n_forgotten: int  # length that the erasure list had, as far as the state remembers

    def observe_many(self, observations: Iterable[Observation]) -> int:
        """Keep events, all or none, each once; return how many are kept."""

    def log_impressions(self, answers: Iterable[Impressions]) -> None:
        """Keep what users were shown."""

    def recall(self, user_id: Id) -> Recalled:
        """Return the latest events of a user."""

    def count_answers(self, user_id: Id, since: int, policy: str) -> int:
        """Count the lists of a user since a time, of policies that begin with a text."""

    def date_expiry(self, now: int) -> int:
        """Return the time from which age is counted; raise BundleError if most would be removed."""

    def expire_slices(self, now: int) -> Iterator[Counter[str]]:
        """Remove what is too old; yield how many events and impressions each slice had.

        An impression is a list here.
        """

    def list_known(self, user_ids: Iterable[Id]) -> set[str]:
        """Return, as texts, the users who have events or answers."""

    def forget(self, *user_ids: Id) -> dict[str, int]:
        """Erase users; return how many `events` and `impressions` they had."""

    def close(self) -> None:
        """Release the storage."""


def check_retention(events: float, impressions: float | None) -> dict[str, float]:
    """Return the days of each kind; refuse those that keep nothing, or everything."""
    of_lists = events if impressions is None else impressions
    days = {"events": events, "impressions": of_lists}
    for number in days.values():
        if not 0 < number < _MAX_RETENTION:
            raise ValueError(
                f"the retention is {number:g} days; allowed: above 0, below {_MAX_RETENTION}"
            )

    return days


def limit_expiry(now: int, ages: Iterable[Sequence[int]]) -> int:
    """Return the time from which age is counted: the log's latest, if the clock is ahead of it.

    Args:
        now: UTC seconds by the clock.
        ages: of one part of the log after the other the latest time, 0 without any, and the number
            of events and answers that are too old by the clock less that of all others.

    Raises:
        BundleError: more than half of the log would be removed by the clock.
    """
    latest, surplus = zip(*ages, strict=True)
    if sum(surplus) > 0:
        raise BundleError(
            "more than half of the events and answers are older than the retention; none is "
            "removed without --expire-most"
        )

    return min(now, max(latest) or now)
