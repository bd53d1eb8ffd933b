"""The whole of serving behind one object, without a word of HTTP: what answers, for whom, and what is kept."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from serve.errors import SchemaError
from serve.explanations import find_reasons, show_items
from serve.impression_log import ImpressionLog
from serve.incoming import Asked, read_question
from serve.kept_answers import MINUTE, KeptAnswers
from serve.layout import ITEMS_FILE, STATE_FILE
from serve.live.items import LiveItems
from serve.recommendations import Recommendations
from serve.registry.serving import Outcome, Serving
from serve.registry.snapshot import Snapshot
from serve.registry.sources import Source
from serve.request_values import Id, parse_id
from serve.requests import Request
from serve.schema import Schema
from serve.state.forgetting import forget_known, holds_run
from serve.state.impressions import Impressions
from serve.state.observations import parse_observations
from serve.state.store import RETENTION_DAYS, StateStore
from serve.unseen import find_unknown

POLICY = "greedy"
"""How lists come about: by falling score."""
_DAY, _OLD = 86_400, 30
"""Seconds of a day, and days after which data is said to be old."""


@dataclass(frozen=True)
class Answered:
    """Lists, all of one version."""

    snapshot: Snapshot
    requests: Sequence[Request]
    """As they were answered: with live events in them."""
    lists: Recommendations

    @property
    def version(self) -> str:
        return self.snapshot.version

    def explain(self, index: int) -> list[dict[str, Any]]:
        """Say of each item of a list what it is and why it comes."""
        recommender, lists = self.snapshot.recommender, self.lists
        rows = lists.item_row[lists.offsets[index] : lists.offsets[index + 1]]
        shown = show_items(recommender, rows)
        reasons = find_reasons(recommender, self.requests[index], rows)
        return [{"columns": one, "because": reason} for one, reason in zip(shown, reasons, strict=True)]

    def name_unknown(self, index: int) -> list[str]:
        """Name the features and the context of a request whose values training has not seen."""
        schema = self.snapshot.recommender.bundle.schema
        return list(dict.fromkeys(place for place, _ in find_unknown(schema, self.requests[index])))


@dataclass(frozen=True)
class Similar:
    """Items and their cosines, the nearest first."""

    snapshot: Snapshot
    item_ids: list[Id]
    cosines: list[float]
    reason: str | None
    """Why fewer than k came; None where k came."""

    def explain(self) -> list[dict[str, Any]]:
        """Say of each item what it is."""
        recommender = self.snapshot.recommender
        return [{"columns": one} for one in show_items(recommender, recommender.item_rows(self.item_ids))]


class Service:
    """Answer requests, take in events and items, exchange the version that answers."""

    def __init__(
        self, source: Source, state: Path, runs: Sequence[Path], retention_days: float = RETENTION_DAYS
    ) -> None:
        """Load and open all of it.

        Args:
            source: of versions.
            state: folder of what users and items do while it serves; made if need be.
            runs: folders with profiles and state, out of which users are forgotten; who was in any of them is nobody.
            retention_days: how long events and what was shown are kept.

        Raises:
            BundleError: no version can be loaded, or a file of the state is something else.
            OSError: the state cannot be written, or another service has it.
        """
        self._source = source
        self._runs = runs
        snapshot, reason = source.start()
        with ExitStack() as undone:  # the lock of the items, among others
            self._items = LiveItems(state / ITEMS_FILE, snapshot.recommender)
            undone.callback(self._items.close)
            self._serving = Serving(snapshot, self._put_items_on, reason)
            self.kept = KeptAnswers()
            self._state = StateStore(state / STATE_FILE, runs, retention_days)
            self.impressions = ImpressionLog(self._state)
            undone.pop_all()

    @property
    def version(self) -> str:
        """Of the bundle that answers."""
        return self._serving.current().version

    def recommend(self, asked: Sequence[Asked]) -> list[Answered | SchemaError]:
        """Rank items for the requests of each caller.

        Where one has no datetime, it is asked at the beginning of this minute, or at her latest event where that came
        later. Who asks the same again within the minute gets what was ranked. What is shown is logged, each time.

        Returns:
            An answer for each caller, or the error in place of it: a request that cannot be read, filters that do not
            fit.
        """
        era = self.kept.era  # before all that it is about
        snapshot, now = self._serving.current(), int(time.time())  # taken once: no answer is of two versions
        questions = [read_question(snapshot.recommender, self._state, one, now) for one in asked]
        ranked_ones = self.kept.rank(snapshot.recommender, now // MINUTE, era, questions)
        outcomes: list[Answered | SchemaError] = []
        for one, ranked in zip(asked, ranked_ones, strict=True):
            if isinstance(ranked, SchemaError):
                outcomes.append(ranked)
                continue
            answered = Answered(snapshot, ranked.requests, ranked.lists)
            self.impressions.add(_impressions(answered, one.request_id, now))
            outcomes.append(answered)
        return outcomes

    def similar(self, item_id: Id, k: int) -> Similar:
        """Find the items nearest to an item.

        Raises:
            SchemaError: an item that is not known.
        """
        snapshot = self._serving.current()
        known = parse_id(item_id, snapshot.recommender.bundle.schema.item_id_type, "item_id")
        ids, cosines = snapshot.recommender.similar_items(known, k)
        reason = None if len(ids) == k else f"the catalogue has {len(ids)} other items"
        return Similar(snapshot, ids.tolist(), cosines.tolist(), reason)

    def observe(self, events: Sequence[Mapping[str, Any]]) -> int:
        """Keep what users did; it counts in the next answer.

        Returns:
            How many events were kept: those of forgotten users, and those older than the retention, are not.

        Raises:
            SchemaError: an event that cannot be read; none is kept.
            OSError: the disk is full or fails; none is kept.
        """
        schema = self._serving.current().recommender.bundle.schema
        now = int(time.time())
        observed = parse_observations(events, schema, now)
        return self._state.observe_many([one for one in observed if self._state.is_recent(one.datetime, now)])

    def put_item(self, item_id: Id, columns: Mapping[str, Any]) -> None:
        """Add or change an item; see `LiveItems.put`."""
        self._items.put(item_id, columns)
        self._serving.change(self._show_items)
        self.kept.drop()

    def remove_item(self, item_id: Id) -> bool:
        """Remove an item, also from versions to come; say whether it was there."""
        was_there = self._items.remove(item_id)
        self._serving.change(self._show_items)
        self.kept.drop()
        return was_there

    def forget(self, user_id: Id) -> list[dict[str, Any]]:
        """Erase a user; return a receipt for each folder that has profiles or state by now.

        Raises:
            SchemaError: no id.
            OSError: the disk is full or fails; to be asked again.
        """
        schema = self._serving.current().recommender.bundle.schema
        known = parse_id(user_id, schema.user_id_type, "user_id")
        try:
            return [forget_known(run, [known]) for run in self._runs if holds_run(run)]
        finally:
            self.kept.drop()

    def reload(self) -> Outcome:
        """Load what the source has now; whatever fails, the present version answers on."""
        outcome = self._serving.reload(self._source)
        self.kept.drop()  # it would hold the version before
        return outcome

    def names(self) -> frozenset[str]:
        """Return the names of features and columns, which are no secret of whoever asks."""
        recommender = self._serving.current().recommender
        sides = (recommender.bundle.schema.features(side) for side in ("user", "item", "context"))
        return frozenset(recommender.catalogue.table.column_names).union(one.name for side in sides for one in side)

    def describe(self) -> dict[str, Any]:
        """Say what answers, and how the last reload ended."""
        snapshot, last = self._serving.current(), self._serving.last_reload
        recommender = snapshot.recommender
        bundle = recommender.bundle
        return {
            "version": snapshot.version,
            "space_id": bundle.manifest.space_id,
            "loaded_at": snapshot.loaded_at,
            "data_until": bundle.schema.data_until if bundle.schema.has_datetime else None,
            "items": recommender.catalogue.n_listed,
            "users": len(recommender.profiles),
            "repeats": bundle.schema.repeats,
            "columns": recommender.admission.columns.names,
            "notes": [*self._items.notes, *_note_age(bundle.schema, int(time.time())), *self.impressions.notes],
            "last_reload": None if last is None else asdict(last),
        }

    def close(self) -> None:
        """Write what waits and let go of the files."""
        self.impressions.close()
        self._state.close()
        self._items.close()

    def _put_items_on(self, snapshot: Snapshot) -> Snapshot:
        self._items.rebase(snapshot.recommender)
        return self._show_items(snapshot)

    def _show_items(self, snapshot: Snapshot) -> Snapshot:
        return replace(snapshot, recommender=self._items.recommender)


def _note_age(schema: Schema, now: int) -> list[str]:
    """Say that the data is old, where it is: what is popular and what memory says fade until now."""
    days, fades = (now - schema.data_until) // _DAY, schema.repeats == "allow" or bool(schema.popularity_days)
    if not (schema.has_datetime and fades) or days < _OLD:
        return []
    return [
        f"the data ended {days} days ago: a request without datetime is asked now, when what was popular and what "
        "memory holds have faded; `recommend` asks each user at the last event"
    ]


def _impressions(answered: Answered, request_id: str, now: int) -> list[Impressions]:
    return [
        Impressions(
            request_id,
            one.user_id,
            now,
            answered.version,
            POLICY,
            one.item_id.tolist(),
            one.score.tolist(),
        )
        for one in answered.lists
    ]
