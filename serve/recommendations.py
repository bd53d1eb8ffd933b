"""The records of answers: ranked items, reasons, what is due, and segments of users.

The ranked items of many requests stand in flat arrays. Letters: B requests, R listed items,
N items of the catalogue, K items of a padded list, S segments, W columns of a vector.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serve.arrays import (
    Doubles,
    Floats,
    Id,
    IdType,
    Ints,
    Objects,
    ids_to_arrow,
    to_arrow,
    to_unit,
)
from serve.files import to_canonical_json
from serve.schema import check_record

FORMAT = 1  # of `segments.json`


@dataclass(frozen=True)
class Answer:
    """The ranked items of one request, best first."""

    user_id: Id | None
    item_id: NDArray[np.generic]
    score: Floats
    rank: Ints
    unknown_items: int  # items of the history that the bundle does not know
    reason: str | None = None  # why fewer than k items came; None where k came
    propensity: Doubles | None = None  # of each item at its rank; None: nothing drawn
    held_back: int = 0  # items that were just taken and may not be due again yet


@dataclass(frozen=True)
class Recommendations:
    """The answers of B requests.

    Attributes:
        user_id: (B,), None where a request is anonymous.
        user_id_type: that of the bundle, whoever asks.
        item_row: (R,) positions in `item_ids`.
        item_ids: (N,) the catalogue, int64, or object with texts.
        score: (R,) falling within a request.
        rank: (R,) from 1.
        offsets: (B + 1,); request b has the entries `offsets[b]:offsets[b + 1]`.
        unknown_items: (B,) items of the history that the bundle does not know.
        reason: (B,) why fewer than k items came; None where k came.
        held_back: (B,) items that were just taken and may not be due again yet.
    """

    user_id: Objects
    user_id_type: IdType
    item_row: Ints
    item_ids: NDArray[np.generic]
    score: Floats
    rank: Ints
    offsets: Ints
    unknown_items: Ints
    reason: Objects
    held_back: Ints

    @classmethod
    def from_lists(
        cls,
        user_ids: Iterable[Id | None],
        rows: Ints,
        scores: Floats,
        *,
        item_ids: NDArray[np.generic],
        unknown_items: Ints,
        user_id_type: IdType,
        reason: Objects,
        held_back: Ints,
    ) -> Recommendations:
        """Build from padded lists.

        Args:
            user_ids: of B requests.
            rows: (B, K) item rows, best first, -1 where there is no item.
            scores: (B, K).
            item_ids: (N,) the catalogue.
            unknown_items: (B,).
            user_id_type: that of the bundle.
            reason: (B,) why its list is short; None where it is not.
            held_back: (B,) items that were just taken and may not be due again yet.
        """
        requests, places = (rows >= 0).nonzero()
        users = np.array([*user_ids], dtype=np.object_)
        rows_of_items = rows[requests, places]
        scores_of_items = scores[requests, places].astype(np.float32, copy=False)
        offsets = requests.searchsorted(np.arange(len(rows) + 1))
        return cls(
            user_id=users,
            user_id_type=user_id_type,
            item_row=rows_of_items,
            item_ids=item_ids,
            score=scores_of_items,
            rank=places + 1,
            offsets=offsets,
            unknown_items=unknown_items,
            reason=reason,
            held_back=held_back,
        )

    @property
    def item_id(self) -> NDArray[np.generic]:
        """The caller's ids of the ranked items, (R,)."""
        return self.item_ids[self.item_row]

    def __len__(self) -> int:
        return len(self.user_id)

    def __iter__(self) -> Iterator[Answer]:
        return map(self.of, range(len(self)))

    def of(self, index: int) -> Answer:
        """Return the answer to one request; -1 is the last one."""
        index = range(len(self))[index]
        entries = slice(self.offsets[index], self.offsets[index + 1])
        rows = self.item_row[entries]
        user_id = self.user_id[index]
        unknown_items = int(self.unknown_items[index])

        return Answer(
            user_id,
            self.item_ids[rows],
            self.score[entries],
            self.rank[entries],
            unknown_items,
            self.reason[index],
            held_back=int(self.held_back[index]),
        )

    def to_table(self) -> pa.Table:
        """Return `user_id, item_id, score, rank`, a row per ranked item; null: anonymous."""
        owners = np.repeat(self.user_id, np.diff(self.offsets))
        user_ids = ids_to_arrow(owners, self.user_id_type)
        return pa.table(
            {
                "user_id": user_ids,
                "item_id": to_arrow(self.item_id),
                "score": to_arrow(self.score),
                "rank": to_arrow(self.rank),
            }
        )


@dataclass(frozen=True)
class Reason:
    """A reason for a listed item; what does not apply is None."""

    # `memory`: the user has had the item itself before.
    kind: Literal["history", "memory", "features", "context", "popular"]
    effect: float  # fall of the score when this alone is left out of the request
    text: str
    item_id: Id | None = None  # of the history
    event: str | None = None
    days_ago: int | None = None  # of the last event
    every_days: float | None = None  # the typical gap, as of `DueItem`
    name: str | None = None  # of the item, the feature or the field
    value: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what applies as JSON values."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Explanation:
    """Why K items are listed.

    Attributes:
        reasons: those of each item, the most special to it first; none where nothing is special.
        weights: kind of reason -> its share of all effects that raise the items; the sum is 1.
        is_personal: whether others are listed for nobody in particular.
    """

    reasons: list[list[Reason]]
    weights: dict[str, float]
    is_personal: bool


@dataclass(frozen=True)
class DueItem:
    """An item that a user takes again; times are UTC seconds."""

    item_id: Id
    name: str
    # when it is expected next, never before the moment; None where it was taken on few days
    due: int | None
    is_overdue: bool  # the typical gap after the last event has passed
    last: int
    n_days: int  # on which it was taken
    every_days: float  # the typical gap
    # 0: gaps vary as if by chance; .29: a single gap; towards 1: many of one length
    regularity: float
    score: float  # days on which it was taken, the later ones count more
    text: str


@dataclass(frozen=True)
class DueList:
    """The items of one request, the likeliest first; `reason` says why there are fewer than k."""

    user_id: Id | None
    items: tuple[DueItem, ...]
    reason: str | None


# ---- segments of users


Kind = Literal["category", "item", "user"]


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
    """A group of users who want similar items."""

    id: int  # from 1, the largest first
    size: int
    share: float  # of the users that were clustered
    text: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Segments:
    """The segments of a bundle, which `models.segments` finds.

    `segments.json` holds them: centroids, words and sizes, but no user.

    Attributes:
        users: number of users that were clustered.
        stability: number of segments -> mean adjusted Rand index between halves of the users.
        centre: (W,) mean of the user vectors.
        centroids: (S, W), of their directions from the centre.
        segments: S segments.
    """

    users: int
    stability: Mapping[str, float]
    centre: tuple[float, ...]
    centroids: tuple[tuple[float, ...], ...]
    segments: tuple[Segment, ...]

    def of(self, user_vectors: Floats) -> Ints:
        """Return the place in `segments` of each user vector, (B,)."""
        directions = to_directions(user_vectors, np.array(self.centre))
        return find_nearest(directions, np.array(self.centroids, np.float32))

    def describe(self) -> list[dict[str, Any]]:
        """Return the segments as JSON values, the largest first."""
        return [
            vars(segment) | {"marks": [*map(vars, segment.marks)]}
            for segment in self.segments
        ]

    def to_bytes(self) -> bytes:
        """Write canonical JSON."""
        return to_canonical_json({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_bytes(cls, content: bytes, width: int) -> Segments:
        """Read what `to_bytes` wrote.

        Args:
            content: of the file.
            width: of the user vectors.

        Raises:
            ValueError: if it holds something else, or segments of other vectors.
        """
        try:
            raw = json.loads(content)
            if raw.pop("format") != FORMAT:
                raise ValueError(f"expected format {FORMAT}")
            segments = []
            for segment in raw["segments"]:
                marks = tuple(Mark(**mark) for mark in segment["marks"])
                segments.append(Segment(**segment | {"marks": marks}))
                for record in (segments[-1], *marks):
                    check_record(record)
            raw["segments"] = tuple(segments)
            raw["centre"] = tuple(raw["centre"])
            raw["centroids"] = tuple(map(tuple, raw["centroids"]))
            bundled = cls(**raw)
            check_record(bundled)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"it holds no segments: {error!r}") from error

        widths = {len(row) for row in (bundled.centre, *bundled.centroids)}
        if widths != {width} or not len(bundled.centroids) == len(segments) > 0:
            raise ValueError(
                f"its centroids are not one a segment, or not of width {width}"
            )

        return bundled


def to_directions(vectors: Floats, centre: NDArray[Any]) -> Floats:
    """Return the directions of vectors (n, W) as seen from the centre (W,)."""
    return to_unit((vectors - centre).astype(np.float32))


def find_nearest(directions: Floats, centroids: Floats) -> Ints:
    """Return the nearest centroid (S, W) of each direction (n, W), (n,)."""
    nearness = directions @ centroids.T - (centroids**2).sum(axis=1) / 2
    return np.asarray(nearness.argmax(axis=1))
