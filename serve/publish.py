"""Publish a bundle in one step: a kill leaves the old bundle or the new one.

DIR/.lock              held from the opening of a stage to its end: one stage at a time
DIR/.bundle-<uuid>/    the stage; files are written here, evaluated, sealed by a manifest
DIR/.beside-<uuid>/    files that come into DIR with the bundle, such as its metrics
DIR/bundle/            what readers see

stage = Stage.open(DIR); write files into stage.path; stage.seal(...); evaluate; publish(stage.prepare(...))

The bundle's change of place is the one step that counts. Its profiles are staged before it, and readers of the new
bundle find them. The files beside follow it, named by the version until they have their place: after a kill in
between, the next stage that is opened moves them.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from serve.bundle import (
    ANSWERING,
    BUNDLE,
    MANIFEST,
    PROFILES,
    PUBLISHED,
    Bundle,
    Facts,
    Manifest,
    hash_file,
    read_space,
)
from serve.durable import place_folder, sync_files, sync_folder, take_lock, write_file
from serve.errors import BundleError
from serve.profiles import settle_profiles

_LOCK = ".lock"
_STAGED = f".{BUNDLE}-"
_ASIDE = f".{BUNDLE}-old-"
_BESIDE = ".beside-"


@dataclass(frozen=True)
class Stage:
    """A bundle in the making. Used with `with`, it is abandoned at the end unless it was published."""

    path: Path
    """Folder of its files."""
    beside: Path
    """Folder of the files that come into the directory with the bundle."""
    target: Path
    """Where the bundle will be."""
    lock: BinaryIO

    @classmethod
    def open(cls, directory: Path) -> Stage:
        """Begin a stage in a run's directory; complete or clear what a killed run left there.

        Raises:
            BundleError: another stage is open in the directory, or the manifest of its profiles is damaged.
            OSError: the disk is full or fails.
        """
        directory.mkdir(parents=True, exist_ok=True)
        try:
            lock, name = take_lock(directory / _LOCK, wait=False), uuid.uuid4().hex
        except BlockingIOError as error:
            raise BundleError(f"another run writes into {directory}: wait for it, or choose another") from error
        stage = cls(directory / f"{_STAGED}{name}", directory / f"{_BESIDE}{name}", directory / BUNDLE, lock)
        try:
            _settle(directory)
            stage.path.mkdir()
            stage.beside.mkdir()
        except (BundleError, OSError):
            lock.close()
            raise
        return stage

    def seal(self, facts: Facts, metrics: Mapping[str, Any]) -> Manifest:
        """Hash the files and write the manifest over them; again whenever a file was added.

        Raises:
            BundleError: a file is missing or of no known name.
        """
        return _seal(self.path, ANSWERING, facts, metrics)

    def prepare(self, facts: Facts, metrics: Mapping[str, Any]) -> Ready:
        """Bring a complete stage to disk, seal and verify it.

        Raises:
            BundleError: a file is missing, the golden requests too, or the stage does not verify.
            OSError: the disk is full or fails.
        """
        sync_files(self.path)
        manifest = _seal(self.path, PUBLISHED, facts, metrics)
        sync_folder(self.path)
        Bundle.load(self.path)
        return Ready(self, manifest.version)

    def abandon(self) -> None:
        """Remove what was not published, and give up the lock of the directory."""
        if self.lock.closed:
            return
        with self.lock, suppress(OSError):  # what stays goes when the next stage is opened
            _settle(self.target.parent)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()


@dataclass(frozen=True)
class Ready:
    """A stage that may be published, and the version of its bundle."""

    stage: Stage
    version: str


def publish(ready: Ready, overwrite: bool = False) -> Bundle:
    """Make the stage the bundle of its directory and verify it there; profiles and the files beside come along.

    Returns:
        The bundle, read again from where it is now. The stage is over and the directory free.

    Raises:
        BundleError: there is a bundle already and `overwrite` is false, or the new one does not verify in its place.
        OSError: the disk is full or fails. Readers see what they saw before; or the new bundle, if only what belongs
            to it cannot follow: the next stage moves that.
    """
    stage = ready.stage
    if stage.target.exists() and not overwrite:
        raise BundleError(f"{stage.target} exists: publish into another directory, or overwrite it")
    directory = stage.target.parent
    sync_files(stage.beside)
    os.rename(stage.beside, directory / f"{_BESIDE}{ready.version}")
    sync_folder(directory)
    old = place_folder(stage.path, stage.target)
    try:
        sync_folder(directory)
        bundle = Bundle.load(stage.target)
    except (BundleError, OSError):
        _take_back(stage, old)
        raise
    _settle(directory)
    stage.lock.close()
    return bundle


def read_version(bundle: Path) -> str | None:
    """Read the version of a published bundle from its manifest alone; None if there is none."""
    try:
        return Manifest.from_bytes((bundle / MANIFEST).read_bytes()).version
    except (BundleError, OSError):
        return None


def _seal(path: Path, required: frozenset[str], facts: Facts, metrics: Mapping[str, Any]) -> Manifest:
    names = {entry.name for entry in path.iterdir()} - {MANIFEST}
    for name in sorted(required - names):
        raise BundleError(f"{name} is missing from the stage: write it before the manifest")
    for name in sorted(names - PUBLISHED):
        raise BundleError(f"{name!r} is no file of a bundle; allowed: {', '.join(sorted(PUBLISHED))}")
    space_id, dim = read_space(path)
    files = {name: hash_file(path / name) for name in sorted(names)}
    manifest = Manifest.create(facts, space_id, dim, files, metrics)
    write_file(path / MANIFEST, manifest.to_bytes())
    return manifest


def _take_back(stage: Stage, old: Path | None) -> None:
    """Undo the placing of a stage that does not verify where it is."""
    if old == stage.path:  # the two were exchanged
        place_folder(old, stage.target)
    else:
        os.rename(stage.target, stage.path)
        if old is not None:
            os.rename(old, stage.target)
    sync_folder(stage.target.parent)


def _settle(directory: Path) -> None:
    """Give the bundle what belongs to it and remove stages; called under the lock."""
    target = directory / BUNDLE
    for aside in sorted(directory.glob(f"{_ASIDE}*")):
        if not target.exists():  # killed between two renames
            os.rename(aside, target)
    version = read_version(target)
    settle_profiles(directory / PROFILES, version)
    for folder in directory.glob(f"{_BESIDE}{version}"):
        for path in sorted(folder.iterdir()):
            os.replace(path, directory / path.name)
        sync_folder(directory)
    for pattern in (_STAGED, _BESIDE):
        for path in directory.glob(f"{pattern}*"):
            shutil.rmtree(path, ignore_errors=True)
