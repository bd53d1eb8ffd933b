"""Answers as bytes of JSON, made in the thread that computes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve.errors import SchemaError
from serve.incoming import Asked
from serve.recommendations import Answer
from serve.service import Answered, Service

DEFAULT_K = 10
_OF_ALL = frozenset({"k", "repeats", "explain"})
"""Names in a body that are about all of its requests."""
_DECIMALS = 6
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Written:
    """An answer, and what is to be counted of it."""

    body: bytes
    seconds: float = 0.0
    n_lists: int = 0
    n_short: int = 0
    n_unknown_items: int = 0
    n_unknown_values: int = 0


@dataclass(frozen=True)
class Asking:
    """The body of a request for recommendations, as `serve.http.bodies` checked it."""

    body: Mapping[str, Any]
    state: Mapping[str, Any]
    """Of this request of HTTP: its id, and when it came in on `perf_counter`."""

    @property
    def k(self) -> int:
        return int(self.body.get("k", DEFAULT_K))

    @property
    def requests(self) -> Sequence[Mapping[str, Any]]:
        """What is asked for: many requests, or the body itself."""
        if "requests" in self.body:
            return self.body["requests"]  # type: ignore[no-any-return]
        return [{name: value for name, value in self.body.items() if name not in _OF_ALL}]

    @property
    def is_long(self) -> bool:
        """Should others not have to wait for it: many lists, or one that may take many searches."""
        return len(self.requests) > 1 or any((one.get("filters") or {}).get("at_most") for one in self.requests)

    def of_service(self) -> Asked:
        repeats = self.body.get("repeats")
        filter_viewed = None if repeats is None else repeats == "exclude"
        return Asked(self.requests, self.k, filter_viewed, self.state["request_id"])


def recommend(service: Service, asked: Sequence[Asking]) -> list[Written | SchemaError]:
    """Answer the bodies of requests for recommendations together, each with its answer or its error."""
    begun = time.perf_counter()
    outcomes = service.recommend([one.of_service() for one in asked])
    written: list[Written | SchemaError] = []
    for one, outcome in zip(asked, outcomes, strict=True):
        written.append(outcome if isinstance(outcome, SchemaError) else _write_lists(one, outcome, begun))
    return written


def similar(service: Service, body: Mapping[str, Any], state: Mapping[str, Any]) -> Written:
    """Answer the body of a request for similar items; see `recommend`."""
    near = service.similar(body["item_id"], body.get("k", DEFAULT_K))
    pairs = zip(near.item_ids, near.cosines, strict=True)
    items: list[dict[str, Any]] = [{"item_id": item_id, "cosine": _short(cosine)} for item_id, cosine in pairs]
    if body.get("explain"):
        items = [item | more for item, more in zip(items, near.explain(), strict=True)]
    reason = {} if near.reason is None else {"reason": near.reason}
    return Written(_write(state, near.snapshot.version, {"items": items, **reason}))


def _write_lists(one: Asking, answered: Answered, begun: float) -> Written:
    lists = [_list(answer, answered.name_unknown(index)) for index, answer in enumerate(answered.lists)]
    if one.body.get("explain"):
        for index, shown in enumerate(lists):
            shown["items"] = [item | more for item, more in zip(shown["items"], answered.explain(index), strict=True)]
    body = _write(one.state, answered.version, {"answers": lists})
    n_short = sum(len(shown["items"]) < one.k for shown in lists)
    n_unknown_items = int(answered.lists.unknown_items.sum())
    n_unknown_values = sum(len(shown.get("unknown_values", ())) for shown in lists)
    return Written(body, time.perf_counter() - begun, len(lists), n_short, n_unknown_items, n_unknown_values)


def _list(answer: Answer, unknown_values: list[str]) -> dict[str, Any]:
    columns = zip(answer.item_id.tolist(), answer.score.tolist(), answer.rank.tolist(), strict=True)
    items = [{"item_id": item_id, "score": _short(score), "rank": rank} for item_id, score, rank in columns]
    reason = {} if answer.reason is None else {"reason": answer.reason}
    unknown = {"unknown_values": unknown_values} if unknown_values else {}
    return {"items": items, "unknown_items": answer.unknown_items, **unknown, **reason}


def _short(score: float) -> float:
    return round(score, _DECIMALS)


def write_head(request_id: str, version: str, started: float) -> dict[str, Any]:
    """Return what every answer begins with; `started` is on `perf_counter`."""
    latency = round((time.perf_counter() - started) * 1000, 3)
    return {"request_id": request_id, "version": version, "latency_ms": latency}


def _write(state: Mapping[str, Any], version: str, content: dict[str, Any]) -> bytes:
    head = write_head(state["request_id"], version, state["started"])
    return _ENCODER.encode(head | content).encode()
