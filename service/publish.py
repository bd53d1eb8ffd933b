"""Bundles published in one step into the folder of a run: a kill leaves the old bundle or the new.

with Stage.open(DIR) as stage:
    ...                              # write files into stage.path
    publish(stage.prepare(facts, metrics))

DIR/.lock              held from the opening of a stage to its end: one stage at a time
DIR/.bundle-<uuid>/    the stage
DIR/.beside-<uuid>/    what comes into DIR with the bundle, such as its metrics
DIR/bundle/            what readers see; placing this folder is the one step that counts

Profiles are staged before that step. The files beside follow it; until they have their place they
are named by the version, so that the next stage moves them after a kill in between.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serve.bundle import (
    BUNDLE,
    MANIFEST,
    MEASURED,
    METRICS,
    PROFILES,
    PUBLISHED,
    REPORT,
    SIGNATURE,
    Bundle,
    Facts,
    FileEntry,
    Manifest,
    read_folder,
    read_space,
)
from serve.errors import BundleError
from serve.files import (
    FORGOTTEN,
    OPTED_OUT,
    place_folder,
    sign_text,
    sync_files,
    sync_folder,
    take_lock,
    write_file,
)
from serve.profiles import settle_profiles

LOCK = ".lock"
_STAGED = f".{BUNDLE}-"
_ASIDE = f".{BUNDLE}-old-"
_BESIDE = ".beside-"


@dataclass(frozen=True)
class Stage:
    """A bundle in the making.

    Attributes:
        path: folder of its files.
        beside: folder of the files that come into the directory with the bundle.
        target: where the bundle will be.
    """

    path: Path
    beside: Path
    target: Path

    @classmethod
    @contextmanager
    def open(cls, directory: Path) -> Iterator[Stage]:
        """Begin a stage in a run's directory, and complete or clear what a killed run left there.

        The directory is locked to the end of the `with`, where an unpublished stage is removed.

        Raises:
            BlockingIOError: another run has the lock.
        """
        directory.mkdir(parents=True, exist_ok=True)
        with take_lock(directory / LOCK, wait=False):
            _settle(directory)
            name = uuid.uuid4().hex
            stage = cls(
                directory / f"{_STAGED}{name}",
                directory / f"{_BESIDE}{name}",
                directory / BUNDLE,
            )
            stage.path.mkdir()
            stage.beside.mkdir()
            try:
                yield stage
            finally:
                with suppress(OSError):  # the next stage removes what stays
                    _settle(directory)

    def seal(self, facts: Facts, metrics: Mapping[str, Any]) -> Manifest:
        """Hash the files and write the manifest over them; again whenever a file was added."""
        files = {}
        for path in self.path.iterdir():
            if path.name != MANIFEST:
                files[path.name] = FileEntry.of(np.fromfile(path, np.uint8))

        space_id, dim = read_space(self.path)
        manifest = Manifest(facts, space_id, files, dim, metrics, sha256="").seal()
        write_file(self.path / MANIFEST, manifest.to_bytes())
        return manifest

    def prepare(self, facts: Facts, metrics: Mapping[str, Any]) -> Ready:
        """Bring a complete stage to disk, seal and verify it.

        Raises:
            BundleError: a file is missing, is none of a bundle, or does not fit the others.
        """
        sync_files(self.path)
        manifest = self.seal(facts, metrics)
        sync_folder(self.path)
        Bundle.load(self.path)
        return Ready(self, manifest.version)


@dataclass(frozen=True)
class Ready:
    """A stage that may be published, and the version of its bundle."""

    stage: Stage
    version: str


def publish(ready: Ready, overwrite: bool = False) -> Bundle:
    """Make the stage the bundle of its directory.

    Args:
        ready: a stage that was prepared.
        overwrite: replace the bundle that is there.

    Returns:
        The bundle, loaded from its place.

    Raises:
        BundleError: there is a bundle.
    """
    stage = ready.stage
    if stage.target.exists() and not overwrite:
        raise BundleError(
            f"{stage.target} exists: publish into another directory, or overwrite it"
        )

    directory = stage.target.parent
    sync_files(stage.beside)
    os.rename(stage.beside, directory / f"{_BESIDE}{ready.version}")
    sync_folder(directory)
    place_folder(stage.path, stage.target)
    sync_folder(directory)
    _settle(directory)
    return Bundle.load(stage.target)


def copy_run(bundle: Path, target: Path) -> None:
    """Copy what is loaded, with its figures and lists of users, into an empty folder.

    Args:
        bundle: folder of the bundle, in that of its run.
        target: the empty folder.
    """
    run = bundle.parent
    for name in (METRICS, REPORT, FORGOTTEN, OPTED_OUT):
        if (run / name).exists():
            shutil.copy2(run / name, target / name)

    for name in (PROFILES, MEASURED):
        if (run / name).is_dir():
            shutil.copytree(run / name, target / name)
    # the bundle comes last: without it nothing in the folder is loaded
    shutil.copytree(bundle, target / BUNDLE)


def read_version(bundle: Path) -> str | None:
    """Read the version of a published bundle from its manifest alone; None if there is none."""
    try:
        return Manifest.from_bytes((bundle / MANIFEST).read_bytes()).version
    except (BundleError, OSError):
        return None


def sign(path: Path, key_file: Path) -> str:
    """Sign a bundle, in place of an earlier signature; its version stays.

    Args:
        path: folder of the bundle.
        key_file: file of an Ed25519 private key in PEM.

    Returns:
        The id of the key.
    """
    _, contents = read_folder(path, PUBLISHED)
    key_id, signature = sign_text(contents[MANIFEST].tobytes(), key_file)
    folder = path.absolute()
    # it comes into the folder complete: a reader refuses any other file there
    aside = folder.with_name(f".{folder.name}-{SIGNATURE}")
    write_file(aside, signature)
    os.replace(aside, path / SIGNATURE)
    sync_folder(path)
    return key_id


def _settle(directory: Path) -> None:
    """Give the bundle what belongs to it and remove stages; called under the lock."""
    bundle = directory / BUNDLE
    for aside in sorted(directory.glob(f"{_ASIDE}*")):
        if not bundle.exists():  # killed between two renames
            os.rename(aside, bundle)

    version = read_version(bundle)
    settle_profiles(directory / PROFILES, version)
    for folder in directory.glob(f"{_BESIDE}{version}"):
        for path in sorted(folder.iterdir()):
            target = directory / path.name
            if target.is_dir():  # of an earlier run
                shutil.rmtree(target)
            os.replace(path, target)
        sync_folder(directory)

    remove_all(directory, _STAGED)
    remove_all(directory, _BESIDE)


def remove_all(directory: Path, prefix: str) -> None:
    """Remove the folders whose names begin with a prefix; what cannot be removed stays."""
    for path in list(directory.glob(f"{prefix}*")):
        shutil.rmtree(path, ignore_errors=True)
