"""The data report in words: what the tables held, what was left out, and how new the test is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evaluation.report.wording import amount, count, percent, plain, say_day, say_moment
from serve.schema import Schema

Report = Mapping[str, Any]
"""What `metrics.json` holds under `data`."""

COLD = {
    "test_users_unseen": "Test users without any event in training",
    "test_items_unseen": "Test items without any event in training",
    "test_pairs_outside_catalogue": "Test pairs whose item is not in the catalogue",
    "test_pairs_owned_before": "Test pairs whose user has the item in training too",
}
SPLITS = {
    "leave_one_out": "the last event of each user",
    "time": "everything from one moment on",
    "pairs": "a random share of each user's items",
    "files": "a given file",
    "none": "nothing: everything trains",
}
DRAWN = "one item of each user, drawn by chance"
"""What `leave_one_out` holds out where no event is the last."""
LAST_GROUP = "the last events of each user, which came at one time"
"""What it holds out where events of one time have no order."""


@dataclass(frozen=True)
class Facts:
    """A short table of facts."""

    title: str
    rows: list[tuple[str, str]]


def describe_data(report: Report, schema: Schema) -> list[Facts]:
    """Return the facts of a data report, in tables that each have a row at least."""
    tables = [
        Facts("Size and time", [*_sizes(report), *_times(report["time"], schema)]),
        Facts("Split", _split(report, schema)),
        Facts("Rejected and cleaned", [*_rejects(report), *_cleaning(report["cleaning"])]),
        Facts("Looks wrong", _hints(report)),
        Facts("Columns that were not read", _dropped(report["dropped_columns"])),
        Facts("Missing values", _missing(report["missing"])),
        Facts("What is new in the test", _cold(report["cold"])),
        Facts("Habits", _habits(report)),
    ]
    return [table for table in tables if table.rows]


def _hints(report: Report) -> list[tuple[str, str]]:
    titles = {
        "headers": "A header?",
        "spaced_ids": "White space",
        "odd_ids": "Texts among integers",
        "far_values": "Far from all others",
        "far_times": "Long before or after all others",
        "missing_marks": "A mark of what is missing?",
        "crowds": "One user",
        "ties_in_time": "Ties in time",
        "out_of_reach": "Out of reach",
    }
    return [(title, str(hint)) for name, title in titles.items() for hint in report.get(name, ())]


def list_leaks(report: Report) -> list[str] | None:
    """Return what the leak check says, None where it was not made."""
    leaks = report.get("leaks")
    return None if leaks is None else [str(leak["message"]) for leak in leaks]


def say_period(report: Report, schema: Schema) -> str:
    """Say when the events happened."""
    time = report["time"]
    if time is None:
        return "without times"
    first, last = (say_day(time[end], schema.timezone) for end in ("first", "last"))
    return f"from {first} to {last}"


def say_split(report: Report, schema: Schema) -> str:
    """Say what was held out."""
    split = report["split"]
    held_out = SPLITS.get(split["kind"], split["kind"])
    if split["kind"] == "leave_one_out":
        rest = "some of the others" if schema.is_set else "what came after"
        held_out = _say_last(schema) + f", of those to be predicted, and {rest}" * bool(report.get("targets"))
    return f"{held_out}, {say_moment(split['test_at'])}" if split.get("test_at") else held_out


def _say_last(schema: Schema) -> str:
    if schema.is_set:
        return DRAWN
    return LAST_GROUP if schema.ties == "simultaneous" else SPLITS["leave_one_out"]


def count_rejected(report: Report) -> int:
    """Count the records that were rejected."""
    return sum(report["rejected"].values())


def _sizes(report: Report) -> list[tuple[str, str]]:
    counts = report["counts"]
    return [
        ("Events", count(counts["interactions"])),
        ("Users with events", count(counts["users"])),
        ("Items with events", count(counts["items"])),
        *(
            (f"Rows of the {name} table", count(counts[f"{name}_table"]) if name in report["records"] else "not given")
            for name in ("users", "items")
        ),
        *(
            (f"{name.capitalize()} with events but no row", percent(share))
            for name, share in report.get("unlisted", {}).items()
        ),
    ]


def _times(time: Mapping[str, Any] | None, schema: Schema) -> list[tuple[str, str]]:
    if time is None:
        return [("Times", "none, and no order" if schema.is_set else "none in the data")]
    return [
        ("First event", say_moment(time["first"])),
        ("Last event", say_moment(time["last"])),
        ("Days", plain(round(time["days"], 1))),
        ("Time zone", schema.timezone or "times as given"),
    ]


def _split(report: Report, schema: Schema) -> list[tuple[str, str]]:
    counts = report["counts"]
    targets = report.get("targets") or {}
    parts = [
        (name.capitalize(), amount(counts[name], "event") + _say_targets(targets.get(name)))
        for name in ("train", "validation", "test")
    ]
    held_out = say_split(report, schema)
    if not (targets or counts)["test"] and report["split"]["kind"] != "none":
        held_out = f"nothing; it would be {held_out}"  # of users with one event each, for example
    return [("Held out for the test", held_out), *parts]


def _say_targets(n: int | None) -> str:
    return "" if n is None else f", {count(n)} of them to be predicted"


def _rejects(report: Report) -> list[tuple[str, str]]:
    records = sum(report["records"].values())
    total = f"{count(count_rejected(report))} of {count(records)}" if records else count(count_rejected(report))
    return [("Records rejected", total), *((f"– {reason}", count(n)) for reason, n in report["rejected"].items())]


def _cleaning(cleaning: Mapping[str, int]) -> list[tuple[str, str]]:
    return [(name.replace("_", " ").capitalize(), count(n)) for name, n in cleaning.items() if n]


def _dropped(dropped: Mapping[str, list[str]]) -> list[tuple[str, str]]:
    return [(table.capitalize(), ", ".join(names)) for table, names in dropped.items() if names]


def _missing(missing: Mapping[str, Mapping[str, float | None]]) -> list[tuple[str, str]]:
    return [
        (f"{table}: {name}", percent(share))
        for table, columns in missing.items()
        for name, share in columns.items()
        if share
    ]


def _cold(cold: Mapping[str, float | None]) -> list[tuple[str, str]]:
    return [(COLD.get(name, name), percent(share)) for name, share in cold.items() if share is not None]


def _habits(report: Report) -> list[tuple[str, str]]:
    lengths, tail = report["history_length"], report["long_tail"]
    rows = [("Events that repeat a pair of user and item", percent(report["repeat_share"]))]
    rows += [
        ("Events of a user, median", plain(round(lengths["p50"], 1))),
        ("Events of a user, 95th percentile", plain(round(lengths["p95"], 1))),
    ]
    return [*rows, ("Events on the top 1 % of items", percent(tail["top_1%"])), ("Gini of items", plain(tail["gini"]))]
