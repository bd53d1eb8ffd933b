"""What is known of each user: raw features and history. Apart from the bundle, since it is personal data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.encode import (
    join_text,
    split_cell,
    to_numbers,
    to_text,
    to_vectors,
)
from serve.profile_store import (
    MANIFEST,
    NEXT,
    Columns,
    all_entries,
    read_current,
    read_manifest,
    read_parts,
    write_manifest,
    write_parts,
    writing,
)
from serve.requests import History, Id
from serve.schema import DERIVED, Feature

_FEATURE = "feature:"
"""Before the name of a feature in the users file, so that one may be called `user_id`."""


@dataclass(frozen=True)
class Profile:
    """What is known of one user."""

    user_id: Id
    features: dict[str, Any]
    """Feature name -> text, float or array of floats, None where missing."""
    history: History


@dataclass(frozen=True)
class Profiles:
    """The profiles of U users; the events of user u are `offsets[u]:offsets[u + 1]` of `history`."""

    user_ids: NDArray[np.generic]
    """(U,), int64, or object with texts."""
    features: dict[str, NDArray[Any]]
    """Feature name -> (U,) float64 with NaN, or object with texts and None; of a vector (U, W) float32 with NaN."""
    history: History
    offsets: NDArray[np.int64]

    @classmethod
    def load(cls, folder: Path, version: str | None = None) -> Profiles:
        """Read what `write_profiles` wrote.

        Its arrays are read-only: what serves shares them.

        Args:
            folder: of the profiles.
            version: of the bundle that they are for; it matters while that bundle is being published.

        Raises:
            BundleError: a file is missing, altered or of another format; names it.
        """
        return _from_columns(*read_current(folder, version))

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
    with writing(folder):
        write_manifest(folder, write_parts(folder, *_to_columns(profiles)))


def stage_profiles(folder: Path, profiles: Profiles, version: str) -> None:
    """Write profiles that only the bundle of this version reads, until `settle_profiles`."""
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder):
        manifest = read_manifest(folder) if (folder / MANIFEST).exists() else {}
        staged = {"version": version, **write_parts(folder, *_to_columns(profiles))}
        write_manifest(folder, manifest | {NEXT: staged})


def settle_profiles(folder: Path, version: str | None) -> None:
    """Keep the staged profiles if the bundle of this version is theirs; else drop them. None: there is no bundle."""
    if not (folder / MANIFEST).exists():
        return
    with writing(folder):
        manifest = read_manifest(folder)
        staged = manifest.pop(NEXT, None)
        if staged is not None:
            write_manifest(folder, manifest | (staged if staged.pop("version") == version else {}))


def erase_users(folder: Path, user_ids: Iterable[Id]) -> int:
    """Erase users from the files of a folder, staged ones too, and return how many of them there were.

    It reads the files anew: a copy in memory may still hold users that were erased since. 7 and "7" are the same user.
    """
    texts = set(map(str, user_ids))
    erased: set[str] = set()
    with writing(folder):
        manifest = read_manifest(folder)
        for entries in all_entries(manifest):
            profiles = _from_columns(*read_parts(folder, entries))
            ids = [user_id for user_id in profiles.positions if str(user_id) in texts]
            entries |= write_parts(folder, *_to_columns(profiles.without(ids)))
            erased.update(map(str, ids))
        write_manifest(folder, manifest)
    return len(erased)


def _to_columns(profiles: Profiles) -> tuple[Columns, Columns]:
    """Lay profiles out as the columns of users and of events."""
    users = {"user_id": profiles.user_ids, "n_events": np.diff(profiles.offsets)}
    users |= {_FEATURE + name: values for name, values in profiles.features.items()}
    return users, profiles.history.columns()


def _from_columns(users: Columns, events: Columns) -> Profiles:
    features = {name.removeprefix(_FEATURE): users[name] for name in users if name.startswith(_FEATURE)}
    offsets = np.concatenate([[0], np.cumsum(users["n_events"])]).astype(np.int64)
    for values in (*users.values(), *events.values(), offsets):
        values.flags.writeable = False
    return Profiles(users["user_id"], features, History(**events), offsets)


def _feature_values(feature: Feature, values: Any) -> NDArray[Any]:
    values = values if isinstance(values, (list, tuple)) else np.asarray(values)
    if feature.is_numeric:
        return to_numbers(feature, values)
    if feature.kind == "vector":
        return to_vectors(feature, values)
    if feature.kind == "text":
        values = list(map(join_text, values))
    if feature.kind == "multi_categorical":
        values = [feature.separator.join(split_cell(cell, feature.separator)) for cell in values]
    texts = np.empty(len(values), dtype=np.object_)
    texts[:] = [to_text(value) for value in values]
    return texts


def _none_if_nan(value: Any) -> Any:
    return None if np.any(value != value) else value
