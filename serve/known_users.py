"""Profiles as a bundle reads them: encoded once, so that a request only picks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from serve.encoding import EncodedFeatures, encode_features
from serve.errors import BundleError
from serve.feature_rows import keyed_by_name
from serve.histories import Histories, encode_histories
from serve.item_ids import ItemIds
from serve.profiles import History, Profiles
from serve.request_values import Id
from serve.schema import Schema


@dataclass(frozen=True)
class KnownUsers:
    """U users by position, and at position U nobody: no history, all features missing."""

    positions: Mapping[Id, int]
    histories: Histories
    """U + 1."""
    features: EncodedFeatures
    """U + 1 rows."""

    def position(self, user_id: Id | None) -> int:
        """Return where a user is; nobody's position for an anonymous or unknown one."""
        nobody = len(self.positions)
        return nobody if user_id is None else self.positions.get(user_id, nobody)


def encode_profiles(profiles: Profiles, item_ids: ItemIds, schema: Schema) -> KnownUsers:
    """Encode all profiles and nobody's.

    Raises:
        BundleError: the profiles' ids are of another type than the bundle's.
    """
    _check_ids("user_id", profiles.user_ids, schema.user_id_type)
    _check_ids("item_id", profiles.history.item_id, schema.item_id_type)
    features = keyed_by_name(schema.user_features)
    known = encode_features(features, profiles.features, len(profiles), schema.timezone)
    nobody = encode_features(features, {}, 1, schema.timezone)
    offsets = np.append(profiles.offsets, profiles.offsets[-1])
    return KnownUsers(
        profiles.positions,
        encode_histories(profiles.history, offsets, item_ids, schema),
        EncodedFeatures(np.concatenate([known.codes, nobody.codes]), np.concatenate([known.values, nobody.values])),
    )


def no_profiles(schema: Schema) -> Profiles:
    """Return the profiles of no user."""
    dtypes = {"string": np.dtype(np.object_), "integer": np.dtype(np.int64)}
    history = History(np.empty(0, dtype=dtypes[schema.item_id_type]))
    user_ids = np.empty(0, dtype=dtypes[schema.user_id_type])
    return Profiles(user_ids, {}, history, np.zeros(1, dtype=np.int64))


def _check_ids(name: str, ids: np.ndarray, expected: str) -> None:
    got = "string" if ids.dtype == np.object_ else "integer"
    if got != expected:
        raise BundleError(f"profiles: {name} is {got}; the bundle has {expected}: give the profiles of its data")
