"""Stage a bundle out of sight, publish it in one step: a kill leaves the old bundle or the new one.

DIR/.lock              held from the opening of a stage to its end: one stage at a time
DIR/.bundle-<uuid>/    the stage; files are written here, evaluated, sealed by a manifest
DIR/bundle/            what readers see

stage = Stage.open(DIR); write files into stage.path; stage.seal(...); evaluate; publish(stage, ...)
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from serve.bundle import Bundle
from serve.durable import place_folder, sync_files, sync_folder, write_file
from serve.errors import BundleError
from serve.folder import hash_file
from serve.layout import ANSWERING, BUNDLE, KNOWN, MANIFEST, PUBLISHED, SCHEMA, VECTORS
from serve.manifest import Facts, Manifest, compute_space_id

_LOCK = ".lock"
_STAGED = f".{BUNDLE}-"
_ASIDE = f".{BUNDLE}-old-"


@dataclass(frozen=True)
class Stage:
    """A bundle in the making. Used with `with`, it is abandoned at the end unless it was published."""

    path: Path
    """Where the files go."""
    target: Path
    """Where the bundle will be."""
    lock: BinaryIO
    """The lock falls when the file is closed or the process dies."""

    @classmethod
    def open(cls, directory: Path) -> Stage:
        """Begin a stage in a run's directory and clear what a killed run left there.

        Raises:
            BundleError: another stage is open in the directory.
        """
        directory.mkdir(parents=True, exist_ok=True)
        lock = _take_lock(directory)
        _clear_leftovers(directory)
        path = directory / f"{_STAGED}{uuid.uuid4().hex}"
        path.mkdir()
        return cls(path, directory / BUNDLE, lock)

    def seal(self, facts: Facts, metrics: Mapping[str, Any]) -> Manifest:
        """Hash the files and write the manifest over them; again whenever a file was added.

        Raises:
            BundleError: a file is missing or of no known name.
        """
        return _seal(self.path, ANSWERING, facts, metrics)

    def abandon(self) -> None:
        """Remove the stage, if it is still there, and give the directory free."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.lock.close()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.abandon()


def publish(stage: Stage, facts: Facts, metrics: Mapping[str, Any], overwrite: bool = False) -> Bundle:
    """Make the stage the bundle of its directory, verified before and after.

    Args:
        stage: with all its files, the golden requests too.
        facts: for the manifest.
        metrics: for the manifest.
        overwrite: replace a bundle that is there.

    Returns:
        The bundle, read again from where it is now.

    Raises:
        BundleError: there is a bundle already, or the stage does not verify.
        OSError: the disk is full or fails. In both cases readers see what they saw before.
    """
    if stage.target.exists() and not overwrite:
        raise BundleError(f"{stage.target} exists: publish into another directory, or overwrite it")
    sync_files(stage.path)
    _seal(stage.path, PUBLISHED, facts, metrics)
    sync_folder(stage.path)
    Bundle.load(stage.path)
    old = place_folder(stage.path, stage.target)
    try:
        sync_folder(stage.target.parent)
        bundle = Bundle.load(stage.target)
    except (BundleError, OSError):
        _take_back(stage, old)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)  # what stays goes when the next stage is opened
    return bundle


def _seal(path: Path, required: frozenset[str], facts: Facts, metrics: Mapping[str, Any]) -> Manifest:
    names = {entry.name for entry in path.iterdir()} - {MANIFEST}
    for name in sorted(required - names):
        raise BundleError(f"{name} is missing from the stage: write it before the manifest")
    for name in sorted(names - KNOWN):
        raise BundleError(f"{name!r} is no file of a bundle; allowed: {', '.join(sorted(KNOWN))}")
    vectors = np.load(path / VECTORS, mmap_mode="r", allow_pickle=False)
    space_id = compute_space_id(vectors, (path / SCHEMA).read_bytes())
    files = {name: hash_file(path / name) for name in sorted(names)}
    manifest = Manifest.create(facts, space_id, vectors.shape[1], files, metrics)
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


def _take_lock(directory: Path) -> BinaryIO:
    lock = (directory / _LOCK).open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise BundleError(f"another run writes into {directory}: wait for it, or choose another") from error
    return lock


def _clear_leftovers(directory: Path) -> None:
    """Remove the stages of dead runs; the lock says that no living one has any."""
    target = directory / BUNDLE
    for aside in sorted(directory.glob(f"{_ASIDE}*")):
        if not target.exists():  # killed between two renames
            os.rename(aside, target)
    for path in directory.glob(f"{_STAGED}*"):
        shutil.rmtree(path, ignore_errors=True)
