"""`golden.json`: synthetic requests with the answers they had when the bundle was exported.

They tell a bundle that is intact but answers differently here, under other libraries or on another processor,
from one that serves as it was measured. No request is a person's; see `serve.golden_requests`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from serve.durable import write_file
from serve.errors import BundleError
from serve.layout import GOLDEN

Request = dict[str, Any]
"""A raw request, as it comes from a caller."""
Answer = Callable[[list[Request], int], list[tuple[Sequence[str | int], Sequence[float]]]]
"""(requests, k) -> item ids and falling scores of each request."""

TOLERANCE = 2e-4
"""How far a score may fall short on another machine, per unit of the k-th score where that is above 1."""


def write_golden(path: Path, requests: list[Request], answer: Answer, k: int) -> None:
    """Answer the requests and write both down.

    Each reference list is 2 k long, so that an item which is as good as the k-th has its score in it.
    """
    entries = [
        {"request": request, "k": k, "item_ids": list(item_ids), "scores": [float(score) for score in scores]}
        for request, (item_ids, scores) in zip(requests, answer(requests, 2 * k), strict=True)
    ]
    write_file(path, (json.dumps(entries, indent=1, allow_nan=False) + "\n").encode())


def replay(content: bytes, answer: Answer) -> int:
    """Answer the requests again and compare.

    Two lists are equal if the reference score of each returned item, and each of them only once, comes within
    `TOLERANCE` of the reference k-th score: items that are equally good may change places. Its score now must
    be that close to its reference score.

    Args:
        content: of `golden.json`.
        answer: what answers now.

    Returns:
        How many requests were compared.

    Raises:
        BundleError: a list differs, or there is none.
    """
    entries = json.loads(content or b"[]")
    if not entries:
        raise BundleError(f"{GOLDEN} holds no request: export again")
    k = entries[0]["k"]
    answers = answer([entry["request"] for entry in entries], k)
    for number, (entry, (item_ids, scores)) in enumerate(zip(entries, answers, strict=True)):
        difference = _find_difference(entry, list(item_ids), list(scores))
        if difference:
            raise BundleError(f"{GOLDEN}, request {number}: {difference}; it answers differently here")
    return len(entries)


def _find_difference(entry: dict[str, Any], item_ids: list[str | int], scores: list[float]) -> str:
    """Say how a list differs from its reference, "" if it does not."""
    reference = dict(zip(entry["item_ids"], entry["scores"], strict=True))
    length = min(entry["k"], len(reference))
    if len(item_ids) != length or len(set(item_ids)) != length:
        return f"{len(set(item_ids))} different items of {len(item_ids)}; expected {length}"
    kth = entry["scores"][length - 1] if length else 0.0
    tolerance = TOLERANCE * max(1.0, abs(kth))
    for item_id, score in zip(item_ids, scores, strict=True):
        expected = reference.get(item_id, -math.inf)
        if expected < kth - tolerance:
            return f"item {item_id!r} is listed; its reference score is below {kth - tolerance:.6g}"
        if not abs(score - expected) <= tolerance:
            return f"item {item_id!r} scores {score:.6g}; expected {expected:.6g}"
    return ""
