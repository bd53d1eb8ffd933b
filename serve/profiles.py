"""The features and history of each user, in files of their own, since they are personal data.

    manifest.json             format, and the name and sha256 of the two files
    users-<hash>.parquet      user_id, n_events, one column per feature
    events-<hash>.parquet     item_id, datetime, event, weight of all users, in the order of users

Replacing the manifest is the one step that changes what is read. Profiles of a bundle that is about
to be published stand in it under `next`, with the version of the bundle. A process that loaded that
bundle reads them, any other one reads the present ones. So the bundle's change of place changes
both at once.

Letters: U users, E events, W entries of a vector.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from serve.arrays import (
    Id,
    Ints,
    to_arrow,
    to_numpy,
    vectors_from_arrow,
    vectors_to_arrow,
)
from serve.errors import BundleError
from serve.files import (
    PRIVATE,
    make_private,
    sync_folder,
    take_lock,
    to_canonical_json,
    write_file,
)
from serve.kinds import Feature
from serve.requests import History, Request
from serve.schema import Schema

FORMAT = 1
MANIFEST = "manifest.json"
_NEXT = "next"
_LOCK = ".lock"
_PARTS = ("users", "events")
_OUR_FILES = ("users-*.parquet*", "events-*.parquet*", f"{MANIFEST}.*")

# Before the name of a feature in the users file, so that one may be called `user_id`.
_FEATURE = "feature:"
_HELD_UNTIL = "held_until"

Columns = dict[str, NDArray[Any]]
Entries = dict[str, Any]  # part -> its file: the manifest, or `next` in it


@dataclass(frozen=True)
class Profile:
    """The profile of one user; a feature is a text, float or array of floats, None if missing."""

    user_id: Id
    features: dict[str, Any]
    history: History
    held: tuple[tuple[Id, int], ...] = ()  # as of `Request`
    n_fresh: int = 0  # none of the events counts as just now


def fill_in(request: Request, known: Profile | Request) -> Request:
    """Return a request with what is known of its user; a part of its own replaces that part."""
    if request.features is None:
        request = replace(request, features=known.features)
    if request.history is None:
        request = replace(
            request, history=known.history, n_fresh=known.n_fresh, held=known.held
        )
    return request


@dataclass(frozen=True)
class Profiles:
    """The profiles of U users.

    Attributes:
        user_ids: (U,) int64, or object with texts.
        features: name -> (U,) float64 (NaN if missing) or object (None if missing); of a vector
            (U, W) float32.
        history: the events of all users. User u has `offsets[u]:offsets[u + 1]`, oldest first.
        offsets: (U + 1,).
        held_until: (E,) UTC seconds until which an event holds its item back from lists, 0: it does
            not. None, as in figures: no event does.
    """

    user_ids: NDArray[np.generic]
    features: dict[str, NDArray[Any]]
    history: History
    offsets: Ints
    held_until: Ints | None = None

    @classmethod
    def none(cls, schema: Schema) -> Profiles:
        """Return the profiles of no user."""
        dtypes: dict[str, Any] = {"string": np.object_, "integer": np.int64}
        history = History(np.empty(0, dtypes[schema.item_id_type]))
        user_ids = np.empty(0, dtypes[schema.user_id_type])
        return cls(user_ids, {}, history, offsets=np.zeros(1, np.int64))

    @classmethod
    def load(cls, folder: Path, version: str | None = None) -> Profiles:
        """Read profiles as read-only arrays.

        Args:
            folder: where `stage_profiles` wrote them.
            version: of a bundle, which reads its own profiles while it is being published.

        Raises:
            BundleError: if there are none, or a file is missing or altered.
        """
        entries = _choose_entries(folder, version)
        try:
            return _read_parts(folder, entries)
        except FileNotFoundError as error:
            # Somebody may have replaced them meanwhile.
            if _choose_entries(folder, version) != entries:
                return cls.load(folder, version)
            name = Path(error.filename).name
            raise BundleError(f"{folder}: file '{name}' is missing") from error

    @cached_property
    def positions(self) -> dict[Id, int]:
        """User id -> position."""
        return dict(zip(self.user_ids.tolist(), count()))

    @cached_property
    def until(self) -> int:
        """UTC seconds just after the last event, 0 where events have no times."""
        times = self.history.datetime
        return 0 if times is None or not len(times) else int(times.max()) + 1

    def __len__(self) -> int:
        return len(self.user_ids)

    def get(self, user_id: Id) -> Profile | None:
        """Return the profile of a user, None for an unknown one."""
        position = self.positions.get(user_id)
        if position is None:
            return None

        features = {}
        for name, values in self.features.items():
            cell = values[position]
            features[name] = None if np.any(cell != cell) else cell

        events = slice(self.offsets[position], self.offsets[position + 1])
        history = self.history.take(events)
        if self.held_until is None:
            return Profile(user_id, features, history)
        held_until = self.held_until[events]
        held = np.flatnonzero(held_until)
        ids = history.item_id[held].tolist()
        pairs = zip(ids, held_until[held].tolist(), strict=True)
        return Profile(user_id, features, history, tuple(pairs))

    def complete(self, request: Request) -> Request:
        """Return a request with the history and features of its user, where it brings none."""
        profile = None if request.user_id is None else self.get(request.user_id)
        return request if profile is None else fill_in(request, profile)

    def without(self, user_ids: Iterable[Id]) -> Profiles:
        """Return the profiles of the other users."""
        left_out = set(user_ids)
        is_other = np.array(
            [user_id not in left_out for user_id in self.positions], bool
        )
        counts = np.diff(self.offsets)
        features = {name: values[is_other] for name, values in self.features.items()}
        is_kept = np.repeat(is_other, counts)
        held_until = self.held_until

        return Profiles(
            user_ids=self.user_ids[is_other],
            features=features,
            history=self.history.take(is_kept),
            offsets=_count_up(counts[is_other]),
            held_until=None if held_until is None else held_until[is_kept],
        )


def _count_up(counts: Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def feature_values(
    features: Iterable[Feature], columns: Mapping[str, Any]
) -> dict[str, NDArray[Any]]:
    """Turn raw columns of the users table into `Profiles.features`.

    Args:
        features: the user features of a schema.
        columns: column of each feature -> one value per user.

    Returns:
        Name of each feature that is not derived -> its values.
    """
    given = [feature for feature in features if not feature.is_derived]
    return {feature.name: feature.read(columns[feature.column]) for feature in given}


# ---- writing


def stage_profiles(folder: Path, parts: Iterable[Profiles], version: str) -> None:
    """Write profiles that only the bundle of this version reads, until `settle_profiles`.

    Args:
        folder: where they go.
        parts: the profiles of ranges of users, ascending; they may be made while they are written.
        version: of the bundle.
    """
    with _writing(folder):
        manifest = _read_manifest(folder)
        manifest[_NEXT] = {"version": version, **_write_parts(folder, parts)}
        _write_manifest(folder, manifest)


def settle_profiles(folder: Path, version: str | None) -> None:
    """Keep the staged profiles if they belong to the published bundle, else drop them.

    Args:
        folder: where the profiles stand.
        version: of the published bundle; None if there is none.
    """
    if not (folder / MANIFEST).exists():
        return
    with _writing(folder):
        manifest = _read_manifest(folder)
        staged = manifest.pop(_NEXT, None)
        if staged is None:
            return
        if staged.pop("version") == version:
            manifest |= staged
        _write_manifest(folder, manifest)


def erase_users(folder: Path, user_ids: Iterable[Id]) -> set[str]:
    """Erase users from the files of a folder, staged ones too; return those found, as texts."""
    wanted = set(map(str, user_ids))
    erased: set[str] = set()
    with _writing(folder):
        manifest = _read_manifest(folder)
        for entries in _all_entries(manifest):
            profiles = _read_parts(folder, entries)
            ids = [user_id for user_id in profiles.positions if str(user_id) in wanted]
            if ids:
                entries |= _write_parts(folder, [profiles.without(ids)])
                erased.update(map(str, ids))
        if erased:
            _write_manifest(folder, manifest)

    return erased


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Let one writer at a time into the folder; then remove files that no manifest names."""
    make_private(folder)
    with take_lock(folder / _LOCK, mode=PRIVATE):
        try:
            yield
        finally:
            _remove_unnamed(folder)


def _remove_unnamed(folder: Path) -> None:
    named = set()
    for entries in _all_entries(_read_manifest(folder)):
        named |= {entries[part]["file"] for part in _PARTS}
    for pattern in _OUR_FILES:
        for path in folder.glob(pattern):
            if path.name not in named:
                path.unlink()

    sync_folder(folder)  # users who were erased must not come back


def _write_manifest(folder: Path, manifest: Entries) -> None:
    """Replace the manifest; remove it if it names nothing."""
    path = folder / MANIFEST
    if not _all_entries(manifest):
        path.unlink(missing_ok=True)
        return

    sync_folder(folder)  # the files must be there before they are named
    write_file(path, to_canonical_json(manifest | {"format": FORMAT}), PRIVATE)
    sync_folder(folder)


def _write_parts(folder: Path, parts: Iterable[Profiles]) -> Entries:
    """Write the two files, named by their content; nobody reads them before a manifest does."""
    sinks = {part: pa.BufferOutputStream() for part in _PARTS}
    writers: dict[str, pq.ParquetWriter] = {}
    for profiles in parts:
        users = {"user_id": profiles.user_ids, "n_events": np.diff(profiles.offsets)}
        for name, values in profiles.features.items():
            users[_FEATURE + name] = values
        events = profiles.history.columns()
        if profiles.held_until is not None:
            events[_HELD_UNTIL] = profiles.held_until
        tables = {"users": _to_table(users), "events": _to_table(events)}
        for part, table in tables.items():
            if part not in writers:
                sink = sinks[part]
                writers[part] = pq.ParquetWriter(sink, table.schema, compression="zstd")
            writers[part].write_table(table)

    entries = {}
    for part, writer in writers.items():
        writer.close()
        content = sinks[part].getvalue().to_pybytes()
        digest = hashlib.sha256(content).hexdigest()
        name = f"{part}-{digest[:16]}.parquet"
        write_file(folder / name, content, PRIVATE)
        entries[part] = {"file": name, "sha256": digest}

    return entries


def _to_table(columns: Columns) -> pa.Table:
    arrays = {}
    for column, values in columns.items():
        write = vectors_to_arrow if values.ndim == 2 else to_arrow
        arrays[column] = write(values)
    return pa.table(arrays)


# ---- reading


def _read_manifest(folder: Path) -> Entries:
    """Read the manifest, empty if there is none."""
    path = folder / MANIFEST
    try:
        manifest: Entries = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"expected format {FORMAT}")
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{path}: not a manifest of profiles: {error!r}; "
            "remove it or write it again"
        ) from error

    return manifest


def _all_entries(manifest: Entries) -> list[Entries]:
    """Return what names two files: the manifest itself, and the staged profiles in it."""
    candidates = (manifest, manifest.get(_NEXT, {}))
    return [entries for entries in candidates if "users" in entries]


def _choose_entries(folder: Path, version: str | None) -> Entries:
    manifest = _read_manifest(folder)
    staged = manifest.get(_NEXT)
    chosen = staged if staged and staged["version"] == version else manifest
    if "users" not in chosen:
        raise BundleError(
            f"{folder}: no profiles here but perhaps of a bundle "
            "that is not published: train again"
        )

    return {part: chosen[part] for part in _PARTS}


def _read_parts(folder: Path, entries: Entries) -> Profiles:
    users = _read_part(folder, entries["users"])
    events = _read_part(folder, entries["events"])
    features = {}
    for name, values in users.items():
        if name.startswith(_FEATURE):
            features[name.removeprefix(_FEATURE)] = values

    offsets = _count_up(users["n_events"])
    for values in (*users.values(), *events.values(), offsets):
        values.flags.writeable = False
    held_until = events.pop(_HELD_UNTIL, None)
    history = History(**events)
    return Profiles(users["user_id"], features, history, offsets, held_until)


def _read_part(folder: Path, entry: Mapping[str, Any]) -> Columns:
    content = (folder / entry["file"]).read_bytes()
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise BundleError(
            f"{folder}: file '{entry['file']}' was altered: "
            "its sha256 is not the manifest's"
        )

    with pq.ParquetFile(pa.BufferReader(content)) as file:
        table = file.read()

    columns = {}
    for name in table.column_names:
        column = table.column(name)
        is_vector = pa.types.is_fixed_size_list(column.type)
        columns[name] = (vectors_from_arrow if is_vector else to_numpy)(column)

    return columns
