"""Items added, changed and removed while a recommender serves.

A change is on disk when its call returns, and in the next answer. An item of the bundle keeps the
vector that it got in training; changes to it are changes to its columns. Any other is placed by its
content. A removed item is never listed until it is put again; in histories it counts as before.
Several processes may write into one file: each first applies what the others wrote.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any

from serve.arrays import Id
from serve.catalogue import Catalogue
from serve.cells import parse_id
from serve.errors import SchemaError, show
from serve.recommender import Recommender
from service.database import name_fault, open_database, taking
from service.experiment import Arm, Experiment
from service.placement import ITEM_ID, Change, Placement, Values

_MARK = 0x42490002  # "BI" and the format
# Other processes follow the number of an item's last change, and the versions that were loaded.
_TABLES = """
CREATE TABLE items (place INTEGER PRIMARY KEY, item_id TEXT NOT NULL UNIQUE,
    columns TEXT NOT NULL, is_added INTEGER NOT NULL, is_removed INTEGER NOT NULL,
    number INTEGER NOT NULL UNIQUE) STRICT;
CREATE TABLE loads (number INTEGER PRIMARY KEY, version TEXT NOT NULL) STRICT;
"""
_READ = """SELECT item_id, columns, is_added, is_removed, number FROM items
    WHERE number > ? ORDER BY place"""
_LAST_CHANGE = "SELECT ifnull(max(number), 0) FROM items"
_WRITE = f"""INSERT INTO items (item_id, columns, is_added, is_removed, number)
    VALUES (?, ?, ?, ?, ({_LAST_CHANGE}) + 1) ON CONFLICT (item_id) DO UPDATE SET
    columns = excluded.columns, is_added = excluded.is_added,
    is_removed = excluded.is_removed, number = excluded.number"""  # noqa: S608
_LAST_LOAD = "SELECT number, version FROM loads ORDER BY number DESC LIMIT 1"
_ADD_LOAD = "INSERT INTO loads (version) VALUES (?)"


class LiveItems:
    """The changes of a catalogue, whichever bundle is served.

    Calls may come from many threads. Whoever answers reads `recommender` once and is never held up.

    Attributes:
        recommender: with all changes so far. It never changes itself: one answer, one catalogue.
        notes: what the bundle cannot read of the changes, a line for each kind.
    """

    recommender: Recommender
    notes: list[str]

    def __init__(self, path: Path, recommender: Recommender) -> None:
        """Open the file of changes, made if need be, and apply them.

        Args:
            path: `DIR/state/items.db`.
            recommender: a version as loaded.

        Raises:
            BundleError: the file is of another kind or format.
            OSError: the file cannot be opened.
        """
        self._path = path
        self._writing = Lock()
        self._database = open_database(path, _MARK, _TABLES)
        self.rebase(recommender)

    def rebase(self, recommender: Recommender) -> None:
        """Apply the same changes to another bundle; ids of another type are kept, and noted."""
        with self._writing, name_fault(self._path):
            changes, other_ids, seen = self._read(recommender, 0)
            placement = Placement(recommender)
            catalogue, notes = placement.apply(recommender.catalogue, changes.values())
            completed = recommender.with_catalogue(catalogue)
            if other_ids:
                notes.append(
                    f"live items: {show(other_ids[0])} is no id of the bundle: not "
                    f"listed ({len(other_ids)} times)"
                )

            self._changes = changes
            self._seen = seen
            self._placement = placement
            self.recommender = completed
            self.notes = notes

    def follow(self) -> tuple[int, str]:
        """Apply what other processes changed.

        Returns:
            Number and version of the last load of any process; 0 and "" if there was none.
        """
        with self._writing, name_fault(self._path):
            self._catch_up()
            return self._database.execute(_LAST_LOAD).fetchone() or (0, "")

    def put(self, item_id: Any, columns: Values) -> None:
        """Add or change an item; a removed one starts anew.

        Args:
            item_id: the item.
            columns: column -> value: None makes it missing, other columns stay.

        Raises:
            SchemaError: a value does not fit, or nothing says what a new item is.
            OSError: the disk is full or fails.
        """
        self.put_many({item_id: columns})

    def put_many(self, items: Mapping[Any, Values]) -> None:
        """Do as `put` with several items: all or none, and far quicker than one by one."""
        with self._changing() as changes:
            for raw_id, columns in items.items():
                item_id = self._parse_id(raw_id)
                before = changes.get(item_id) or self._changes.get(item_id)
                changes[item_id] = self._placement.change(item_id, columns, before)

    def remove(self, item_id: Any) -> bool:
        """Remove an item, from later bundles, too; return whether it was there."""
        with self._changing() as changes:
            item_id = self._parse_id(item_id)
            is_there = self.recommender.catalogue.lists(item_id)
            before = self._changes.get(item_id, Change(item_id, {}))
            changes[item_id] = replace(before, is_removed=True)

        return is_there

    def note_load(self, version: str) -> int:
        """Tell other processes that a version was loaded; return the number of this note."""
        with self._writing, name_fault(self._path):
            return self._database.execute(_ADD_LOAD, (version,)).lastrowid or 0

    @property
    def n_changed(self) -> int:
        """The number of items that were added, changed or removed."""
        return len(self._changes)

    def close(self) -> None:
        """Close the file; the recommender still answers."""
        with self._writing:
            self._database.close()

    def _parse_id(self, raw: Any) -> Id:
        return parse_id(raw, self.recommender.bundle.schema.item_id_type, ITEM_ID)

    @contextmanager
    def _changing(self) -> Iterator[dict[Id, Change]]:
        """Take changes, after those of other processes; write them, then let them be seen."""
        changes: dict[Id, Change] = {}
        with taking(self._writing, self._path):
            with name_fault(self._path), self._database:
                self._database.execute("BEGIN IMMEDIATE")
                self._catch_up()
                yield changes
                catalogue = self._apply(changes)
                for item_id, change in changes.items():
                    columns = json.dumps(change.columns, allow_nan=False)
                    row = (str(item_id), columns, change.is_added, change.is_removed)
                    self._database.execute(_WRITE, row)
                (seen,) = self._database.execute(_LAST_CHANGE).fetchone()

            self._show(changes, catalogue, seen)

    def _catch_up(self) -> None:
        changes, _, seen = self._read(self.recommender, self._seen)
        if seen > self._seen:
            self._show(changes, self._apply(changes), seen)

    def _apply(self, changes: Mapping[Id, Change]) -> Catalogue:
        catalogue = self.recommender.catalogue
        return self._placement.apply(catalogue, changes.values())[0]

    def _show(
        self, changes: Mapping[Id, Change], catalogue: Catalogue, seen: int
    ) -> None:
        self._changes.update(changes)
        self._seen = seen
        self.recommender = self.recommender.with_catalogue(catalogue)

    def _read(
        self, recommender: Recommender, seen: int
    ) -> tuple[dict[Id, Change], list[str], int]:
        """Return changes after a number, items with ids of another type, and the last number."""
        id_type = recommender.bundle.schema.item_id_type
        changes: dict[Id, Change] = {}
        other_ids = []
        rows = self._database.execute(_READ, (seen,)).fetchall()
        for text, columns, is_added, is_removed, number in rows:
            seen = max(seen, number)
            try:
                item_id = parse_id(text, id_type, ITEM_ID)
            except SchemaError:
                if not is_removed:
                    other_ids.append(text)
                continue
            changes[item_id] = Change(
                item_id, json.loads(columns), bool(is_added), bool(is_removed)
            )

        return changes, other_ids, seen


class Arms:
    """The versions that the arms of an experiment name, each with all live items."""

    def __init__(
        self, experiment: Experiment, items: Path, load: Callable[[str], Recommender]
    ) -> None:
        """Load the versions; `items` is the file of live items."""
        self.experiment = experiment
        versions = {arm.version for arm in experiment.arms if arm.version is not None}
        # All are loaded before a file is opened: one that cannot be leaves none open.
        loaded = {version: load(version) for version in sorted(versions)}
        self._items = {
            version: LiveItems(items, recommender)
            for version, recommender in loaded.items()
        }

    def recommender(self, arm: Arm, current: Recommender) -> Recommender:
        """Return what answers in an arm."""
        return current if arm.version is None else self._items[arm.version].recommender

    def follow(self) -> None:
        """Take up the live items that were changed."""
        for items in self._items.values():
            items.follow()

    def close(self) -> None:
        for items in self._items.values():
            items.close()
