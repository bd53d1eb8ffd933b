"""Object storage by fsspec: what a URL names is copied here once, and read from here.

Credentials and the address of the storage are those that its client takes from the environment,
such as AWS_PROFILE and AWS_ENDPOINT_URL. Copies lie in BASCULE_CACHE, by default ~/.cache/bascule,
under a hash of what the storage says of an object: one that changed is copied again.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from serve.errors import import_extra
from serve.files import place_folder


@contextmanager
def opening(url: str) -> Iterator[tuple[Any, str]]:
    """Yield the file system of a URL, and the path in it.

    Raises:
        OSError: the storage cannot be reached, or its client is not installed.
    """
    fsspec = import_extra("fsspec", "storage")
    faults: tuple[Any, ...] = (OSError, ImportError)
    if url.startswith("s3"):
        faults += (import_extra("botocore.exceptions", "storage").BotoCoreError,)
    try:
        yield fsspec.url_to_fs(url, use_listings_cache=False)
    except faults as error:
        raise OSError(errno.EIO, str(error), url) from error


def fetch_files(pattern: str) -> list[Path]:
    """Copy the files that the pattern of a URL names, unless they lie here; sort them by name."""
    files = []
    with opening(pattern) as (storage, path):
        for name, facts in sorted(storage.glob(path, detail=True).items()):
            if facts["type"] == "file":
                files.append(copy_once(storage, {name: facts}) / Path(name).name)
        if not files:
            raise OSError("no file is there")

    return files


def copy_once(storage: Any, objects: Mapping[str, Any]) -> Path:
    """Return the folder with the copies of some objects.

    Args:
        storage: the file system.
        objects: name of each object -> what the storage says of it.
    """
    cache = Path(os.environ.get("BASCULE_CACHE", "~/.cache/bascule")).expanduser()
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)  # tables hold people
    folder = cache / hashlib.sha256(repr(objects).encode()).hexdigest()[:16]
    if not folder.is_dir():
        with TemporaryDirectory(dir=cache) as stage:
            copies = Path(stage) / folder.name
            copies.mkdir()
            for name in objects:
                copy = copies / Path(name).name
                storage.get_file(name, str(copy))
                copy.chmod(0o600)
            place_folder(copies, folder)

    return folder
