"""Bundles and the versions of a registry on object storage.

URL/<version>/    a bundle that nobody changes any more; its manifest comes last
URL/CURRENT       the version to serve, one line: replaced only if nobody else did so meanwhile

An object store has no rename and no lock. The pointer moves after the version is complete, so that
a kill leaves the old version current. What is read is verified by the hashes of its manifest, and
must be the version that was asked for.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from datamodules.storage import find_place, opening
from serve.bundle import (
    BUNDLE,
    CURRENT,
    MANIFEST,
    PUBLISHED,
    SIGNATURE,
    Manifest,
    read_folder,
)
from serve.errors import BundleError, say
from serve.files import place_folder
from service.publish import read_version
from service.registry import LOADING_ERRORS, Registry, publish_version

_LOOK_SECONDS = 5.0  # between looks at the pointer
_LOG = logging.getLogger("service.http")


def fetch_bundle(url: str) -> Path:
    """Copy a published bundle here, unless it lies here, and verify it; return its folder."""
    with opening(url) as (storage, path):
        names = [MANIFEST]
        if storage.exists(f"{path}/{SIGNATURE}"):
            names.append(SIGNATURE)
        texts = [storage.cat_file(f"{path}/{name}") for name in names]
        names += Manifest.from_bytes(texts[0]).files
        target = find_place(b"".join(texts)) / BUNDLE
        if not target.is_dir():
            with TemporaryDirectory(dir=target.parent) as folder:
                stage = Path(folder) / BUNDLE
                stage.mkdir()
                for name in names:
                    storage.get_file(f"{path}/{name}", str(stage / name))
                read_folder(stage, PUBLISHED)
                place_folder(stage, target)

    return target


def push(registry: Registry, url: str) -> str:
    """Copy the current version of a registry into object storage, and make it current there.

    Raises:
        BundleError: the storage is none of S3, where alone a file is replaced on a condition.
        OSError: the storage cannot be reached, or another version became current meanwhile.
    """
    version = registry.current()
    folder = registry.folder(version)
    _, contents = read_folder(folder, PUBLISHED, registry.trusted)
    with opening(url) as (storage, path):
        if "s3" not in storage.protocol:
            raise BundleError(f"the storage is {url}; allowed: s3://")

        pointer = f"{path}/{CURRENT}"
        condition = {"IfNoneMatch": "*"}
        if storage.exists(pointer):
            condition = {"IfMatch": storage.info(pointer)["ETag"]}
        for name in sorted(contents, key=lambda name: name == MANIFEST):
            storage.put_file(str(folder / name), f"{path}/{version}/{name}")
        storage.pipe_file(pointer, f"{version}\n".encode(), **condition)

    return version


def pull(registry: Registry, url: str) -> bool:
    """Take up the version that is current in object storage; return whether it is another one.

    Raises:
        BundleError: it is damaged, or another one than its name says.
        OSError: the storage cannot be reached.
    """
    with opening(url) as (storage, path):
        version = storage.cat_file(f"{path}/{CURRENT}").decode().strip()
    if version == registry.find_current():
        return False

    folder = fetch_bundle(f"{url}/{version}")
    if read_version(folder) != version:
        raise BundleError(f"{url}/{version} holds another version: push it again")
    publish_version(registry, folder, is_activated=True)
    shutil.rmtree(folder.parent)
    return True


def take_up(registry: Registry, url: str) -> bool:
    """Pull as `pull` does, or log why what is here stays."""
    try:
        return pull(registry, url)
    except LOADING_ERRORS as error:
        _LOG.error("nothing is taken up from the storage: %s", say(error))
        return False


def follow(registry: Registry, url: str, reload: Callable[[], object]) -> None:
    """Take up what becomes current in object storage, for ever."""
    while True:
        time.sleep(_LOOK_SECONDS)
        if take_up(registry, url):
            reload()
