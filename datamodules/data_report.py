"""The data report: counts of the tables, stored with the run and printed in short."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype
from rich.console import Console
from rich.table import Table

from datamodules.clean import (
    CleaningReport,
    describe_unlisted,
    measure_unlisted,
    only_targets,
)
from datamodules.config import DataConfig
from datamodules.leaks import MISSING, Leak, code_cells
from datamodules.rejects import Rejects
from datamodules.splits import Split, mark_owned
from datamodules.tables import Tables
from datamodules.values import TARGET_WEIGHT
from serve.arrays import Flags, Ints
from serve.clock import DAY, to_iso

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
HEAD_SHARES = (0.01, 0.1)  # shares of the items whose share of the events is reported
MIN_TIES = 0.2  # share of tied events that is worth a hint
MIN_HEAVY = 0.01  # share of the events that a single user has, and
HEAVY_TIMES = 20  # the multiple of the median user's, that no person has
MIN_OWNED = 0.1  # share of owned pairs in the test that is worth a hint
MIN_FLAGS = 5  # columns of true and false that are worth a hint
FLAGS = {"0", "1", "0.0", "1.0", "f", "t", "false", "true", "n", "y", "no", "yes"}


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
    cold = _measure_cold(tables, split, config)
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
    described = {"kind": split.kind, "strict": config.split.strict}

    for name in ("validation_at", "test_at"):
        at = getattr(split, name)
        described[name] = at and to_iso(at)

    lengths = {}
    for share in QUANTILES:
        lengths[f"p{share * 100:g}"] = float(np.quantile(user_counts, share))

    return {
        "counts": counts | {name: len(part) for name, part in parts.items()},
        "split": described,
        "targets": targets,
        "ties": config.ties,
        "repeats": config.repeats,
        "time": _time_range(events),
        "missing": _measure_missing(tables),
        "unlisted": measure_unlisted(tables, rejects.records),
        **_describe_rejects(rejects),
        "cleaning": asdict(cleaning),
        "cold": cold,
        "hints": [
            *rejects.hints,
            *_find_hints(tables, cold, config),
        ],
        "repeat_share": _share(events.duplicated(["user_id", "item_id"])),
        "long_tail": _long_tail(item_counts),
        "history_length": lengths,
        "leaks": [asdict(leak) for leak in leaks],
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


def _find_hints(
    tables: Tables, cold: dict[str, float | None], config: DataConfig
) -> Iterator[str]:
    """Yield lines on what looks odd; they are published, so no user is named."""
    events = tables.interactions
    if config.unlisted == "exclude":
        yield from describe_unlisted(tables)

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

    for side in ("user", "item"):
        names = _list_flags(vars(tables)[f"{side}s"], config.features.kinds_of(side))
        if len(names) >= MIN_FLAGS:
            yield (
                f"{len(names)} columns of {side}s hold only true or false ({', '.join(names[:3])}, "
                "...): better one multi_categorical of the names that are true"
            )


def _list_flags(frame: pd.DataFrame, kinds: Mapping[str, str]) -> list[str]:
    """Return the categorical columns that hold nothing but true and false."""
    flags = []
    for name, kind in kinds.items():
        if kind == "categorical":
            words = set(frame[name].dropna().astype("str").str.lower())
            if 0 < len(words) <= 2 and words <= FLAGS:
                flags.append(name)

    return flags


def _time_range(events: pd.DataFrame) -> dict[str, Any] | None:
    if "datetime" not in events:
        return None
    first = int(events["datetime"].min())
    last = int(events["datetime"].max())
    return {"first": to_iso(first), "last": to_iso(last), "days": (last - first) / DAY}


def _measure_missing(tables: Tables) -> dict[str, dict[str, float | None]]:
    """Return table -> column -> share of cells without a value: nulls, empty texts and lists."""
    missing: dict[str, dict[str, float | None]] = {}
    for name, frame in vars(tables).items():
        missing[name] = {}
        for column, cells in frame.items():
            if is_numeric_dtype(cells.dtype):
                is_missing = cells.isna()
            else:
                is_missing = code_cells(cells) == MISSING
            missing[name][str(column)] = _share(is_missing)

    return missing


def _measure_cold(
    tables: Tables, split: Split, config: DataConfig
) -> dict[str, float | None]:
    """Return the shares of the test's targets that the rows before it say nothing of."""
    before = split.refit
    test = only_targets(split.test)
    pair_items = test.drop_duplicates(["user_id", "item_id"])["item_id"]
    catalogue = tables.items["item_id"]
    if config.unlisted == "list" or catalogue.empty:
        catalogue = pd.concat([catalogue, before["item_id"]])
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


# ---- the printed report


def print_report(report: dict[str, Any], console: Console) -> None:
    """Print the report in about twenty lines, the hints and leaks last."""
    table = Table.grid(padding=(0, 2))
    for name, value in report.items():
        if name not in ("hints", "leaks"):
            phrases = ", ".join(_phrases(value)) or "none"
            table.add_row(name.replace("_", " "), phrases)

    for hint in report["hints"]:
        table.add_row("looks odd", hint)

    messages = [leak["message"] for leak in report["leaks"]]
    for message in messages or ["none found"]:
        table.add_row("leaks", message)
    console.print(table, markup=False)  # columns and values may hold brackets


def print_heavy_users(events: pd.DataFrame, console: Console) -> None:
    """Print users with far more events than a person has; their ids are in no file of the run."""
    counts = events["user_id"].value_counts()
    limit = max(HEAVY_TIMES * counts.median(), MIN_HEAVY * len(events))
    heavy = counts[counts >= limit].to_dict()
    if heavy:
        ids = json.dumps(list(heavy), ensure_ascii=False)
        message = f"bots? {heavy}; declare exclude_users: {ids} in data"
        console.print(message, markup=False, highlight=False, soft_wrap=True)


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
