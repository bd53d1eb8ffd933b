"""Versions of a bundle side by side, one of them current: publish, activate, roll back, and load for a service.

REGISTRY/<version>/     a complete bundle that nobody changes any more, named by its version
REGISTRY/CURRENT        the version to serve, one line; replacing this file is the one step that counts
REGISTRY/HISTORY        the versions that were current, the latest first: where a rollback goes
REGISTRY/.lock          held by whoever publishes, activates or rolls back
REGISTRY/.version-*     a version that is being copied or removed
REGISTRY/profiles/, REGISTRY/state/
                        what is known of people, if it is not kept elsewhere: of no version, and never copied
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from serve.bundle import (
    CURRENT,
    HISTORY,
    MANIFEST,
    PUBLISHED,
    SCHEMA,
    Bundle,
    Manifest,
    read_folder,
    read_steadily,
    replay,
)
from serve.durable import sync_folder, take_lock, write_file
from serve.errors import BundleError, SchemaError, name_nearest
from serve.recommender import Recommender, golden_answer

LOADING_ERRORS = (ValueError, OSError, MemoryError)
"""What loading a version raises; BundleError and SchemaError are ValueErrors."""
_LOCK = ".lock"
_STAGED = ".version-"
_VERSION = re.compile(r"[0-9a-f]{12}")
_MAX_PAST = 100
_MAX_BYTES = 1 << 14
_HEADLINES = (("all", "NDCG@20"), ("novel", "NDCG@10"))
"""View and metric that runs are compared by, with repeats and without them."""


@dataclass(frozen=True)
class Registry:
    """A folder of versions."""

    path: Path

    def folder(self, version: str) -> Path:
        """Return the folder of a version.

        Raises:
            BundleError: no name of a version, no such version, or a link in its place.
        """
        folder = self.path / _check_version(version, "version")
        if not os.path.lexists(folder):
            raise BundleError(f"version {version} is not in the registry; {name_nearest(version, self.versions())}")
        if folder.is_symlink() or not folder.is_dir():
            raise BundleError(f"version {version} is no folder in the registry, or a link: copy the folder itself")
        return folder

    def versions(self) -> list[str]:
        """Return the versions that were published, the latest first; damaged ones too."""
        if not self.path.is_dir():
            return []
        found = [path for path in self.path.iterdir() if _VERSION.fullmatch(path.name) and not path.is_symlink()]
        return [path.name for path in sorted(found, key=lambda path: (-_published_at(path), path.name))]

    def current(self) -> str:
        """Read which version is to be served.

        Raises:
            BundleError: none, or no plain file with the name of a version in it.
        """
        text = self._read(CURRENT)
        if text is None:
            hint = f"{CURRENT} is missing; choose one with `activate`"
            raise BundleError(f"no version is current in {self.path}: {hint}")
        return _check_version(text.removesuffix("\n"), CURRENT)

    def find_current(self) -> str | None:
        """Return the version that `CURRENT` names, None if it names none."""
        with suppress(BundleError):
            return self.current()
        return None

    def past(self) -> list[str]:
        """Return the versions that were current before the present one, the latest first."""
        current = self.find_current()
        versions = [line for line in (self._read(HISTORY) or "").splitlines() if _VERSION.fullmatch(line)]
        return versions[versions.index(current) + 1 :] if current in versions else versions

    def set_current(self, version: str, past: Sequence[str]) -> None:
        """Let a version be served from now on.

        The history is written before, with the version at its head: whatever is current after a kill, what follows it
        in the history was current before it.
        """
        if (self.path / CURRENT).is_dir():  # no file can take its place
            advice = "expected a file: move the folder away, then try again"
            raise BundleError(f"{CURRENT} in {self.path} is a folder; {advice}")
        history = [version, *(name for name in past if name != version)][:_MAX_PAST]
        for name, lines in ((HISTORY, history), (CURRENT, [version])):
            write_file(self.path / name, "".join(f"{line}\n" for line in lines).encode())
            sync_folder(self.path)

    def new_folder(self) -> Path:
        """Make a folder that nobody reads, and that the next writer removes."""
        folder = self.path / f"{_STAGED}{uuid.uuid4().hex}"
        folder.mkdir()
        return folder

    def remove(self, folder: Path) -> None:
        """Remove a version; readers see all of it or nothing."""
        aside = self.path / f"{_STAGED}{uuid.uuid4().hex}"
        os.rename(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)

    @contextmanager
    def writing(self, wait: bool = True) -> Iterator[None]:
        """Be the only one who changes the registry, and clear what a killed one left.

        Raises:
            BundleError: there is no registry, or the folder is a bundle.
        """
        if not self.path.is_dir():
            raise BundleError(f"no registry at {self.path}: publish a bundle into it first")
        if all((self.path / name).is_file() for name in (MANIFEST, SCHEMA)):  # the lock would be a file too many in it
            raise BundleError(f"{self.path} is a bundle, no registry: give another folder, or the bundle as --bundle")
        with take_lock(self.path / _LOCK, wait):
            self._clear()
            try:
                yield
            finally:
                self._clear()

    def _clear(self) -> None:
        for staged in self.path.glob(f"{_STAGED}*"):
            shutil.rmtree(staged, ignore_errors=True)

    def _read(self, name: str) -> str | None:
        """Read a small file that is no link; None if there is none."""
        path = self.path / name
        if not os.path.lexists(path):
            return None
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{name} is no plain file: remove it and choose a version with `activate`")
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES or not content.isascii():
            raise BundleError(f"{name} is no list of versions: remove it and choose a version with `activate`")
        return content.decode("ascii")


@dataclass(frozen=True)
class Published:
    """The outcome of a publication: the version, whether the registry lacked it, and the versions that made room."""

    version: str
    is_new: bool
    removed: Sequence[str]


@dataclass(frozen=True)
class RolledBack:
    """The outcome of a rollback: the version now, the one before (None: unreadable), and why others were skipped."""

    version: str
    left: str | None
    skipped: Sequence[str]


def publish(registry: Registry, bundle: Path, keep: int, is_activated: bool = False) -> Published:
    """Copy a bundle into the registry.

    Args:
        registry: made if need be.
        bundle: its folder.
        keep: how many of the latest versions stay. The current version and the one before it stay anyway.
        is_activated: let the version be served from now on.

    Raises:
        BundleError: the bundle, or its copy, does not verify.
        OSError: the disk is full or fails. In both cases the registry is as it was.
    """
    if keep < 1:
        raise BundleError(f"keep is {keep}; allowed: 1 or more")
    if (bundle / MANIFEST).is_file() and bundle.resolve() in (registry.path / "x").resolve().parents:
        raise BundleError(f"{registry.path} is in the bundle: give another place for the registry")
    try:
        registry.path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise BundleError(f"{registry.path} is no folder: give another place for the registry") from error
    with registry.writing():
        version, is_new = _copy(registry, bundle)
        if is_activated:
            _activate(registry, version)
        return Published(version, is_new, _prune(registry, version, keep))


def publish_and_activate(registry: Registry, bundle: Path, keep: int) -> Published:
    """Publish a version and let it be served; nobody can come between."""
    return publish(registry, bundle, keep, is_activated=True)


def activate(registry: Registry, version: str) -> None:
    """Let a version be served from now on, after it was verified.

    Raises:
        BundleError: no such version, or it does not verify: what was current stays so.
    """
    with registry.writing():
        _activate(registry, version)


def rollback(registry: Registry) -> RolledBack:
    """Let the version be served that was current before; damaged ones on the way back are skipped.

    Raises:
        BundleError: none is left to go back to: what was current stays so.
    """
    with registry.writing():
        current, past = registry.find_current(), registry.past()
        skipped: list[str] = []
        for place, version in enumerate(past):
            fault = _find_fault(registry, version)
            if fault is None:
                registry.set_current(version, past[place + 1 :])
                return RolledBack(version, current, skipped)
            skipped.append(fault)
        tried = f" ({'; '.join(skipped)})" if skipped else ""
        raise BundleError(f"no version to go back to: none that was current before is whole{tried}; use `activate`")


def describe_registry(registry: Registry) -> list[str]:
    """Return a line for each version, the latest first, then what is wrong with `CURRENT`."""
    versions = registry.versions()
    if not versions:
        return [f"no versions in {registry.path}: publish a bundle into it first"]
    current, fault = None, ""
    try:
        current = registry.current()
    except BundleError as error:
        fault = str(error)
    if current is not None and current not in versions:
        fault = f"{CURRENT} is {current}, which is not in the registry"
    lines = [f"   {'version':12}  {'published (UTC)':16}  {'data until (UTC)':16}  headline"]
    for version in versions:
        folder = registry.path / version
        day, headline = _describe(folder)
        mark = "*" if version == current else " "
        lines.append(f"{mark}  {version:12}  {_day(_published_at(folder)):16}  {day:16}  {headline}")
    return [*lines, fault] if fault else lines


def verify_version(folder: Path, version: str) -> None:
    """Read a version as a service would, and let it answer its golden requests.

    Raises:
        BundleError: anything missing, altered, of another version, or answered differently here.
    """
    recommender = Recommender(Bundle.load(folder))
    _check_loaded(recommender, version)
    replay(recommender.bundle.golden, golden_answer(recommender))


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
        registry.remove(registry.folder(manifest.version))
    os.rename(stage, target)
    sync_folder(registry.path)
    read_folder(target, PUBLISHED)
    return manifest.version, True


def _activate(registry: Registry, version: str) -> None:
    verify_version(registry.folder(version), version)
    current = registry.find_current()
    if current != version:
        registry.set_current(version, [*([] if current is None else [current]), *registry.past()])


def _prune(registry: Registry, published: str, keep: int) -> list[str]:
    """Remove the oldest versions above `keep`, but none that is served, that a rollback needs, or that just came."""
    current = registry.find_current()
    if current is None and os.path.lexists(registry.path / CURRENT):
        return []  # which one is served cannot be told
    versions = registry.versions()
    before = [version for version in registry.past() if version in versions]
    needed = {published, current, *before[:1]}
    removed = [version for version in versions[keep:] if version not in needed]
    for version in removed:
        registry.remove(registry.path / version)
    return removed


def _find_fault(registry: Registry, version: str) -> str | None:
    """Return why a version cannot be served, None if it can."""
    try:
        verify_version(registry.folder(version), version)
    except ValueError as error:
        return str(error)
    return None


def _check_version(version: str, where: str) -> str:
    """Return a text that names a version; it becomes part of a path, so nothing else may."""
    if not _VERSION.fullmatch(version):
        shown = repr(version[:40])
        raise BundleError(f"{where} is {shown}; expected the 12 digits 0-9a-f of a version: `list` shows them")
    return version


def _check_loaded(recommender: Recommender, version: str) -> None:
    found = recommender.bundle.manifest.version
    if found != version:
        raise BundleError(f"version {version} holds {MANIFEST} of {found}: remove its folder and publish it again")


def _published_at(folder: Path) -> float:
    """Return when a version was published, UTC seconds: its manifest was written last."""
    with suppress(OSError):
        return (folder / MANIFEST).stat().st_mtime
    return 0.0


def _describe(folder: Path) -> tuple[str, str]:
    """Return until when a version's data goes, and its headline figure."""
    try:
        manifest = Manifest.from_bytes((folder / MANIFEST).read_bytes())
    except (BundleError, OSError) as error:
        return "", f"damaged: {error}"
    views: dict[str, Any] = manifest.metrics.get("test", {}).get("bascule", {})
    found = [(name, view) for view, name in _HEADLINES if name in views.get(view, {})]
    headline = f"{found[0][0]} {views[found[0][1]][found[0][0]]:.4f} ({found[0][1]})" if found else "not tested"
    until = manifest.facts.data_until  # 0 of data without times
    return _day(until) if until else "no times", headline


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%d %H:%M")


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A version in memory. A request takes it once, so that its answer is of one version throughout."""

    recommender: Recommender
    folder: Path
    loaded_at: float = field(default_factory=time.time)
    """UTC seconds."""

    @property
    def version(self) -> str:
        return self.recommender.bundle.manifest.version


class Source(Protocol):
    """Where a service takes its version from."""

    def start(self) -> tuple[Snapshot, str | None]:
        """Load for the first time: the version that is wanted, or an earlier one and the reason."""

    def load(self) -> Snapshot:
        """Load the version that is wanted now."""

    def explain(self, error: BaseException) -> str:
        """Say in one line why loading failed, without a path of this machine or a value of a profile."""


@dataclass(frozen=True)
class BundleSource:
    """A bundle's folder, which a training may replace."""

    folder: Path
    profiles: Path | None = None
    """Default: the folder `profiles` beside the bundle, if there is one."""

    def start(self) -> tuple[Snapshot, None]:
        return self.load(), None

    def load(self) -> Snapshot:
        return Snapshot(Recommender.load(self.folder, self.profiles), self.folder)

    def explain(self, error: BaseException) -> str:
        return _explain(error, [self.folder, self.profiles])


@dataclass(frozen=True)
class RegistrySource:
    """The current version of a registry."""

    registry: Registry
    profiles: Path | None = None
    """Default: the folder `profiles` of the registry, if there is one."""

    def start(self) -> tuple[Snapshot, str | None]:
        with suppress(OSError), self.registry.writing(wait=False):  # clear what a killed publisher left
            pass
        try:
            return self.load(), None
        except LOADING_ERRORS as error:
            reason = self.explain(error)
        for version in self.registry.past():
            with suppress(*LOADING_ERRORS):
                return self._load(version), f"{reason}; {version} answers, which was current before"
        raise BundleError(f"{reason}; nor can an earlier version be loaded")

    def load(self) -> Snapshot:
        while True:
            version = self.registry.current()
            try:
                return self._load(version)
            except LOADING_ERRORS:
                if self.registry.find_current() == version:  # else another one became current meanwhile
                    raise

    def explain(self, error: BaseException) -> str:
        return _explain(error, [self.registry.path, self.profiles])

    def _load(self, version: str) -> Snapshot:
        folder = self.registry.folder(version)
        recommender = Recommender.load(folder, self.profiles)
        _check_loaded(recommender, version)
        return Snapshot(recommender, folder)


def _explain(error: BaseException, paths: Sequence[Path | None]) -> str:
    if isinstance(error, MemoryError):
        return "the memory does not suffice for a second version beside the one that answers"
    if isinstance(error, OSError):
        reason = error.strerror or "a file cannot be read"
        return reason if error.filename is None else f"{Path(str(error.filename)).name}: {reason}"
    if isinstance(error, SchemaError):  # its message shows the value
        return "a value of the profiles, the live items or the golden requests does not fit the bundle"
    message = " ".join(str(error).split())
    parents = {f"{known.parent}/" for path in paths if path is not None for known in (path.absolute(), path)}
    for parent in sorted(parents, key=len, reverse=True):  # of two within each other, the outer one is a part
        message = message.replace(parent, "")
    return message


@dataclass(frozen=True)
class Outcome:
    """The outcome of a reload: whether a version was loaded, which one answers now, and why none was loaded."""

    is_loaded: bool
    version: str
    reason: str | None
    time: float
    """UTC seconds."""


class Serving:
    """The snapshot that answers, exchanged by one reference: `current` never waits for a reload or a change."""

    def __init__(self, snapshot: Snapshot, complete: Callable[[Snapshot], Snapshot], reason: str | None = None) -> None:
        """Begin to serve.

        Args:
            snapshot: answers first.
            complete: puts live items on every version that is loaded.
            reason: why it is not the version that was wanted.
        """
        self._current = complete(snapshot)
        self._complete = complete
        self._changing = threading.Lock()
        self._loading = threading.Lock()
        self.last_reload = None if reason is None else Outcome(False, snapshot.version, reason, time.time())

    def current(self) -> Snapshot:
        """Return the snapshot that answers now: take it once for a request and ask nothing else."""
        return self._current

    def change(self, make: Callable[[Snapshot], Snapshot]) -> Snapshot:
        """Let a snapshot made of the present one answer from now on; no reload comes between the two."""
        with self._changing:
            self._current = make(self._current)
            return self._current

    def reload(self, source: Source) -> Outcome:
        """Load a version and let it answer from now on; whatever fails, the present one answers on."""
        with self._loading:
            reason = None
            try:
                loaded = source.load()
                with self._changing:
                    self._current = self._complete(loaded)
            except LOADING_ERRORS as error:
                reason = source.explain(error)
            self.last_reload = Outcome(reason is None, self._current.version, reason, time.time())
            return self.last_reload
