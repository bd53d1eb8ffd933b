"""Read a bundle folder so that nothing unverified is ever used: manifest, exact file set, sizes, hashes.

Each file is opened once, without following links, and mapped; what is hashed is what is used afterwards. A
published folder is replaced as a whole, never written into, so that a mapping keeps what was hashed.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from serve.errors import BundleError
from serve.layout import BUNDLE, CURRENT, MANIFEST
from serve.manifest import MAX_BYTES, FileEntry, Manifest

Content = NDArray[np.uint8]
"""The bytes of a mapped file, read only."""
T = TypeVar("T")


def read_folder(path: Path, required: Iterable[str]) -> tuple[Manifest, dict[str, Content]]:
    """Map and verify all files of a bundle.

    Args:
        path: the folder.
        required: files that must be among them.

    Raises:
        BundleError: no folder, no or an altered manifest, a file that is missing, unlisted, no plain file, of
            another size or content. The message names the file.
    """
    folder = _open_folder(path)
    try:
        manifest = _read_manifest(folder, path)
        _check_names(os.listdir(folder), manifest, required)
        contents = {name: _map_file(folder, name, entry) for name, entry in sorted(manifest.files.items())}
    finally:
        os.close(folder)
    _check_hashes(contents, manifest.files)
    return manifest, contents


def read_steadily(path: Path, read: Callable[[Path], T]) -> T:
    """Read a folder; again where a publisher put a new one in its place meanwhile and removed the old one."""
    while True:
        folder = identify_folder(path)
        try:
            return read(path)
        except BundleError:
            if identify_folder(path) == folder:
                raise


def identify_folder(path: Path) -> tuple[int, int, int] | None:
    """Return which folder stands at a path, None if there is none.

    The time of its last change tells a folder from a later one that was given the inode of a removed one.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def hash_file(path: Path) -> FileEntry:
    """Hash a file for the manifest."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(digest, os.fstat(file.fileno()).st_size)


def _open_folder(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        message = f"no bundle at {path}: {error.strerror}; give the folder that holds {MANIFEST}"
        raise BundleError(message) from error


def _read_manifest(folder: int, path: Path) -> Manifest:
    names = os.listdir(folder)
    if MANIFEST not in names:
        nearer = f"; did you mean {path / BUNDLE}?" if BUNDLE in names else ""  # the folder of a run holds it
        if CURRENT in names:
            nearer = "; it is a registry: give one of its versions, or `serve http --registry`"
        raise BundleError(f"no bundle at {path}: {MANIFEST} is missing{nearer}")
    descriptor = _open_plain(folder, MANIFEST)
    with os.fdopen(descriptor, "rb") as file:
        return Manifest.from_bytes(file.read(MAX_BYTES + 1))


def _check_names(found: Iterable[str], manifest: Manifest, required: Iterable[str]) -> None:
    names = set(found) - {MANIFEST}
    for name in sorted(names - manifest.files.keys()):
        raise BundleError(f"{name!r} is in the bundle but not in {MANIFEST}: remove it or export again")
    for name in sorted((manifest.files.keys() | set(required)) - names):
        raise BundleError(f"{name} is missing from the bundle: copy it again")
    for name in sorted(set(required) - manifest.files.keys()):
        raise BundleError(f"{name} is not in {MANIFEST}: export again")


def _open_plain(folder: int, name: str) -> int:
    """Open a regular file that has no other name, so that nobody changes it from elsewhere."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        raise BundleError(f"{name} cannot be read: {error.strerror}; links are refused") from error
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
        return descriptor
    os.close(descriptor)
    raise BundleError(f"{name} is no plain file with one name: copy the bundle without links")


def _map_file(folder: int, name: str, entry: FileEntry) -> Content:
    descriptor = _open_plain(folder, name)
    try:
        size = os.fstat(descriptor).st_size
        if size != entry.size:
            raise BundleError(f"{name} has {size} bytes; {MANIFEST} says {entry.size}: copy it again")
        return np.frombuffer(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ), dtype=np.uint8)
    finally:
        os.close(descriptor)


def _check_hashes(contents: Mapping[str, Content], files: Mapping[str, FileEntry]) -> None:
    digests = {name: hashlib.sha256(content.data).hexdigest() for name, content in contents.items()}
    wrong = ", ".join(name for name in contents if digests[name] != files[name].sha256)
    if wrong:
        raise BundleError(f"{wrong}: other content than {MANIFEST} says; altered, or of another bundle")
