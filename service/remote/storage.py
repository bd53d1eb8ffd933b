"""Bundles and the versions of a registry on object storage.

URL/<version>/    a bundle that nobody changes any more
URL/CURRENT       the version to serve, one line

An object store has no rename and no lock. The pointer is written after the version is complete, so
that a kill leaves the old version current. Whoever loads or publishes a copy verifies it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from datamodules.storage import copy_once, opening
from serve.bundle import CURRENT
from service.registry import Registry, activate, publish_version


def fetch_bundle(url: str) -> Path:
    """Copy a bundle here, unless it lies here; return its folder, which nobody has verified yet."""
    with opening(url) as (storage, path):
        objects = storage.find(path, detail=True)
        if not objects:
            raise OSError("no bundle is there")
        return copy_once(storage, objects)


def push(registry: Registry, url: str) -> str:
    """Copy the current version of a registry into object storage, and make it current there.

    Args:
        registry: that has the version.
        url: of the folder there, such as s3://shop/registry.

    Returns:
        The version.

    Raises:
        BundleError: no version is current.
        OSError: the storage cannot be reached.
    """
    version = registry.current()
    folder = registry.folder(version)
    with opening(url) as (storage, path):
        for file in folder.iterdir():
            storage.put_file(str(file), f"{path}/{version}/{file.name}")
        storage.pipe_file(f"{path}/{CURRENT}", f"{version}\n".encode())

    return version


def pull(registry: Registry, url: str) -> None:
    """Take up the version that is current in object storage.

    Raises:
        BundleError: it is damaged, or another one than its name says.
        OSError: the storage cannot be reached.
    """
    url = url.rstrip("/")
    with opening(url) as (storage, path):
        version = storage.cat_file(f"{path}/{CURRENT}").decode().strip()
    if version != registry.find_current():
        folder = fetch_bundle(f"{url}/{version}")
        publish_version(registry, folder)
        shutil.rmtree(folder)
        activate(registry, version)
