"""Bundles published in one step into the folder of a run."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.bundle import (
    ALLOWED,
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
from serve.errors import BundleError
from serve.files import place_folder, sync_files, sync_folder, take_lock, write_file
from serve.profiles import settle_profiles

LOCK = ".lock"


_STAGED = f".{BUNDLE}-"


_ASIDE = f".{BUNDLE}-old-"


_BESIDE = ".beside-"


@dataclass(frozen=True)
class Stage:
    """A bundle in the making."""

    path: Path  # folder of its files
    beside: Path  # folder of the files that come into the directory with the bundle
    target: Path  # where the bundle will be

    @classmethod
    @contextmanager
    def open(cls, directory: Path) -> Iterator[Stage]:
        """Begin a stage in a run's directory, after what a killed run left there is completed or cleared.

        The directory is locked to the end of the `with`; there the stage goes, unless it was published.
        """
        directory.mkdir(parents=True, exist_ok=True)
        try:
            lock = take_lock(directory / LOCK, wait=False)
            name = uuid.uuid4().hex
        except BlockingIOError as error:
            raise BundleError(
                f"another run writes into {directory}: wait for it, or choose another"
            ) from error
        with lock:
            _settle(directory)
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
                with suppress(OSError):  # what stays goes when the next stage is opened
                    _settle(directory)

    def seal(
        self,
        facts: Facts,
        metrics: Mapping[str, Any],
        required: frozenset[str] = ANSWERING,
    ) -> Manifest:
        """Hash the files and write the manifest over them; again whenever a file was added."""
        names = {entry.name for entry in self.path.iterdir()} - {MANIFEST}
        for name in sorted(required - names):
            raise BundleError(
                f"{name} is missing from the stage: write it before the manifest"
            )
        for name in sorted(names - ALLOWED):
            raise BundleError(
                f"{name!r} is no file of a bundle; allowed: {', '.join(sorted(ALLOWED))}"
            )
        files = {name: hash_file(self.path / name) for name in sorted(names)}
        manifest = Manifest.create(facts, *read_space(self.path), files, metrics)
        write_file(self.path / MANIFEST, manifest.to_bytes())
        return manifest

    def prepare(self, facts: Facts, metrics: Mapping[str, Any]) -> Ready:
        """Bring a complete stage to disk, seal and verify it."""
        sync_files(self.path)
        manifest = self.seal(facts, metrics, PUBLISHED)
        sync_folder(self.path)
        Bundle.load(self.path)
        return Ready(self, manifest.version)


@dataclass(frozen=True)
class Ready:
    """A stage that may be published, and the version of its bundle."""

    stage: Stage
    version: str


def publish(ready: Ready, overwrite: bool = False) -> Bundle:
    """Make the stage the bundle of its directory; if it cannot be read there, readers see what they saw before."""
    stage = ready.stage
    if stage.target.exists() and not overwrite:
        raise BundleError(
            f"{stage.target} exists: publish into another directory, or overwrite it"
        )
    directory = stage.target.parent
    sync_files(stage.beside)
    os.rename(stage.beside, directory / f"{_BESIDE}{ready.version}")
    sync_folder(directory)
    old = place_folder(stage.path, stage.target)
    try:
        sync_folder(directory)
        bundle = Bundle.load(stage.target)
    except (BundleError, OSError):
        if old == stage.path:  # the two were exchanged
            place_folder(old, stage.target)
        else:  # after a kill in between, the old one is the only one to be put back
            os.rename(stage.target, stage.path)
            if old is not None:
                os.rename(old, stage.target)
        sync_folder(directory)
        raise
    _settle(directory)
    return bundle


def read_version(bundle: Path) -> str | None:
    """Read the version of a published bundle from its manifest alone; None if there is none."""
    try:
        return Manifest.from_bytes((bundle / MANIFEST).read_bytes()).version
    except (BundleError, OSError):
        return None


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
    remove_all(directory, _STAGED, _BESIDE)


def remove_all(directory: Path, *prefixes: str) -> None:
    for path in [path for prefix in prefixes for path in directory.glob(f"{prefix}*")]:
        shutil.rmtree(path, ignore_errors=True)  # what stays goes next time
