"""Figures of several models on the same users, with intervals and paired differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from evaluation.metrics import Floats, summarise, summarise_difference

METRICS = ("NDCG@10", "HR@10", "NDCG@20")

Values = dict[str, Floats]
"""metric -> (U,)."""


def describe(values: dict[str, Values], reference: str) -> dict[str, Any]:
    """Summarise each model, and by how much it is ahead of the one to be reached."""
    picked = {name: {metric: of[metric] for metric in METRICS} for name, of in values.items()}
    return {
        name: {"figures": summarise(of), f"ahead of {reference}": summarise_difference(of, picked[reference])}
        for name, of in picked.items()
    }


def join(parts: Sequence[Values]) -> Values:
    """Put the users of several parts one after the other."""
    return {metric: np.concatenate([part[metric] for part in parts]) for metric in METRICS}


def table(title: str, figures: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a Markdown table: a model's figures with their intervals, and the difference."""
    yield f"| {title} | users | {' | '.join(METRICS)} | ahead by, {METRICS[0]} |"
    yield "|---" * (3 + len(METRICS)) + "|"
    for part, models in figures.items():
        for name, record in models.items():
            if isinstance(record, float):
                yield f"| {part}: {name} | | {record:.4f} |" + " |" * len(METRICS)
                continue
            own = record["figures"]
            (ahead,) = (value for key, value in record.items() if key != "figures")
            cells = [f"{own[metric]:.4f} ({_interval(own, metric)})" for metric in METRICS]
            difference = f"{ahead[METRICS[0]]:+.4f} ({_interval(ahead, METRICS[0])})"
            yield f"| {part}: {name} | {own['users']} | {' | '.join(cells)} | {difference} |"


def _interval(summary: dict[str, Any], metric: str) -> str:
    return ", ".join(f"{limit:.4f}" for limit in summary[f"{metric}_ci95"])
