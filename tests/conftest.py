"""Fixtures that several test files share."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from serve.bundle import Bundle
from serve.recommender import Recommender
from service.state import StateStore
from tests.linear_bundle import SEED, SHOP, WORLDS, publish_linear
from tests.linear_profiles import known_users, make_profiles, write_profiles
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
    return {
        seed: publish_linear(tmp_path_factory.mktemp(f"seed-{seed}"), SHOP, seed)
        for seed in (1, 2, 3, 4)
    }


@pytest.fixture(scope="session")
def versions(published: dict[int, Path]) -> dict[int, str]:
    """The versions of the linear bundles by seed."""
    return {seed: Bundle.load(path).manifest.version for seed, path in published.items()}


@pytest.fixture(scope="session")
def bundle_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Linear bundles of the two worlds with the profiles of their users, never altered."""
    paths = {
        name: publish_linear(tmp_path_factory.mktemp(name), schema, SEED)
        for name, schema in WORLDS.items()
    }
    for name, path in paths.items():
        write_profiles(
            path.parent / "profiles",
            make_profiles(WORLDS[name], known_users(WORLDS[name])),
        )
    return paths


@pytest.fixture(scope="session")
def recommenders(bundle_paths: dict[str, Path]) -> dict[str, Recommender]:
    """Recommenders of the two worlds."""
    return {name: Recommender.load(path) for name, path in bundle_paths.items()}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateStore]:
    """An empty store of live events, in the folder `state`."""
    with closing(StateStore(tmp_path / "state" / "state.db")) as opened:
        yield opened
