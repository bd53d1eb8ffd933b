"""Fixtures that several test files share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from serve.bundle import Bundle
from serve.profiles import write_profiles
from serve.versions import Registry, publish_version
from tests.linear_bundle import SHOP, publish_linear
from tests.linear_profiles import known_users, make_profiles
from tests.tiny_bundle import publish_tiny


@pytest.fixture(scope="session")
def _published(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Bundles by seed, never altered."""
    folder = tmp_path_factory.mktemp("published")
    return {seed: publish_tiny(folder / str(seed), seed).path for seed in (1, 2)}


@pytest.fixture
def tiny_bundle(_published: dict[int, Path], tmp_path: Path) -> Callable[[int], Path]:
    """Give a copy of the tiny bundle of seed 1 or 2, to be altered at will."""

    def copy(seed: int) -> Path:
        return Path(shutil.copytree(_published[seed], tmp_path / f"bundle-{seed}"))

    return copy


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Linear bundles by seed, never altered."""
    return {seed: publish_linear(tmp_path_factory.mktemp(f"seed-{seed}"), SHOP, seed) for seed in (1, 2, 3, 4)}


@pytest.fixture(scope="session")
def versions(published: dict[int, Path]) -> dict[int, str]:
    """The versions of the linear bundles by seed."""
    return {seed: Bundle.load(path).manifest.version for seed, path in published.items()}


@pytest.fixture
def registry(published: dict[int, Path], tmp_path: Path) -> Registry:
    """A registry of the linear bundles of seeds 1 and 2, the second one current, with profiles."""
    registry = Registry(tmp_path / "registry")
    for seed in (1, 2):
        publish_version(registry, published[seed], keep=3, is_activated=True)
    write_profiles(registry.path / "profiles", make_profiles(SHOP, known_users(SHOP)))
    return registry
