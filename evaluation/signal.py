"""Say where a model is worth nothing: lists no better than plain ones, features without use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evaluation.metrics import MIN_USERS_TO_COMPARE, sign

PLAIN = {
    "popularity": "no signal found: popularity",
    "popularity-recent": "no signal found: recent popularity",
    "personal": "nothing found beyond habits: what each user had most often",
    "personal-decayed": "nothing found beyond habits: what each user had most often lately",
}
REMEDY = "nothing more was learned from this table: check the ids and the join, or serve that"

QUICK_REMEDY = "; a whole run looks further than this quick one"
HARDLY_TRAINED = "a quick run hardly trains what reads it; a whole one does"
USER_REMEDY = "keep data.features.user for people without events alone"

ERRORS = 2.0  # standard errors of a difference


def find_signal(content: Mapping[str, Any], metric: str) -> str | None:
    """Return a sentence if lists are not better than the best plain baseline, else None.

    Args:
        content: `metrics.json`, or the figures of a test in it.
        metric: the one that models are compared by.
    """
    test = content["test"]
    ours = next(iter(test.values()))
    view = next(iter(ours))
    plain = {name: test[name][view] for name in PLAIN if name in test}
    if not plain or ours[view]["users"] < MIN_USERS_TO_COMPARE:
        return None

    best = max(plain, key=lambda name: float(plain[name][metric]))
    if sign(content["paired"][best][view], metric) > 0:
        return None
    figures = f"{metric} {plain[best][metric]:.4f} for {ours[view][metric]:.4f}"
    return f"{PLAIN[best]} is not clearly worse ({figures}); {REMEDY}"


def advise(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield what `find_signal` found, and a sentence on features that are of no use.

    Features of users serve those with few events: these alone may need them. A quick run only says
    which features its lists do not read: the towers are hardly trained.

    Args:
        content: `metrics.json`; `models.validation` compares lists with features and without.
    """
    is_quick = content.get("quick", False)
    if content.get("signal"):
        yield content["signal"] + (QUICK_REMEDY if is_quick else "")

    refinement = content.get("training", {}).get("refinement") or {}
    features = refinement.get("features", {})
    if is_quick:
        for side in features:
            if features[side]["ndcg"] == features[side]["without"]:
                yield f"data.features.{side} counts in no list: {HARDLY_TRAINED}"
        return

    for side, compared in features.items():
        ndcg = compared["ndcg"]
        without = compared["without"]
        error = compared["error"]
        figures = f"validation NDCG {ndcg:.4f} with, {without:.4f} without"
        remedy = f"leave data.features.{side} out"
        if without > ndcg + ERRORS * error:
            yield f"{remedy}: lists are worse with it ({figures})"
        elif without >= ndcg - ERRORS * error:
            remedy = remedy if side == "context" else USER_REMEDY
            yield f"{remedy}: lists gain nothing by it beyond chance ({figures})"
