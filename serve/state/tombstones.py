"""Who was forgotten, without saying who: `DIR/forgotten.json` of a run holds random salts and keyed hashes of ids.

The next training into the folder, or one that goes on from it, leaves out the rows of such users. Whoever has the
file and an id can tell whether that user was forgotten; from the file alone only ids that can be guessed come back.
"""

from __future__ import annotations

import fcntl
import hmac
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.durable import sync_folder, write_file
from serve.errors import BundleError
from serve.requests import INTEGER, Id

FORGOTTEN = "forgotten.json"
FORMAT = 1


@dataclass(frozen=True)
class Tombstones:
    """Keyed hashes of forgotten users; several sets where one run took over those of another."""

    sets: tuple[tuple[bytes, frozenset[bytes]], ...] = ()
    """Salt -> hashes under it."""

    def __len__(self) -> int:
        return sum(len(hashes) for _, hashes in self.sets)

    def holds(self, user_id: Id) -> bool:
        """Tell whether a user was forgotten; 7 and "7" are the same id."""
        return any(_hash(salt, user_id) in hashes for salt, hashes in self.sets)

    def joined(self, others: Tombstones) -> Tombstones:
        """Return those of both."""
        sets = dict(self.sets)
        for salt, hashes in others.sets:
            sets[salt] = sets.get(salt, frozenset()) | hashes
        return Tombstones(tuple(sets.items()))


NOBODY = Tombstones()


class TombstoneFile:
    """The tombstones of a run as they are at the moment, since another process may add to them."""

    def __init__(self, run: Path) -> None:
        self._run, self._path = run, str(run / FORGOTTEN)  # a text, since every request asks
        self._latest: tuple[tuple[int, int] | None, Tombstones] = None, NOBODY
        """A mark of the file and what it held, exchanged as one: many threads ask."""

    def holds(self, user_id: Id) -> bool:
        """Tell whether a user was forgotten.

        Raises:
            BundleError: the file is damaged.
        """
        try:
            about = os.stat(self._path)
        except FileNotFoundError:
            return False
        mark = about.st_ino, about.st_mtime_ns
        seen, tombstones = self._latest
        if seen != mark:
            tombstones = read_tombstones(self._run)
            self._latest = mark, tombstones
        return tombstones.holds(user_id)


def read_tombstones(run: Path) -> Tombstones:
    """Read the tombstones of a run's folder; none where there is no file.

    Raises:
        BundleError: the file is damaged.
    """
    path = run / FORGOTTEN
    try:
        content = json.loads(path.read_bytes())
        sets = [(bytes.fromhex(entry["salt"]), _read_hashes(entry)) for entry in _as_list(content["users"])]
        is_known = content["format"] == FORMAT
    except FileNotFoundError:
        return NOBODY
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is damaged: {error!r}; restore it, or users would not stay forgotten") from error
    if not is_known:
        raise BundleError(f"{path} is of format {content['format']}; allowed: {FORMAT}")
    return Tombstones(tuple(sets))


def add_tombstones(run: Path, user_ids: Iterable[Id]) -> list[str]:
    """Add users to the tombstones of a run; on disk when this returns.

    Returns:
        The hash of each user, in hexadecimal.

    Raises:
        BundleError: the file is damaged.
        OSError: the disk is full or fails.
    """
    with _writing(run):
        there = read_tombstones(run)
        salt = there.sets[0][0] if there.sets else secrets.token_bytes(32)
        hashes = [_hash(salt, user_id) for user_id in user_ids]
        _write(run, there.joined(Tombstones(((salt, frozenset(hashes)),))))
    return [one.hex() for one in hashes]


def inherit_tombstones(run: Path, previous: Path | None) -> Tombstones:
    """Return the tombstones of a run, joined by those of the run that it goes on from, which it takes over.

    Args:
        run: its folder.
        previous: bundle that it goes on from; one that is reached by a link is of the run that the link leads to, too.

    Raises:
        BundleError: a file is damaged.
        OSError: the disk is full or fails.
    """
    others = NOBODY
    for place in () if previous is None else (previous.absolute(), previous.resolve()):
        others = others.joined(read_tombstones(place.parent))
    if not len(others):
        return read_tombstones(run)
    with _writing(run):
        joined = read_tombstones(run).joined(others)
        _write(run, joined)
    return joined


def both_forms(user_id: Id) -> list[Id]:
    """Return an id as text and, where it is one, as integer: the types of a run's ids may not be known."""
    text = str(user_id)
    return [text, int(text)] if INTEGER.fullmatch(text) and -(2**63) <= int(text) < 2**63 else [text]


def _read_hashes(entry: dict[str, Any]) -> frozenset[bytes]:
    return frozenset(map(bytes.fromhex, _as_list(entry["hashes"])))


def _as_list(value: Any) -> list[Any]:
    """Return a list as it is; what is empty in another way names nobody either, and is damage."""
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {type(value).__name__}")
    return value


def _hash(salt: bytes, user_id: Id) -> bytes:
    return hmac.digest(salt, str(user_id).encode(errors="surrogatepass"), "sha256")


def _write(run: Path, tombstones: Tombstones) -> None:
    users = [{"salt": salt.hex(), "hashes": sorted(one.hex() for one in hashes)} for salt, hashes in tombstones.sets]
    write_file(run / FORGOTTEN, (json.dumps({"format": FORMAT, "users": users}, indent=1) + "\n").encode())
    sync_folder(run)


@contextmanager
def _writing(run: Path) -> Iterator[None]:
    """Let one writer at a time add to the file."""
    descriptor = os.open(run, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
