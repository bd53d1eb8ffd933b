"""Segments of users: k-means on the directions of their vectors, and what marks each cluster.

Letters: U users, W columns of a vector, K segments, V values of a trait, E pairs of a user and a
value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import faiss
import numpy as np

from serve.arrays import Doubles, Floats, Ints
from serve.encode import encode_features
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
            return Segments(
                users=len(vectors),
                stability={str(n): round(index, 3) for n, index in stability.items()},
                centre=tuple(centre.tolist()),
                centroids=tuple(map(tuple, centroids[order].tolist())),
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
        weights: Doubles | None = None,
    ) -> Trait:
        """Put equal pairs together: their weights are added, or each is 1."""
        n_values = len(values)
        pairs, places = np.unique(users * n_values + codes, return_inverse=True)
        sums = np.ones(len(pairs))
        if weights is not None:
            sums = np.bincount(places, weights, len(pairs)).astype(np.float64)
        return cls(kind, name, values, pairs // n_values, pairs % n_values, sums)


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
    all_owners = np.repeat(np.arange(len(profiles)), np.diff(profiles.offsets))
    is_known = item_rows >= 0
    owners = all_owners[is_known]
    rows = item_rows[is_known]
    n_events = np.bincount(owners, minlength=len(profiles))
    share = 1.0 / np.maximum(n_events, 1)
    for feature in schema.item_features:
        if feature.vocabulary and feature.column in columns:
            encoded = encode_features([feature], columns, len(names)).codes
            events, codes = _list_values(encoded[rows])
            users = owners[events]
            yield Trait.gather(
                "category", feature.name, feature.vocabulary, users, codes, share[users]
            )
    yield Trait.gather("item", "item", names, owners, rows)
    for feature in schema.user_features:
        cells = profiles.features[feature.name]
        if feature.vocabulary:
            column = {feature.column: cells}
            encoded = encode_features([feature], column, len(profiles)).codes
            users, codes = _list_values(encoded)
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
    marks_by_trait = [_find_marks(labels, trait, k) for trait in traits]
    segments = []
    for number, size in enumerate(np.bincount(labels, minlength=k).tolist()):
        marks: list[Mark] = []
        for marks_by_segment in marks_by_trait:
            marks += marks_by_segment[number]
        share = round(size / len(labels), 4)
        segments.append(Segment(number + 1, size, share, _write(marks), tuple(marks)))
    return tuple(segments)


def _find_marks(labels: Ints, trait: Trait, k: int) -> list[list[Mark]]:
    """Return the values that mark each segment most, by share x log(lift)."""
    n_values = len(trait.values)
    cells = labels[trait.users] * n_values + trait.codes
    n_cells = k * n_values
    people = np.bincount(cells, minlength=n_cells).reshape(k, n_values)
    sums = np.bincount(cells, trait.weights, n_cells).reshape(k, n_values)
    n_known = np.bincount(labels[np.unique(trait.users)], minlength=k)
    shares = sums / np.maximum(n_known, 1)[:, None]
    shares_of_all = sums.sum(axis=0) / max(1, n_known.sum())
    lifts = shares / np.where(shares_of_all > 0, shares_of_all, 1)
    is_mark = (people >= MIN_PEOPLE) & (lifts >= MIN_LIFT) & (shares >= MIN_SHARE)
    strength = np.where(is_mark, shares * np.log(np.where(is_mark, lifts, 1)), 0)
    best = np.argsort(-strength, axis=1, kind="stable")[:, :N_MARKS]

    marks: list[list[Mark]] = [[] for _ in range(k)]
    for segment, place in np.argwhere(np.take_along_axis(is_mark, best, axis=1)):
        value = best[segment, place]
        mark = Mark(
            kind=trait.kind,
            trait=trait.name,
            value=str(trait.values[value]),
            people=int(people[segment, value]),
            share=round(float(shares[segment, value]), 4),
            lift=round(float(lifts[segment, value]), 2),
        )
        marks[segment].append(mark)
    return marks


def _write(marks: Sequence[Mark]) -> str:
    """Name what marks a segment: values of two categories, items, and features of its users."""
    marks_by_trait: dict[tuple[str, str], list[Mark]] = {}
    for mark in marks:
        marks_by_trait.setdefault((mark.kind, mark.trait), []).append(mark)
    categories: list[list[Mark]] = []
    features: list[Mark] = []
    for (kind, _), of_trait in marks_by_trait.items():
        if kind == "category" and len(categories) < 2:
            categories.append(of_trait[:2])
        elif kind == "user":
            features.append(of_trait[0])
    features.sort(key=lambda mark: -mark.lift)

    more = [f"{mark.value} ({mark.lift:.1f}×)" for pair in categories for mark in pair]
    typical = list(dict.fromkeys(mark.value for mark in marks if mark.kind == "item"))
    often = [
        f"{mark.trait.replace('_', ' ')} {mark.value} ({mark.lift:.1f}×)"
        for mark in features[:2]
    ]
    parts = []
    for head, values in (("more", more), ("typical:", typical), ("often", often)):
        if values:
            parts.append(f"{head} {', '.join(values)}")
    return "; ".join(parts) or "much like all others"
