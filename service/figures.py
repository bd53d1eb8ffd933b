"""Figures that other commands measured beside the state: those of use, and of drift."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict

from serve.bundle import DRIFT, FEEDBACK, FIGURES

STATUSES = ("ok", "watch", "red")  # of drift; what cannot be told has no index
_GROUPS = ("arm", "version", "segment")
_MAX_VALUES = 20  # of a group: those of most lists
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)
Samples = dict[tuple[str, ...], float]  # values of labels -> number


def _find_value(figure: Any) -> Any:
    return figure["value"] if isinstance(figure, dict) else figure


_Figures = dict[str, Annotated[float | None, BeforeValidator(_find_value)]]


@with_config(_STRICT)
class _Use(TypedDict):
    all: _Figures
    groups: dict[str, dict[str, _Figures]]


@with_config(_STRICT)
class _Row(TypedDict):
    name: str
    status: str
    index: float | None


@with_config(_STRICT)
class _Drift(TypedDict):
    rows: list[_Row]


_USE = TypeAdapter(_Use)
_DRIFT = TypeAdapter(_Drift)


def read_figures(folder: Path) -> dict[str, Samples]:
    """Read the samples of each gauge from small files; leave out a file that is damaged.

    Args:
        folder: the folder in which the state lies.

    Returns:
        `use` by figure, group and value, `drift_index` and `drift_status` by name, and
        `figures_timestamp_seconds` by `use` and `drift`.
    """
    gauges: dict[str, Samples] = {"use": {}, "drift_index": {}, "drift_status": {}}
    times: Samples = {}
    for name, path in (("use", folder / FEEDBACK / FIGURES), ("drift", folder / DRIFT)):
        with suppress(OSError):
            file = path.stat()
            if samples := _read(name, path, file.st_mtime_ns):
                gauges |= samples
                times[(name,)] = file.st_mtime
    return gauges | {"figures_timestamp_seconds": times}


def summarise(folder: Path) -> dict[str, dict[str, Any] | None]:
    """Return when use and drift were measured, the figures of all, and what has moved."""
    gauges = read_figures(folder)
    figures = {}
    for (figure, group, _), number in gauges["use"].items():
        if group == "all":
            figures[figure] = number
    moved = {}
    for (name,), level in gauges["drift_status"].items():
        if level:
            moved[name] = STATUSES[int(level)]

    times = gauges["figures_timestamp_seconds"]
    summary: dict[str, dict[str, Any] | None] = {"use": None, "drift": None}
    if ("use",) in times:
        summary["use"] = {"time": times["use",], "figures": figures}
    if ("drift",) in times:
        summary["drift"] = {"time": times["drift",], "moved": moved}
    return summary


@lru_cache(maxsize=16)
def _read(name: str, path: Path, _changed: int) -> dict[str, Samples] | None:
    try:
        content = path.read_bytes()
        if name == "use":
            return {"use": _parse_use(_USE.validate_json(content))}
        return _parse_drift(_DRIFT.validate_json(content)["rows"])
    except (ValueError, KeyError, TypeError):
        return None


def _parse_use(content: _Use) -> Samples:
    groups = [("all", "", content["all"])]
    for group in _GROUPS:
        figures = content["groups"].get(group, {}).items()
        largest = sorted(figures, key=lambda pair: -cast(float, pair[1]["lists"]))
        groups += [(group, *pair) for pair in largest[:_MAX_VALUES]]
    samples: Samples = {}
    for group, value, figures_of_group in groups:
        for name, number in figures_of_group.items():
            if number is not None:
                samples[name, group, value] = number
    return samples


def _parse_drift(rows: list[_Row]) -> dict[str, Samples]:
    indices: Samples = {}
    levels: Samples = {}
    for row in rows:
        if row["index"] is not None:
            indices[(row["name"],)] = row["index"]
            levels[(row["name"],)] = STATUSES.index(row["status"])
    return {"drift_index": indices, "drift_status": levels}
