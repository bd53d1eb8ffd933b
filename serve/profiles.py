"""What is known of each user: raw features and history. Apart from the bundle, since it is personal data.

    manifest.json             format, and the name, sha256 and rows of the two files
    users-<hash>.parquet      user_id, n_events, one column per feature
    events-<hash>.parquet     item_id, datetime, event, weight of all users, in the order of users

Replacing the manifest is the one step that changes what is read: a reader sees the old or the new profiles.
"""

from __future__ import annotations

import fcntl
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

from serve.durable import sync_folder, write_file
from serve.encoding import split_cell, to_numbers, to_text
from serve.errors import BundleError
from serve.recommendations import to_arrow, to_numpy
from serve.requests import DERIVED, Id, parse_id
from serve.schema import Feature, IdType

FORMAT = 1
MANIFEST = "manifest.json"

_LOCK = ".lock"
_PARTS = ("users", "events")
_OURS = ("users-*.parquet*", "events-*.parquet*", f"{MANIFEST}.*")
_FEATURE = "feature:"
"""Before the name of a feature in the users file, so that one may be called `user_id`."""


@dataclass(frozen=True)
class History:
    """Events oldest first, as arrays of one length; None for what the data does not have."""

    item_id: NDArray[np.generic]
    """int64, or object with texts."""
    datetime: NDArray[np.int64] | None = None
    """UTC seconds."""
    event: NDArray[np.object_] | None = None
    weight: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.item_id)

    def take(self, index: slice | NDArray[np.generic]) -> History:
        """Return some of the events: a view for a slice."""
        return History(**{name: values[index] for name, values in self.columns().items()})

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that there are, by name."""
        return {name: values for name, values in vars(self).items() if values is not None}


@dataclass(frozen=True)
class Profile:
    """What is known of one user."""

    user_id: Id
    features: dict[str, Any]
    """Feature name -> text or float, None where missing."""
    history: History


@dataclass(frozen=True)
class Profiles:
    """The profiles of U users; the events of user u are `offsets[u]:offsets[u + 1]` of `history`."""

    user_ids: NDArray[np.generic]
    """(U,), int64, or object with texts."""
    features: dict[str, NDArray[Any]]
    """Feature name -> (U,): float64 with NaN, or object with texts and None."""
    history: History
    offsets: NDArray[np.int64]

    @classmethod
    def load(cls, folder: Path) -> Profiles:
        """Read what `write_profiles` wrote.

        Raises:
            BundleError: a file is missing, altered or of another format; names it.
        """
        manifest = _read_manifest(folder)
        try:
            users, events = (_read_part(folder, manifest[part]) for part in _PARTS)
        except FileNotFoundError as error:
            if _read_manifest(folder) != manifest:  # replaced while it was being read
                return cls.load(folder)
            raise BundleError(f"{folder}: file '{Path(error.filename).name}' is missing") from error
        features = {name.removeprefix(_FEATURE): users[name] for name in users if name.startswith(_FEATURE)}
        offsets = np.concatenate([[0], np.cumsum(users["n_events"])]).astype(np.int64)
        return cls(users["user_id"], features, History(**events), offsets)

    @cached_property
    def positions(self) -> dict[Id, int]:
        """User id -> position."""
        return {user_id: position for position, user_id in enumerate(self.user_ids.tolist())}

    def __len__(self) -> int:
        return len(self.user_ids)

    def get(self, user_id: Id) -> Profile | None:
        """Return the profile of a user, None for one not known."""
        position = self.positions.get(user_id)
        if position is None:
            return None
        features = {name: _none_if_nan(values[position]) for name, values in self.features.items()}
        events = slice(self.offsets[position], self.offsets[position + 1])
        return Profile(user_id, features, self.history.take(events))

    def without(self, user_ids: Iterable[Id]) -> Profiles:
        """Return the profiles of the other users."""
        is_kept = np.ones(len(self), dtype=np.bool_)
        is_kept[[self.positions[user_id] for user_id in user_ids if user_id in self.positions]] = False
        counts = np.diff(self.offsets)
        return Profiles(
            user_ids=self.user_ids[is_kept],
            features={name: values[is_kept] for name, values in self.features.items()},
            history=self.history.take(np.repeat(is_kept, counts)),
            offsets=np.concatenate([[0], np.cumsum(counts[is_kept])]).astype(np.int64),
        )


def feature_values(features: Iterable[Feature], columns: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Turn raw columns of the users table into what `Profiles.features` holds.

    Args:
        features: the user features of the schema.
        columns: feature column -> one raw value per user.
    """
    return {
        feature.name: _feature_values(feature, columns[feature.column])
        for feature in features
        if feature.kind not in DERIVED
    }


def write_profiles(folder: Path, profiles: Profiles) -> None:
    """Write or replace the profiles in a folder; if it fails, the old ones stay."""
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        _replace(folder, profiles)


def erase_users(folder: Path, user_ids: Iterable[Id]) -> int:
    """Erase users from the files of a folder, and return how many of them there were.

    It reads the files anew: a copy in memory may still hold users that were erased since.
    """
    with _lock(folder):
        profiles = Profiles.load(folder)
        id_type: IdType = "string" if profiles.user_ids.dtype == np.object_ else "integer"
        kept = profiles.without([parse_id(user_id, id_type, "user_id") for user_id in user_ids])
        _replace(folder, kept)
    return len(profiles) - len(kept)


def _feature_values(feature: Feature, values: Any) -> NDArray[Any]:
    values = values if isinstance(values, (list, tuple)) else np.asarray(values)
    if feature.is_numeric:
        return to_numbers(feature, values)
    if feature.kind == "multi_categorical":
        values = [feature.separator.join(split_cell(cell, feature.separator)) for cell in values]
    texts = np.empty(len(values), dtype=np.object_)
    texts[:] = [to_text(value) for value in values]
    return texts


def _none_if_nan(value: Any) -> Any:
    return None if value != value else value


def _replace(folder: Path, profiles: Profiles) -> None:
    users = {"user_id": profiles.user_ids, "n_events": np.diff(profiles.offsets)}
    users |= {_FEATURE + name: values for name, values in profiles.features.items()}
    try:
        entries = {
            "users": _write_part(folder, "users", users),
            "events": _write_part(folder, "events", profiles.history.columns()),
        }
        manifest = json.dumps({"format": FORMAT, **entries}, indent=1, sort_keys=True) + "\n"
        sync_folder(folder)  # the files must be there before they are named
        write_file(folder / MANIFEST, manifest.encode())
        sync_folder(folder)
    finally:
        _remove_unnamed(folder)


def _write_part(folder: Path, part: str, columns: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """Write a table to a file named by its content, and return its entry in the manifest."""
    arrays = [to_arrow(values) for values in columns.values()]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, names=list(columns)), sink, compression="zstd")
    content = sink.getvalue().to_pybytes()
    digest = hashlib.sha256(content).hexdigest()
    name = f"{part}-{digest[:16]}.parquet"
    write_file(folder / name, content)
    return {"file": name, "rows": len(arrays[0]), "sha256": digest}


def _remove_unnamed(folder: Path) -> None:
    """Remove what the manifest does not name: replaced files, or those of a write that did not finish."""
    named = set()
    if (folder / MANIFEST).exists():
        manifest = _read_manifest(folder)
        named = {manifest[part]["file"] for part in _PARTS}
    for pattern in _OURS:
        for path in folder.glob(pattern):
            if path.name not in named:
                path.unlink()


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Let one writer at a time into the folder."""
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        is_known = manifest["format"] == FORMAT
        names = [manifest[part]["file"] for part in _PARTS if manifest[part]["sha256"]]
    except FileNotFoundError as error:
        raise BundleError(f"{folder}: no profiles here, '{MANIFEST}' is missing") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path}: not a manifest of profiles: {error!r}") from error
    if not is_known or any(Path(name).name != name for name in names):
        raise BundleError(f"{path}: not a manifest of profiles of format {FORMAT}: write the profiles again")
    return manifest


def _read_part(folder: Path, entry: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    content = (folder / entry["file"]).read_bytes()
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise BundleError(f"{folder}: file '{entry['file']}' was altered: its sha256 is not the manifest's")
    with pq.ParquetFile(pa.BufferReader(content)) as file:
        table = file.read()
    return {name: to_numpy(table.column(name)) for name in table.column_names}
