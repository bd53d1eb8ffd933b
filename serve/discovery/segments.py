"""Segments of users: k-means on the directions of their vectors, described by what they have more than others.

A bundle holds them in `segments.json`: centroids, words and sizes; no user, and no value of fewer than `MIN_PEOPLE`.
Letters: U users, W columns of a vector, K segments, V values of a trait, E pairs of a user and a value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import faiss
import numpy as np
from numpy.typing import NDArray

from serve.encode import code_slices, encode_features
from serve.profiles import Profiles
from serve.schema import FIRST_CODE, Feature, Schema, check_record

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Numbers = NDArray[np.float64]

MIN_PEOPLE = 20  # of a segment, and of those in it who have a value that is named
MAX_USERS = 10_000  # whose vectors are clustered
MAX_SEGMENTS, PER_SEGMENT = 12, 40  # segments at most, and users for each of them at least
STABLE = 0.75  # adjusted Rand index of what two halves of the users give; the most segments that reach it are taken
N_SPLITS = 5  # into halves, by which it is measured
N_MARKS, MIN_LIFT, MIN_SHARE = 3, 1.2, 0.005  # values of a trait that are named, and what each has at least
FORMAT = 1
_ITERATIONS, _RESTARTS, _MORE_RESTARTS, _DECIMALS = 25, 3, 20, 6  # more for the clusters that are kept
_QUARTERS = (0.25, 0.5, 0.75)  # of numeric features


@dataclass(frozen=True)
class Mark:
    """A value that the people of a segment have more than all people do."""

    kind: Literal["category", "item", "user"]
    trait: str  # name of the feature, `item` for items
    value: str
    people: int  # of the segment who have it
    share: float  # of the people of the segment; of a category, of their events
    lift: float  # that share over the share among all


@dataclass(frozen=True)
class Segment:
    id: int  # from 1, the largest first
    size: int
    share: float  # of the users that were clustered
    text: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Segments:
    """The segments of a bundle."""

    users: int  # that were clustered
    stability: Mapping[str, float]  # number of segments -> mean adjusted Rand index between halves of the users
    centre: tuple[float, ...]  # (W,) mean of the vectors
    centroids: tuple[tuple[float, ...], ...]  # (K, W) of their directions from the centre
    segments: tuple[Segment, ...]

    def of(self, user_vectors: Floats) -> Ints:
        """Return the place in `segments` of each user vector, (B,)."""
        return _nearest(_direct(user_vectors, np.array(self.centre)), self._centroids)

    def describe(self) -> list[dict[str, Any]]:
        """Return the segments as JSON values, the largest first."""
        return [asdict(one) | {"marks": [asdict(mark) for mark in one.marks]} for one in self.segments]

    @cached_property
    def _centroids(self) -> Floats:
        return np.array(self.centroids, np.float32)

    def to_bytes(self) -> bytes:
        """Write canonical JSON."""
        content = {"format": FORMAT, **asdict(self)}
        return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, content: bytes, width: int) -> Segments:
        """Read what `to_bytes` wrote, of vectors of a width; a `ValueError` says that it is something else."""
        try:
            raw = json.loads(content)
            if raw.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            listed = [one | {"marks": tuple(Mark(**mark) for mark in one["marks"])} for one in raw.pop("segments")]
            centre, *centroids = (tuple(row) for row in (raw.pop("centre"), *raw.pop("centroids")))
            found = cls(
                **raw, centre=centre, centroids=tuple(centroids), segments=tuple(Segment(**one) for one in listed)
            )
            for record in (found, *found.segments, *(mark for one in found.segments for mark in one.marks)):
                check_record(record)
            if {len(row) for row in (centre, *centroids)} != {width} or not len(centroids) == len(listed) > 0:
                raise ValueError(f"its centroids are not one a segment, or not of width {width}")
            return found
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"it holds no segments: {error!r}") from error


# ---- clusters


def find_segments(vectors: Floats, traits: Sequence[Trait], seed: int) -> Segments | None:
    """Cluster the vectors (U, W) of users and describe the clusters; None where no number of them is stable."""
    centre = vectors.mean(axis=0).round(_DECIMALS)
    directions = _direct(vectors, centre)
    stability = {k: _measure_stability(directions, k, seed) for k in _numbers(len(vectors))}
    for k in sorted((k for k, index in stability.items() if index >= STABLE), reverse=True):
        centroids = _cluster(directions, k, seed, _MORE_RESTARTS).round(_DECIMALS)
        labels = _nearest(directions, centroids)
        sizes = np.bincount(labels, minlength=k)
        if sizes.min() >= MIN_PEOPLE:
            order = np.argsort(-sizes, kind="stable")
            return Segments(
                len(vectors),
                {str(k): round(index, 3) for k, index in stability.items()},
                tuple(map(float, centre)),
                tuple(tuple(map(float, row)) for row in centroids[order]),
                tuple(_describe(np.argsort(order)[labels], traits, k)),
            )
    return None


def _numbers(n_users: int) -> range:
    return range(2, min(MAX_SEGMENTS, n_users // PER_SEGMENT) + 1)


def _direct(vectors: Floats, centre: NDArray[Any]) -> Floats:
    """Return the directions of vectors as seen from the centre."""
    offsets = (vectors - centre).astype(np.float32)
    directions: Floats = offsets / np.maximum(np.linalg.norm(offsets, axis=1, keepdims=True), 1e-12)
    return directions


def _cluster(directions: Floats, k: int, seed: int, restarts: int) -> Floats:
    """Return the centroids (K, W) of k-means."""
    kmeans = faiss.Kmeans(
        directions.shape[1],
        k,
        niter=_ITERATIONS,
        nredo=restarts,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=MAX_USERS,
    )
    kmeans.train(directions)
    return np.asarray(kmeans.centroids, np.float32)


def _nearest(directions: Floats, centroids: Floats) -> Ints:
    return np.asarray((directions @ centroids.T - (centroids**2).sum(axis=1) / 2).argmax(axis=1))


def _measure_stability(directions: Floats, k: int, seed: int) -> float:
    """Return the mean adjusted Rand index of the labels of all users by the clusters of two halves of them."""
    found = []
    for split in range(N_SPLITS):
        order, half = np.random.default_rng((seed, split)).permutation(len(directions)), len(directions) // 2
        halves = (directions[order[:half]], directions[order[half:]])
        labels = [_nearest(directions, _cluster(part, k, seed + place, _RESTARTS)) for place, part in enumerate(halves)]
        found.append(adjusted_rand(*labels))
    return float(np.mean(found))


def adjusted_rand(one: Ints, other: Ints) -> float:
    """Return the adjusted Rand index of two labellings (Hubert and Arabie 1985): 1 equal, 0 as by chance."""
    table = np.zeros((one.max() + 1, other.max() + 1))
    np.add.at(table, (one, other), 1)
    together, rows, columns, all_pairs = (
        float((counts * (counts - 1) / 2).sum())
        for counts in (table, table.sum(axis=1), table.sum(axis=0), np.array([len(one)]))
    )
    by_chance, most = rows * columns / all_pairs, (rows + columns) / 2
    return 1.0 if most == by_chance else (together - by_chance) / (most - by_chance)


# ---- words


@dataclass(frozen=True)
class Trait:
    """Who has which value, each pair of a user and a value once."""

    kind: Literal["category", "item", "user"]
    name: str
    values: Sequence[str]  # (V,)
    users: Ints  # (E,) within [0, U)
    codes: Ints  # (E,) within [0, V)
    weights: Numbers  # (E,) part of the user that the value takes


def find_traits(
    profiles: Profiles, item_rows: Ints, names: Sequence[str], columns: Mapping[str, Sequence[Any]], schema: Schema
) -> list[Trait]:
    """Return what is known of users: their items by row, -1 where unknown, categories of these, and features.

    `names` and `columns` are those of the catalogue.
    """
    users = np.repeat(np.arange(len(profiles)), np.diff(profiles.offsets))[item_rows >= 0]
    rows = item_rows[item_rows >= 0]
    share = 1.0 / np.maximum(np.bincount(users, minlength=len(profiles)), 1)
    categories = [one for one in schema.item_features if one.vocabulary and one.column in columns]
    codes = encode_features(categories, columns, len(names)).codes
    traits = []
    for feature, place in code_slices(categories):
        cells = codes[rows, place]  # (events, width)
        event, column = (cells >= FIRST_CODE).nonzero()
        of_event = users[event]
        traits.append(
            _trait(
                "category",
                feature.name,
                feature.vocabulary,
                of_event,
                cells[event, column] - FIRST_CODE,
                share[of_event],
            )
        )
    item = _trait("item", "item", names, users, rows, np.zeros(len(rows)))
    traits.append(Trait("item", "item", names, item.users, item.codes, np.ones(len(item.users))))
    return [*traits, *_user_traits(profiles, schema.user_features)]


def _user_traits(profiles: Profiles, features: Sequence[Feature]) -> Iterator[Trait]:
    for feature in features:
        cells = profiles.features[feature.name]
        if feature.is_numeric:
            users = np.flatnonzero(~np.isnan(cells))
            edges = np.unique(np.quantile(cells[users], _QUARTERS)) if len(users) else np.zeros(1)
            values = [f"below {edges[0]:g}", *(f"{a:g} to {b:g}" for a, b in pairwise(edges))]
            codes = edges.searchsorted(cells[users], side="right")
            yield Trait("user", feature.name, [*values, f"{edges[-1]:g} and more"], users, codes, np.ones(len(users)))
        elif feature.vocabulary:
            encoded = encode_features([feature], {feature.column: cells}, len(profiles)).codes
            users, place = (encoded >= FIRST_CODE).nonzero()
            codes = encoded[users, place] - FIRST_CODE
            yield Trait("user", feature.name, feature.vocabulary, users, codes, np.ones(len(users)))


def _trait(
    kind: Literal["category", "item"], name: str, values: Sequence[str], users: Ints, codes: Ints, weights: Numbers
) -> Trait:
    """Put equal pairs of a user and a value together."""
    pairs, place = np.unique(users * len(values) + codes, return_inverse=True)
    return Trait(
        kind,
        name,
        values,
        pairs // len(values),
        pairs % len(values),
        np.bincount(place, weights, len(pairs)).astype(np.float64),
    )


def _describe(labels: Ints, traits: Sequence[Trait], k: int) -> Iterator[Segment]:
    sizes = np.bincount(labels, minlength=k)
    marks = [_find_marks(labels, one, k) for one in traits]
    for place, size in enumerate(sizes.tolist()):
        own = [mark for of_trait in marks for mark in of_trait[place]]
        yield Segment(place + 1, size, round(size / len(labels), 4), _write(own), tuple(own))


def _find_marks(labels: Ints, trait: Trait, k: int) -> list[list[Mark]]:
    """Return for each segment the values that tell it most from all by share x log(lift), those of many first."""
    n_values, segment = len(trait.values), labels[trait.users]
    place = segment * n_values + trait.codes
    people = np.bincount(place, minlength=k * n_values).reshape(k, n_values)
    sums = np.bincount(place, trait.weights, k * n_values).reshape(k, n_values)
    known = np.bincount(labels[np.unique(trait.users)], minlength=k)
    shares, of_all = sums / np.maximum(known, 1)[:, None], sums.sum(axis=0) / max(1, known.sum())
    lifts = shares / np.where(of_all > 0, of_all, 1)
    is_mark = (people >= MIN_PEOPLE) & (lifts >= MIN_LIFT) & (shares >= MIN_SHARE)
    telling = np.where(is_mark, shares * np.log(np.where(is_mark, lifts, 1)), 0)
    best = np.argsort(-telling, axis=1, kind="stable")[:, :N_MARKS]
    return [
        [
            Mark(
                trait.kind,
                trait.name,
                str(trait.values[code]),
                int(people[one, code]),
                round(float(shares[one, code]), 4),
                round(float(lifts[one, code]), 2),
            )
            for code in best[one].tolist()
            if is_mark[one, code]
        ]
        for one in range(k)
    ]


def _write(marks: Sequence[Mark]) -> str:
    """Say what marks a segment: values of two categories, items, and what is known of its people."""
    of_trait: dict[str, list[Mark]] = {}
    for mark in marks:
        of_trait.setdefault(f"{mark.kind} {mark.trait}", []).append(mark)
    categories = [found[:2] for found in of_trait.values() if found[0].kind == "category"][:2]
    people = sorted((found[0] for found in of_trait.values() if found[0].kind == "user"), key=lambda mark: -mark.lift)
    parts = {
        "more ": [f"{mark.value} ({mark.lift:.1f}×)" for found in categories for mark in found],
        "typical: ": [*dict.fromkeys(mark.value for mark in marks if mark.kind == "item")],
        "often ": [f"{mark.trait.replace('_', ' ')} {mark.value} ({mark.lift:.1f}×)" for mark in people[:2]],
    }
    return "; ".join(f"{head}{', '.join(found)}" for head, found in parts.items() if found) or "much like all others"
