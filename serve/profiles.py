"""The features and history of each user, in files of their own, since they are personal data.

    manifest.json             format, and the name, sha256 and rows of the two files
    users-<hash>.parquet      user_id, n_events, one column per feature
    events-<hash>.parquet     item_id, datetime, event, weight of all users, in the order of users

Replacing the manifest is the one step that changes what is read. Profiles of a bundle that is about to be published
stand in it under `next`, with the version of the bundle: a process that loaded that bundle reads them, any other one
the present ones, so that the bundle's change of place changes both at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from serve.arrays import to_arrow, to_numpy, vectors_from_arrow, vectors_to_arrow
from serve.encode import to_numbers, to_vectors, write_cell
from serve.errors import BundleError
from serve.files import PRIVATE, make_private, sync_folder, take_lock, write_file
from serve.requests import History, Id
from serve.schema import DERIVED, Feature

FORMAT = 1
MANIFEST = "manifest.json"
_NEXT = "next"
_LOCK = ".lock"
_PARTS = ("users", "events")
_OURS = ("users-*.parquet*", "events-*.parquet*", f"{MANIFEST}.*")
_FEATURE = "feature:"  # before the name of a feature in the users file, so that one may be called `user_id`

Columns = dict[str, NDArray[Any]]
Entries = dict[str, Any]  # the names of the two files: the manifest, or `next` in it


@dataclass(frozen=True)
class Profile:
    """The profile of one user; a feature is a text, float or array of floats, None if it is missing."""

    user_id: Id
    features: dict[str, Any]
    history: History


@dataclass(frozen=True)
class Profiles:
    """The profiles of U users; the events of user u are `offsets[u]:offsets[u + 1]` of `history`."""

    user_ids: NDArray[np.generic]  # (U,), int64, or object with texts
    features: dict[
        str, NDArray[Any]
    ]  # (U,) float64, NaN if missing, or object, None; of a vector (U, W) float32
    history: History
    offsets: NDArray[np.int64]

    @classmethod
    def load(cls, folder: Path, version: str | None = None) -> Profiles:
        """Read profiles as read-only arrays: those of a bundle's version, while that bundle is being published."""
        entries = _choose(folder, version)
        try:
            return _read_parts(folder, entries)
        except FileNotFoundError as error:
            if _choose(folder, version) != entries:  # replaced while it was being read
                return cls.load(folder, version)
            raise BundleError(
                f"{folder}: file '{Path(error.filename).name}' is missing"
            ) from error

    @cached_property
    def positions(self) -> dict[Id, int]:
        """User id -> position."""
        return {
            user_id: position for position, user_id in enumerate(self.user_ids.tolist())
        }

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
        cells = {name: values[position] for name, values in self.features.items()}
        features = {
            name: None if np.any(cell != cell) else cell for name, cell in cells.items()
        }
        events = slice(self.offsets[position], self.offsets[position + 1])
        return Profile(user_id, features, self.history.take(events))

    def without(self, user_ids: Iterable[Id]) -> Profiles:
        """Return the profiles of the other users."""
        is_kept = np.ones(len(self), dtype=np.bool_)
        is_kept[
            [
                self.positions[user_id]
                for user_id in user_ids
                if user_id in self.positions
            ]
        ] = False
        counts = np.diff(self.offsets)
        return Profiles(
            user_ids=self.user_ids[is_kept],
            features={name: values[is_kept] for name, values in self.features.items()},
            history=self.history.take(np.repeat(is_kept, counts)),
            offsets=np.concatenate([[0], np.cumsum(counts[is_kept])]).astype(np.int64),
        )


def feature_values(
    features: Iterable[Feature], columns: Mapping[str, Any]
) -> dict[str, NDArray[Any]]:
    """Turn raw columns of the users table, feature column -> one value per user, into `Profiles.features`."""
    given = [feature for feature in features if feature.kind not in DERIVED]
    return {
        feature.name: _feature_values(feature, columns[feature.column])
        for feature in given
    }


def _feature_values(feature: Feature, values: Any) -> NDArray[Any]:
    values = values if isinstance(values, (list, tuple)) else np.asarray(values)
    if feature.is_numeric:
        return to_numbers(feature, values)
    if feature.kind == "vector":
        return to_vectors(feature, values)
    texts = np.empty(len(values), dtype=np.object_)
    texts[:] = [write_cell(feature, value) for value in values]
    return texts


def stage_profiles(folder: Path, profiles: Profiles, version: str) -> None:
    """Write profiles that only the bundle of this version reads, until `settle_profiles`."""
    with _writing(folder):
        staged = {"version": version, **_write_parts(folder, profiles)}
        _write_manifest(folder, _read_manifest(folder) | {_NEXT: staged})


def settle_profiles(folder: Path, version: str | None) -> None:
    """Keep the staged profiles if the bundle of this version is theirs, else drop them. None: there is no bundle."""
    if not (folder / MANIFEST).exists():
        return
    with _writing(folder):
        manifest = _read_manifest(folder)
        staged = manifest.pop(_NEXT, None)
        if staged is not None:
            _write_manifest(
                folder, manifest | (staged if staged.pop("version") == version else {})
            )


def erase_users(folder: Path, user_ids: Iterable[Id]) -> set[str]:
    """Erase users from the files of a folder, staged ones too, and return those that there were, as texts."""
    texts = set(map(str, user_ids))
    erased: set[str] = set()
    with _writing(folder):
        manifest = _read_manifest(folder)
        for entries in _all_entries(manifest):
            ids = [
                one
                for one in _read_part(folder, entries["users"])["user_id"].tolist()
                if str(one) in texts
            ]
            if ids:
                entries |= _write_parts(
                    folder, _read_parts(folder, entries).without(ids)
                )
            erased.update(map(str, ids))
        if erased:
            _write_manifest(folder, manifest)
    return erased


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Let one writer at a time into the folder; at the end, remove the files that the manifest does not name."""
    make_private(folder)
    with take_lock(folder / _LOCK, mode=PRIVATE):
        try:
            yield
        finally:
            named = {
                entries[part]["file"]
                for entries in _all_entries(_read_manifest(folder))
                for part in _PARTS
            }
            unnamed = [
                path
                for pattern in _OURS
                for path in folder.glob(pattern)
                if path.name not in named
            ]
            for path in unnamed:
                path.unlink()
            if unnamed:
                sync_folder(folder)  # users who were erased must not come back


def _write_manifest(folder: Path, manifest: Entries) -> None:
    """Replace the manifest; remove it if it names nothing."""
    if not list(_all_entries(manifest)):
        (folder / MANIFEST).unlink(missing_ok=True)
        return
    sync_folder(folder)  # the files must be there before they are named
    text = json.dumps({**manifest, "format": FORMAT}, indent=1, sort_keys=True) + "\n"
    write_file(folder / MANIFEST, text.encode(), PRIVATE)
    sync_folder(folder)


def _read_manifest(folder: Path) -> Entries:
    """Read the manifest, empty if there is none."""
    path = folder / MANIFEST
    try:
        manifest: Entries = json.loads(path.read_text(encoding="utf-8"))
        names = [
            one[part]["file"]
            for one in _all_entries(manifest)
            for part in _PARTS
            if one[part]["sha256"]
        ]
        if (
            manifest["format"] != FORMAT
            or not names
            or any(Path(name).name != name for name in names)
        ):
            raise ValueError(f"expected files of format {FORMAT}")
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{path}: not a manifest of profiles: {error!r}; remove it or write it again"
        ) from error
    return manifest


def _all_entries(manifest: Entries) -> Iterator[Entries]:
    """Yield what names two files: the manifest itself, and what is staged in it."""
    if _PARTS[0] in manifest:
        yield manifest
    if _NEXT in manifest:
        yield manifest[_NEXT]


def _choose(folder: Path, version: str | None) -> Entries:
    manifest = _read_manifest(folder)
    staged = manifest.get(_NEXT, {"version": None})
    chosen = (
        staged if version is not None and staged["version"] == version else manifest
    )
    if _PARTS[0] not in chosen:
        raise BundleError(
            f"{folder}: no profiles here but perhaps of a bundle that is not published: train again"
        )
    return {part: chosen[part] for part in _PARTS}


def _write_parts(folder: Path, profiles: Profiles) -> Entries:
    """Write the two files; nobody reads them before a manifest names them."""
    users = {"user_id": profiles.user_ids, "n_events": np.diff(profiles.offsets)}
    users |= {_FEATURE + name: values for name, values in profiles.features.items()}
    parts = {"users": users, "events": profiles.history.columns()}
    return {part: _write_part(folder, part, columns) for part, columns in parts.items()}


def _write_part(folder: Path, part: str, columns: Columns) -> dict[str, Any]:
    """Write a table to a file named by its content, and return its entry in the manifest."""
    arrays = [
        vectors_to_arrow(values) if values.ndim == 2 else to_arrow(values)
        for values in columns.values()
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_arrays(arrays, names=list(columns)), sink, compression="zstd"
    )
    content = sink.getvalue().to_pybytes()
    digest = hashlib.sha256(content).hexdigest()
    name = f"{part}-{digest[:16]}.parquet"
    write_file(folder / name, content, PRIVATE)
    return {"file": name, "rows": len(arrays[0]), "sha256": digest}


def _read_parts(folder: Path, entries: Entries) -> Profiles:
    users, events = (_read_part(folder, entries[part]) for part in _PARTS)
    features = {
        name.removeprefix(_FEATURE): users[name]
        for name in users
        if name.startswith(_FEATURE)
    }
    offsets = np.concatenate([[0], np.cumsum(users["n_events"])]).astype(np.int64)
    for values in (*users.values(), *events.values(), offsets):
        values.flags.writeable = False
    return Profiles(users["user_id"], features, History(**events), offsets)


def _read_part(folder: Path, entry: Mapping[str, Any]) -> Columns:
    content = (folder / entry["file"]).read_bytes()
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise BundleError(
            f"{folder}: file '{entry['file']}' was altered: its sha256 is not the manifest's"
        )
    with pq.ParquetFile(pa.BufferReader(content)) as file:
        table = file.read()
    return {
        field.name: (
            vectors_from_arrow if pa.types.is_fixed_size_list(field.type) else to_numpy
        )(column)
        for field, column in zip(table.schema, table.columns, strict=True)
    }
