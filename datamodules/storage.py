"""Object storage by fsspec: what a URL names is copied here once, and read from here.

Credentials and the address of the storage are those that its client takes from the environment,
such as AWS_PROFILE and AWS_ENDPOINT_URL. Copies lie in BASCULE_CACHE, by default ~/.cache/bascule,
under a hash of what the storage says of an object: one that changed is copied again.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from serve.errors import import_extra


@contextmanager
def opening(url: str) -> Iterator[tuple[Any, str]]:
    """Yield the file system of a URL, and the path in it.

    Raises:
        OSError: the storage cannot be reached, or its client is not installed.
    """
    fsspec = import_extra("fsspec", "storage")
    faults: list[type[Exception]] = [OSError, ImportError]
    if url.startswith("s3"):
        faults.append(import_extra("botocore.exceptions", "storage").BotoCoreError)
    try:
        yield fsspec.url_to_fs(url, use_listings_cache=False)
    except tuple(faults) as error:
        raise OSError(errno.EIO, str(error), url) from error


def fetch_files(pattern: str) -> list[Path]:
    """Copy the files that the pattern of a URL names, unless they lie here; sort them by name."""
    files = []
    with opening(pattern) as (storage, path):
        for name, facts in sorted(storage.glob(path, detail=True).items()):
            if facts["type"] != "file":
                continue
            target = find_place(repr(facts).encode()) / Path(name).name
            files.append(target)
            if not target.exists():
                with TemporaryDirectory(dir=target.parent) as folder:
                    partial = Path(folder) / target.name
                    storage.get_file(name, str(partial))
                    os.replace(partial, target)

        if not files:
            raise OSError("no file is there")
    return files


def find_place(facts: bytes) -> Path:
    """Return the folder, made if need be, of the copy of what the storage describes so."""
    cache = Path(os.environ.get("BASCULE_CACHE", "~/.cache/bascule")).expanduser()
    folder = cache / hashlib.sha256(facts).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder
