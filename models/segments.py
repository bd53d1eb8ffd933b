"""Segments of users: k-means on the directions of their vectors, and what marks each cluster.

Letters: U users, W columns of a vector, K segments, V values of a trait, E pairs of a user and a
value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import attrgetter
from typing import Any

import faiss
import numpy as np

from serve.arrays import Doubles, Flags, Floats, Ints
from serve.kinds import FIRST_CODE, Feature
from serve.profiles import Profiles
from serve.recommendations import (
    Kind,
    Mark,
    Segment,
    Segments,
    find_nearest,
    to_directions,
)
from serve.schema import Schema

MIN_PEOPLE = 20  # in a segment, and in it with a value that is named
MAX_USERS = 10_000  # whose vectors are clustered
MAX_SEGMENTS = 12
PER_SEGMENT = 40  # users for each segment, at least
STABLE = 0.75  # adjusted Rand index between halves of the users that segments need
N_SPLITS = 5  # divisions into halves, over which the index is averaged
N_MARKS = 3  # values of a trait that are named
MIN_LIFT = 1.2  # of a value that is named
MIN_SHARE = 0.005
_ITERATIONS = 25
_RESTARTS = 10
_DECIMALS = 6
_QUARTERS = (0.25, 0.5, 0.75)  # quantiles that divide numeric features


def find_segments(
    vectors: Floats, traits: Sequence[Trait], seed: int
) -> Segments | None:
    """Cluster users and describe the clusters.

    The largest number of clusters is taken whose stability is a peak and at least `STABLE`.

    Args:
        vectors: (U, W) user vectors.
        traits: what is known of the users.
        seed: decides the clusters.

    Returns:
        The segments, the largest first; None where no number of them is stable.
    """
    centre = vectors.mean(axis=0).round(_DECIMALS)
    directions = to_directions(vectors, centre)
    max_segments = min(MAX_SEGMENTS, len(vectors) // PER_SEGMENT)
    stability = {
        k: _measure_stability(directions, k, seed) for k in range(2, max_segments + 1)
    }

    for k in sorted(stability, reverse=True):
        neighbours = [stability.get(k - 1, 0), stability.get(k + 1, 0)]
        if stability[k] < max(STABLE, *neighbours):
            continue

        centroids = _cluster(directions, k, seed).round(_DECIMALS)
        labels = find_nearest(directions, centroids)
        order = np.argsort(-np.bincount(labels, minlength=k), kind="stable")

        segments = _describe(np.argsort(order)[labels], traits, k)
        if segments[-1].size >= MIN_PEOPLE:
            indices = {str(n): round(index, 3) for n, index in stability.items()}
            points = tuple(map(tuple, centroids[order].tolist()))
            return Segments(
                users=len(vectors),
                stability=indices,
                centre=tuple(centre.tolist()),
                centroids=points,
                segments=segments,
            )

    return None


def _cluster(directions: Floats, k: int, seed: int) -> Floats:
    """Return the centroids (K, W) of k-means."""
    kmeans = faiss.Kmeans(
        directions.shape[1],
        k,
        niter=_ITERATIONS,
        nredo=_RESTARTS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=MAX_USERS,
    )
    kmeans.train(directions)

    return np.asarray(kmeans.centroids, np.float32)


def _measure_stability(directions: Floats, k: int, seed: int) -> float:
    """Return how alike the clusters of two halves of the users label all users, on average."""
    indices = []
    for split in range(N_SPLITS):
        order = np.random.default_rng((seed, split)).permutation(len(directions))
        labels = []
        for number, half in enumerate(np.array_split(order, 2)):
            centroids = _cluster(directions[half], k, seed + number)
            labels.append(find_nearest(directions, centroids))
        indices.append(adjusted_rand(*labels))

    return float(np.mean(indices))


def adjusted_rand(first: Ints, second: Ints) -> float:
    """Return the adjusted Rand index of two labellings (Hubert and Arabie 1985).

    Args:
        first: (U,) labels from 0.
        second: (U,) labels from 0.

    Returns:
        1 for equal labellings, 0 for those that agree as by chance.
    """
    table = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(table, (first, second), 1)
    together = _count_pairs(table)
    by_first = _count_pairs(table.sum(axis=1))
    by_second = _count_pairs(table.sum(axis=0))
    by_chance = by_first * by_second / _count_pairs(table.sum())

    maximum = (by_first + by_second) / 2
    if maximum == by_chance:
        return 1.0
    return (together - by_chance) / (maximum - by_chance)


def _count_pairs(sizes: Doubles) -> float:
    """Return the number of pairs within groups of these sizes."""
    return float((sizes * (sizes - 1) / 2).sum())


@dataclass(frozen=True)
class Trait:
    """The values that users have of one trait, each pair of a user and a value once.

    Attributes:
        values: (V,) names.
        users: (E,) within [0, U).
        codes: (E,) within [0, V).
        weights: (E,) part of the user that the value takes.
    """

    kind: Kind
    name: str
    values: Sequence[str]
    users: Ints
    codes: Ints
    weights: Doubles

    @classmethod
    def gather(
        cls,
        kind: Kind,
        name: str,
        values: Sequence[str],
        users: Ints,
        codes: Ints,
        weights: Doubles | float = 1.0,
    ) -> Trait:
        """Put equal pairs together: their weights are added, up to 1."""
        n_values = len(values)
        pairs, places = np.unique(users * n_values + codes, return_inverse=True)
        sums = np.bincount(places, weights * np.ones(len(places)))
        parts = np.minimum(sums, 1)
        return cls(kind, name, values, pairs // n_values, pairs % n_values, parts)


def find_traits(
    profiles: Profiles,
    item_rows: Ints,
    names: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    schema: Schema,
) -> Iterator[Trait]:
    """Yield the traits of users: categories of their items, their items, and their features.

    Args:
        profiles: U users.
        item_rows: (E,) rows of the items of all histories, -1 where unknown.
        names: (N,) names of the items.
        columns: (N,) values of each column of the items.
        schema: names the features and their values.
    """
    is_known = item_rows >= 0
    owners = np.repeat(np.arange(len(profiles)), np.diff(profiles.offsets))[is_known]
    rows = item_rows[is_known]
    n_events = np.bincount(owners, minlength=len(profiles))

    for feature in schema.item_features:
        if feature.vocabulary and feature.column in columns:
            encoded = feature.encode(columns[feature.column])
            events, codes = _list_values(encoded[rows])
            users = owners[events]
            part = 1.0 / n_events[users]
            values = feature.vocabulary
            yield Trait.gather("category", feature.name, values, users, codes, part)

    yield Trait.gather("item", "item", names, owners, rows)
    for feature in schema.user_features:
        cells = profiles.features[feature.name]
        if feature.vocabulary:
            users, codes = _list_values(feature.encode(cells))
            yield Trait.gather("user", feature.name, feature.vocabulary, users, codes)
        elif feature.is_numeric and not np.isnan(cells).all():
            yield _quarter(feature, cells)


def _list_values(codes: Ints) -> tuple[Ints, Ints]:
    """Return the rows and values from 0 of the known codes (n, width)."""
    rows, places = (codes >= FIRST_CODE).nonzero()
    return rows, codes[rows, places] - FIRST_CODE


def _quarter(feature: Feature, cells: Doubles) -> Trait:
    """Divide the users by the quartiles of a numeric feature (U,)."""
    users = np.flatnonzero(~np.isnan(cells))
    quartiles = np.unique(np.quantile(cells[users], _QUARTERS))
    edges = [f"{edge:g}" for edge in quartiles.tolist()]
    between = [f"{low} to {high}" for low, high in pairwise(edges)]
    values = [f"below {edges[0]}", *between, f"{edges[-1]} and more"]
    codes = quartiles.searchsorted(cells[users], side="right")
    return Trait.gather("user", feature.name, values, users, codes)


def _describe(labels: Ints, traits: Sequence[Trait], k: int) -> tuple[Segment, ...]:
    segments = []
    for number, size in enumerate(np.bincount(labels, minlength=k).tolist()):
        marks: list[Mark] = []
        for trait in traits:
            marks += _find_marks(trait, labels[trait.users] == number)
        share = round(size / len(labels), 4)
        segments.append(Segment(number + 1, size, share, _write(marks), tuple(marks)))

    return tuple(segments)


def _find_marks(trait: Trait, is_own: Flags) -> Iterator[Mark]:
    """Yield the values that mark a segment, which has some of the pairs (E,), most.

    Their strength is share x log(lift).
    """
    people = np.bincount(trait.codes[is_own], minlength=len(trait.values))
    shares = _measure_shares(trait, is_own)
    shares_of_all = _measure_shares(trait, np.ones_like(is_own))
    lifts = shares / np.where(shares_of_all > 0, shares_of_all, 1)
    is_mark = (people >= MIN_PEOPLE) & (lifts >= MIN_LIFT) & (shares >= MIN_SHARE)
    marks = np.flatnonzero(is_mark)
    order = np.argsort(-shares[marks] * np.log(lifts[marks]), kind="stable")

    for value in marks[order][:N_MARKS].tolist():
        text = str(trait.values[value])
        share = round(float(shares[value]), 4)
        lift = round(float(lifts[value]), 2)
        yield Mark(
            kind=trait.kind,
            trait=trait.name,
            value=text,
            people=int(people[value]),
            share=share,
            lift=lift,
        )


def _measure_shares(trait: Trait, is_own: Flags) -> Doubles:
    """Return how much of a user, of those with a value, each value takes on average, (V,)."""
    sums = np.bincount(
        trait.codes[is_own], trait.weights[is_own], minlength=len(trait.values)
    )
    n_known = len(np.unique(trait.users[is_own]))
    return np.asarray(sums / max(1, n_known))


def _write(marks: Sequence[Mark]) -> str:
    """Name what marks a segment: values of two categories, items, and features of its users."""
    marks_of: dict[str, list[list[Mark]]] = {"category": [], "item": [], "user": []}
    for (kind, _), group in groupby(marks, attrgetter("kind", "trait")):
        marks_of[kind].append(list(group))

    categories = [mark for group in marks_of["category"][:2] for mark in group[:2]]
    items = [mark.value for group in marks_of["item"] for mark in group]
    features = [group[0] for group in marks_of["user"]]
    features.sort(key=lambda mark: -mark.lift)
    often = [
        f"{mark.trait.replace('_', ' ')} {mark.value} ({mark.lift:.1f}×)"
        for mark in features[:2]
    ]
    parts = {
        "more": [f"{mark.value} ({mark.lift:.1f}×)" for mark in categories],
        "typical:": list(dict.fromkeys(items)),
        "often": often,
    }
    texts = [f"{head} {', '.join(values)}" for head, values in parts.items() if values]

    return "; ".join(texts) or "much like all others"
