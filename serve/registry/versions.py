"""The folder of a registry: which versions it holds, and who may change that."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from serve import bundle as golden
from serve.bundle import MANIFEST, SCHEMA, Bundle
from serve.errors import BundleError, name_nearest
from serve.recommender import Recommender, golden_answer
from serve.registry.pointer import check_version, is_version

_LOCK = ".lock"
_STAGED = ".version-"


@dataclass(frozen=True)
class Registry:
    """A folder of versions."""

    path: Path

    def folder(self, version: str) -> Path:
        """Return where a version lies.

        Raises:
            BundleError: no name of a version, no such version, or a link in its place.
        """
        folder = self.path / check_version(version, "version")
        if not os.path.lexists(folder):
            raise BundleError(f"version {version} is not in the registry; {name_nearest(version, self.versions())}")
        if not _is_folder(folder):
            raise BundleError(f"version {version} is no folder in the registry, or a link: copy the folder itself")
        return folder

    def versions(self) -> list[str]:
        """Return the versions that were published, the latest first; damaged ones too."""
        if not self.path.is_dir():
            return []
        found = [path for path in self.path.iterdir() if is_version(path.name) and _is_folder(path)]
        return [path.name for path in sorted(found, key=lambda path: (-published_at(path), path.name))]

    def new_folder(self) -> Path:
        """Make a folder that nobody reads, and that is removed when somebody writes next."""
        folder = self.path / f"{_STAGED}{uuid.uuid4().hex}"
        folder.mkdir()
        return folder

    def take_out(self, folder: Path) -> None:
        """Remove a version; readers see all of it or nothing."""
        aside = self.path / f"{_STAGED}{uuid.uuid4().hex}"
        os.rename(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)  # what stays goes when somebody writes next

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only one who changes the registry, and clear what a killed one left; wait for another one.

        Raises:
            BundleError: there is no registry, or the folder is a bundle.
        """
        if not self.path.is_dir():
            raise BundleError(f"no registry at {self.path}: publish a bundle into it first")
        with self._locked(fcntl.LOCK_EX):
            yield

    def clear(self) -> None:
        """Clear what a killed publisher left, if nobody is writing and it can be done.

        Raises:
            BundleError: the folder is a bundle.
        """
        with suppress(OSError), self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):  # or it may only be read
            pass

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        if all((self.path / name).is_file() for name in (MANIFEST, SCHEMA)):  # the lock would be a file too many in it
            raise BundleError(f"{self.path} is a bundle, no registry: give another folder, or the bundle as --bundle")
        with (self.path / _LOCK).open("ab") as lock:
            fcntl.flock(lock, how)
            self._remove_staged()
            try:
                yield
            finally:
                self._remove_staged()

    def _remove_staged(self) -> None:
        for staged in self.path.glob(f"{_STAGED}*"):
            shutil.rmtree(staged, ignore_errors=True)


def published_at(folder: Path) -> float:
    """Return when a version was published, UTC seconds: its manifest was written last."""
    with suppress(OSError):
        return (folder / MANIFEST).stat().st_mtime
    return 0.0


def verify_version(folder: Path, version: str) -> None:
    """Read a version as a service would, and let it answer its golden requests.

    Raises:
        BundleError: anything missing, altered, of another version, or answered differently here.
    """
    recommender = Recommender(Bundle.load(folder))
    check_loaded(recommender, version)
    golden.replay(recommender.bundle.golden, golden_answer(recommender))


def check_loaded(recommender: Recommender, version: str) -> None:
    """Refuse a bundle that lies under the name of another version."""
    found = recommender.bundle.manifest.version
    if found != version:
        raise BundleError(f"version {version} holds {MANIFEST} of {found}: remove its folder and publish it again")


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)
