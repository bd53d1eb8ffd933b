"""How figures were made, in words and numbers that stand beside them in `metrics.json`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from evaluation.examination import LIST_LENGTH, Examination, headline_metric
from evaluation.intervals import RESAMPLES
from serve.requests import DERIVED
from serve.schema import Schema

VIEWS = {
    "all": "nothing is excluded; all targets",
    "repeat": "the same ranking among the items a user has; targets are those she has",
    "novel": "items a user has are excluded; targets are those she does not have",
}
NOVEL_ALONE = "items a user has are excluded; all targets, of which those she has are out of reach"


def describe_protocol(examination: Examination, at: int | None, schema: Schema) -> dict[str, Any]:
    """Say what was asked, how often, and how the figures were averaged."""
    repeats = schema.repeats
    metric = headline_metric(repeats)
    criterion = f"{metric}, mean of the views all and novel" if repeats == "allow" else f"{metric}, view novel"
    return {
        "split": "held-out interactions" if at is None else "time",
        "requests": _describe_requests(at, schema),
        "n_requests": len(examination.user),
        "n_users": len(np.unique(examination.user)),
        "n_items": examination.n_items,
        "repeats": repeats,
        "views": VIEWS if repeats == "allow" else {"novel": NOVEL_ALONE},
        "k": LIST_LENGTH,
        "ranking": "exact, the whole catalogue; equal scores in the order of the catalogue",
        "history": "training and validation interactions",
        "average": "within a user, then over users; users without history count",
        "intervals": f"95 %, {RESAMPLES} bootstrap samples of users; differences are paired",
        "tuning": f"baselines: {criterion}, on validation",
        "beyond_accuracy": f"lists of the view {next(iter(examination.views))}",
    }


def _describe_requests(at: int | None, schema: Schema) -> str:
    if at is None:
        without = "datetime and context" if schema.has_datetime else "context"
        return f"one per user of the holdout, for all her items there, without {without}"
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=at)
    derived = ", ".join(feature.name for feature in schema.context_features if feature.kind in DERIVED)
    context = f"{derived} of that moment, no other context" if derived else "without context"
    return f"one per user of the holdout, at {moment.isoformat()}, {context}"


def describe_situations(examination: Examination, has_times: bool) -> str:
    """Say what was asked with context, and what the figures of it may be compared with."""
    each = "user and time" if has_times else "user and item"
    return (
        f"{len(examination.user):,} requests, one per {each} of the holdout, in the context of its first event; the "
        "figure without context beside it is of the same requests, and only that one compares"
    )
