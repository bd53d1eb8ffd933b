"""Files that survive a crash, locks, folders placed in one step, signatures, the erasure list."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import hmac
import json
import mmap
import os
import re
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from serve.errors import BundleError

FORGOTTEN = "forgotten.json"  # file of a run with the erasure list
OPTED_OUT = (
    "opted_out.json"  # beside a state: who objects to profiling, in the same form
)
ERASURE_FORMAT = 1
PATIENCE = 10.0  # seconds to wait for another process
PRIVATE = 0o600  # mode of a file; the umask may take more away
_PUBLIC = 0o666
_WORKING_DIRECTORY = -100  # AT_FDCWD: paths are relative to it
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
# Groups: key id, signature.
_SIGNATURE = re.compile(rb"ed25519 ([0-9a-f]{16}) ([0-9a-f]{128})\n")
_PUBLIC_KEY = re.compile(
    rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL
)


def to_canonical_json(content: Mapping[str, Any]) -> bytes:
    """Write JSON of one form: the same content gives the same bytes."""
    text = json.dumps(content, indent=1, sort_keys=True, allow_nan=False)
    return f"{text}\n".encode()


def write_json(path: Path, content: Any) -> None:
    """Write JSON for people to read, in the order of the content."""
    text = json.dumps(content, indent=1, allow_nan=False)
    write_file(path, f"{text}\n".encode())


def make_private(folder: Path) -> None:
    """Make a folder, where there is none, that only its owner may enter."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def write_file(path: Path, content: bytes | memoryview, mode: int = _PUBLIC) -> None:
    """Write a file and wait until it is on disk; an existing one is replaced in one step.

    Raises:
        OSError: the disk is full, for example; the error names the path.
    """
    with replacing(path, mode) as file:
        file.write(content)


@contextmanager
def replacing(path: Path, mode: int = _PUBLIC) -> Iterator[BinaryIO]:
    """Yield a file that gets the name `path` once it is on disk; after an error it is removed."""
    partial = path.with_name(f"{path.name}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        with name_file(path), open(os.open(partial, flags, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def name_file(path: Path) -> Iterator[None]:
    """Name the file in an error of the disk: `write` does not do it, unlike `open`."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        reason = error.strerror or str(error)
        raise OSError(error.errno or errno.EIO, reason, str(path)) from error


def take_lock(path: Path, wait: bool = True, mode: int = _PUBLIC) -> BinaryIO:
    """Take an exclusive lock.

    Args:
        path: file of the lock, which is made if there is none.
        wait: whether to wait for whoever holds it.
        mode: mode of a new file.

    Returns:
        A file that holds the lock until it is closed or the process dies.

    Raises:
        BlockingIOError: somebody holds it, and `wait` is false; it names the folder.
    """
    lock = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, mode), "wb")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        reason = "another process writes here: wait for it, or choose another folder"
        raise BlockingIOError(error.errno, reason, str(path.parent)) from error

    return lock


def sync_files(folder: Path) -> None:
    """Wait until the content of every file of a folder, and the folder itself, is on disk."""
    for path in (*folder.iterdir(), folder):
        sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder, or the content of a file, are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with name_file(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def map_file(folder: int, name: str) -> NDArray[np.uint8]:
    """Map a regular file of an open folder that has no other name, so that nobody changes it."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(name, flags, dir_fd=folder)
    except OSError as error:
        raise BundleError(
            f"{name} cannot be read: {error.strerror}; links are refused"
        ) from error

    try:
        status = os.fstat(descriptor)
        is_single = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        if not is_single or status.st_size == 0:
            raise BundleError(
                f"{name} is empty or no plain file with one name: copy the bundle without links"
            )
        return np.frombuffer(
            mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ), np.uint8
        )
    finally:
        os.close(descriptor)


def place_folder(new: Path, target: Path) -> Path | None:
    """Put the folder `new` in the place of the folder `target`, both in one directory.

    Where the file system can exchange two names, a reader finds the old or the new folder at every
    instant. Elsewhere there is an instant between two renames with neither.

    Returns:
        Where the old folder is now; None if there was none.
    """
    if not target.exists():
        os.rename(new, target)
        return None

    if exchange(new, target):
        return new

    aside = target.with_name(f".{target.name}-old-{uuid.uuid4().hex}")
    os.rename(target, aside)
    try:
        os.rename(new, target)
    except OSError:
        os.rename(aside, target)
        raise

    return aside


def exchange(left: Path, right: Path) -> bool:
    """Exchange two names in one step; return False, with nothing done, where that cannot be."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # of Linux alone
    here = _WORKING_DIRECTORY
    names = (here, os.fsencode(left), here, os.fsencode(right))
    return rename is not None and rename(*names, _EXCHANGE) == 0


def sign_text(text: bytes, key_file: Path) -> tuple[str, bytes]:
    """Sign a text by Ed25519.

    Args:
        text: what to sign.
        key_file: file of the private key in PEM.

    Returns:
        The id of the key, and the content of a file that `check_signature` reads.
    """
    with _reading_keys(key_file) as serialization:
        key = serialization.load_pem_private_key(key_file.read_bytes(), None)
        key_id = _identify(key.public_key())
        return key_id, f"ed25519 {key_id} {key.sign(text).hex()}\n".encode()


def check_signature(text: bytes, signature: bytes, trusted: Path) -> None:
    """Check that one of the trusted keys has signed a text.

    Args:
        text: the manifest of a bundle, which holds the hashes of all other files.
        signature: the content of `manifest.sig`.
        trusted: file of public keys in PEM.

    Raises:
        BundleError: the signature is damaged, of another key or of another text.
    """
    with _reading_keys(trusted) as serialization:
        pems = _PUBLIC_KEY.findall(trusted.read_bytes())
        public_keys = map(serialization.load_pem_public_key, pems)
        keys = {_identify(key): key for key in public_keys}

    parts = _SIGNATURE.fullmatch(signature)
    key_id = parts[1].decode() if parts else "damaged"
    if parts is None or key_id not in keys:
        raise BundleError(
            f"manifest.sig is {key_id}; {trusted} has the keys: {', '.join(keys) or 'none'}"
        )

    from cryptography.exceptions import InvalidSignature

    try:
        keys[key_id].verify(bytes.fromhex(parts[2].decode()), text)
    except InvalidSignature as error:
        raise BundleError(
            "manifest.sig is not of this manifest: it was changed after it was signed"
        ) from error


@contextmanager
def _reading_keys(path: Path) -> Iterator[Any]:
    """Yield the module that reads keys; name the file of a key that cannot be read."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
    except ModuleNotFoundError as error:
        raise BundleError(
            "signatures need cryptography: pip install cryptography"
        ) from error

    try:
        yield serialization
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
        raise BundleError(
            f"{path} is no key as `openssl genpkey -algorithm ed25519` gives it: {error}"
        ) from error


def _identify(public_key: Any) -> str:
    return hashlib.sha256(public_key.public_bytes_raw()).hexdigest()[:16]


@dataclass(frozen=True)
class ErasureList:
    """Keyed hashes of users who were forgotten or opted out, by salt.

    There are several salts where one run took over the list of another.
    """

    sets: tuple[tuple[bytes, frozenset[bytes]], ...] = ()

    def __len__(self) -> int:
        return sum(len(hashes) for _, hashes in self.sets)

    def holds(self, user_id: str | int) -> bool:
        """Tell whether a user is on the list; 7 and "7" are the same id."""
        return any(hash_id(salt, user_id) in hashes for salt, hashes in self.sets)


NOBODY = ErasureList()


def hash_id(salt: bytes, user_id: str | int) -> bytes:
    return hmac.digest(salt, str(user_id).encode(errors="surrogatepass"), "sha256")


def read_opt_outs(run: Path) -> ErasureList:
    """Read who has opted out by the list in a folder, as `read_erasure_list` does."""
    return read_erasure_list(run, OPTED_OUT)


def read_erasure_list(run: Path, name: str = FORGOTTEN) -> ErasureList:
    """Read the erasure list of a run's folder, anew if it has changed; empty if there is none.

    Raises:
        BundleError: the file is damaged.
    """
    path = run / name
    try:
        status = path.stat()
    except FileNotFoundError:
        return NOBODY

    return _read_unless_changed(path, status.st_ino, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _read_unless_changed(path: Path, inode: int, changed_at: int) -> ErasureList:
    try:
        content = json.loads(path.read_bytes())
        users = content["users"]
        lists = [users, *(entry["hashes"] for entry in users)]
        is_sound = all(isinstance(value, list) for value in lists)
        if not is_sound or content["format"] != ERASURE_FORMAT:
            raise ValueError(f"expected format {ERASURE_FORMAT}")
        sets = []
        for entry in users:
            hashes = frozenset(map(bytes.fromhex, entry["hashes"]))
            sets.append((bytes.fromhex(entry["salt"]), hashes))
        return ErasureList(tuple(sets))
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{path} is damaged: {error!r}; restore it, or users would not stay left out"
        ) from error


def is_forgotten(run: Path, user_id: str | int) -> bool:
    """Tell whether a user is on the present erasure list of a run."""
    return read_erasure_list(run).holds(user_id)
