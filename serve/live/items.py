"""Items added, changed and removed while a recommender serves: on disk when a call returns, in the next answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

from serve.errors import SchemaError
from serve.live.columns import ItemColumns, Values
from serve.live.placing import Placing
from serve.live.store import Change, ItemStore
from serve.recommender import Recommender
from serve.requests import Id, parse_id, show


class LiveItems:
    """The changes of a catalogue, whichever bundle is served.

    An item of the bundle keeps the vector that it got in training; what is said of it here changes its columns. Any
    other is placed by its content. A removed item is never listed, with no bundle, until it is put again; in
    histories it counts as before.

    Calls may come from many threads. Whoever answers reads `recommender` once and is never held up.
    """

    def __init__(self, path: Path, recommender: Recommender) -> None:
        """Open the file of changes and put them on a catalogue.

        Args:
            path: `items.db`; made if it is not there.
            recommender: as loaded.

        Raises:
            BundleError: the file is no store of items.
            OSError: it cannot be written, or another process has it.
        """
        self._writing = Lock()
        self._store = ItemStore(path)
        try:
            self.rebase(recommender)
        except (ValueError, OSError):
            self._store.close()
            raise

    @property
    def recommender(self) -> Recommender:
        """What answers with all changes so far. It never changes itself: one answer, one catalogue."""
        return self._recommender

    @property
    def notes(self) -> list[str]:
        """What the bundle cannot read of the changes, a line for each kind."""
        return list(self._notes)

    def rebase(self, recommender: Recommender) -> None:
        """Serve another bundle with the same changes.

        Items whose ids are of another type than its own are kept for a bundle to come, and noted.

        Args:
            recommender: as loaded.

        Raises:
            OSError: the file of changes cannot be read.
        """
        with self._writing:
            changes, others = self._store.read(recommender.bundle.schema.item_id_type)
            placing = Placing(recommender)
            fitted, notes = _fit(placing, changes)
            catalogue = placing.apply(recommender.catalogue, fitted)
            completed = recommender.with_catalogue(catalogue)  # if it fails, all is as it was
            self._changes = {one.item_id: one for one in changes}
            self._placing, self._recommender = placing, completed
            self._notes = [*notes, *_note_others(others)]

    def put(self, item_id: Any, columns: Mapping[str, Any]) -> None:
        """Add or change an item.

        Args:
            item_id: of the type of the data's ids.
            columns: column -> value. One that is not given stays as it is; None makes it missing. An item that was
                removed starts anew: with the bundle's columns if the bundle has it.

        Raises:
            SchemaError: no id; an unknown column or a value of another type, which is named; or an item that is new
                and nothing says what it is.
            OSError: the disk is full or fails; nothing has changed.
        """
        self.put_many({self._parse_id(item_id): columns})  # what is no id may be no key either

    def put_many(self, items: Mapping[Any, Mapping[str, Any]]) -> None:
        """Do as `put` with several items: all or none, and far quicker than one by one."""
        with self._writing:
            changes: dict[Id, Change] = {}
            for raw_id, raw in items.items():
                item_id = self._parse_id(raw_id)
                before = changes.get(item_id) or self._changes.get(item_id)
                changes[item_id] = self._placing.change(item_id, raw, before)
            self._apply(changes)

    def remove(self, item_id: Any) -> bool:
        """Remove an item, also from the catalogues of bundles to come.

        Returns:
            Whether it was there; if not, it is kept out of what comes all the same.

        Raises:
            SchemaError: no id.
            OSError: the disk is full or fails; nothing has changed.
        """
        with self._writing:
            item_id = self._parse_id(item_id)
            is_there = self._recommender.catalogue.lists(item_id)
            before = self._changes.get(item_id, Change(item_id, {}, is_added=False))
            if not before.is_removed:
                self._apply({item_id: replace(before, is_removed=True)})
            return is_there

    def close(self) -> None:
        """Let go of the file; what answers goes on."""
        with self._writing:
            self._store.close()

    def _parse_id(self, raw: Any) -> Id:
        return parse_id(raw, self._recommender.bundle.schema.item_id_type, "item_id")

    def _apply(self, changes: Mapping[Id, Change]) -> None:
        """Keep changes, then let them be seen."""
        fitted, _ = _fit(self._placing, changes.values())
        catalogue = self._placing.apply(self._recommender.catalogue, fitted)
        self._store.write(changes.values())
        self._changes.update(changes)
        self._recommender = self._recommender.with_catalogue(catalogue)


def _fit(placing: Placing, changes: Iterable[Change]) -> tuple[list[Change], list[str]]:
    """Leave out values that a bundle cannot read, and items that it can then not place; say which."""
    faults: Counter[str] = Counter()
    fitted = []
    for one in changes:
        fitted.append(replace(one, columns=_fit_values(placing.columns, one.columns, faults)))
        if one.is_added and not one.is_removed and not placing.can_place(fitted[-1]):
            faults["nothing that the bundle reads says what an item is: it is not listed"] += 1
    return fitted, [f"live items: {fault} ({count} times)" for fault, count in sorted(faults.items())]


def _note_others(item_ids: Sequence[str]) -> list[str]:
    """Say which items are of no use to a bundle whose ids are of another type."""
    if not item_ids:
        return []
    return [f"live items: {show(item_ids[0])} is no id of the bundle: it is not listed ({len(item_ids)} times)"]


def _fit_values(columns: ItemColumns, values: Values, faults: Counter[str]) -> dict[str, Any]:
    fitted: dict[str, Any] = {}
    for name, value in values.items():
        try:
            fitted |= columns.parse({name: value})
        except SchemaError:
            faults[f"a value of column {show(name)} does not fit the bundle: it is not read"] += 1
    return fitted
