"""The curves that training left in `logs/<stage>/metrics.csv`."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from serve.layout import CURVES, LOGS

STAGES = {"select": "First training, which validation stops", "final": "Last training, on all but the test"}
UNWATCHED = "The only training: nothing was left to validate it by"

Points = list[tuple[float, float]]
"""(epoch, value), epochs counted from 1."""


@dataclass(frozen=True)
class StageLog:
    """What one training logged."""

    stage: str
    title: str
    curves: dict[str, Points]
    """Name of a figure -> its points; only figures that were logged."""


def read_logs(folder: Path) -> list[StageLog]:
    """Read the logs of a run's trainings, in their order; a training that left none is left out."""
    found = []
    for stage, title in STAGES.items():
        path = folder / LOGS / stage / CURVES
        curves = _read_curves(path) if path.is_file() else {}
        is_watched = stage != "select" or any(name.startswith("val_") for name in curves)
        if curves:
            found.append(StageLog(stage, title if is_watched else UNWATCHED, curves))
    return found


def _read_curves(path: Path) -> dict[str, Points]:
    """Read every column by epoch; where an epoch was run again after an interruption its last value counts."""
    by_name: dict[str, dict[float, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, cell in row.items():
                if cell and name not in ("epoch", "step") and math.isfinite(float(cell)):
                    by_name.setdefault(name, {})[float(row["epoch"])] = float(cell)
    return {name: sorted(points.items()) for name, points in by_name.items()}
