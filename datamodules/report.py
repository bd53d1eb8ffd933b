"""What the tables hold: counted once, stored with the run, and printed in short."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype
from rich.console import Console
from rich.table import Table

from datamodules.clean import TARGET_WEIGHT, CleaningReport, measure_unlisted, only_targets
from datamodules.config import DataConfig
from datamodules.leaks.codes import MISSING, code_cells
from datamodules.leaks.leak import Leak
from datamodules.splits import Split, mark_owned
from datamodules.tables import Rejects, Tables
from serve.schema import Repeats, Ties

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
PARTS = ("train", "validation", "test")
CROWD, FEWEST_OF_CROWD = 0.1, 100
"""Share of the events from which on one user of so many, or more, seems to be several."""
MANY_TIES = 0.2
"""From this share of tied events on it is said whose order they are in."""
MANY_OWNED = 0.1
"""From this share of the tested pairs on it is said that they are out of reach."""
HEAD_SHARES = (0.01, 0.1)
"""Shares of the items, the most popular first, whose share of the events is reported."""


def report_data(
    tables: Tables,
    rejects: Rejects,
    cleaning: CleaningReport,
    split: Split,
    config: DataConfig,
    leaks: Sequence[Leak],
) -> dict[str, Any]:
    """Count what a run is made of, as JSON values; shares are 0 to 1, or None where there is nothing.

    Args:
        tables: cleaned.
        rejects: of reading.
        cleaning: what was taken out.
        split: of the interactions.
        config: what is declared.
        leaks: what `find_leaks` found.
    """
    events, cold = tables.interactions, _cold(tables, split)
    return {
        "counts": _count(tables, split),
        "split": {
            "kind": split.kind,
            "strict": config.split.strict,
            "validation_at": _iso(split.validation_at),
            "test_at": _iso(split.test_at),
        },
        "targets": _count_targets(split) if TARGET_WEIGHT in events else None,
        "ties": config.ties,
        "repeats": config.repeats,
        "time": _time_range(events),
        "missing": {name: _missing(frame) for name, frame in _frames(tables).items()},
        "unlisted": measure_unlisted(tables, rejects.records),
        "records": dict(rejects.records),
        "forgotten": dict(rejects.forgotten),
        "rejected": {str(reason): int(count) for reason, count in rejects.frame["reason"].value_counts().items()},
        "hints": list(rejects.hints),
        "dropped_columns": {name: list(columns) for name, columns in rejects.dropped.items()},
        "cleaning": asdict(cleaning),
        "cold": cold,
        "crowds": list(_hint_at_crowd(events["user_id"].value_counts().to_numpy())),
        "ties_in_time": list(_hint_at_ties(events, config.ties)),
        "out_of_reach": list(_hint_at_owned(cold["test_pairs_owned_before"], config.repeats)),
        "repeat_share": _share(events.duplicated(["user_id", "item_id"])),
        "long_tail": _long_tail(events["item_id"].value_counts().to_numpy()),
        "history_length": _quantiles(events["user_id"].value_counts().to_numpy()),
        "leaks": [_describe(leak) for leak in leaks],
    }


def print_report(report: dict[str, Any], console: Console | None = None) -> None:
    """Print the report in about twenty lines, and what looks wrong in some more."""
    table = Table.grid(padding=(0, 2))
    for name, value in _lines(report):
        table.add_row(name, value)
    (console or Console()).print(table, markup=False)  # columns and values may hold brackets


def _frames(tables: Tables) -> dict[str, pd.DataFrame]:
    return {"interactions": tables.interactions, "users": tables.users, "items": tables.items}


def _count(tables: Tables, split: Split) -> dict[str, int]:
    return {
        "interactions": len(tables.interactions),
        "users": tables.interactions["user_id"].nunique(),
        "items": tables.interactions["item_id"].nunique(),
        "users_table": len(tables.users),
        "items_table": len(tables.items),
        "train": len(split.train),
        "validation": len(split.validation),
        "test": len(split.test),
    }


def _count_targets(split: Split) -> dict[str, int]:
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    return {name: len(only_targets(part)) for name, part in parts.items()}


def _hint_at_crowd(counts: np.ndarray) -> Iterator[str]:
    """Say that one user has very many of the events, as the account of all guests does.

    Args:
        counts: events per user, in falling order.
    """
    if len(counts) >= FEWEST_OF_CROWD and counts[0] >= CROWD * counts.sum():
        yield (
            f"one user of {len(counts):,} has {counts[0] / counts.sum():.1%} of the events: take the rows out if that "
            "is nobody, such as all guests together, or a robot"
        )


def _time_range(events: pd.DataFrame) -> dict[str, Any] | None:
    if "datetime" not in events:
        return None
    first, last = int(events["datetime"].min()), int(events["datetime"].max())
    return {"first": _iso(first), "last": _iso(last), "days": (last - first) / 86400}


def _iso(seconds: int | None) -> str | None:
    return None if seconds is None else f"{np.datetime64(seconds, 's')}Z"


def _missing(frame: pd.DataFrame) -> dict[str, float | None]:
    return {str(name): _share(_mark_missing(frame[name])) for name in frame}


def _mark_missing(cells: pd.Series[Any]) -> pd.Series[Any]:
    """Mark what features read as missing: nulls, and texts and lists with nothing in them."""
    if is_numeric_dtype(cells.dtype):
        return cells.isna()
    return pd.Series(code_cells(cells) == MISSING)


def _cold(tables: Tables, split: Split) -> dict[str, float | None]:
    """Say how much of the targets of the test could not be learnt from the rows before it."""
    known, test = split.refit, only_targets(split.test)
    users, items = test["user_id"].drop_duplicates(), test["item_id"].drop_duplicates()
    pairs = test[["user_id", "item_id"]].drop_duplicates()
    in_catalogue = pairs["item_id"].isin(tables.items["item_id"]) | pairs["item_id"].isin(known["item_id"])
    return {
        "test_users_unseen": _share(~users.isin(known["user_id"])),
        "test_items_unseen": _share(~items.isin(known["item_id"])),
        "test_pairs_outside_catalogue": _share(~in_catalogue),
        "test_pairs_owned_before": _share(mark_owned(test, known)),
    }


def _describe(leak: Leak) -> dict[str, Any]:
    return {"kind": leak.kind, "column": f"{leak.table}.{leak.column}", "power": leak.power, "message": leak.message}


def _hint_at_ties(interactions: pd.DataFrame, ties: Ties) -> Iterator[str]:
    """Say that many events follow each other only because the file lists them so, where they do."""
    if ties == "simultaneous" or "datetime" not in interactions or "position" in interactions:
        return
    moments = interactions[["user_id", "datetime", "item_id"]].drop_duplicates()
    share = float(moments.duplicated(["user_id", "datetime"], keep=False).mean())
    if share >= MANY_TIES:
        yield (
            f"{share:.1%} of events are at the very time of another one of their user, and follow it as in the table: "
            "data.ties: simultaneous if that order says nothing, as in a basket"
        )


def _hint_at_owned(share: float | None, repeats: Repeats) -> Iterator[str]:
    """Say how much of the test counts as missed whatever is listed, if that is much."""
    if repeats == "exclude" and share is not None and share >= MANY_OWNED:
        yield (
            f"{share:.1%} of the tested pairs are owned before, by events of any kind, and count as misses: only "
            "data.repeats: allow lists them"
        )


def _share(mask: pd.Series) -> float | None:
    return float(mask.mean()) if len(mask) else None


def _long_tail(counts: np.ndarray) -> dict[str, float]:
    """Return the share of events on the most popular items, and the Gini coefficient over items with events.

    Args:
        counts: events per item, in falling order.
    """
    n, total = len(counts), counts.sum()
    tail = {f"top_{share:.0%}": float(counts[: max(round(share * n), 1)].sum() / total) for share in HEAD_SHARES}
    ranks = np.arange(n, 0, -1)
    return {**tail, "gini": float(2 * (ranks * counts).sum() / (n * total) - (n + 1) / n)}


def _quantiles(lengths: np.ndarray) -> dict[str, float]:
    """Return the least, the quartiles, the 95th percentile and the most events of a user."""
    values = np.quantile(lengths, QUANTILES)
    return {f"p{quantile * 100:g}": float(value) for quantile, value in zip(QUANTILES, values, strict=True)}


def _lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    counts, cleaning, time, cold = report["counts"], report["cleaning"], report["time"], report["cold"]
    n_rejected = sum(report["rejected"].values())
    cleaned = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in cleaning.items() if count)
    dropped = [f"{table}.{name}" for table, names in report["dropped_columns"].items() for name in names]
    return [
        ("interactions", f"{counts['interactions']:,} by {counts['users']:,} users on {counts['items']:,} items"),
        ("tables", _say_tables(counts, report["records"])),
        ("time", f"{time['first']} to {time['last']}, {time['days']:.0f} days" if time else "none"),
        ("split", f"{report['split']['kind']}: {_join(counts, PARTS)}"),
        *_target_lines(report["targets"]),
        ("rejected", f"{n_rejected:,} of {sum(report['records'].values()):,} records"),
        *_forgotten_lines(report["forgotten"]),
        *(("looks odd", hint) for hint in report["hints"]),
        ("cleaned", cleaned or "nothing"),
        ("columns dropped", ", ".join(dropped) or "none"),
        ("missing", _say_missing(report["missing"])),
        *_unlisted_lines(report["unlisted"]),
        ("repeats", f"{_percent(report['repeat_share'])} of events repeat a pair of user and item"),
        *((name.removesuffix("_before").replace("_", " "), _percent(share)) for name, share in cold.items()),
        *(("one user", hint) for hint in report["crowds"]),
        *(("ties in time", hint) for hint in report["ties_in_time"]),
        *(("out of reach", hint) for hint in report["out_of_reach"]),
        ("long tail", ", ".join(f"{name} {value:.3f}" for name, value in report["long_tail"].items())),
        ("events per user", ", ".join(f"{name} {value:g}" for name, value in report["history_length"].items())),
        *_leak_lines(report["leaks"]),
    ]


def _say_missing(shares: dict[str, dict[str, float]]) -> str:
    named = {f"{table}.{name}": share for table, columns in shares.items() for name, share in columns.items()}
    return ", ".join(f"{name} {_percent(share)}" for name, share in named.items() if share) or "none"


def _say_tables(counts: dict[str, int], given: Collection[str]) -> str:
    sizes = {name: f"{counts[f'{name}_table']:,} {name}" for name in ("users", "items")}
    return ", ".join(size if name in given else f"{name} not given" for name, size in sizes.items())


def _target_lines(targets: dict[str, int] | None) -> list[tuple[str, str]]:
    return [("targets among them", _join(targets, PARTS))] if targets else []


def _forgotten_lines(forgotten: dict[str, int]) -> list[tuple[str, str]]:
    counts = ", ".join(f"{count:,} of {name}" for name, count in forgotten.items())
    return [("forgotten users", f"left out with their records: {counts}")] if counts else []


def _unlisted_lines(unlisted: dict[str, float]) -> list[tuple[str, str]]:
    return [
        (f"{name} unlisted", f"{_percent(share)} of those with events have no row in the {name} table")
        for name, share in unlisted.items()
    ]


def _leak_lines(leaks: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [("leak", leak["message"]) for leak in leaks] or [("leaks", "none found")]


def _join(counts: dict[str, int], names: tuple[str, ...]) -> str:
    return ", ".join(f"{counts[name]:,} {name}" for name in names)


def _percent(share: float | None) -> str:
    return "none" if share is None else f"{share:.1%}"
