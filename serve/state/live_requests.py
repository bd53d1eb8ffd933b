"""A request of a user, completed by what the store has of her: what she did just now counts in the next answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from serve.profiles import History, Profiles
from serve.requests import History, Id, Request
from serve.state.store import Recalled, StateStore
from serve.state.tombstones import both_forms


def complete(request: Request, profiles: Profiles, state: StateStore) -> Request:
    """Return the request with the user's live events and dismissals in it.

    Where it brings no history of its own, its history becomes that of the profile and the live events, by time. What
    she dismissed is excluded, whatever history it has. Ids that were stored while a bundle had another type of them are
    read in the type of the profiles': 7 and "7" are the same. A user who was forgotten is nobody: her profile, which a
    process that loaded it earlier may still hold, is not read.
    """
    return complete_with(_fit_user(request, profiles), profiles, recall(request, state))


def recall(request: Request, state: StateStore) -> Recalled:
    """Return what the store has of whoever asks, of nobody nothing."""
    return Recalled() if request.user_id is None else state.recall(request.user_id)


def complete_with(request: Request, profiles: Profiles, recalled: Recalled) -> Request:
    """Do as `complete` with what was recalled for the request."""
    if recalled.is_forgotten:
        return replace(request, history=request.history or recalled.history, features=request.features or {})
    recalled = _fit_items(recalled, str if profiles.history.item_id.dtype == np.object_ else int)
    if recalled.dismissed:
        request = replace(request, exclude=tuple(dict.fromkeys((*request.exclude, *recalled.dismissed))))
    if request.user_id is not None and request.history is None and len(recalled.history):
        profile = profiles.get(request.user_id)
        known = None if profile is None else profile.history
        return replace(request, history=_join(known, recalled.history))
    return request


def _fit_user(request: Request, profiles: Profiles) -> Request:
    """Turn the id of a user into one of the type of the profiles', where it can be one."""
    kind = str if profiles.user_ids.dtype == np.object_ else int
    if request.user_id is None or type(request.user_id) is kind:
        return request
    return replace(request, user_id=next(iter(_to_kind(request.user_id, kind)), request.user_id))


def _fit_items(recalled: Recalled, kind: type[Id]) -> Recalled:
    """Turn ids of items that a bundle with another type of ids had into ours; leave out what cannot be one."""
    history = recalled.history
    if {*map(type, history.item_id), *map(type, recalled.dismissed)} <= {kind}:
        return recalled
    fitted = {place: one for place, item_id in enumerate(history.item_id) for one in _to_kind(item_id, kind)}
    dismissed = dict.fromkeys(one for item_id in recalled.dismissed for one in _to_kind(item_id, kind))
    kept = replace(_take(history, [*fitted]), item_id=[*fitted.values()])
    return replace(recalled, history=kept, dismissed=tuple(dismissed))


def _to_kind(item_id: Id, kind: type[Id]) -> list[Id]:
    """Return an id as text or as integer, in a list that is empty where it cannot be one."""
    return [form for form in both_forms(item_id) if isinstance(form, kind)]


def _join(known: History | None, live: History) -> History:
    """Put a profile's events and live ones in the order of time; at one time the profile's come first."""
    if known is None or not len(known):
        return live
    if known.datetime is None:  # nothing tells when they happened, but that it was before
        return _put_behind(known, _take(live, range(_count_known(known, live), len(live))), None)
    times = [*known.datetime.tolist(), *(live.datetime or ())]
    joined = _put_behind(known, live, times)
    order = sorted(range(len(times)), key=times.__getitem__)
    kept = _leave_out_known(joined, order, len(known), known.event is not None)
    return joined if kept == list(range(len(times))) else _take(joined, kept)


def _count_known(known: History, live: History) -> int:
    """Return how many of the first live events are the profile's last ones, in their order: the longest such run.

    One walk over both, as Knuth, Morris and Pratt do it (1977, "Fast pattern matching in strings").
    """
    joined = [*_identify(live, known), None, *_identify(known.take(slice(-len(live), None)), known)]
    runs = [0] * len(joined)  # at each place, of how many events that end there the live ones begin with the same
    for place in range(1, len(joined)):
        n = runs[place - 1]
        while n and joined[n] != joined[place]:
            n = runs[n - 1]
        runs[place] = n + (joined[n] == joined[place])
    return runs[-1]


def _identify(history: History | History, known: History) -> list[tuple[Any, ...]]:
    """Return what tells the events of a history from each other, of what the profile has too; NaN is no weight."""
    columns = [np.asarray(getattr(history, name), dtype=np.object_).tolist() for name in known.columns()]
    return [tuple(None if value != value else value for value in row) for row in zip(*columns, strict=True)]


def _put_behind(known: History, live: History, times: list[int] | None) -> History:
    return History(
        item_id=[*known.item_id.tolist(), *live.item_id],
        datetime=times,
        event=[*_column(known.event, len(known)), *(live.event or ())],
        weight=[*_column(known.weight, len(known)), *(live.weight or ())],
    )


def _leave_out_known(joined: History, order: list[int], n_known: int, has_events: bool) -> list[int]:
    """Take out of an order the live events that the profile has too: data may have been trained on since they came."""
    times, events = joined.datetime or (), joined.event or ()

    def identify(place: int) -> tuple[Any, ...]:
        return joined.item_id[place], times[place], events[place] if has_events else None

    if times[n_known] > times[n_known - 1]:  # the first live event comes after the last known one: all do
        return order
    known = set(map(identify, range(n_known)))
    return [place for place in order if place < n_known or identify(place) not in known]


def _take(history: History, places: Sequence[int]) -> History:
    given = {name: values for name, values in vars(history).items() if values or name == "item_id"}
    return History(**{name: [values[place] for place in places] for name, values in given.items()})


def _column(values: np.ndarray | None, n: int) -> list[Any]:
    return [None] * n if values is None else values.tolist()
