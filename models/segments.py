"""Segments of users: k-means on the directions of their vectors, described by what they have more than others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import faiss
import numpy as np

from serve.arrays import Doubles, Floats, Ints
from serve.encode import encode_features
from serve.profiles import Profiles
from serve.recommendations import (
    Kind,
    Mark,
    Segment,
    Segments,
    find_nearest,
    to_directions,
)
from serve.schema import FIRST_CODE, Schema

MIN_PEOPLE = 20  # of a segment, and of those in it who have a value that is named


MAX_USERS = 10_000  # whose vectors are clustered


MAX_SEGMENTS = 12  # segments at most, and users for each of them at least
PER_SEGMENT = 40


STABLE = 0.75  # adjusted Rand index of what two halves of the users give; the last peak that reaches it is taken


N_SPLITS = 5  # into halves, by which it is measured


N_MARKS = 3  # values of a trait that are named, and what each has at least
MIN_LIFT = 1.2
MIN_SHARE = 0.005


_ITERATIONS = 25
_RESTARTS = 10
_DECIMALS = 6


_QUARTERS = (0.25, 0.5, 0.75)  # of numeric features


def find_segments(
    vectors: Floats, traits: Sequence[Trait], seed: int
) -> Segments | None:
    """Cluster the vectors (U, W) of users and describe the clusters; None where no number of them is stable."""
    centre = vectors.mean(axis=0).round(_DECIMALS)
    directions = to_directions(vectors, centre)
    most = min(MAX_SEGMENTS, len(vectors) // PER_SEGMENT)
    stability = {k: _measure_stability(directions, k, seed) for k in range(2, most + 1)}
    peaks = [
        k
        for k, index in stability.items()
        if index >= max(STABLE, *(stability.get(k + by, 0) for by in (-1, 1)))
    ]
    for k in reversed(peaks):
        centroids = _cluster(directions, k, seed).round(_DECIMALS)
        labels = find_nearest(directions, centroids)
        order = np.argsort(-np.bincount(labels, minlength=k), kind="stable")
        segments = _describe(np.argsort(order)[labels], traits, k)
        if segments[-1].size >= MIN_PEOPLE:
            indices = {str(k): round(index, 3) for k, index in stability.items()}
            rows = tuple(map(tuple, centroids[order].tolist()))
            return Segments(
                len(vectors), indices, tuple(centre.tolist()), rows, segments
            )
    return None


def _cluster(directions: Floats, k: int, seed: int) -> Floats:
    """Return the centroids (K, W) of k-means."""
    points = {"min_points_per_centroid": 1, "max_points_per_centroid": MAX_USERS}
    kmeans = faiss.Kmeans(
        directions.shape[1], k, niter=_ITERATIONS, nredo=_RESTARTS, seed=seed, **points
    )
    kmeans.train(directions)
    return np.asarray(kmeans.centroids, np.float32)


def _measure_stability(directions: Floats, k: int, seed: int) -> float:
    """Return the mean adjusted Rand index of the labels of all users by the clusters of two halves of them."""
    found = []
    for split in range(N_SPLITS):
        order = np.random.default_rng((seed, split)).permutation(len(directions))
        halves = enumerate(np.array_split(order, 2))
        labels = [
            find_nearest(directions, _cluster(directions[half], k, seed + place))
            for place, half in halves
        ]
        found.append(adjusted_rand(*labels))
    return float(np.mean(found))


def adjusted_rand(one: Ints, other: Ints) -> float:
    """Return the adjusted Rand index of two labellings (Hubert and Arabie 1985): 1 equal, 0 as by chance."""
    table = np.zeros((one.max() + 1, other.max() + 1))
    np.add.at(table, (one, other), 1)
    groups = (table, table.sum(axis=1), table.sum(axis=0), table.sum())
    together, rows, columns, pairs = (
        float((counts * (counts - 1) / 2).sum()) for counts in groups
    )
    by_chance = rows * columns / pairs
    most = (rows + columns) / 2
    return 1.0 if most == by_chance else (together - by_chance) / (most - by_chance)


@dataclass(frozen=True)
class Trait:
    """Who has which value, each pair of a user and a value once."""

    kind: Kind
    name: str
    values: Sequence[str]  # (V,)
    users: Ints  # (E,) within [0, U)
    codes: Ints  # (E,) within [0, V)
    weights: Doubles  # (E,) part of the user that the value takes

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
        pairs, place = np.unique(users * len(values) + codes, return_inverse=True)
        parts = (
            np.ones(len(pairs))
            if weights is None
            else np.bincount(place, weights, len(pairs)).astype(np.float64)
        )
        return cls(kind, name, values, pairs // len(values), pairs % len(values), parts)


def find_traits(
    profiles: Profiles,
    item_rows: Ints,
    names: Sequence[str],
    columns: Mapping[str, Sequence[Any]],
    schema: Schema,
) -> Iterator[Trait]:
    """Yield what is known of users: categories of their items (E,), -1 where unknown, the items, and features.

    `names` and `columns` are those of the catalogue.
    """
    users = np.repeat(np.arange(len(profiles)), np.diff(profiles.offsets))[
        item_rows >= 0
    ]
    rows = item_rows[item_rows >= 0]
    share = 1.0 / np.maximum(np.bincount(users, minlength=len(profiles)), 1)
    for feature in schema.item_features:
        if feature.vocabulary and feature.column in columns:
            codes = encode_features([feature], columns, len(names)).codes[
                rows
            ]  # (E, width)
            event, place = (codes >= FIRST_CODE).nonzero()
            owner = users[event]
            codes = codes[event, place] - FIRST_CODE
            yield Trait.gather(
                "category", feature.name, feature.vocabulary, owner, codes, share[owner]
            )
    yield Trait.gather("item", "item", names, users, rows)
    for feature in schema.user_features:
        cells = profiles.features[feature.name]
        if feature.is_numeric and len(users := np.flatnonzero(~np.isnan(cells))):
            cuts = np.unique(np.quantile(cells[users], _QUARTERS))
            edges = [f"{edge:g}" for edge in cuts.tolist()]
            between = [f"{low} to {high}" for low, high in pairwise(edges)]
            values = [f"below {edges[0]}", *between, f"{edges[-1]} and more"]
            yield Trait.gather(
                "user",
                feature.name,
                values,
                users,
                cuts.searchsorted(cells[users], side="right"),
            )
        elif feature.vocabulary:
            codes = encode_features(
                [feature], {feature.column: cells}, len(profiles)
            ).codes
            users, place = (codes >= FIRST_CODE).nonzero()
            yield Trait.gather(
                "user",
                feature.name,
                feature.vocabulary,
                users,
                codes[users, place] - FIRST_CODE,
            )


def _describe(labels: Ints, traits: Sequence[Trait], k: int) -> tuple[Segment, ...]:
    marks = [_find_marks(labels, one, k) for one in traits]
    described = []
    for place, size in enumerate(np.bincount(labels, minlength=k).tolist()):
        own = tuple(mark for of_trait in marks for mark in of_trait[place])
        described.append(
            Segment(place + 1, size, round(size / len(labels), 4), _write(own), own)
        )
    return tuple(described)


def _find_marks(labels: Ints, trait: Trait, k: int) -> list[list[Mark]]:
    """Return for each segment the values that tell it most from all, by share x log(lift)."""
    shape = k, len(trait.values)
    place = labels[trait.users] * shape[1] + trait.codes
    people = np.bincount(place, minlength=k * shape[1]).reshape(shape)
    sums = np.bincount(place, trait.weights, k * shape[1]).reshape(shape)
    known = np.bincount(labels[np.unique(trait.users)], minlength=k)
    shares = sums / np.maximum(known, 1)[:, None]
    of_all = sums.sum(axis=0) / max(1, known.sum())
    lifts = shares / np.where(of_all > 0, of_all, 1)
    is_mark = (people >= MIN_PEOPLE) & (lifts >= MIN_LIFT) & (shares >= MIN_SHARE)
    telling = np.where(is_mark, shares * np.log(np.where(is_mark, lifts, 1)), 0)
    best = np.argsort(-telling, axis=1, kind="stable")[:, :N_MARKS].tolist()

    def mark(one: int, code: int) -> Mark:
        figures = (
            int(people[one, code]),
            round(float(shares[one, code]), 4),
            round(float(lifts[one, code]), 2),
        )
        return Mark(trait.kind, trait.name, str(trait.values[code]), *figures)

    return [
        [mark(one, code) for code in codes if is_mark[one, code]]
        for one, codes in enumerate(best)
    ]


def _write(marks: Sequence[Mark]) -> str:
    """Say what marks a segment: values of two categories, items, and what is known of its people."""
    of_trait: dict[tuple[str, str], list[Mark]] = {}
    for mark in marks:
        of_trait.setdefault((mark.kind, mark.trait), []).append(mark)
    categories = [
        found[:2] for (kind, _), found in of_trait.items() if kind == "category"
    ][:2]
    people = sorted(
        (found[0] for (kind, _), found in of_trait.items() if kind == "user"),
        key=lambda mark: -mark.lift,
    )
    parts = {
        "more ": [
            f"{mark.value} ({mark.lift:.1f}×)" for found in categories for mark in found
        ],
        "typical: ": [
            *dict.fromkeys(mark.value for mark in marks if mark.kind == "item")
        ],
        "often ": [
            f"{mark.trait.replace('_', ' ')} {mark.value} ({mark.lift:.1f}×)"
            for mark in people[:2]
        ],
    }
    return (
        "; ".join(f"{head}{', '.join(found)}" for head, found in parts.items() if found)
        or "much like all others"
    )
