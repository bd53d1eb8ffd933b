"""Profiles as a bundle reads them: encoded once, so that a request only picks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from serve.encoding import EncodedFeatures, encode_features
from serve.errors import BundleError
from serve.feature_rows import keyed_by_name
from serve.histories import Histories, encode_histories
from serve.item_ids import UNKNOWN_ROW, ItemIds
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
    unknown_ids: frozenset[Id]
    """Items of the histories that the catalogue does not have."""

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
    histories = _encode_histories(profiles, item_ids, schema)
    return KnownUsers(
        profiles.positions,
        histories,
        EncodedFeatures(np.concatenate([known.codes, nobody.codes]), np.concatenate([known.values, nobody.values])),
        _find_unknown(histories, profiles, item_ids),
    )


def with_items(
    known: KnownUsers, profiles: Profiles, item_ids: ItemIds, added: Iterable[Id], schema: Schema
) -> KnownUsers:
    """Let histories hold items that the catalogue got since; nothing is encoded again where none of them does."""
    if known.unknown_ids.isdisjoint(added):
        return known
    histories = _encode_histories(profiles, item_ids, schema)
    return replace(known, histories=histories, unknown_ids=_find_unknown(histories, profiles, item_ids))


def no_profiles(schema: Schema) -> Profiles:
    """Return the profiles of no user."""
    dtypes = {"string": np.dtype(np.object_), "integer": np.dtype(np.int64)}
    history = History(np.empty(0, dtype=dtypes[schema.item_id_type]))
    user_ids = np.empty(0, dtype=dtypes[schema.user_id_type])
    return Profiles(user_ids, {}, history, np.zeros(1, dtype=np.int64))


def _encode_histories(profiles: Profiles, item_ids: ItemIds, schema: Schema) -> Histories:
    """Encode the histories of all, and nobody's."""
    return encode_histories(profiles.history, np.append(profiles.offsets, profiles.offsets[-1]), item_ids, schema)


def _find_unknown(histories: Histories, profiles: Profiles, item_ids: ItemIds) -> frozenset[Id]:
    if not histories.unknown_items.any():
        return frozenset()
    ids = profiles.history.item_id
    return frozenset(ids[item_ids.find(ids) == UNKNOWN_ROW].tolist())


def _check_ids(name: str, ids: np.ndarray, expected: str) -> None:
    got = "string" if ids.dtype == np.object_ else "integer"
    if got != expected:
        raise BundleError(f"profiles: {name} is {got}; the bundle has {expected}: give the profiles of its data")
