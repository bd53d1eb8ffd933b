"""Follow a source of versions: the folder of a bundle, or the current version of a registry."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from serve.errors import BundleError, SchemaError, say
from serve.recommender import Recommender
from service.registry import LOADING_ERRORS, Registry, check_version
from service.rotate import check_keys

NO_PROFILES = (
    "no profiles are here, so that a user is known by live events alone; give --profiles, "
    "a folder such as runs/demo/profiles"
)
_FOLDERS = re.compile(r"[^\s'\"]*/(?=[^\s'\"])")


@dataclass(frozen=True)
class BundleSource:
    """A bundle's folder, which a training may replace.

    Attributes:
        profiles: by default the folder `profiles` beside the bundle, if there is one.
        trusted: file of public keys; a bundle that none of them has signed is refused.
    """

    folder: Path
    profiles: Path | None = None
    trusted: Path | None = None

    def start(self) -> tuple[Recommender, None]:
        return self.load(), None

    def load(self) -> Recommender:
        return check_keys(Recommender.load(self.folder, self.profiles, self.trusted))

    def load_version(self, version: str) -> Recommender:
        raise SchemaError(
            f"an arm has the version '{version}', but one bundle is served: give --registry instead"
        )


@dataclass(frozen=True)
class RegistrySource:
    """The current version of a registry.

    Attributes:
        profiles: by default the folder `profiles` of the registry, if there is one.
    """

    registry: Registry
    profiles: Path | None = None

    def start(self) -> tuple[Recommender, str | None]:
        """Load the current version, or else the latest earlier one.

        Returns:
            The recommender, and why it is not the current version; None if it is.

        Raises:
            BundleError: no version can be loaded.
        """
        # clear what a killed publisher left, unless one is at work
        with suppress(OSError), self.registry.writing(wait=False):
            pass

        try:
            return self.load(), None
        except LOADING_ERRORS as error:
            reason = explain_fault(error)

        for version in self.registry.past():
            with suppress(*LOADING_ERRORS):
                recommender = self.load_version(version)
                return recommender, f"{reason}; the earlier version {version} answers"

        raise BundleError(f"{reason}; nor can an earlier version be loaded")

    def load(self) -> Recommender:
        """Load the current version; again if another one became current meanwhile."""
        while True:
            version = self.registry.current()
            try:
                return self.load_version(version)
            except LOADING_ERRORS:
                if self.registry.find_current() == version:
                    raise

    def load_version(self, version: str) -> Recommender:
        folder = self.registry.folder(version)
        recommender = Recommender.load(folder, self.profiles, self.registry.trusted)
        check_version(recommender, version)
        return check_keys(recommender)


Source = BundleSource | RegistrySource


def explain_fault(error: Exception) -> str:
    """Say why something cannot be loaded, without folders of this machine or values of users."""
    if isinstance(error, MemoryError):
        return "there is not enough memory for a second version beside the one that answers"
    if isinstance(error, SchemaError):  # its message shows the value
        return "a value of the profiles, live items or golden requests does not fit the bundle"
    return _FOLDERS.sub("", say(error))
