"""The files of profiles in their folder: two tables of columns, and the manifest that names them.

    manifest.json             format, and the name, sha256 and rows of the two files
    users-<hash>.parquet      user_id, n_events, one column per feature
    events-<hash>.parquet     item_id, datetime, event, weight of all users, in the order of users

Replacing the manifest is the one step that changes what is read: a reader sees the old or the new files.

A bundle that is about to be published has its profiles here before it has its place: the manifest names them
under `next`, with the version of the bundle. Whoever loaded that bundle reads them, everybody else the others,
so that the bundle's change of place changes both at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from serve.durable import sync_folder, write_file
from serve.encode import vectors_from_arrow, vectors_to_arrow
from serve.errors import BundleError
from serve.recommendations import to_arrow, to_numpy

FORMAT = 1
MANIFEST = "manifest.json"
NEXT = "next"

Columns = dict[str, NDArray[Any]]
Entries = dict[str, Any]
"""What names the two files: the manifest, or what is under `next` in it."""

_LOCK = ".lock"
_PARTS = ("users", "events")
_OURS = ("users-*.parquet*", "events-*.parquet*", f"{MANIFEST}.*")


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Let one writer at a time into the folder.

    At the end goes what the manifest does not name: replaced files, or those of a write that did not finish.
    """
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            _remove_unnamed(folder)


def write_parts(folder: Path, users: Columns, events: Columns) -> Entries:
    """Write the two files; nobody reads them before a manifest names them."""
    return {"users": _write_part(folder, "users", users), "events": _write_part(folder, "events", events)}


def write_manifest(folder: Path, manifest: Entries) -> None:
    """Replace the manifest; remove it where it names nothing."""
    if not list(all_entries(manifest)):
        (folder / MANIFEST).unlink(missing_ok=True)
        return
    text = json.dumps({**manifest, "format": FORMAT}, indent=1, sort_keys=True) + "\n"
    sync_folder(folder)  # the files must be there before they are named
    write_file(folder / MANIFEST, text.encode())
    sync_folder(folder)


def read_manifest(folder: Path) -> Entries:
    """Read the manifest.

    Raises:
        BundleError: there is none, or it is of another format.
    """
    path = folder / MANIFEST
    try:
        manifest: Entries = json.loads(path.read_text(encoding="utf-8"))
        is_known = manifest["format"] == FORMAT
        entries = [entries[part] for entries in all_entries(manifest) for part in _PARTS]
        names = [entry["file"] for entry in entries if entry["sha256"]]
    except FileNotFoundError as error:
        raise BundleError(f"{folder}: no profiles here, '{MANIFEST}' is missing") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path}: not a manifest of profiles: {error!r}; remove it or write it again") from error
    if not is_known or not names or any(Path(name).name != name for name in names):
        raise BundleError(f"{path}: not a manifest of profiles of format {FORMAT}: write the profiles again")
    return manifest


def all_entries(manifest: Entries) -> Iterator[Entries]:
    """Yield what names two files: the manifest itself, and what is staged in it."""
    if _PARTS[0] in manifest:
        yield manifest
    if NEXT in manifest:
        yield manifest[NEXT]


def read_parts(folder: Path, entries: Entries) -> tuple[Columns, Columns]:
    """Read the columns of users and of events.

    Raises:
        BundleError: a file was altered; names it.
        FileNotFoundError: a file is missing, perhaps since it was replaced.
    """
    users, events = (_read_part(folder, entries[part]) for part in _PARTS)
    return users, events


def read_current(folder: Path, version: str | None) -> tuple[Columns, Columns]:
    """Read the columns of users and of events that belong to a bundle.

    Args:
        folder: of the profiles.
        version: of the bundle; None: of any.

    Raises:
        BundleError: a file is missing, altered or of another format; names it.
    """
    entries = _choose(folder, version)
    try:
        return read_parts(folder, entries)
    except FileNotFoundError as error:
        if _choose(folder, version) != entries:  # replaced while it was being read
            return read_current(folder, version)
        raise BundleError(f"{folder}: file '{Path(error.filename).name}' is missing") from error


def _choose(folder: Path, version: str | None) -> Entries:
    manifest = read_manifest(folder)
    staged = manifest.get(NEXT, {"version": None})
    chosen = staged if version is not None and staged["version"] == version else manifest
    if _PARTS[0] not in chosen:
        raise BundleError(f"{folder}: no profiles here but those of a bundle that is not published: train again")
    return {part: chosen[part] for part in _PARTS}


def _write_part(folder: Path, part: str, columns: Columns) -> dict[str, Any]:
    """Write a table to a file named by its content, and return its entry in the manifest."""
    arrays = [vectors_to_arrow(values) if values.ndim == 2 else to_arrow(values) for values in columns.values()]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, names=list(columns)), sink, compression="zstd")
    content = sink.getvalue().to_pybytes()
    digest = hashlib.sha256(content).hexdigest()
    name = f"{part}-{digest[:16]}.parquet"
    write_file(folder / name, content)
    return {"file": name, "rows": len(arrays[0]), "sha256": digest}


def _read_part(folder: Path, entry: Mapping[str, Any]) -> Columns:
    content = (folder / entry["file"]).read_bytes()
    if hashlib.sha256(content).hexdigest() != entry["sha256"]:
        raise BundleError(f"{folder}: file '{entry['file']}' was altered: its sha256 is not the manifest's")
    with pq.ParquetFile(pa.BufferReader(content)) as file:
        table = file.read()
    return {name: _to_numpy(table.column(name)) for name in table.column_names}


def _to_numpy(column: pa.ChunkedArray) -> NDArray[Any]:
    return vectors_from_arrow(column) if pa.types.is_fixed_size_list(column.type) else to_numpy(column)


def _remove_unnamed(folder: Path) -> None:
    manifest = read_manifest(folder) if (folder / MANIFEST).exists() else {}
    named = {entries[part]["file"] for entries in all_entries(manifest) for part in _PARTS}
    unnamed = [path for pattern in _OURS for path in folder.glob(pattern) if path.name not in named]
    for path in unnamed:
        path.unlink()
    if unnamed:
        sync_folder(folder)  # users who were erased must not come back
