"""`bascule user`: what is held about people; and what they ask for: opting out, in, and erasure."""

from __future__ import annotations

import json
import re
import sys
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.read import read_rows
from serve.bundle import CONFIG, FEEDBACK, PROFILES, REJECTS, STATE, STATE_FILE
from serve.cells import to_text
from serve.errors import SchemaError
from serve.files import (
    FORGOTTEN,
    OPTED_OUT,
    PRIVATE,
    hash_id,
    read_erasure_list,
    write_file,
)
from serve.profiles import MANIFEST, Profiles
from service.event_log import Log, read_log
from service.forget import Erasures, forget_users, holds_run, name_users
from service.remote.fetched import fetch_state
from service.remote.shared import open_shared

Held = dict[str, dict[str, list[Any]]]
"""User -> place, such as a file -> the rows there."""

_OUTPUTS = ("*.csv", "*.parquet", f"{FEEDBACK}/*.parquet", "*/part-*.parquet")
_MAX_LISTED = 10  # rows of a place that are printed
_NOT_SEARCHED = (
    "not searched: undeclared columns; weights, figures and examples of report.html, which "
    "come from all people; backups and copies elsewhere; without --log, audit lines"
)


def user(options: Namespace) -> None:
    """Do what a user asks for."""
    run = options.run_folder
    if options.action == "forget":
        forget(options)
    elif not holds_run(run):
        raise SchemaError(f"{run} is no folder of a run, or of a service's state")
    elif options.action in ("show", "export"):
        show(options)
    else:
        erasures = Erasures([run], open_shared())
        for name in name_users(run, options.user):
            erasures.choose(name, options.action == "opt-out")
            print(f"{options.action}: {name}")


def forget(options: Namespace) -> None:
    """Erase users from a run, and print the receipt."""
    receipt = forget_users(
        options.run_folder, options.user, options.exports, open_shared()
    )
    print(json.dumps(receipt, indent=1))
    pairs = zip(options.user, receipt["forgotten"], strict=True)
    unknown = [user_id for user_id, key in pairs if key in receipt["unknown"]]
    if unknown:
        names = ", ".join(unknown)
        print(f"note: {names} had neither a profile nor live state", file=sys.stderr)


def show(options: Namespace) -> None:
    """Print what is held about users, or write it to a file."""
    held = gather(options.run_folder, options.user, options.log)
    content = _write(held, indent=1)
    if options.out is not None:
        write_file(options.out, f"{content}\n".encode(), PRIVATE)
    elif options.json or options.action == "export":
        print(content)
    else:
        for user_id, places in held.items():
            for place, rows in places.items():
                print(f"user {user_id}, {place}: {len(rows)}")
                print(*map(_write, rows[:_MAX_LISTED]), sep="\n")
    print(_NOT_SEARCHED, file=sys.stderr)


def _write(content: Any, indent: int | None = None) -> str:
    """Write content as JSON; times become texts."""
    return json.dumps(content, indent=indent, ensure_ascii=False, default=str)


# ---- where people are named


def gather(
    run: Path, user_ids: Sequence[Any], logs: Sequence[Path] = ()
) -> dict[str, dict[str, list[Any]]]:
    """Find everything that is held about users, in one pass over all files.

    Args:
        run: folder of the run, whose `config.yaml` names the tables.
        user_ids: the users; 7 and "7" are the same user.
        logs: files with the log of the server.

    Returns:
        User -> place, such as a file -> the rows there, with values of JSON, Arrow and numpy.

    Raises:
        SchemaError: a table is not where the configuration says.
    """
    held: Held = {text: defaultdict(list) for text in map(str, user_ids)}
    if (run / CONFIG).exists():
        _add_sources(held, run)
    asked = dict(held)
    names = name_users(run, user_ids)  # pseudonyms, if the run has these
    held = {str(name): asked[str(of)] for of, name in zip(user_ids, names, strict=True)}
    for path in sorted(chain.from_iterable(map(run.glob, _OUTPUTS))):
        try:
            _add(held, str(path), (row for _, row in read_rows(path)))
        except SchemaError as error:
            print(f"not searched: {error}", file=sys.stderr)
    if (run / PROFILES / MANIFEST).exists():
        _add_profiles(held, Profiles.load(run / PROFILES))
    state = fetch_state(None, run / STATE) / STATE_FILE
    if state.exists():
        _add_live(held, read_log(state))
    for text, places in held.items():
        _add_named(places, text, run, logs)

    return asked


def _add(held: Held, place: str, rows: Iterable[Mapping[Any, Any]]) -> None:
    """Add those of some rows that are of the users."""
    for row in rows:
        text = to_text(row.get("user_id"))
        if text in held:
            held[text][place].append(row)


def _add_sources(held: Held, run: Path) -> None:
    """Add the rows of the tables that the run was trained on: their declared columns."""
    from datamodules.columns import columns_of_table
    from datamodules.sources import read_files
    from pipeline.config import parse

    data = parse([f"--config={run / CONFIG}"], "bascule user")[0].data
    events = data.interactions
    tables = [("interactions", events), ("users", data.users)]
    for path in filter(None, (data.split.validation, data.split.test)):
        tables.append(("interactions", replace(events, path=path, query=None)))
    for name, layout in tables:
        if layout is not None:
            columns = columns_of_table(name, data)
            records = read_files(f"data.{name}.path", layout, columns)
            is_theirs = records.frame["user_id"].map(to_text).isin(held)
            rows = records.places.join(records.frame)[is_theirs]
            _add(held, name, rows.to_dict("records"))


def _add_profiles(held: Held, profiles: Profiles) -> None:
    for user_id in profiles.user_ids.tolist():
        profile = profiles.get(user_id) if str(user_id) in held else None
        if profile is not None:
            history = profile.history.columns()
            entry = {name: values.tolist() for name, values in history.items()}
            for name, value in profile.features.items():
                entry[f"feature {name}"] = np.asarray(value).tolist()
            held[str(user_id)][PROFILES].append(entry)


def _add_live(held: Held, log: Log) -> None:
    """Add live events, and lists with their versions, policies and arms."""
    items = defaultdict(list)
    for slot in log.slots.to_pylist():
        items[slot["list"]].append(slot)
    lists = log.lists.to_pylist()
    for shown in lists:
        shown["items"] = items[shown["list"]]
    _add(held, "impressions", lists)
    _add(held, "live events", log.events.to_pylist())


def _add_named(
    places: dict[str, list[Any]], text: str, run: Path, logs: Sequence[Path]
) -> None:
    """Add what names a user by a part of a text, or by a keyed hash."""
    naming = re.compile(rf"(?<!\w){re.escape(text)}(?!\w)")
    for path in (*run.glob(REJECTS), *run.glob(f".beside-*/{REJECTS}")):
        for _, row in read_rows(path):
            # The value may be of somebody else: only its place is told.
            if naming.search(str(row.pop("value"))):
                places[str(path)].append(row)

    keys = []
    for name in (FORGOTTEN, OPTED_OUT):
        users = read_erasure_list(run, name)
        hashes = [hash_id(salt, text).hex() for salt, _ in users.sets]
        keys += hashes
        if users.holds(text):
            places[name] += hashes
    for path in logs:
        for line in path.read_text(encoding="utf-8").splitlines():
            if any(key in line for key in keys):
                places["audit lines"].append(line)
