"""Items that a user has just taken are held back from lists until they may be due again.

Live events and the basket of a request hold back as they are asked; what a profile took on its last
day was measured when the profile was published. Letters: E events, T requests.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from serve.arrays import Id, Ints
from serve.catalogue import ItemIds
from serve.clock import DAY, LAST_SECOND, Takings, find_usual_gap, measure_rhythms
from serve.filters import Admission
from serve.index import Pairs
from serve.profiles import Profiles
from serve.requests import History, Request

# Share of its typical gap for which an item is held back, or its regularity if that is more.
EARLIEST = 0.25
DEFAULT_GAP = 30 * DAY  # between two takings of an item, where no profile tells
_MAX_SAMPLE = 50_000  # events of the first profiles, which tell the usual gap
# Events that take nothing, unless training had their type. Who clicks and collects has bought.
_NO_TAKING = re.compile(
    "remove|cancel|return|refund|dislike|wish"
    "|^(?!.*(purchase|buy|bought|order|sale|checkout)).*(view|visit|detail|click|open)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class JustTaken:
    """What counts as taken, and how long it is held back, for a bundle and its profiles.

    Attributes:
        events: types of the events that training predicted. They take an item, and so does an event
            without a type. Empty: all types do that do not sound like a view, a wish or a return.
        profiles: tell the usual gap between two takings of an item.
    """

    events: Collection[str]
    profiles: Profiles

    def hold_back(
        self, requests: Sequence[Request], moments: Ints, admission: Admission
    ) -> Pairs:
        """Return the requests and rows of the items that would be listed if not held back.

        Args:
            requests: T requests with what is known of their users.
            moments: (T,) UTC seconds.
            admission: of the catalogue.
        """
        item_ids = admission.item_ids
        numbers: list[int] = []
        rows: list[int] = []
        for number, request in enumerate(requests):
            if held_ids := self.find_held_back(request, int(moments[number]), item_ids):
                held = item_ids.find(held_ids)
                held = held[~admission.bar(request.filters)[held]]
                numbers += [number] * len(held)
                rows += held.tolist()

        return np.array(numbers, np.int64), np.array(rows, np.int64)

    def find_held_back(
        self, request: Request, moment: int, item_ids: ItemIds
    ) -> list[Id]:
        """Return the items that were just taken and may not be due again yet.

        The more regular its gaps, the nearer to its typical gap an item is due. One that was taken
        on one day alone waits for the usual gap of its user, or else of all users. Where items
        usually come again within a day, all wait for that usual gap.
        """
        if request.again == "any":
            return []
        ends = {item: end for item, end in request.held if item in item_ids}
        history = request.history
        if history is not None and (n_fresh := _count_fresh(request, moment)):
            ends |= self._find_ends(history, n_fresh, moment, item_ids)
        return [item_id for item_id, end in ends.items() if moment < end]

    def hold_last_day(self, profiles: Profiles, item_ids: ItemIds) -> Profiles:
        """Return profiles whose items of each user's last day are held back like live ones.

        Args:
            profiles: of a bundle whose items are taken again, with times.
            item_ids: of its catalogue.
        """
        held_until = np.zeros(len(profiles.history), np.int64)
        for start, stop in pairwise(profiles.offsets.tolist()):
            history = profiles.history.take(slice(start, stop))
            moment = int(history.columns()["datetime"].max(initial=0))
            n_fresh = _count_fresh(Request(history=history), moment)
            ends = self._find_ends(history, n_fresh, moment, item_ids)
            ids = history.item_id[len(history) - n_fresh :].tolist()
            held_until[stop - n_fresh : stop] = [ends.get(item, 0) for item in ids]

        return replace(profiles, held_until=held_until)

    def _find_ends(
        self, history: History, n_fresh: int, moment: int, item_ids: ItemIds
    ) -> dict[Id, int]:
        """Return the UTC second until which each item of the latest events is held back."""
        takings = self.list_takings(history, moment, item_ids)
        usual_gap = find_usual_gap(takings.values()) or self._usual_gap
        latest = history.take(slice(len(history) - n_fresh, None))
        fresh = self.list_takings(latest, moment, item_ids)
        ends = {}
        for item_id, rhythm in measure_rhythms(takings, fresh).items():
            wait = usual_gap
            if rhythm.gap and usual_gap >= DAY:
                wait = rhythm.gap * max(EARLIEST, 1 - rhythm.irregularity)
            ends[item_id] = math.ceil(rhythm.days[-1] + wait)

        return ends

    def list_takings(
        self, history: History, moment: int, item_ids: Container[Id]
    ) -> Takings:
        """List when a user took each item, and by which events.

        Args:
            history: their events.
            moment: UTC seconds; what has a later time, or none, happened at it.
            item_ids: the items that count.
        """
        n_events = len(history)
        columns = history.columns()
        times = np.minimum(columns.get("datetime", np.full(n_events, moment)), moment)
        events = columns.get("event", np.full(n_events, None))
        rows = zip(
            history.item_id.tolist(), times.tolist(), events.tolist(), strict=True
        )
        takings: Takings = {}
        for item_id, time, event in rows:
            if item_id in item_ids and self._is_taking(event):
                takings.setdefault(item_id, {})[time] = event

        return takings

    def _is_taking(self, event: str | None) -> bool:
        if event is None or event in self.events:
            return True
        return not self.events and not _NO_TAKING.search(event)

    @cached_property
    def _usual_gap(self) -> float:
        """The median of the seconds between two takings of an item by one of the first users."""
        history = self.profiles.history
        offsets = self.profiles.offsets
        times: list[Collection[int]] = []
        for start, stop in pairwise(offsets[offsets <= _MAX_SAMPLE].tolist()):
            events = history.take(slice(start, stop))
            ids = set(events.item_id.tolist())
            times += self.list_takings(events, LAST_SECOND, ids).values()

        return find_usual_gap(times) or DEFAULT_GAP


def _count_fresh(request: Request, moment: int) -> int:
    """Count the events at the end of a history that happened just now."""
    history = request.history
    if history is None:
        return 0
    if request.n_fresh is not None:
        return request.n_fresh
    if history.datetime is None:
        return len(history)
    return int(np.count_nonzero(history.datetime > moment - DAY))
