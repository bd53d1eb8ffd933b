"""Figures of use and drift that other commands measured, in small files beside the state."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serve.bundle import DRIFT, FEEDBACK, FIGURES

STATUSES = ("ok", "watch", "red")  # of drift; what cannot be told has no index
USE = "use"
DRIFT_INDEX = "drift_index"
DRIFT_STATUS = "drift_status"
TIMES = "figures_timestamp_seconds"
_FILES = {"use": f"{FEEDBACK}/{FIGURES}", "drift": DRIFT}
_GROUPS = ("arm", "version", "segment")  # whose figures are gauges
_MAX_VALUES = 20  # of a group: those with the most lists
_MALFORMED = (OSError, ValueError, TypeError, KeyError, AttributeError)
Samples = dict[tuple[str, ...], float]  # values of labels -> number
Gauges = dict[str, Samples]
Content = dict[str, Any]  # in JSON


def read_figures(folder: Path) -> Gauges:
    """Read the samples of each gauge from small files.

    Args:
        folder: where `feedback/` and `drift.json` lie.

    Returns:
        Samples of `USE`, `DRIFT_INDEX`, `DRIFT_STATUS` and `TIMES`, empty where a file is missing
        or malformed.
    """
    gauges: Gauges = {USE: {}, DRIFT_INDEX: {}, DRIFT_STATUS: {}, TIMES: {}}
    for name, path in _FILES.items():
        with suppress(*_MALFORMED):
            content = json.loads((folder / path).read_bytes())
            gauges |= _parse_use(content) if name == "use" else _parse_drift(content)
            gauges[TIMES][(name,)] = (folder / path).stat().st_mtime

    return gauges


def summarise(folder: Path) -> dict[str, Content | None]:
    """Return the gist of use and drift, for a status.

    Args:
        folder: as in `read_figures`.

    Returns:
        `use` -> its time and the figures of all, `drift` -> its time and what has moved; None where
        it was not measured.
    """
    gauges = read_figures(folder)
    figures = {}
    for (figure, group, _), number in gauges[USE].items():
        if group == "all":
            figures[figure] = number

    moved = {}
    for (name,), level in gauges[DRIFT_STATUS].items():
        if level:
            moved[name] = STATUSES[int(level)]

    summary: dict[str, Content | None] = dict.fromkeys(_FILES)
    contents: dict[str, Content] = {
        "use": {"figures": figures},
        "drift": {"moved": moved},
    }
    for (name,), seconds in gauges[TIMES].items():
        summary[name] = {"time": seconds, **contents[name]}
    return summary


def read_drift(folder: Path) -> Content | None:
    """Return drift as it was measured.

    Args:
        folder: as in `read_figures`.

    Returns:
        The content of `drift.json`, and its time `at`; None if there is none.
    """
    path = folder / DRIFT
    if not path.exists():
        return None
    at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return {"at": at, **json.loads(path.read_bytes())}


def _parse_use(content: Any) -> Gauges:
    groups = [(("all", ""), content["all"])]
    for name in _GROUPS:
        values = list(content["groups"].get(name, {}).items())
        values.sort(key=lambda value: -value[1]["lists"])
        groups += [((name, value), figures) for value, figures in values[:_MAX_VALUES]]

    samples = Samples()
    for group, figures in groups:
        for name, figure in figures.items():
            if figure is not None:
                value = figure["value"] if isinstance(figure, dict) else figure
                samples[(name, *group)] = 1.0 * value

    return {USE: samples}


def _parse_drift(content: Any) -> Gauges:
    indices = Samples()
    levels = Samples()
    for row in content["rows"]:
        if row["index"] is not None:
            name = (row["name"],)
            indices[name] = 1.0 * row["index"]
            levels[name] = 1.0 * STATUSES.index(row["status"])

    return {DRIFT_INDEX: indices, DRIFT_STATUS: levels}
