"""Erase users from everything of a run that names them: a place on the erasure list for the next training, a receipt.

The erasure list comes first. From then on nothing of theirs is kept, read or trained on, so that whoever is stopped in
the middle forgets them again, and finds less. `DIR/forgotten.json` holds random salts and keyed hashes of ids: whoever
has the file and an id can tell whether that user was forgotten; from the file alone only ids that can be guessed.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from serve.arrays import to_arrow
from serve.bundle import BUNDLE, FEEDBACK, PROFILES, REJECTS, SCHEMA, STATE, STATE_FILE
from serve.errors import SchemaError
from serve.files import (
    ERASURE_FORMAT,
    FORGOTTEN,
    PRIVATE,
    ErasureList,
    hash_id,
    read_erasure_list,
    sync_folder,
    take_lock,
    write_file,
)
from serve.profiles import MANIFEST, Profiles, erase_users
from serve.requests import Id, parse_id, show
from serve.schema import IdType, Schema
from service.export import (
    PLAN,
    erase_from_export,
    erase_from_table,
    open_table,
    read_plan,
    write_table,
)
from service.publish import read_version
from service.state import StateStore

_LOCK = ".forgotten.lock"
_REJECTS = (
    REJECTS,
    f".beside-*/{REJECTS}",
)  # lists of rejected records, the second of a training that is not over
_VALUE = "value"
_LEARNED = "the neighbours of their items and their checkpoints learned from all users, these among them; a training "
_LEARNED += "from now on leaves these out, but one that starts from these weights keeps what they learned"
_NOT_REACHED = {
    "source tables": "the files that training reads: take the rows out there too; training leaves them out anyway",
    "report": "report.html shows numbered examples, one of which may be of a forgotten user: write it anew with "
    "`python -m evaluation.report --run DIR`",
    "figures": "metrics.json, drift.json, feedback/figures.json and logs are figures of all users, these among them",
    "copies": "backups, snapshots of the file system, blocks that the disk has freed, exports and answers elsewhere",
    "memory": "a running server holds the profiles that it loaded until it reloads or ends, but no longer reads those "
    "of forgotten users",
}


def forget_users(
    run: Path, user_ids: Sequence[Id], exports: Sequence[Path] = ()
) -> dict[str, Any]:
    """Erase users from profiles, live events, what was shown to them, rejected records and the exports given.

    It may be done while a server or a training works on the run; after an error it may be done again. 7 and "7" are the
    same user. Return the receipt as JSON values: who, by keyed hash, who of them had neither profile nor live state,
    when, what was erased, and what is out of reach.
    """
    if not holds_run(run):
        raise SchemaError(
            f"{run} is no folder of a run: expected '{BUNDLE}', '{PROFILES}' or '{STATE}' in it"
        )
    if isinstance(user_ids, str) or not len(
        user_ids
    ):  # each letter of a text would be a user
        raise SchemaError(
            f"user_ids is {show(user_ids)}; expected a list of one id or more"
        )
    schema = run / BUNDLE / SCHEMA
    id_type: IdType = "string"  # any id is a text
    if schema.exists():
        id_type = Schema.from_json(schema.read_text(encoding="utf-8")).user_id_type
    return forget_known(
        run, [parse_id(user_id, id_type, "user") for user_id in user_ids], exports
    )


def forget_known(
    run: Path, user_ids: Sequence[Id], exports: Sequence[Path] = ()
) -> dict[str, Any]:
    """Do as `forget_users` with ids that a service has checked; its bundle may be another one than the run's."""
    for folder in exports:
        side = read_plan(folder).get("side")
        if side != "user":
            raise SchemaError(
                f"{folder} is an export of side {side!r}, which names no user; allowed: user"
            )
    hashes = add_to_erasure_list(run, user_ids)
    erased: dict[str, Any] = {"profiles": 0, "events": 0, "impressions": 0}
    known: set[str] = set()
    if (run / PROFILES / MANIFEST).exists():
        known = erase_users(run / PROFILES, user_ids)
        erased["profiles"] = len(known)
    if (run / STATE / STATE_FILE).exists():
        with closing(StateStore(run / STATE / STATE_FILE)) as store:
            known |= store.list_known(user_ids)
            erased |= store.forget(*user_ids)
    erased |= erase_from_rejects(run, user_ids)
    texts = set(map(str, user_ids))
    erased["outputs"] = erase_from_outputs(run, texts)
    erased["exports"] = {
        str(folder): erase_from_export(folder, texts)
        for folder in dict.fromkeys(exports)
    }
    version = read_version(run / BUNDLE)
    towers = (
        "towers trained earlier"
        if version is None
        else f"the towers of version {version} and of earlier ones"
    )
    return {
        "forgotten": hashes,
        "unknown": [
            one
            for one, user in zip(hashes, user_ids, strict=True)
            if str(user) not in known
        ],
        "run": str(run),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "erased": erased,
        "not_reached": {"weights": f"{towers}, {_LEARNED}", **_NOT_REACHED},
        "tombstones": f"{FORGOTTEN} holds the hashes: trainings into this folder, or with --previous of it, leave out "
        "the rows of these users; keep the file",
    }


class Erasures:
    """Erases users from folders in a thread of its own; those who come while others are erased are erased together."""

    def __init__(self, runs: Sequence[Path]) -> None:
        self._runs = runs
        self._thread = ThreadPoolExecutor(1, "bascule-erasures")
        self._lock = Lock()
        self._waiting: list[Id] = []

    def add(self, user_id: Id) -> Future[list[dict[str, Any]]]:
        """Let a user be erased; the result is a receipt for each folder, without its path, of all erased then."""
        with self._lock:
            if not self._waiting:
                self._next = self._thread.submit(self._erase)
            self._waiting.append(user_id)
            return self._next

    def close(self) -> None:
        self._thread.shutdown()

    def _erase(self) -> list[dict[str, Any]]:
        with self._lock:
            user_ids = self._waiting
            self._waiting = []
        receipts = [
            forget_known(run, list(dict.fromkeys(user_ids)))
            for run in self._runs
            if holds_run(run)
        ]
        return [
            {name: value for name, value in one.items() if name != "run"}
            for one in receipts
        ]


def erase_forgotten(run: Path, profiles: Profiles) -> None:
    """Erase from the staged profiles of a run the users who were forgotten while a training had them at hand."""
    erased = read_erasure_list(run)
    gone = (
        [user_id for user_id in profiles.user_ids.tolist() if erased.holds(user_id)]
        if erased.sets
        else []
    )
    if gone:
        erase_users(run / PROFILES, gone)


def holds_run(folder: Path) -> bool:
    """Tell whether there is anything in a folder that users are erased from."""
    return any((folder / name).is_dir() for name in (BUNDLE, PROFILES, STATE))


def add_to_erasure_list(run: Path, user_ids: Iterable[Id]) -> list[str]:
    """Add users to the erasure list of a run, on disk when this returns; return their hashes in hexadecimal."""
    with take_lock(run / _LOCK, mode=PRIVATE):
        there = read_erasure_list(run)
        salt = there.sets[0][0] if there.sets else secrets.token_bytes(32)
        hashes = [hash_id(salt, user_id) for user_id in user_ids]
        _write(run, _join(there, ErasureList(((salt, frozenset(hashes)),))))
    return [one.hex() for one in hashes]


def inherit_erasure_list(run: Path, previous: Path | None) -> ErasureList:
    """Return the erasure list of a run, joined by that of the run of a previous bundle, which it takes over.

    A bundle that is reached by a link is of the run that the link leads to, too.
    """
    others = ErasureList()
    for place in () if previous is None else (previous.absolute(), previous.resolve()):
        others = _join(others, read_erasure_list(place.parent))
    if not len(others):
        return read_erasure_list(run)
    with take_lock(run / _LOCK, mode=PRIVATE):
        joined = _join(read_erasure_list(run), others)
        _write(run, joined)
    return joined


def _join(one: ErasureList, other: ErasureList) -> ErasureList:
    sets = dict(one.sets)
    for salt, hashes in other.sets:
        sets[salt] = sets.get(salt, frozenset()) | hashes
    return ErasureList(tuple(sets.items()))


def _write(run: Path, erased: ErasureList) -> None:
    users = [
        {"salt": salt.hex(), "hashes": sorted(one.hex() for one in hashes)}
        for salt, hashes in erased.sets
    ]
    content = json.dumps({"format": ERASURE_FORMAT, "users": users}, indent=1) + "\n"
    write_file(run / FORGOTTEN, content.encode(), PRIVATE)
    sync_folder(run)


def erase_from_rejects(run: Path, user_ids: Collection[Id]) -> dict[str, int]:
    """Rewrite the lists of rejected records that training left in a run; return how many rows and values went.

    A row that names a user goes; of the others the value goes, since most do not say whose it is.
    """
    naming = re.compile(
        rf"(?<!\w)({'|'.join(re.escape(str(user_id)) for user_id in user_ids)})(?!\w)"
    )
    erased = {"rejects": 0, "rejected_values": 0}
    for path in sorted(path for pattern in _REJECTS for path in run.glob(pattern)):
        with open_table(path) as file:
            table = file.read()
            values = table.column(_VALUE).to_pylist()
        if not any(values):
            continue  # whoever was forgotten before has had them erased
        kept = [
            place
            for place, value in enumerate(values)
            if value is None or not naming.search(value)
        ]
        erased["rejects"] += len(values) - len(kept)
        erased["rejected_values"] += sum(values[place] is not None for place in kept)
        table = table.take(to_arrow(np.array(kept, dtype=np.int64)))
        blank = pa.nulls(len(kept), table.schema.field(_VALUE).type)
        write_table(
            path, table.set_column(table.column_names.index(_VALUE), _VALUE, blank)
        )
        sync_folder(path.parent)
    return erased


def erase_from_outputs(run: Path, user_ids: Collection[str]) -> dict[str, int]:
    """Take users out of recommendations and exports in a run's folder; return the rows that went, by file or folder."""
    gone = {path.name: _erase_from_text(path, user_ids) for path in run.glob("*.csv")}
    tables = [*run.glob("*.parquet"), *run.glob(f"{FEEDBACK}/*.parquet")]
    gone |= {
        str(path.relative_to(run)): erase_from_table(path, user_ids) for path in tables
    }
    exports = (
        plan.parent
        for plan in run.glob(f"*/{PLAN}")
        if read_plan(plan.parent).get("side") == "user"
    )
    gone |= {folder.name: erase_from_export(folder, user_ids) for folder in exports}
    return {name: n_rows for name, n_rows in sorted(gone.items()) if n_rows}


def _erase_from_text(path: Path, user_ids: Collection[str]) -> int:
    """Take lines that begin with an id out of a CSV file, as `write_tables` writes them: texts in quotes."""
    quoted = (text.replace('"', '""') for text in user_ids)
    starts = tuple(
        f"{start},".encode() for text in quoted for start in (text, f'"{text}"')
    )
    head, *lines = path.read_bytes().split(b"\n")
    kept = (
        [line for line in lines if not line.startswith(starts)]
        if head.startswith(b"user_id,")
        else lines
    )
    if len(kept) < len(lines):
        write_file(path, b"\n".join((head, *kept)))
        sync_folder(path.parent)
    return len(lines) - len(kept)
