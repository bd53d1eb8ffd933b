"""Forget users: out of everything of a run that names them, with a tombstone for the next training, and a receipt.

The tombstone comes first. From then on nothing of theirs is kept, asked or trained on, so that whoever is stopped in
the middle forgets them again, and finds less.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serve.bundle import (
    BUNDLE,
    PROFILES,
    SCHEMA,
    STATE,
    STATE_FILE,
)
from serve.errors import SchemaError
from serve.profile_store import MANIFEST
from serve.profiles import Profiles, erase_users
from serve.requests import Id, parse_id, show
from serve.schema import IdType, Schema
from serve.staging import read_version
from serve.state.erased_exports import check_export, erase_from_export
from serve.state.erased_rejects import erase_from_rejects
from serve.state.store import StateStore
from serve.state.tombstones import FORGOTTEN, add_tombstones, both_forms, read_tombstones

_NOT_REACHED = {
    "source tables": "the files that training reads: take the rows out there too; training leaves them out anyway",
    "report": "report.html shows numbered examples, one of which may be of a forgotten user: write it anew with "
    "`python -m evaluation.report --run DIR`",
    "figures": "metrics.json and the logs of training are figures of all users together, these among them",
    "copies": "backups, snapshots of the file system, blocks that the disk has freed, exports and answers elsewhere",
    "memory": "a running server holds the profiles that it loaded until it reloads or ends, but no longer reads those "
    "of forgotten users; it holds the questions of the latest minute in which it was asked, with their live events and "
    "lists, until it is asked in a later one",
}


def forget_users(run: Path, user_ids: Sequence[Id], exports: Sequence[Path] = ()) -> dict[str, Any]:
    """Erase users from a run.

    Profiles, live events, what was shown to them, rejected records and the exports given. It may be done while a
    server or a training works on the run.

    Args:
        run: folder of the run.
        user_ids: as text or integer: 7 and "7" are the same user. A list, also of a single one.
        exports: folders that `serve export --side user` wrote.

    Returns:
        The receipt, as JSON values: who, by keyed hash, when, what was erased, and what is out of reach.

    Raises:
        SchemaError: no folder of a run, no id, or no export of users; nothing is erased.
        BundleError: a file is damaged.
        OSError: the disk is full or fails, or another process keeps a file. Do it again then.
    """
    _check_run(run)
    if isinstance(user_ids, str) or not len(user_ids):  # each letter of a text would be a user
        raise SchemaError(f"user_ids is {show(user_ids)}; expected a list of one id or more")
    id_type = _read_id_type(run)
    return forget_known(run, [parse_id(user_id, id_type, "user") for user_id in user_ids], exports)


def forget_known(run: Path, user_ids: Sequence[Id], exports: Sequence[Path] = ()) -> dict[str, Any]:
    """Do as `forget_users` with ids that a service has checked.

    Its bundle may be another one than the run's, and may have ids of another type.
    """
    forms = [form for user_id in user_ids for form in both_forms(user_id)]
    for folder in exports:
        check_export(folder)
    hashes = add_tombstones(run, user_ids)
    erased: dict[str, Any] = {"profiles": _erase_profiles(run, user_ids), **_erase_state(run, user_ids)}
    erased |= erase_from_rejects(run, user_ids)
    erased["exports"] = {str(folder): erase_from_export(folder, forms) for folder in dict.fromkeys(exports)}
    return {
        "forgotten": hashes,
        "run": str(run),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "erased": erased,
        "not_reached": {"weights": _describe_weights(run), **_NOT_REACHED},
        "tombstones": f"{FORGOTTEN} holds the hashes: trainings into this folder, or with --previous of it, leave out "
        "the rows of these users; keep the file",
    }


def erase_forgotten(run: Path, profiles: Profiles) -> None:
    """Erase from the profiles of a run whoever was forgotten while a training had them at hand.

    Args:
        run: whose profiles were staged.
        profiles: those that were.
    """
    tombstones = read_tombstones(run)
    gone = [user_id for user_id in profiles.user_ids.tolist() if tombstones.holds(user_id)] if tombstones.sets else []
    if gone:
        erase_users(run / PROFILES, gone)


def holds_run(folder: Path) -> bool:
    """Tell whether there is anything in a folder that users are forgotten out of."""
    return any((folder / name).is_dir() for name in (BUNDLE, PROFILES, STATE))


def _check_run(run: Path) -> None:
    if not holds_run(run):
        raise SchemaError(f"{run} is no folder of a run: expected '{BUNDLE}', '{PROFILES}' or '{STATE}' in it")


def _read_id_type(run: Path) -> IdType:
    """Return the type of the run's user ids; texts, which any id is, where there is no bundle to tell it."""
    path = run / BUNDLE / SCHEMA
    return Schema.from_json(path.read_text(encoding="utf-8")).user_id_type if path.exists() else "string"


def _erase_profiles(run: Path, user_ids: Iterable[Id]) -> int:
    folder = run / PROFILES
    return erase_users(folder, user_ids) if (folder / MANIFEST).exists() else 0


def _erase_state(run: Path, user_ids: Iterable[Id]) -> dict[str, int]:
    path = run / STATE / STATE_FILE
    if not path.exists():
        return {"events": 0, "impressions": 0}
    store = StateStore(path)
    try:
        return store.forget(*user_ids)
    finally:
        store.close()


def _describe_weights(run: Path) -> str:
    version = read_version(run / BUNDLE)
    towers = "towers trained earlier" if version is None else f"the towers of version {version} and of earlier ones"
    learned = "the neighbours of their items and their checkpoints learned from all users, these among them"
    return f"{towers}, {learned}; a training from now on leaves these out"
