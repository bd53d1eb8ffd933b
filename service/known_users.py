"""Complete requests by what is known of their users: profiles, then live events and dismissals.

`Profiles.complete` adds what the training knew. Here the events that came since are joined with the
history of the profile, dismissed items are excluded, forgotten users are strangers, and those who
opted out are nobody: in the service, in commands and in Python.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from serve import profiles as profile_files
from serve.arrays import Id
from serve.cells import INTEGER
from serve.files import is_forgotten, read_opt_outs
from serve.just_taken import DEFAULT_GAP
from serve.profiles import Profiles
from serve.recommender import Recommender
from serve.requests import History, Request, without_profile
from service.engine import State
from service.event_log import Recalled
from service.rotate import check_keys

# The columns that tell two events of a user apart.
_TELLING = ("item_id", "datetime", "event")


def complete(request: Request, profiles: Profiles, state: State) -> Request:
    """Return the request with its user's live events and dismissals in it.

    A history of its own stays. Otherwise the history becomes that of the profile and the live
    events, by time. Dismissed items are excluded anyway.
    """
    if request.user_id is None:
        return request
    return fill_in(request, know_user(request.user_id, profiles, state.recall))


def know_user(
    user_id: Id, profiles: Profiles, recall: Callable[[Id], Recalled]
) -> Request:
    """Return what is to be filled into the requests of a user.

    Args:
        user_id: the user, in the type that their events were sent with.
        profiles: those that the process has loaded. That of a forgotten user is not read.
        recall: returns the live state of a user.

    Returns:
        A request without a history where the profile is all that there is. In another one, the
        events from the first live one on count as just now; without times in the data, those of
        the last weeks do. What the profile holds back stays held.
    """
    fitted = _fit(user_id, profiles.user_ids)
    user_id = user_id if fitted is None else fitted
    recalled = recall(user_id)
    if recalled.is_opted_out:
        return Request(user_id, profile=False)
    ids = profiles.history.item_id
    if recalled.is_forgotten:
        return Request(user_id, history=History(ids[:0]), features={}, user_known=False)

    live = _fit_history(recalled.history, ids)
    dismissed = [_fit(item_id, ids) for item_id in recalled.dismissed]
    excluded = tuple(item_id for item_id in dismissed if item_id is not None)
    is_live = len(recalled.history) > 0 or len(excluded) > 0
    history = None
    n_fresh = None
    held: tuple[tuple[Id, int], ...] = ()
    if len(live):
        profile = profiles.get(user_id)
        history = live
        if profile is not None:
            history = _join(profile.history, live)
            held = profile.held
        history = _take_back(history)
        times = live.columns()["datetime"]
        first = times[0]
        if profiles.history.datetime is None:  # nothing tells when they are due again
            first = time.time() - DEFAULT_GAP
        else:
            times = history.columns()["datetime"]
        n_fresh = int(np.count_nonzero(times >= first))

    return Request(
        user_id,
        history=history,
        n_fresh=n_fresh,
        held=held,
        exclude=excluded,
        user_known=is_live or user_id in profiles.positions,
    )


def fill_in(request: Request, known: Request) -> Request:
    """Return a request with what `know_user` returned, where it does not say that itself."""
    if not known.profile:
        return without_profile(request)

    exclude = dict.fromkeys((*request.exclude, *known.exclude))
    return replace(
        profile_files.fill_in(request, known),
        user_id=known.user_id,
        user_known=known.user_known,
        exclude=tuple(exclude),
    )


def load_known(
    bundle: Path, profiles: Path | None, trusted: Path | None
) -> Recommender:
    """Load a bundle with the profiles of those who have not opted out.

    Args:
        bundle: its folder.
        profiles: their folder, by default that beside the bundle.
        trusted: file of public keys, one of which must have signed the bundle.
    """
    recommender = check_keys(Recommender.load(bundle, profiles, trusted))
    known = recommender.profiles
    opted_out = read_opt_outs((profiles or bundle).absolute().parent)
    if not len(opted_out):
        return recommender

    gone = [*filter(opted_out.holds, known.user_ids.tolist())]
    return Recommender(recommender.bundle, known.without(gone)) if gone else recommender


def hide(requests: Iterable[Request], beside: Path) -> Iterator[Request]:
    """Yield checked requests; those of users who opted out, by the list beside, are nobody's."""
    opted_out = read_opt_outs(beside.absolute().parent)
    for request in requests:
        if request.user_id is not None and opted_out.holds(request.user_id):
            yield without_profile(request)
        else:
            yield request


def _fit(value: Id, ids: NDArray[Any]) -> Id | None:
    """Return an id in the type of others: a text for 7, an integer for "7", None for "x"."""
    text = str(value)
    if ids.dtype == np.object_:
        return text
    is_whole = INTEGER.fullmatch(text) and -(2**63) <= int(text) < 2**63
    return int(text) if is_whole else None


def _fit_history(live: History, ids: NDArray[Any]) -> History:
    """Return the events whose items have ids that can be of the type of others."""
    fitted = [_fit(item_id, ids) for item_id in live.item_id.tolist()]
    has_fit = np.array([item_id is not None for item_id in fitted], np.bool_)
    item_ids = [item_id for item_id in fitted if item_id is not None]
    return replace(live.take(has_fit), item_id=np.array(item_ids, ids.dtype))


# ---- a profile's events and live ones


def _join(known: History, live: History) -> History:
    """Put live events behind a profile's, in the order of time; at one time, the profile's lead.

    Live events that the profile has too do not count again: the data may have been trained on since
    they came. Without times, these are the longest run that ends the profile and begins the events.
    """
    if not len(known):
        return live

    names = [name for name in _TELLING if name in known.columns()]
    keys = _key_events(known, names)
    live_keys = _key_events(live, names)
    if known.datetime is None:
        n_again = min(len(keys), len(live_keys))
        while keys[len(keys) - n_again :] != live_keys[:n_again]:
            n_again -= 1
        return _append(known, live.take(slice(n_again, None)))

    known_keys = set(keys)
    is_new = np.array([key not in known_keys for key in live_keys])
    joined = _append(known, live.take(is_new))
    order = np.argsort(joined.columns()["datetime"], kind="stable")
    return joined.take(order)


def _take_back(history: History) -> History:
    """Leave out returns, events of a weight below 0, and what they undo.

    A return takes its amount from the latest earlier event of its item and type, or of any type
    where none has its own, then from the one before. An event without a weight is undone whole.
    """
    weights = history.weight
    if weights is None or not (weights < 0).any():
        return history

    left = weights.copy()
    events = history.columns().get("event", np.full(len(history), None))
    for place in np.flatnonzero(weights < 0).tolist():
        is_it = history.item_id[:place] == history.item_id[place]
        is_it &= ~(left[:place] <= 0)
        is_alike = is_it & (events[:place] == events[place])
        amount = -weights[place]
        for earlier in np.flatnonzero(is_alike if is_alike.any() else is_it)[::-1]:
            taken = left[earlier] if left[earlier] < amount else amount
            left[earlier] = max(0.0, left[earlier] - taken)
            amount -= taken
            if amount <= 0:
                break

    return replace(history, weight=left).take(
        (left != 0) & ~(weights < 0) | (weights == 0)
    )


def _key_events(events: History, names: Sequence[str]) -> list[tuple[Any, ...]]:
    columns = events.columns()
    return [*zip(*(columns[name].tolist() for name in names), strict=True)]


def _append(known: History, live: History) -> History:
    """Put live events behind a profile's, with the columns of the profile, `event` and `weight`.

    None and NaN fill what the profile lacks; an event without a context matches none.
    """
    missing = {
        "event": np.full(len(known), None),
        "weight": np.full(len(known), np.nan),
        "context": np.zeros(len(known), np.int64),
    }
    columns = missing | known.columns()
    later = {"context": np.zeros(len(live), np.int64)} | live.columns()
    for name, values in columns.items():
        columns[name] = np.concatenate([values, later[name]])
    return History(**columns)


class MissingState:
    """Stands for both: it holds nothing, and to ask for any other method raises why."""

    n_changed = 0
    n_forgotten = 0
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
        return Recalled(
            is_forgotten=is_erased,
            is_opted_out=read_opt_outs(self._runs[-1]).holds(user_id),
        )

    def count_answers(self, *_: Any) -> int:
        return 0

    def rebase(self, recommender: Recommender) -> None:
        self.recommender = recommender

    def follow(self) -> tuple[int, str]:
        return 0, ""

    def close(self) -> None: ...
