"""What is known of a user: profile and live events, joined in one history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from serve.profiles import Profiles
from serve.requests import (
    INTEGER,
    History,
    Id,
    Request,
)
from service.log import Recalled
from service.state import State


def complete(request: Request, profiles: Profiles, state: State) -> Request:
    """Return the request with the user's live events and dismissals in it.

    A history of its own stays; else it becomes that of the profile and the live events, by time. Dismissed items are
    excluded anyway. The profile of a forgotten user, which a process may have loaded earlier, is not read.
    """
    return (
        request
        if request.user_id is None
        else fill_in(request, know_user(request.user_id, profiles, state.recall))
    )


def know_user(
    user_id: Id, profiles: Profiles, recall: Callable[[Id], Recalled]
) -> Request:
    """Return a request of a user with all that is to be filled in: nothing where their profile is all there is."""
    ids = profiles.history.item_id
    user_id = _fit(user_id, profiles.user_ids)
    recalled = recall(user_id)
    if recalled.is_forgotten:
        return Request(user_id, history=History(ids[:0]), features={}, user_known=False)
    kind = str if ids.dtype == np.object_ else int
    dismissed = tuple(
        one
        for one in (_fit(each, ids) for each in recalled.dismissed)
        if isinstance(one, kind)
    )
    fitted = [_fit(one, ids) for one in recalled.history.item_id.tolist()]
    kept = [place for place, one in enumerate(fitted) if isinstance(one, kind)]
    known = Request(
        user_id,
        exclude=dismissed,
        user_known=bool(user_id in profiles.positions or fitted or dismissed),
    )
    if not kept:
        return known
    item_ids = np.array([fitted[place] for place in kept], ids.dtype)
    live = replace(recalled.history.take(np.array(kept)), item_id=item_ids)
    profile = profiles.get(user_id)
    return replace(
        known, history=live if profile is None else _join(profile.history, live)
    )


def fill_in(request: Request, known: Request) -> Request:
    """Return a request with what `know_user` knows of its user, where it does not say that itself."""
    given: dict[str, Any] = {"user_id": known.user_id, "user_known": known.user_known}
    given |= {
        name: getattr(known, name)
        for name in ("history", "features")
        if getattr(request, name) is None
    }
    if known.exclude:
        given["exclude"] = tuple(dict.fromkeys((*request.exclude, *known.exclude)))
    return (
        replace(request, **given)
        if any(given[name] != getattr(request, name) for name in given)
        else request
    )


def _fit(one: Id, ids: np.ndarray) -> Id:
    """Return an id in the type of others if it can be one: a text for 7, an integer for "7"."""
    text = str(one)
    is_whole = INTEGER.fullmatch(text) and -(2**63) <= int(text) < 2**63
    return int(text) if is_whole and ids.dtype != np.object_ else text


def _join(known: History, live: History) -> History:
    """Put a profile's events and live ones in the order of time; at one time the profile's come first.

    Live events that the profile has too do not count again: data may have been trained on since they came.
    """
    if not len(known):
        return live
    if (
        known.datetime is None
    ):  # nothing tells when they happened, but that it was before
        return _append(known, live.take(slice(_count_known(known, live), None)))
    joined = _append(known, live)
    columns = (
        joined.item_id,
        joined.datetime,
        None if known.event is None else joined.event,
    )
    keys = list(zip(*(one.tolist() for one in columns if one is not None), strict=True))
    seen = set(keys[: len(known)])
    kept = [
        place for place, key in enumerate(keys) if place < len(known) or key not in seen
    ]
    return joined.take(np.array(sorted(kept, key=lambda place: keys[place][1])))


def _count_known(known: History, live: History) -> int:
    """Return how many of the first live events are the profile's last ones, in their order: the longest such run."""
    names = known.columns().keys() & live.columns().keys()
    ours = [
        *zip(
            *(getattr(known, name).tolist()[-len(live) :] for name in names),
            strict=True,
        )
    ]
    theirs = [*zip(*(getattr(live, name).tolist() for name in names), strict=True)]
    ours, theirs = (
        [tuple(None if one != one else one for one in row) for row in rows]
        for rows in (ours, theirs)
    )
    return next((n for n in range(len(ours), 0, -1) if ours[-n:] == theirs[:n]), 0)


def _append(known: History, live: History) -> History:
    """Put live events behind a profile's; None and NaN fill a column that the profile lacks.

    Live events have no context: they match none.
    """
    blank = {
        "event": np.full(len(known), None, dtype=np.object_),
        "weight": np.full(len(known), np.nan),
    }
    columns = blank | known.columns()
    later = {"context": np.zeros(len(live), np.int64)} | live.columns()
    return History(
        **{
            name: np.concatenate([values, later[name]])
            for name, values in columns.items()
        }
    )
