"""Fixtures that several test files share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

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
