"""The data report: what the tables hold, counted once, stored with the run, and printed in short."""

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
from serve.clock import DAY

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
CROWD = 0.1  # share of the events with which one user of so many seems to be several
MIN_USERS_OF_CROWD = 100
MANY_TIES = (
    0.2  # shares of tied events, and of owned pairs in the test, that are worth a line
)
MANY_OWNED = 0.1
HEAD_SHARES = (
    0.01,
    0.1,
)  # shares of the items, the most popular first, whose share of the events is reported


def report_data(
    tables: Tables,
    rejects: Rejects,
    cleaning: CleaningReport,
    split: Split,
    config: DataConfig,
    leaks: Sequence[Leak],
) -> dict[str, Any]:
    """Count what a run is made of, as JSON values; shares are 0 to 1, or None where there is nothing."""
    events = tables.interactions
    cold = _measure_cold(tables, split)
    frames = {"interactions": events, "users": tables.users, "items": tables.items}
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    targets = {name: len(only_targets(part)) for name, part in parts.items()}
    per_user, per_item = (
        events[name].value_counts().to_numpy() for name in ("user_id", "item_id")
    )
    reasons = {
        cost: some["reason"].value_counts().to_dict()
        for cost, some in rejects.frame.groupby("costs")
    }
    hints = [
        *rejects.hints,
        *_find_hints(events, per_user, cold["test_pairs_owned_before"], config),
    ]
    return {
        "counts": {
            "interactions": len(events),
            "users": len(per_user),
            "items": len(per_item),
            "users_table": len(tables.users),
            "items_table": len(tables.items),
            **{name: len(part) for name, part in parts.items()},
        },
        "split": {"kind": split.kind, "strict": config.split.strict}
        | {"validation_at": _iso(split.validation_at), "test_at": _iso(split.test_at)},
        "targets": targets if TARGET_WEIGHT in events else None,
        "ties": config.ties,
        "repeats": config.repeats,
        "time": _time_range(events),
        "missing": {
            name: {str(column): _missing(frame[column]) for column in frame}
            for name, frame in frames.items()
        },
        "unlisted": measure_unlisted(tables, rejects.records),
        "records": dict(rejects.records),
        "forgotten": dict(rejects.forgotten),
        "feedback": dict(rejects.logged),
        "rejected": reasons.get("record", {}),
        "bad_cells": reasons.get("cell", {}),
        "dropped_columns": {
            name: list(columns) for name, columns in rejects.dropped.items()
        },
        "cleaning": asdict(cleaning),
        "cold": cold,
        "hints": hints,
        "repeat_share": _share(events.duplicated(["user_id", "item_id"])),
        "long_tail": _long_tail(per_item),
        "history_length": {
            f"p{share * 100:g}": float(np.quantile(per_user, share))
            for share in QUANTILES
        },
        "leaks": [
            {
                "kind": leak.kind,
                "column": f"{leak.table}.{leak.column}",
                "power": leak.power,
                "message": leak.message,
            }
            for leak in leaks
        ],
    }


def print_report(report: dict[str, Any], console: Console | None = None) -> None:
    """Print the report in about twenty lines, and what looks odd in some more."""
    table = Table.grid(padding=(0, 2))
    for name, value in _lines(report):
        table.add_row(name, value)
    (console or Console()).print(
        table, markup=False
    )  # columns and values may hold brackets


def _find_hints(
    events: pd.DataFrame, per_user: np.ndarray, owned: float | None, config: DataConfig
) -> Iterator[str]:
    """Say what looks odd; `per_user` are the events of each user, `owned` is the share of tested pairs owned before."""
    if len(per_user) >= MIN_USERS_OF_CROWD and per_user[0] >= CROWD * per_user.sum():
        share = f"{per_user[0] / per_user.sum():.1%} of the events"
        yield f"one user of {len(per_user):,} has {share}: take the rows out if that is all guests together, or a robot"
    if config.ties == "ordered" and "datetime" in events and "position" not in events:
        moments = events[["user_id", "datetime", "item_id"]].drop_duplicates()
        tied = float(moments.duplicated(["user_id", "datetime"], keep=False).mean())
        if tied >= MANY_TIES:
            yield f"{tied:.1%} of events share the time of another of their user: data.ties: simultaneous for baskets"
    if config.repeats == "exclude" and owned is not None and owned >= MANY_OWNED:
        yield f"{owned:.1%} of the tested pairs are owned before and count as misses: see data.repeats"


def _time_range(events: pd.DataFrame) -> dict[str, Any] | None:
    if "datetime" not in events:
        return None
    first = int(events["datetime"].min())
    last = int(events["datetime"].max())
    return {"first": _iso(first), "last": _iso(last), "days": (last - first) / DAY}


def _iso(seconds: int | None) -> str | None:
    return None if seconds is None else f"{np.datetime64(seconds, 's')}Z"


def _missing(cells: pd.Series[Any]) -> float | None:
    """Return the share that features read as missing: nulls, and empty texts and lists."""
    return _share(
        cells.isna()
        if is_numeric_dtype(cells.dtype)
        else pd.Series(code_cells(cells) == MISSING)
    )


def _measure_cold(tables: Tables, split: Split) -> dict[str, float | None]:
    """Return the shares of the test's targets that could not be learned from the rows before it."""
    known = split.refit
    test = only_targets(split.test)
    users = test["user_id"].drop_duplicates()
    items = test["item_id"].drop_duplicates()
    pairs = test[["user_id", "item_id"]].drop_duplicates()
    in_catalogue = pairs["item_id"].isin(tables.items["item_id"]) | pairs[
        "item_id"
    ].isin(known["item_id"])
    return {
        "test_users_unseen": _share(~users.isin(known["user_id"])),
        "test_items_unseen": _share(~items.isin(known["item_id"])),
        "test_pairs_outside_catalogue": _share(~in_catalogue),
        "test_pairs_owned_before": _share(mark_owned(test, known)),
    }


def _share(mask: pd.Series) -> float | None:
    return float(mask.mean()) if len(mask) else None


def _long_tail(counts: np.ndarray) -> dict[str, float]:
    """Return the share of events on the most popular items, and the Gini coefficient, of falling counts of items."""
    n = len(counts)
    total = counts.sum()
    tail = {
        f"top_{share:.0%}": float(counts[: max(round(share * n), 1)].sum() / total)
        for share in HEAD_SHARES
    }
    ranks = np.arange(n, 0, -1)
    return {
        **tail,
        "gini": float(2 * (ranks * counts).sum() / (n * total) - (n + 1) / n),
    }


def _lines(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield a name and a line of each entry, those that look odd last."""
    for name, value in report.items():
        if name not in ("hints", "leaks"):
            yield name.replace("_", " "), ", ".join(_phrases(value)) or "none"
    yield from (("looks odd", hint) for hint in report["hints"])
    yield from [("leak", leak["message"]) for leak in report["leaks"]] or [
        ("leaks", "none found")
    ]


def _phrases(value: Any, name: str = "") -> Iterator[str]:
    """Yield each part of a value that says something, with its name."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _phrases(part, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list) and value:
        yield f"{name}: {' '.join(value)}"
    elif isinstance(value, float) and value:
        yield f"{name} {value:.3g}".strip()
    elif value:
        yield (
            f"{name} {value:,}"
            if isinstance(value, int) and name
            else f"{name} {value}".strip()
        )
