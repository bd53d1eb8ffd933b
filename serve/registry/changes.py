"""Publish, activate, roll back: what changes a registry. A kill leaves the old state or the new one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serve.bundle import CURRENT, MANIFEST, PUBLISHED, read_folder, read_steadily
from serve.durable import sync_folder, write_file
from serve.errors import BundleError
from serve.registry.pointer import find_current, read_past, write_current
from serve.registry.versions import Registry, verify_version


@dataclass(frozen=True)
class Published:
    """What a publication did."""

    version: str
    is_new: bool
    """False: the registry had this version already, whole."""
    removed: Sequence[str]
    """Versions that made room."""


@dataclass(frozen=True)
class RolledBack:
    """What a rollback did."""

    version: str
    """Current from now on."""
    left: str | None
    """Current until now; None where that could not be read."""
    skipped: Sequence[str]
    """Why versions between the two were left out."""


def publish(registry: Registry, bundle: Path, keep: int) -> Published:
    """Copy a bundle into the registry.

    Args:
        registry: made where there is none.
        bundle: its folder.
        keep: how many of the latest versions stay. The current version and the one before it stay anyway.

    Raises:
        BundleError: the bundle, or its copy, does not verify.
        OSError: the disk is full or fails. In both cases the registry is as it was.
    """
    _make(registry, bundle, keep)
    with registry.writing():
        version, is_new = _copy(registry, bundle)
        return Published(version, is_new, _prune(registry, version, keep))


def publish_and_activate(registry: Registry, bundle: Path, keep: int) -> Published:
    """Do as `publish`, and let the version be served; nobody can come between."""
    _make(registry, bundle, keep)
    with registry.writing():
        version, is_new = _copy(registry, bundle)
        _activate(registry, version)
        return Published(version, is_new, _prune(registry, version, keep))


def activate(registry: Registry, version: str) -> None:
    """Let a version be served from now on, after it was verified.

    Raises:
        BundleError: no such version, or it does not verify: what was current stays so.
    """
    with registry.writing():
        _activate(registry, version)


def rollback(registry: Registry) -> RolledBack:
    """Let the version be served that was current before; damaged ones on the way back are left out.

    Raises:
        BundleError: none is left to go back to: what was current stays so.
    """
    with registry.writing():
        current = find_current(registry.path)
        past = read_past(registry.path, current)
        skipped: list[str] = []
        for place, version in enumerate(past):
            fault = _find_fault(registry, version)
            if fault is None:
                write_current(registry.path, version, past[place + 1 :])
                return RolledBack(version, current, skipped)
            skipped.append(fault)
        tried = f" ({'; '.join(skipped)})" if skipped else ""
        raise BundleError(f"no version to go back to: none that was current before is whole{tried}; use `activate`")


def _make(registry: Registry, bundle: Path, keep: int) -> None:
    if keep < 1:
        raise BundleError(f"keep is {keep}; allowed: 1 or more")
    if (bundle / MANIFEST).is_file() and bundle.resolve() in registry.path.resolve().parents:
        raise BundleError(f"{registry.path} is in the bundle: give another place for the registry")
    try:
        registry.path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise BundleError(f"{registry.path} is no folder: give another place for the registry") from error


def _copy(registry: Registry, bundle: Path) -> tuple[str, bool]:
    """Bring a bundle in under its version, and say if that is new; a damaged copy of it is replaced."""
    manifest, contents = read_steadily(bundle, lambda path: read_folder(path, PUBLISHED))
    target = registry.path / manifest.version
    is_there = os.path.lexists(target)
    if is_there and _find_fault(registry, manifest.version) is None:
        return manifest.version, False
    stage = registry.new_folder()
    for name, content in contents.items():
        write_file(stage / name, content.data)
    write_file(stage / MANIFEST, manifest.to_bytes())
    sync_folder(stage)
    verify_version(stage, manifest.version)
    if is_there:
        registry.take_out(registry.folder(manifest.version))
    os.rename(stage, target)
    sync_folder(registry.path)
    read_folder(target, PUBLISHED)
    return manifest.version, True


def _find_fault(registry: Registry, version: str) -> str | None:
    """Say why a version cannot be served, None where it can."""
    try:
        verify_version(registry.folder(version), version)
    except ValueError as error:
        return str(error)
    return None


def _activate(registry: Registry, version: str) -> None:
    verify_version(registry.folder(version), version)
    current = find_current(registry.path)
    if current != version:
        before = [] if current is None else [current]
        write_current(registry.path, version, before + read_past(registry.path, current))


def _prune(registry: Registry, published: str, keep: int) -> list[str]:
    """Remove the oldest versions above `keep`, but none that is served, that a rollback needs, or that just came."""
    current = find_current(registry.path)
    if current is None and os.path.lexists(registry.path / CURRENT):
        return []  # which one is served cannot be told
    versions = registry.versions()
    before = [version for version in read_past(registry.path, current) if version in versions]
    needed = {published, current, *before[:1]}
    removed = [version for version in versions[keep:] if version not in needed]
    for version in removed:
        registry.take_out(registry.path / version)
    return removed
