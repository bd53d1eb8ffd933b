"""Versions of a bundle side by side, one of which is current.

REGISTRY/<version>/    a complete bundle that nobody changes any more, named by its version
REGISTRY/CURRENT       the version to serve, one line; replacing this file is the step that counts
REGISTRY/HISTORY       the versions that were current, the latest first: where a rollback goes
REGISTRY/.lock         held by whoever publishes, activates or rolls back
REGISTRY/.version-*    a version that is being copied or removed
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from serve.bundle import (
    CURRENT,
    HISTORY,
    MANIFEST,
    PUBLISHED,
    SCHEMA,
    SIGNATURE,
    Bundle,
    Manifest,
    read_folder,
)
from serve.errors import BundleError, name_nearest, say
from serve.files import place_folder, sync_folder, take_lock, write_file
from serve.recommender import Recommender, replay
from service.command_line import align
from service.publish import LOCK, remove_all

LOADING_ERRORS = (ValueError, OSError, MemoryError)  # BundleError is a ValueError
_COPIED = ".version-"
_VERSION = re.compile(r"[0-9a-f]{12}")
_MAX_PAST = 100  # lines of the history, not versions on disk
_HEADLINES = (("all", "NDCG@20"), ("novel", "NDCG@10"))  # with repeats, without them


@dataclass(frozen=True)
class Registry:
    """A folder of versions. Profiles and state in it belong to no version.

    Attributes:
        trusted: file of public keys; a version that none of them has signed is not read.
    """

    path: Path
    trusted: Path | None = None

    def folder(self, version: str) -> Path:
        """Return the folder of a version.

        Raises:
            BundleError: the text names no version, or the registry does not have it.
        """
        folder = self.path / _check_name(version, "version")
        if folder.is_symlink() or not folder.is_dir():
            nearest = name_nearest(version, self.versions())
            raise BundleError(
                f"version {version} is not in the registry, or is a link; {nearest}"
            )

        return folder

    def versions(self) -> list[str]:
        """Return the versions that were published, the latest first; damaged ones too."""
        folders = [
            path
            for path in self.path.glob("*")
            if _VERSION.fullmatch(path.name) and not path.is_symlink()
        ]
        folders.sort(key=os.path.getmtime, reverse=True)
        return [path.name for path in folders]

    def current(self) -> str:
        """Read which version is to be served.

        Raises:
            BundleError: `CURRENT` is missing or damaged.
        """
        text = self._read(CURRENT)
        if text is None:
            raise BundleError(
                f"no version is current in {self.path}: {CURRENT} is missing; "
                "choose one with `bascule activate`"
            )

        return _check_name(text.removesuffix("\n"), CURRENT)

    def find_current(self) -> str | None:
        """Return the version that `CURRENT` names, None if it names none."""
        with suppress(BundleError):
            return self.current()
        return None

    def past(self) -> list[str]:
        """Return the versions that were current before the present one, the latest first."""
        lines = (self._read(HISTORY) or "").splitlines()
        versions = [line for line in lines if _VERSION.fullmatch(line)]
        current = self.find_current()
        if current not in versions:
            return versions
        return versions[versions.index(current) + 1 :]

    def set_current(self, version: str, past: Sequence[str]) -> None:
        """Make a version current.

        The history is written first, so that after a kill it holds whatever is current.

        Args:
            version: the version to serve.
            past: the versions before it, the latest first.
        """
        earlier = [name for name in past if name != version]
        self._write(HISTORY, [version, *earlier][:_MAX_PAST])
        self._write(CURRENT, [version])

    @contextmanager
    def writing(self, wait: bool = True) -> Iterator[None]:
        """Take the lock of the registry, and clear what a killed process left.

        Raises:
            BundleError: the folder is no registry.
            BlockingIOError: another process has the lock, and `wait` is false.
        """
        if not self.path.is_dir():
            raise BundleError(
                f"no registry at {self.path}: publish a bundle into it first"
            )

        # the lock would be a file too many in a bundle
        if all((self.path / name).is_file() for name in (MANIFEST, SCHEMA)):
            raise BundleError(
                f"{self.path} is a bundle, no registry: "
                "give another folder, or the bundle as --bundle"
            )

        with take_lock(self.path / LOCK, wait):
            remove_all(self.path, _COPIED)
            try:
                yield
            finally:
                remove_all(self.path, _COPIED)

    def make_aside(self) -> Path:
        """Name a folder that readers ignore."""
        return self.path / f"{_COPIED}{uuid.uuid4().hex}"

    def _write(self, name: str, versions: Sequence[str]) -> None:
        lines = "".join(f"{version}\n" for version in versions)
        write_file(self.path / name, lines.encode())
        sync_folder(self.path)

    def _read(self, name: str) -> str | None:
        """Read a file that is no link; None if there is none."""
        path = self.path / name
        if not os.path.lexists(path):
            return None
        if path.is_symlink() or not path.is_file():
            raise BundleError(
                f"{name} is no plain file: "
                "remove it and choose a version with `bascule activate`"
            )

        return path.read_text(encoding="ascii", errors="replace")


class Published(NamedTuple):
    """A published version."""

    version: str
    is_new: bool  # whether the registry lacked it
    removed: Sequence[str]  # older versions


class RolledBack(NamedTuple):
    """A version that is current again."""

    version: str
    left: str | None  # the version before; None: unreadable
    skipped: Sequence[str]  # why versions in between cannot be served


def publish_version(
    registry: Registry,
    bundle: Path,
    keep: int = 3,
    is_activated: bool = False,
) -> Published:
    """Copy a bundle into the registry, and remove old versions.

    Args:
        registry: made if there is none.
        bundle: folder of a published bundle.
        keep: number of latest versions to keep, beside the current one and the one before it.
        is_activated: make it current.

    Raises:
        BundleError: the bundle is damaged, not signed by a trusted key, or does not give its golden
            answers; then the registry is as it was.
    """
    if keep < 1:
        raise BundleError(f"keep is {keep}; allowed: 1 or more")
    registry.path.mkdir(parents=True, exist_ok=True)
    with registry.writing():
        version, is_new = _copy(registry, bundle)
        if is_activated:
            _activate(registry, version)
        return Published(version, is_new, _prune(registry, version, keep))


def activate(registry: Registry, version: str) -> None:
    """Verify a version and make it current; raise BundleError if it cannot be served."""
    with registry.writing():
        _activate(registry, version)


def rollback(registry: Registry) -> RolledBack:
    """Make the version current that was current before; damaged ones on the way are skipped.

    Raises:
        BundleError: no earlier version can be served.
    """
    with registry.writing():
        current = registry.find_current()
        past = registry.past()
        faults: list[str] = []
        for position, version in enumerate(past):
            fault = _find_fault(registry, version)
            if fault is None:
                registry.set_current(version, past[position + 1 :])
                return RolledBack(version, current, faults)
            faults.append(fault)

        tried = f" ({'; '.join(faults)})" if faults else ""
        raise BundleError(
            f"no version to go back to: no earlier one is whole{tried}; use `bascule activate`"
        )


def describe_registry(registry: Registry) -> list[str]:
    """Return a line for each version, the latest first, then what is wrong with `CURRENT`."""
    versions = registry.versions()
    if not versions:
        return [f"no versions in {registry.path}: publish a bundle into it first"]

    current = registry.find_current()
    rows = [["", "version", "published (UTC)", "data until (UTC)", "headline"]]
    for version in versions:
        folder = registry.path / version
        mark = "*" if version == current else ""
        published_at = os.path.getmtime(folder)
        rows.append([mark, version, _format_minute(published_at), *_describe(folder)])

    lines = align(rows)
    try:
        registry.folder(registry.current())
    except BundleError as error:
        lines.append(str(error))

    return lines


def _describe(folder: Path) -> tuple[str, str]:
    """Return until when a version's data goes, and its headline figure."""
    try:
        manifest = Manifest.from_bytes((folder / MANIFEST).read_bytes())
        views = manifest.metrics.get("test", {}).get("bascule", {})
        headline = "not tested"
        for view, name in _HEADLINES:
            if name in views.get(view, {}):
                headline = f"{name} {views[view][name]:.4f} ({view})"
                break
    except (ValueError, AttributeError, TypeError, OSError) as error:
        return "", f"damaged: {say(error)}"

    until = manifest.facts.data_until
    return _format_minute(until) if until else "no times", headline


def _format_minute(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%d %H:%M")


def _copy(registry: Registry, bundle: Path) -> tuple[str, bool]:
    """Bring a bundle in under its version, and say if it is new; a damaged copy is replaced."""
    manifest, contents = read_folder(bundle, PUBLISHED)
    version = manifest.version
    target = registry.path / version
    may_stay = os.path.lexists(target) and SIGNATURE not in contents
    if may_stay and _find_fault(registry, version) is None:
        return version, False

    stage = registry.make_aside()
    stage.mkdir()
    for name, content in contents.items():
        write_file(stage / name, content.data)

    sync_folder(stage)
    _verify(stage, version, registry.trusted)
    old = place_folder(stage, target)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)

    sync_folder(registry.path)
    return version, True


def _activate(registry: Registry, version: str) -> None:
    _verify(registry.folder(version), version, registry.trusted)
    current = registry.find_current()
    past = registry.past()
    if current is not None:
        past.insert(0, current)
    registry.set_current(version, past)


def _prune(registry: Registry, published: str, keep: int) -> list[str]:
    """Remove the oldest versions above `keep`.

    The current version, the one that a rollback would return to, and the new one stay.
    """
    current = registry.find_current()
    if current is None and os.path.lexists(registry.path / CURRENT):
        return []  # nobody can tell which one is served

    versions = registry.versions()
    earlier = [version for version in registry.past() if version in versions]
    needed = {published, current, *earlier[:1]}
    removed = [version for version in versions[keep:] if version not in needed]

    for version in removed:
        # readers see all of it or nothing; the end of `writing` removes it
        os.rename(registry.path / version, registry.make_aside())

    return removed


def _verify(folder: Path, version: str, trusted: Path | None) -> None:
    """Read a version as a service would, and let it answer its golden requests."""
    recommender = Recommender(Bundle.load(folder, trusted=trusted))
    check_version(recommender, version)
    replay(recommender.bundle.golden, recommender.recommend)


def check_version(recommender: Recommender, version: str) -> None:
    """Raise BundleError if what was loaded from the folder of a version is another one."""
    if recommender.version != version:
        raise BundleError(
            f"version {version} holds {MANIFEST} of {recommender.version}: "
            "remove its folder and publish it again"
        )


def _find_fault(registry: Registry, version: str) -> str | None:
    """Return why a version cannot be served, None if it can."""
    try:
        _verify(registry.folder(version), version, registry.trusted)
        return None
    except ValueError as error:
        return str(error)


def _check_name(version: str, origin: str) -> str:
    """Return a text that names a version; it becomes part of a path, so nothing else may."""
    if not _VERSION.fullmatch(version):
        raise BundleError(
            f"{origin} is {version[:40]!r}; "
            "expected the 12 digits 0-9a-f of a version, see `bascule list`"
        )

    return version
