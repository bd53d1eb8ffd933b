"""Answers: the ranked items of many requests as flat arrays, and the reasons for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serve.arrays import ids_to_arrow, to_arrow
from serve.requests import Id
from serve.schema import IdType


@dataclass(frozen=True)
class Answer:
    """The ranked items of one request, best first."""

    user_id: Id | None
    item_id: NDArray[np.generic]
    score: NDArray[np.float32]
    rank: NDArray[np.int64]
    unknown_items: int  # items of the history that the bundle does not know
    reason: str | None = None  # why fewer than k items came; None where k came
    propensity: NDArray[np.float64] | None = (
        None  # of each item at its rank; None where nothing was drawn
    )


@dataclass(frozen=True)
class DueItem:
    """An item that a user takes again; times are UTC seconds."""

    item_id: Id
    name: str
    due: int  # when it is expected next; never before the moment
    is_overdue: bool  # the typical gap after the last event has passed
    last: int
    n_days: int  # on which it was taken
    every_days: float  # the typical gap
    regularity: float  # 0: gaps vary as if by chance; .29: a single gap; towards 1: many of one length
    score: float
    text: str


@dataclass(frozen=True)
class DueList:
    """The items of one request, the likeliest first; `reason` says why there are fewer than k."""

    user_id: Id | None
    items: tuple[DueItem, ...]
    reason: str | None


@dataclass(frozen=True)
class Recommendations:
    """The answers of B requests, R items in all; request b has the entries `offsets[b]:offsets[b + 1]`."""

    user_id: NDArray[np.object_]  # (B,), None where a request is anonymous
    user_id_type: IdType
    item_row: NDArray[np.int64]  # (R,), positions in `item_ids`
    item_ids: NDArray[np.generic]  # (N,), the catalogue: int64, or object with texts
    score: NDArray[np.float32]
    rank: NDArray[np.int64]
    offsets: NDArray[np.int64]
    unknown_items: NDArray[np.int64]
    reason: NDArray[np.object_]

    @classmethod
    def from_lists(
        cls,
        user_ids: Sequence[Id | None],
        rows: NDArray[np.int64],
        scores: NDArray[np.float32],
        *,
        item_ids: NDArray[np.generic],
        unknown_items: NDArray[np.int64],
        user_id_type: IdType,
        reasons: Mapping[int, str] | None = None,
    ) -> Recommendations:
        """Build from padded lists: (B, K) item rows, best first, -1 where there is no item, and their scores."""
        requests, places = (rows >= 0).nonzero()
        return cls(
            user_id=np.array(user_ids, dtype=np.object_),
            user_id_type=user_id_type,
            item_row=rows[requests, places],
            item_ids=item_ids,
            score=scores[requests, places].astype(np.float32, copy=False),
            rank=places + 1,
            offsets=requests.searchsorted(np.arange(len(rows) + 1)),
            unknown_items=unknown_items,
            reason=np.array(
                [(reasons or {}).get(request) for request in range(len(rows))],
                dtype=np.object_,
            ),
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
        item_id = self.item_ids[self.item_row[entries]]
        n_unknown = int(self.unknown_items[index])
        listed = item_id, self.score[entries], self.rank[entries]
        return Answer(self.user_id[index], *listed, n_unknown, self.reason[index])

    def to_table(self) -> pa.Table:
        """Return `user_id, item_id, score, rank`, a row per ranked item; a null user is anonymous."""
        request = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        listed, index = np.unique(self.item_row, return_inverse=True)
        columns = {
            "user_id": ids_to_arrow(self.user_id, self.user_id_type).take(
                to_arrow(request)
            ),
            "item_id": to_arrow(self.item_ids[listed]).take(to_arrow(index)),
            "score": to_arrow(self.score),
            "rank": to_arrow(self.rank),
        }
        return pa.Table.from_arrays(list(columns.values()), names=list(columns))


@dataclass(frozen=True)
class Reason:
    """A reason for a listed item; what does not apply is None. `memory`: the user has had the item itself before."""

    kind: Literal["history", "memory", "features", "context", "popular"]
    effect: float  # fall of the score when this alone is left out of the request
    text: str
    item_id: Id | None = None  # of the history
    event: str | None = None
    days_ago: int | None = None  # of the last event
    every_days: float | None = None  # mean of the days between events
    name: str | None = None  # of the item, the feature or the field
    value: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what applies as JSON values."""
        return {name: value for name, value in vars(self).items() if value is not None}
