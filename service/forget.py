"""Erase users from everything of a run that names them, and write a receipt.

The erasure list comes first. From then on nothing of theirs is kept, read or trained on; whoever is
stopped in the middle forgets them again and finds less. `DIR/forgotten.json` holds random salts and
keyed hashes of ids: whoever has the file and an id can tell whether that user was forgotten; the
file alone gives away only ids that can be guessed. `DIR/opted_out.json` is of the same form: it
lists who objects to profiling. The list beside a state counts; that of a run without one is a copy.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from serve.arrays import Id, to_arrow
from serve.bundle import BUNDLE, FEEDBACK, PROFILES, REJECTS, SCHEMA, STATE, STATE_FILE
from serve.cells import KEY_FILE, parse_id
from serve.errors import SchemaError, show
from serve.files import (
    ERASURE_FORMAT,
    FORGOTTEN,
    OPTED_OUT,
    PRIVATE,
    ErasureList,
    hash_id,
    read_erasure_list,
    read_opt_outs,
    sync_folder,
    take_lock,
    write_file,
)
from serve.profiles import MANIFEST, Profiles, erase_users
from serve.schema import Schema
from service.engine import State
from service.export import (
    PLAN,
    erase_from_export,
    erase_from_table,
    open_table,
    read_plan,
    write_table,
)
from service.publish import read_version
from service.registry import Registry
from service.remote.remote_state import RemoteState
from service.state import StateStore

_LOG = logging.getLogger("service.http")
_LOCK = ".forgotten.lock"
_VALUE = "value"
_LEARNED = (
    "the neighbours of their items and their checkpoints learned from all users, these among them; "
    "a training from now on leaves these users out, but one that starts from these weights keeps "
    "what they learned"
)
_NOT_REACHED = {
    "source tables": "the files that training reads, and their copies in BASCULE_CACHE and, of a "
    "training that was killed, in DIR/on_disk: delete the rows there too; training leaves them out "
    "anyway",
    "report": "report.html shows numbered examples, one of which may be of a forgotten user: write "
    "it anew with `bascule report --run DIR`",
    "figures": "metrics.json, drift.json, feedback/figures.json and logs are figures of all users, "
    "these among them",
    "copies": "backups, snapshots of the file system, blocks that the disk has freed, exports and "
    "answers elsewhere",
    "memory": "a running server holds the profiles that it loaded until it reloads or ends, but no "
    "longer reads those of forgotten users",
}
_ELSEWHERE = (
    "profiles and exports of services that share the state: they no longer answer these users as "
    "known; erase them there with `bascule forget`. What the server's logs, backups and copies hold"
)
_KEEP_LIST = (
    f"{FORGOTTEN} holds the hashes: trainings into this folder, or with --previous of it, leave "
    "out the rows of these users; keep the file"
)


def forget_users(
    run: Path,
    user_ids: Sequence[Id],
    exports: Sequence[Path] = (),
    shared: State | None = None,
) -> dict[str, Any]:
    """Erase users from profiles, live events, impressions, rejected records and exports.

    It may be done while a server or a training works on the run, and again after an error.

    Args:
        run: folder of the run.
        user_ids: ids of the users; 7 and "7" are the same user.
        exports: folders of exported user vectors, outside the run.
        shared: the state on a server, if there is one.

    Returns:
        The receipt, as JSON values: who was forgotten, by keyed hash; who of them had neither a
        profile nor live state; when; what was erased; what is out of reach.

    Raises:
        SchemaError: the folder is none of a run, an id is of the wrong type, or an export names no
            user.
    """
    if not holds_run(run):
        raise SchemaError(
            f"{run} is no folder of a run: expected '{BUNDLE}', '{PROFILES}' or '{STATE}' in it"
        )

    # each letter of a text would be a user
    if isinstance(user_ids, str) or not len(user_ids):
        raise SchemaError(
            f"user_ids is {show(user_ids)}; expected a list of one id or more"
        )

    return forget_known(run, name_users(run, user_ids), exports, shared)


def name_users(run: Path, user_ids: Sequence[Id]) -> list[Id]:
    """Return users as a run or registry names them: by its schema, else as texts.

    Raises:
        SchemaError: there are pseudonyms, and no schema says whose.
    """
    bundle = run / BUNDLE
    if not bundle.exists():
        registry = Registry(run)
        bundle = next(map(registry.folder, registry.versions()), bundle)
    schema = bundle / SCHEMA
    if not schema.exists():
        if KEY_FILE in os.environ:
            raise SchemaError(
                f"{run} holds no bundle to name users by; give a run or a registry"
            )
        return [parse_id(user_id, "string", "user") for user_id in user_ids]
    fitted = Schema.from_json(schema.read_text(encoding="utf-8"))
    return [fitted.parse_user_id(user_id, "user") for user_id in user_ids]


def forget_known(
    run: Path,
    user_ids: Sequence[Id],
    exports: Sequence[Path] = (),
    shared: State | None = None,
) -> dict[str, Any]:
    """Do as `forget_users` with ids that a service has checked by the schema of its own bundle."""
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
        with closing(StateStore(run / STATE / STATE_FILE)) as state:
            known |= state.list_known(user_ids)
            erased |= state.forget(*user_ids)

    not_reached = dict(_NOT_REACHED)
    if shared is not None:
        known |= shared.list_known(user_ids)
        for name, n_erased in shared.forget(*user_ids).items():
            erased[name] += n_erased
        not_reached["other machines"] = _ELSEWHERE

    erased |= erase_from_rejects(run, user_ids)
    texts = set(map(str, user_ids))
    erased["outputs"] = erase_from_outputs(run, texts)
    erased["exports"] = {
        str(folder): erase_from_export(folder, texts)
        for folder in dict.fromkeys(exports)
    }

    unknown = [
        user_hash
        for user_hash, user_id in zip(hashes, user_ids, strict=True)
        if str(user_id) not in known
    ]
    version = read_version(run / BUNDLE) or "unknown"
    weights = f"the towers of version {version} and of earlier ones, {_LEARNED}"
    return {
        "forgotten": hashes,
        "unknown": unknown,
        "run": str(run),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "erased": erased,
        "not_reached": {"weights": weights, **not_reached},
        "tombstones": _KEEP_LIST,
    }


class Erasures:
    """Erases users from folders in a thread; those who come meanwhile are erased together next."""

    def __init__(self, runs: Sequence[Path], shared: RemoteState | None = None) -> None:
        self._runs = runs
        self._shared = shared
        self._thread = ThreadPoolExecutor(1, "bascule-erasures")
        self._lock = Lock()
        self._waiting: list[Id] = []

    def add(self, user_id: Id) -> Future[list[dict[str, Any]]]:
        """Erase a user soon.

        Returns:
            A future of the receipts, one for each folder, without its path, of all users who were
            erased together.
        """
        with self._lock:
            if not self._waiting:
                self._next = self._thread.submit(self._erase)
            self._waiting.append(user_id)
            return self._next

    def choose(self, user_id: Id, is_out: bool) -> list[str]:
        """Note, on the server, beside the state and the profiles, that a user opts out or in.

        Returns the hash of the user on each list, in hexadecimal.
        """
        if self._shared is not None:
            self._shared.choose(user_id, is_out)
        hashes = _choose(self._runs[-1], user_id, is_out)  # this list counts
        for copy in self._runs[:-1]:
            try:
                hashes += _choose(copy, user_id, is_out)
            except OSError as error:
                _LOG.warning("commands do not know of a choice: %s", error)
        return hashes

    def close(self) -> None:
        self._thread.shutdown()

    def _erase(self) -> list[dict[str, Any]]:
        with self._lock:
            user_ids = list(dict.fromkeys(self._waiting))
            self._waiting = []

        receipts = []
        for run in self._runs:
            if holds_run(run):
                receipt = forget_known(run, user_ids, shared=self._shared)
                del receipt["run"]
                receipts.append(receipt)

        return receipts


def erase_forgotten(run: Path, profiles: Profiles) -> None:
    """Erase from staged profiles the users who were forgotten while a training read them."""
    erased = read_erasure_list(run)
    user_ids = profiles.user_ids.tolist()
    forgotten = [user_id for user_id in user_ids if erased.holds(user_id)]
    if forgotten:
        erase_users(run / PROFILES, forgotten)


def holds_run(folder: Path) -> bool:
    """Tell whether there is anything in a folder that users are erased from."""
    return any((folder / name).is_dir() for name in (BUNDLE, PROFILES, STATE))


def add_to_erasure_list(
    run: Path, user_ids: Iterable[Id], name: str = FORGOTTEN
) -> list[str]:
    """Add users to the erasure list of a run, on disk when this returns.

    Args:
        run: folder of the run.
        user_ids: ids of the users.
        name: of the list: the erasure list, or `OPTED_OUT`.

    Returns:
        The hash of each user, in hexadecimal.
    """
    with take_lock(run / _LOCK, mode=PRIVATE):
        earlier = read_erasure_list(run, name)
        salt = earlier.sets[0][0] if earlier.sets else secrets.token_bytes(32)
        hashes = [hash_id(salt, user_id) for user_id in user_ids]
        added = ErasureList(((salt, frozenset(hashes)),))
        _write(run, _join(earlier, added), name)

    return [user_hash.hex() for user_hash in hashes]


def opt_in(run: Path, user_id: Id) -> None:
    """Take a user off the list of those who opted out, on disk when this returns."""
    with take_lock(run / _LOCK, mode=PRIVATE):
        sets = read_opt_outs(run).sets
        left = [(salt, keys - {hash_id(salt, user_id)}) for salt, keys in sets]
        _write(run, ErasureList(tuple(left)), OPTED_OUT)


def _choose(run: Path, user_id: Id, is_out: bool) -> list[str]:
    hashes = add_to_erasure_list(run, [user_id], OPTED_OUT)
    if not is_out:
        opt_in(run, user_id)
    return hashes


def inherit_left_out(run: Path, previous: Path | None) -> ErasureList:
    """Let a run take over who was forgotten or opted out in the run of a previous bundle.

    Args:
        run: folder of the run.
        previous: the previous bundle; behind a link, it is of the run that the link leads to, too.

    Returns:
        All of them.
    """
    inherited = ErasureList()
    if previous is not None:
        for bundle in (previous.absolute(), previous.resolve()):
            home = bundle.parent
            inherited = _join(inherited, read_erasure_list(home))
            counts = (home / STATE).is_dir() or not (run / OPTED_OUT).exists()
            if counts and (home / OPTED_OUT).exists():
                replace_opt_outs(run, _join(read_opt_outs(run), read_opt_outs(home)))

    return _join(take_over(run, inherited), read_opt_outs(run))


def replace_opt_outs(run: Path, opted_out: ErasureList) -> None:
    """Let a run have the list of opt-outs that counts, even if it is empty."""
    with take_lock(run / _LOCK, mode=PRIVATE):
        _write(run, opted_out, OPTED_OUT)


def take_over(run: Path, erased: ErasureList) -> ErasureList:
    """Add an erasure list to that of a run; return both."""
    if not len(erased):
        return read_erasure_list(run)

    with take_lock(run / _LOCK, mode=PRIVATE):
        joined = _join(read_erasure_list(run), erased)
        _write(run, joined)

    return joined


def _join(first: ErasureList, second: ErasureList) -> ErasureList:
    hashes_by_salt = dict(first.sets)
    for salt, hashes in second.sets:
        hashes_by_salt[salt] = hashes_by_salt.get(salt, frozenset()) | hashes
    return ErasureList(tuple(hashes_by_salt.items()))


def _write(run: Path, erased: ErasureList, name: str = FORGOTTEN) -> None:
    users = []
    for salt, hashes in erased.sets:
        users.append({"salt": salt.hex(), "hashes": sorted(map(bytes.hex, hashes))})
    content = json.dumps({"format": ERASURE_FORMAT, "users": users}, indent=1)
    write_file(run / name, f"{content}\n".encode(), PRIVATE)
    sync_folder(run)


def erase_from_rejects(run: Path, user_ids: Collection[Id]) -> dict[str, int]:
    """Rewrite the lists of rejected records that training left in a run.

    A row that names a user is deleted. The other rows lose their value, since most do not say whose
    it is.

    Returns:
        The number of deleted rows, `rejects`, and of deleted values, `rejected_values`.
    """
    names = "|".join(re.escape(str(user_id)) for user_id in user_ids)
    naming = re.compile(rf"(?<!\w)({names})(?!\w)")
    erased = {"rejects": 0, "rejected_values": 0}
    of_a_training = run.glob(f".beside-*/{REJECTS}")

    for path in chain(run.glob(REJECTS), of_a_training):
        with open_table(path) as file:
            table = file.read()
            values = table.column(_VALUE).to_pylist()

        if not any(values):  # an earlier erasure deleted them
            continue

        is_kept = [value is None or not naming.search(value) for value in values]
        table = table.filter(to_arrow(np.array(is_kept, bool)))
        column = table.column(_VALUE)
        erased["rejects"] += len(values) - len(table)
        erased["rejected_values"] += len(table) - column.null_count
        place = table.column_names.index(_VALUE)
        blank = pa.nulls(len(table), column.type)
        write_table(path, table.set_column(place, _VALUE, blank))
        sync_folder(path.parent)

    return erased


def erase_from_outputs(run: Path, user_ids: Collection[str]) -> dict[str, int]:
    """Delete the rows of users from recommendations and exports in a run's folder.

    Returns:
        The number of deleted rows by file or folder, where there are any.
    """
    n_rows_by_name: Counter[str] = Counter()
    for path in run.glob("*.csv"):
        n_rows_by_name[path.name] = _erase_from_text(path, user_ids)

    for path in chain(run.glob("*.parquet"), run.glob(f"{FEEDBACK}/*.parquet")):
        name = str(path.relative_to(run))
        n_rows_by_name[name] = erase_from_table(path, user_ids)

    for plan in run.glob(f"*/{PLAN}"):
        folder = plan.parent
        if read_plan(folder).get("side") == "user":
            n_rows_by_name[folder.name] = erase_from_export(folder, user_ids)

    return dict(+n_rows_by_name)  # without zeros


def _erase_from_text(path: Path, user_ids: Collection[str]) -> int:
    """Delete the lines that begin with an id from a CSV file of `write_tables`."""
    starts: list[bytes] = []
    for user_id in user_ids:
        quoted = user_id.replace('"', '""')
        for text in (quoted, f"'{quoted}"):  # of one that looks like a formula
            starts += [f"{text},".encode(), f'"{text}",'.encode()]

    head, *lines = path.read_bytes().split(b"\n")
    if not head.startswith(b"user_id,"):
        return 0

    remaining = [line for line in lines if not line.startswith(tuple(starts))]
    if len(remaining) < len(lines):
        write_file(path, b"\n".join((head, *remaining)))
        sync_folder(path.parent)

    return len(lines) - len(remaining)
