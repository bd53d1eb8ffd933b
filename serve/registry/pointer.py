"""`CURRENT` and `HISTORY`: which version is to be served, and which ones were before."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from serve.bundle import CURRENT, HISTORY
from serve.durable import sync_folder, write_file
from serve.errors import BundleError

_VERSION = re.compile(r"[0-9a-f]{12}")
_MOST_PAST = 100
_MOST_BYTES = 1 << 14


def is_version(text: str) -> bool:
    """Say if a text can name a version."""
    return _VERSION.fullmatch(text) is not None


def check_version(version: str, where: str) -> str:
    """Return a text that names a version; it becomes part of a path, so nothing else may.

    Raises:
        BundleError: another text.
    """
    if not is_version(version):
        shown = repr(version[:40])
        raise BundleError(f"{where} is {shown}; expected the 12 digits 0-9a-f of a version: `list` shows them")
    return version


def read_current(registry: Path) -> str:
    """Read which version is to be served.

    Raises:
        BundleError: none, or no plain file with the name of a version in it.
    """
    text = _read(registry, CURRENT)
    if text is None:
        raise BundleError(f"no version is current in {registry}: {CURRENT} is missing; choose one with `activate`")
    return check_version(text.removesuffix("\n"), CURRENT)


def find_current(registry: Path) -> str | None:
    """Return the version that `CURRENT` names, None where it names none."""
    try:
        return read_current(registry)
    except BundleError:
        return None


def read_past(registry: Path, current: str | None) -> list[str]:
    """Return what was to be served before the current version, the latest first.

    Args:
        registry: its folder.
        current: what `CURRENT` says, None where it cannot be read.
    """
    lines = (_read(registry, HISTORY) or "").splitlines()
    versions = [line for line in lines if is_version(line)]
    return versions[versions.index(current) + 1 :] if current in versions else versions


def write_current(registry: Path, version: str, past: Sequence[str]) -> None:
    """Let a version be served from now on; the replacing of `CURRENT` is the one step that counts.

    The history is written before, with the version at its head: whatever is current then, what follows it in
    the history was current before it.

    Raises:
        BundleError: `CURRENT` is a folder; nothing is written.
    """
    pointer = registry / CURRENT
    if pointer.is_dir() and not pointer.is_symlink():  # no file can take its place
        raise BundleError(f"{CURRENT} in {registry} is a folder; expected a file: move the folder away, then try again")
    history = [version, *(name for name in past if name != version)][:_MOST_PAST]
    write_file(registry / HISTORY, "".join(f"{name}\n" for name in history).encode())
    sync_folder(registry)
    write_file(registry / CURRENT, f"{version}\n".encode())
    sync_folder(registry)
    if read_current(registry) != version:
        raise BundleError(f"{CURRENT} does not read as it was written: somebody else writes into {registry}")


def _read(registry: Path, name: str) -> str | None:
    """Read a small file that is no link; None where there is none."""
    try:
        descriptor = os.open(registry / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{name} cannot be read: {error.strerror}; links are refused") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BundleError(f"{name} is no plain file: remove it and choose a version with `activate`")
        content = os.read(descriptor, _MOST_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(content) > _MOST_BYTES or not content.isascii():
        raise BundleError(f"{name} is no list of versions: remove it and choose a version with `activate`")
    return content.decode("ascii")
