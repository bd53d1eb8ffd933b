"""Answers as bytes of JSON, made in the thread that computes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from serve.recommendations import Answer
from serve.service import Service

_DECIMALS = 6
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Written:
    """An answer, and what is to be counted of it."""

    body: bytes
    seconds: float = 0.0
    n_lists: int = 0
    n_short: int = 0
    n_unknown: int = 0


def recommend(service: Service, body: dict[str, Any], state: dict[str, Any]) -> Written:
    """Answer the body of a request for recommendations.

    Args:
        service: what answers.
        body: as `serve.http.bodies` checked it.
        state: of this request of HTTP: its id, and when it came in on `perf_counter`.
    """
    begun = time.perf_counter()
    k, repeats, explain = body.pop("k", 10), body.pop("repeats", None), body.pop("explain", False)
    filter_viewed = None if repeats is None else repeats == "exclude"
    answered = service.recommend(body.get("requests", [body]), k, filter_viewed, state["request_id"])
    lists = [_list(one) for one in answered.lists]
    if explain:
        for index, one in enumerate(lists):
            one["items"] = [item | more for item, more in zip(one["items"], answered.explain(index), strict=True)]
    written = _write(state, answered.version, {"answers": lists})
    n_short = sum(len(one["items"]) < k for one in lists)
    n_unknown = int(answered.lists.unknown_items.sum())
    return Written(written, time.perf_counter() - begun, len(lists), n_short, n_unknown)


def similar(service: Service, body: dict[str, Any], state: dict[str, Any]) -> Written:
    """Answer the body of a request for similar items; see `recommend`."""
    near = service.similar(body["item_id"], body.get("k", 10))
    pairs = zip(near.item_ids, near.cosines, strict=True)
    items: list[dict[str, Any]] = [{"item_id": item_id, "cosine": _short(cosine)} for item_id, cosine in pairs]
    if body.get("explain"):
        items = [item | more for item, more in zip(items, near.explain(), strict=True)]
    reason = {} if near.reason is None else {"reason": near.reason}
    return Written(_write(state, near.snapshot.version, {"items": items, **reason}))


def _list(answer: Answer) -> dict[str, Any]:
    columns = zip(answer.item_id.tolist(), answer.score.tolist(), answer.rank.tolist(), strict=True)
    items = [{"item_id": item_id, "score": _short(score), "rank": rank} for item_id, score, rank in columns]
    reason = {} if answer.reason is None else {"reason": answer.reason}
    return {"items": items, "unknown_items": answer.unknown_items, **reason}


def _short(score: float) -> float:
    return round(score, _DECIMALS)


def write_head(request_id: str, version: str, started: float) -> dict[str, Any]:
    """Return what every answer begins with; `started` is on `perf_counter`."""
    latency = round((time.perf_counter() - started) * 1000, 3)
    return {"request_id": request_id, "version": version, "latency_ms": latency}


def _write(state: dict[str, Any], version: str, content: dict[str, Any]) -> bytes:
    head = write_head(state["request_id"], version, state["started"])
    return _ENCODER.encode(head | content).encode()
