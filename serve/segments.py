"""Segments of users: k-means on the directions of their vectors, described by what they have more than others.

A bundle holds them in `segments.json`: centroids, words and sizes; no user, and no value of fewer than `MIN_PEOPLE`.
Letters: U users, W columns of a vector, K segments, V values of a trait, E pairs of a user and a value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from serve.arrays import Floats, Ints
from serve.schema import check_record

Kind = Literal["category", "item", "user"]

FORMAT = 1


@dataclass(frozen=True)
class Mark:
    """A value that the people of a segment have more than all people do."""

    kind: Kind
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
    stability: Mapping[
        str, float
    ]  # number of segments -> mean adjusted Rand index between halves of the users
    centre: tuple[float, ...]  # (W,) mean of the vectors
    centroids: tuple[
        tuple[float, ...], ...
    ]  # (K, W) of their directions from the centre
    segments: tuple[Segment, ...]

    def of(self, user_vectors: Floats) -> Ints:
        """Return the place in `segments` of each user vector, (B,)."""
        return find_nearest(
            to_directions(user_vectors, np.array(self.centre)),
            np.array(self.centroids, np.float32),
        )

    def describe(self) -> list[dict[str, Any]]:
        """Return the segments as JSON values, the largest first."""
        return [vars(one) | {"marks": [*map(vars, one.marks)]} for one in self.segments]

    def to_bytes(self) -> bytes:
        """Write canonical JSON."""
        content = {"format": FORMAT, **asdict(self)}
        return (
            json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n"
        ).encode()

    @classmethod
    def from_bytes(cls, content: bytes, width: int) -> Segments:
        """Read what `to_bytes` wrote, of vectors of a width; a `ValueError` says that it is something else."""
        try:
            raw = json.loads(content)
            segments = [
                Segment(**one | {"marks": tuple(Mark(**mark) for mark in one["marks"])})
                for one in raw["segments"]
            ]
            rows = {
                "centre": tuple(raw["centre"]),
                "centroids": tuple(map(tuple, raw["centroids"])),
            }
            is_ours = (
                raw.pop("format") == FORMAT
                and len(segments) == len(raw["centroids"]) > 0
            )
            found = cls(**raw | rows | {"segments": tuple(segments)})
            for record in (
                found,
                *segments,
                *(mark for one in segments for mark in one.marks),
            ):
                check_record(record)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"it holds no segments: {error!r}") from error
        if not is_ours or {len(row) for row in (found.centre, *found.centroids)} != {
            width
        }:
            raise ValueError(
                f"its centroids are not one a segment, or not of width {width}"
            )
        return found


# ---- clusters


def to_directions(vectors: Floats, centre: NDArray[Any]) -> Floats:
    """Return the directions of vectors as seen from the centre."""
    offsets = (vectors - centre).astype(np.float32)
    directions: Floats = offsets / np.maximum(
        np.linalg.norm(offsets, axis=1, keepdims=True), 1e-12
    )
    return directions


def find_nearest(directions: Floats, centroids: Floats) -> Ints:
    return np.asarray(
        (directions @ centroids.T - (centroids**2).sum(axis=1) / 2).argmax(axis=1)
    )


# ---- words
