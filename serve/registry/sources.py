"""Where a service takes its version from: the folder of one bundle, or what is current in a registry.

Profiles are of no version. Those of a bundle lie beside it, and so those of a registry's versions lie in the
registry's folder, unless other ones are named.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from serve.bundle import PROFILES, identify_folder
from serve.errors import BundleError, SchemaError
from serve.profile_store import MANIFEST
from serve.recommender import Recommender
from serve.registry.pointer import find_current, read_current, read_past
from serve.registry.snapshot import Snapshot
from serve.registry.versions import Registry, check_loaded

LOADING_ERRORS = (ValueError, OSError, MemoryError)
"""What a version raises that cannot be loaded: BundleError and SchemaError are ValueErrors."""


class Source(Protocol):
    """Gives snapshots."""

    def start(self) -> tuple[Snapshot, str | None]:
        """Load for the first time: the version that is wanted, or an earlier one and the reason.

        Raises:
            BundleError: no version can be loaded.
        """

    def load(self) -> Snapshot:
        """Load the version that is wanted now, and let it answer its golden requests.

        Raises:
            BundleError: it cannot be trusted or read.
        """

    def identify(self) -> Hashable:
        """Return what differs if `load` would read something else than before."""

    def explain(self, error: BaseException) -> str:
        """Say in one line why loading failed, without a path of this machine or a value of a profile."""


@dataclass(frozen=True)
class BundleSource:
    """A bundle's folder, which a training may replace."""

    folder: Path
    profiles: Path | None = None
    """Default: the folder `profiles` beside the bundle, if there is one."""

    def start(self) -> tuple[Snapshot, None]:
        """Load it; there is no other one."""
        return self.load(), None

    def load(self) -> Snapshot:
        """Load what lies in the folder."""
        return Snapshot(Recommender.load(self.folder, self.profiles), self.folder)

    def identify(self) -> Hashable:
        """Return which folder and which profiles these are."""
        return _identify(self.folder), _identify_profiles(self.folder.absolute().parent, self.profiles)

    def explain(self, error: BaseException) -> str:
        """Say why loading failed."""
        return _explain(error, [self.folder, self.profiles])


@dataclass(frozen=True)
class RegistrySource:
    """What is current in a registry."""

    registry: Registry
    profiles: Path | None = None
    """Default: the folder `profiles` of the registry, if there is one."""

    def start(self) -> tuple[Snapshot, str | None]:
        """Load the current version, or the latest that was current before and can be loaded."""
        self.registry.clear()
        try:
            return self.load(), None
        except LOADING_ERRORS as error:
            reason = self.explain(error)
        path = self.registry.path
        for version in read_past(path, find_current(path)):
            with suppress(*LOADING_ERRORS):
                return self._load_version(version), f"{reason}; {version} answers, which was current before"
        raise BundleError(f"{reason}; nor can an earlier version be loaded")

    def load(self) -> Snapshot:
        """Load the current version; again where another one became current meanwhile."""
        while True:
            version = read_current(self.registry.path)
            try:
                return self._load_version(version)
            except LOADING_ERRORS:
                if find_current(self.registry.path) == version:
                    raise

    def identify(self) -> Hashable:
        """Return which version is current, in which folder, and which profiles these are."""
        path, version = self.registry.path, find_current(self.registry.path)
        folder = None if version is None else _identify(path / version)
        return version, folder, _identify_profiles(path, self.profiles)

    def explain(self, error: BaseException) -> str:
        """Say why loading failed."""
        return _explain(error, [self.registry.path, self.profiles])

    def _load_version(self, version: str) -> Snapshot:
        folder = self.registry.folder(version)
        recommender = Recommender.load(folder, self.profiles)
        check_loaded(recommender, version)
        return Snapshot(recommender, folder)


def _identify(path: Path) -> Hashable:
    with suppress(OSError):
        return identify_folder(path)
    return None


def _identify_profiles(beside: Path, named: Path | None) -> Hashable:
    """Every change of profiles replaces their manifest."""
    return _identify((named or beside / PROFILES) / MANIFEST)


def _explain(error: BaseException, paths: Iterable[Path | None]) -> str:
    if isinstance(error, MemoryError):
        return "the memory does not suffice for a second version beside the one that answers"
    if isinstance(error, OSError):
        return _explain_disk(error)
    if isinstance(error, SchemaError):  # its message shows the value
        return "a value of the profiles, the live items or the golden requests does not fit the bundle"
    message = " ".join(str(error).split())
    parents = {f"{known.parent}/" for path in filter(None, paths) for known in (path.absolute(), path)}
    for parent in sorted(parents, key=len, reverse=True):  # of two within each other, the outer one is a part
        message = message.replace(parent, "")
    return message


def _explain_disk(error: OSError) -> str:
    """Name the file without its folders; reading one that is open, or taking it into memory, names none."""
    reason = error.strerror or "a file cannot be read"
    return reason if error.filename is None else f"{Path(str(error.filename)).name}: {reason}"
