"""The data report: counts of the tables, stored with the run and printed in short."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype
from rich.console import Console
from rich.table import Table

from datamodules.clean import CleaningReport, measure_unlisted, only_targets
from datamodules.config import DataConfig
from datamodules.leaks import MISSING, Leak, code_cells
from datamodules.rejects import Rejects
from datamodules.splits import Split, mark_owned
from datamodules.tables import TARGET_WEIGHT, Tables
from serve.arrays import Flags, Ints
from serve.clock import DAY

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
HEAD_SHARES = (0.01, 0.1)  # shares of the items whose share of the events is reported
MIN_TIES = 0.2  # share of tied events that is worth a hint
MIN_OWNED = 0.1  # share of owned pairs in the test that is worth a hint


def report_data(
    tables: Tables,
    rejects: Rejects,
    cleaning: CleaningReport,
    split: Split,
    config: DataConfig,
    leaks: Sequence[Leak],
) -> dict[str, Any]:
    """Count the data of a run.

    Args:
        tables: cleaned.
        rejects: the records that became no row.
        cleaning: counts of what cleaning changed.
        split: parts of the interactions.
        config: as it was declared.
        leaks: what `find_leaks` found.

    Returns:
        JSON values by name; shares are 0 to 1, or None of nothing.
    """
    events = tables.interactions
    user_counts = np.asarray(events["user_id"].value_counts(), np.int64)
    item_counts = np.asarray(events["item_id"].value_counts(), np.int64)
    is_repeat = events.duplicated(["user_id", "item_id"])
    cold = _measure_cold(tables, split)
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    targets = None
    if TARGET_WEIGHT in events:
        targets = {name: len(only_targets(part)) for name, part in parts.items()}

    counts = {
        "interactions": len(events),
        "users": len(user_counts),
        "items": len(item_counts),
        "users_table": len(tables.users),
        "items_table": len(tables.items),
    }
    counts |= {name: len(part) for name, part in parts.items()}
    hints = [*rejects.hints, *_find_hints(events, cold, config)]
    time = _time_range(events)
    described = _describe_split(split, config.split.strict)
    report: dict[str, Any] = {
        "counts": counts,
        "split": described,
        "targets": targets,
        "ties": config.ties,
        "repeats": config.repeats,
        "time": time,
    }
    report["missing"] = _measure_missing(tables)
    report["unlisted"] = measure_unlisted(tables, rejects.records)
    report |= _describe_rejects(rejects)
    report |= {
        "cleaning": asdict(cleaning),
        "cold": cold,
        "hints": hints,
        "repeat_share": _share(is_repeat),
        "long_tail": _long_tail(item_counts),
        "history_length": _quantiles(user_counts),
    }
    report["leaks"] = [_describe_leak(leak) for leak in leaks]

    return report


def _describe_split(split: Split, is_strict: bool) -> dict[str, Any]:
    return {
        "kind": split.kind,
        "strict": is_strict,
        "validation_at": _iso(split.validation_at),
        "test_at": _iso(split.test_at),
    }


def _describe_rejects(rejects: Rejects) -> dict[str, Any]:
    reasons = rejects.frame.groupby("costs")["reason"]
    counts = {cost: each.value_counts().to_dict() for cost, each in reasons}
    dropped = {name: list(columns) for name, columns in rejects.dropped.items()}
    return {
        "records": rejects.records,
        "forgotten": rejects.forgotten,
        "feedback": rejects.logged,
        "rejected": counts.get("record", {}),
        "bad_cells": counts.get("cell", {}),
        "dropped_columns": dropped,
    }


def _describe_leak(leak: Leak) -> dict[str, Any]:
    return {
        "kind": leak.kind,
        "column": f"{leak.table}.{leak.column}",
        "power": leak.power,
        "message": leak.message,
    }


def _find_hints(
    events: pd.DataFrame, cold: dict[str, float | None], config: DataConfig
) -> Iterator[str]:
    """Yield lines on what looks odd."""
    may_tie = "datetime" in events and "position" not in events
    if config.ties == "ordered" and may_tie:
        moments = events[["user_id", "datetime", "item_id"]].drop_duplicates()
        is_tied = moments.duplicated(["user_id", "datetime"], keep=False)
        tied = float(is_tied.mean())
        if tied >= MIN_TIES:
            yield (
                f"{tied:.1%} of events share the time of another of their user: "
                "data.ties: simultaneous for baskets"
            )
    owned = cold["test_pairs_owned_before"] or 0.0
    if config.repeats == "exclude" and owned >= MIN_OWNED:
        yield (
            f"{owned:.1%} of the tested pairs are owned before and count as misses: "
            "see data.repeats"
        )


def _time_range(events: pd.DataFrame) -> dict[str, Any] | None:
    if "datetime" not in events:
        return None
    first = int(events["datetime"].min())
    last = int(events["datetime"].max())
    return {"first": _iso(first), "last": _iso(last), "days": (last - first) / DAY}


def _iso(seconds: int | None) -> str | None:
    return None if seconds is None else f"{np.datetime64(seconds, 's')}Z"


def _measure_missing(tables: Tables) -> dict[str, dict[str, float | None]]:
    """Return table -> column -> share of cells without a value: nulls, empty texts and lists."""
    missing = {}
    for name, frame in vars(tables).items():
        missing[name] = {str(column): _missing(frame[column]) for column in frame}
    return missing


def _missing(cells: pd.Series[Any]) -> float | None:
    if is_numeric_dtype(cells.dtype):
        return _share(cells.isna())
    return _share(code_cells(cells) == MISSING)


def _measure_cold(tables: Tables, split: Split) -> dict[str, float | None]:
    """Return the shares of the test's targets that the rows before it say nothing of."""
    before = split.refit
    test = only_targets(split.test)
    pair_items = test.drop_duplicates(["user_id", "item_id"])["item_id"]
    catalogue = pd.concat([tables.items["item_id"], before["item_id"]])
    outside = _share(~pair_items.isin(catalogue))
    owned = _share(mark_owned(test, before))

    return {
        "test_users_unseen": _share_unseen(test["user_id"], before["user_id"]),
        "test_items_unseen": _share_unseen(test["item_id"], before["item_id"]),
        "test_pairs_outside_catalogue": outside,
        "test_pairs_owned_before": owned,
    }


def _share_unseen(ids: pd.Series[Any], known: pd.Series[Any]) -> float | None:
    """Return the share of the distinct ids that are not among the known ones."""
    return _share(~ids.drop_duplicates().isin(known))


def _share(mask: pd.Series[Any] | Flags) -> float | None:
    return float(mask.mean()) if len(mask) else None


def _long_tail(counts: Ints) -> dict[str, float]:
    """Return the shares of events on the most popular items, and the Gini coefficient.

    Args:
        counts: events of each item, the most popular first, (N,).
    """
    n = len(counts)
    total = counts.sum()
    tail = {}
    for share in HEAD_SHARES:
        n_head = max(round(share * n), 1)
        tail[f"top_{share:.0%}"] = float(counts[:n_head].sum() / total)

    weighted = (np.arange(n, 0, -1) * counts).sum()
    tail["gini"] = float(2 * weighted / (n * total) - (n + 1) / n)
    return tail


def _quantiles(counts: Ints) -> dict[str, float]:
    values = np.quantile(counts, QUANTILES).tolist()
    names = [f"p{share * 100:g}" for share in QUANTILES]
    return dict(zip(names, values, strict=True))


# ---- the printed report


def print_report(report: dict[str, Any], console: Console | None = None) -> None:
    """Print the report in about twenty lines, the hints and leaks last."""
    table = Table.grid(padding=(0, 2))
    for name, value in report.items():
        if name not in ("hints", "leaks"):
            phrases = ", ".join(_phrases(value)) or "none"
            table.add_row(name.replace("_", " "), phrases)

    for hint in report["hints"]:
        table.add_row("looks odd", hint)
    for leak in report["leaks"]:
        table.add_row("leak", leak["message"])
    if not report["leaks"]:
        table.add_row("leaks", "none found")
    console = console or Console()
    console.print(table, markup=False)  # columns and values may hold brackets


def _phrases(value: Any, name: str = "") -> Iterator[str]:
    """Yield each part of a value that is not empty or 0, with its name."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _phrases(part, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list) and value:
        yield f"{name}: {' '.join(value)}"
    elif isinstance(value, float) and value:
        yield f"{name} {value:.3g}".strip()
    elif value:
        text = f"{value:,}" if isinstance(value, int) else value
        yield f"{name} {text}".strip()
