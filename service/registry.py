"""Bundles published in one step, into the folder of a run or as versions of a registry.

A kill leaves the old bundle or the new one.

with Stage.open(DIR) as stage: write files into stage.path; stage.seal(...); evaluate; publish(stage.prepare(...))

DIR/.lock              held from the opening of a stage to its end: one stage at a time
DIR/.bundle-<uuid>/    the stage
DIR/.beside-<uuid>/    files that come into DIR with the bundle, such as its metrics
DIR/bundle/            what readers see; its change of place is the one step that counts

Its profiles are staged before that. The files beside follow, named by the version until they have their place: after a
kill in between, the next stage that is opened moves them.

REGISTRY/<version>/    a complete bundle that nobody changes any more, named by its version
REGISTRY/CURRENT       the version to serve, one line; replacing this file is the one step that counts
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
    BUNDLE,
    CURRENT,
    HISTORY,
    MANIFEST,
    PUBLISHED,
    SCHEMA,
    SIGNATURE,
    Bundle,
    Manifest,
    read_folder,
    read_steadily,
)
from serve.errors import BundleError, SchemaError, name_nearest, say
from serve.files import place_folder, sync_folder, take_lock, write_file
from serve.golden import replay
from serve.recommender import Recommender, golden_answer
from service.command_line import align
from service.publish import LOCK, remove_all

KEPT_VERSIONS = 3  # the latest ones, by default
LOADING_ERRORS = (
    ValueError,
    OSError,
    MemoryError,
)  # BundleError and SchemaError are ValueErrors
_COPIED = ".version-"
_VERSION = re.compile(r"[0-9a-f]{12}")
_FOLDERS = re.compile(r"[^\s'\"]*/(?=[^\s'\"])")
_MAX_PAST = 100  # lines of the history, not versions on disk
_MAX_BYTES = 1 << 14
_HEADLINES = (
    ("all", "NDCG@20"),
    ("novel", "NDCG@10"),
)  # view and metric, with repeats and without them


@dataclass(frozen=True)
class Registry:
    """A folder of versions. Profiles and state in it are of no version, and never copied."""

    path: Path
    trusted: Path | None = (
        None  # public keys: a version that none of them signed is not read
    )

    def folder(self, version: str) -> Path:
        """Return the folder of a version."""
        folder = self.path / _check_version(version, "version")
        if not os.path.lexists(folder):
            raise BundleError(
                f"version {version} is not in the registry; {name_nearest(version, self.versions())}"
            )
        if folder.is_symlink() or not folder.is_dir():
            raise BundleError(
                f"version {version} is no folder in the registry, or a link: copy the folder itself"
            )
        return folder

    def versions(self) -> list[str]:
        """Return the versions that were published, the latest first; damaged ones too."""
        found = [
            path
            for path in self.path.glob("*")
            if _VERSION.fullmatch(path.name) and not path.is_symlink()
        ]
        return [
            path.name
            for path in sorted(
                found, key=lambda path: (-_published_at(path), path.name)
            )
        ]

    def current(self) -> str:
        """Read which version is to be served."""
        text = self._read(CURRENT)
        if text is None:
            raise BundleError(
                f"no version is current in {self.path}: {CURRENT} is missing; choose one with `activate`"
            )
        return _check_version(text.removesuffix("\n"), CURRENT)

    def find_current(self) -> str | None:
        """Return the version that `CURRENT` names, None if it names none."""
        with suppress(BundleError):
            return self.current()
        return None

    def past(self) -> list[str]:
        """Return the versions that were current before the present one, the latest first."""
        current = self.find_current()
        versions = [
            line
            for line in (self._read(HISTORY) or "").splitlines()
            if _VERSION.fullmatch(line)
        ]
        return (
            versions[versions.index(current) + 1 :] if current in versions else versions
        )

    def set_current(self, version: str, past: Sequence[str]) -> None:
        """Let a version be served; the history comes first, so that after a kill it holds whatever is current."""
        history = [version, *(name for name in past if name != version)][:_MAX_PAST]
        for name, lines in ((HISTORY, history), (CURRENT, [version])):
            write_file(
                self.path / name, "".join(f"{line}\n" for line in lines).encode()
            )
            sync_folder(self.path)

    @contextmanager
    def writing(self, wait: bool = True) -> Iterator[None]:
        """Be the only one who changes the registry, and clear what a killed one left."""
        if not self.path.is_dir():
            raise BundleError(
                f"no registry at {self.path}: publish a bundle into it first"
            )
        if all(
            (self.path / name).is_file() for name in (MANIFEST, SCHEMA)
        ):  # the lock would be a file too many in it
            raise BundleError(
                f"{self.path} is a bundle, no registry: give another folder, or the bundle as --bundle"
            )
        with take_lock(self.path / LOCK, wait):
            remove_all(self.path, _COPIED)
            try:
                yield
            finally:
                remove_all(self.path, _COPIED)

    def _read(self, name: str) -> str | None:
        """Read a small file that is no link; None if there is none."""
        path = self.path / name
        if not os.path.lexists(path):
            return None
        is_plain = (
            path.is_file()
            and not path.is_symlink()
            and path.stat().st_size <= _MAX_BYTES
        )
        content = path.read_bytes() if is_plain else b""
        if not is_plain or not content.isascii():
            raise BundleError(
                f"{name} is no plain list of versions: remove it and choose a version with `activate`"
            )
        return content.decode("ascii")


class Published(NamedTuple):
    """A published version."""

    version: str
    is_new: bool  # whether the registry lacked it
    removed: Sequence[str]  # versions that made room


class RolledBack(NamedTuple):
    """A version that is current again."""

    version: str
    left: str | None  # the version before; None: unreadable
    skipped: Sequence[str]  # why others in between could not be served


def publish_version(
    registry: Registry,
    bundle: Path,
    keep: int = KEPT_VERSIONS,
    is_activated: bool = False,
) -> Published:
    """Copy a bundle into the registry; the `keep` latest versions stay, the current and the one before it anyway."""
    if keep < 1:
        raise BundleError(f"keep is {keep}; allowed: 1 or more")
    if (bundle / MANIFEST).is_file() and bundle.resolve() in (
        registry.path / BUNDLE
    ).resolve().parents:
        raise BundleError(
            f"{registry.path} is in the bundle: give another place for the registry"
        )
    registry.path.mkdir(parents=True, exist_ok=True)
    with registry.writing():
        version, is_new = _copy(registry, bundle)
        if is_activated:
            _activate(registry, version)
        return Published(version, is_new, _prune(registry, version, keep))


def activate(registry: Registry, version: str) -> None:
    """Let a version be served from now on, after it was verified."""
    with registry.writing():
        _activate(registry, version)


def rollback(registry: Registry) -> RolledBack:
    """Let the version be served that was current before; damaged ones on the way back are skipped."""
    with registry.writing():
        current = registry.find_current()
        past = registry.past()
        skipped: list[str] = []
        for place, version in enumerate(past):
            fault = _find_fault(registry, version)
            if fault is None:
                registry.set_current(version, past[place + 1 :])
                return RolledBack(version, current, skipped)
            skipped.append(fault)
        tried = f" ({'; '.join(skipped)})" if skipped else ""
        raise BundleError(
            f"no version to go back to: none that was current before is whole{tried}; use `activate`"
        )


def describe_registry(registry: Registry) -> list[str]:
    """Return a line for each version, the latest first, then what is wrong with `CURRENT`."""
    versions = registry.versions()
    if not versions:
        return [f"no versions in {registry.path}: publish a bundle into it first"]
    rows = [["", "version", "published (UTC)", "data until (UTC)", "headline"]]
    for version in versions:
        folder = registry.path / version
        mark = "*" if version == registry.find_current() else ""
        rows.append([mark, version, _day(_published_at(folder)), *_describe(folder)])
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
        until = manifest.facts.data_until
        found = [
            f"{name} {views[view][name]:.4f} ({view})"
            for view, name in _HEADLINES
            if name in views.get(view, {})
        ]
    except (ValueError, AttributeError, TypeError, OSError) as error:
        return "", f"damaged: {say(error)}"
    return _day(until) if until else "no times", found[0] if found else "not tested"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%d %H:%M")


def _copy(registry: Registry, bundle: Path) -> tuple[str, bool]:
    """Bring a bundle in under its version, and say if that is new; a damaged copy of it is replaced."""
    manifest, contents = read_steadily(
        bundle, lambda path: read_folder(path, PUBLISHED)
    )
    target = registry.path / manifest.version
    is_there = os.path.lexists(target)
    if (
        is_there
        and SIGNATURE not in contents
        and _find_fault(registry, manifest.version) is None
    ):
        return manifest.version, False
    stage = registry.path / f"{_COPIED}{uuid.uuid4().hex}"
    stage.mkdir()
    for name, content in contents.items():
        write_file(stage / name, content.data)
    write_file(stage / MANIFEST, manifest.to_bytes())
    sync_folder(stage)
    _verify(stage, manifest.version, registry.trusted)
    old = place_folder(stage, registry.folder(manifest.version) if is_there else target)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    sync_folder(registry.path)
    read_folder(target, PUBLISHED)
    return manifest.version, True


def _activate(registry: Registry, version: str) -> None:
    _verify(registry.folder(version), version, registry.trusted)
    current = registry.find_current()
    if current != version:
        registry.set_current(
            version, [*([] if current is None else [current]), *registry.past()]
        )


def _prune(registry: Registry, published: str, keep: int) -> list[str]:
    """Remove the oldest versions above `keep`, but none that is served, that a rollback needs, or that just came."""
    current = registry.find_current()
    if current is None and os.path.lexists(registry.path / CURRENT):
        return []  # which one is served cannot be told
    versions = registry.versions()
    before = [version for version in registry.past() if version in versions]
    removed = [
        version
        for version in versions[keep:]
        if version not in {published, current, *before[:1]}
    ]
    for version in removed:
        aside = (
            registry.path / f"{_COPIED}{uuid.uuid4().hex}"
        )  # readers see all of it or nothing
        os.rename(registry.path / version, aside)
        shutil.rmtree(aside, ignore_errors=True)
    return removed


def _verify(folder: Path, version: str, trusted: Path | None) -> None:
    """Read a version as a service would, and let it answer its golden requests."""
    recommender = _check_loaded(
        Recommender(Bundle.load(folder, trusted=trusted)), version
    )
    replay(recommender.bundle.golden, golden_answer(recommender))


def _check_loaded(recommender: Recommender, version: str) -> Recommender:
    if recommender.version != version:
        raise BundleError(
            f"version {version} holds {MANIFEST} of {recommender.version}: remove its folder and publish it again"
        )
    return recommender


def _find_fault(registry: Registry, version: str) -> str | None:
    """Return why a version cannot be served, None if it can."""
    try:
        _verify(registry.folder(version), version, registry.trusted)
        return None
    except ValueError as error:
        return str(error)


def _check_version(version: str, where: str) -> str:
    """Return a text that names a version; it becomes part of a path, so nothing else may."""
    if not _VERSION.fullmatch(version):
        raise BundleError(
            f"{where} is {version[:40]!r}; expected the 12 digits 0-9a-f of a version, see `list`"
        )
    return version


def _published_at(folder: Path) -> float:
    """Return when a version was published, UTC seconds: its manifest was written last."""
    with suppress(OSError):
        return (folder / MANIFEST).stat().st_mtime
    return 0.0


@dataclass(frozen=True)
class BundleSource:
    """A bundle's folder, which a training may replace."""

    folder: Path
    profiles: Path | None = (
        None  # default: the folder `profiles` beside the bundle, if there is one
    )
    trusted: Path | None = (
        None  # public keys: a bundle that none of them signed is refused
    )

    def start(self) -> tuple[Recommender, None]:
        return self.load(), None

    def load(self) -> Recommender:
        return Recommender.load(self.folder, self.profiles, self.trusted)

    def load_version(self, version: str) -> Recommender:
        raise SchemaError(
            f"an arm has the version '{version}', but one bundle is served: give --registry instead"
        )


@dataclass(frozen=True)
class RegistrySource:
    """The current version of a registry."""

    registry: Registry
    profiles: Path | None = (
        None  # default: the folder `profiles` of the registry, if there is one
    )

    def start(self) -> tuple[Recommender, str | None]:
        with (
            suppress(OSError),
            self.registry.writing(wait=False),
        ):  # clear what a killed publisher left
            pass
        try:
            return self.load(), None
        except LOADING_ERRORS as error:
            reason = explain_fault(error)
        for version in self.registry.past():
            with suppress(*LOADING_ERRORS):
                return self.load_version(
                    version
                ), f"{reason}; {version} answers, which was current before"
        raise BundleError(f"{reason}; nor can an earlier version be loaded")

    def load(self) -> Recommender:
        while True:
            version = self.registry.current()
            try:
                return self.load_version(version)
            except LOADING_ERRORS:
                if (
                    self.registry.find_current() == version
                ):  # else another one became current meanwhile
                    raise

    def load_version(self, version: str) -> Recommender:
        folder = self.registry.folder(version)
        trusted = self.registry.trusted
        return _check_loaded(Recommender.load(folder, self.profiles, trusted), version)


Source = BundleSource | RegistrySource


def explain_fault(error: Exception) -> str:
    """Say why something cannot be loaded, without folders of this machine or values of anybody."""
    if isinstance(error, MemoryError):
        return "the memory does not suffice for a second version beside the one that answers"
    if isinstance(error, SchemaError):  # its message shows the value
        return "a value of the profiles, the live items or the golden requests does not fit the bundle"
    return _FOLDERS.sub("", say(error))
