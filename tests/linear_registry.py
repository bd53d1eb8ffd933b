"""What a snapshot of a linear bundle answers, and what may be wrong with the pointer of a registry."""

from __future__ import annotations

import os
import shutil

from serve.registry.snapshot import Snapshot
from serve.registry.versions import Registry
from tests.linear_bundle import SHOP
from tests.linear_profiles import requests_of


def ask(snapshot: Snapshot) -> list[list[str]]:
    return [answer.item_id.tolist() for answer in snapshot.recommender.recommend(requests_of(SHOP), 5)]


def point_by_link(registry: Registry, version: str) -> None:
    (registry.path / "CURRENT").rename(registry.path.parent / "CURRENT")
    (registry.path / "CURRENT").symlink_to(registry.path.parent / "CURRENT")


def point_by_folder(registry: Registry, version: str) -> None:
    (registry.path / "CURRENT").unlink()
    (registry.path / "CURRENT").mkdir()


def point_by_pipe(registry: Registry, version: str) -> None:
    (registry.path / "CURRENT").unlink()
    os.mkfifo(registry.path / "CURRENT")


def point_nowhere(registry: Registry, version: str) -> None:
    (registry.path / "CURRENT").unlink()


def point_to_nothing(registry: Registry, version: str) -> None:
    shutil.rmtree(registry.path / version)


def point_to_a_link(registry: Registry, version: str) -> None:
    (registry.path / version).rename(registry.path.parent / version)
    (registry.path / version).symlink_to(registry.path.parent / version)


def point_to_another(registry: Registry, version: str) -> None:
    other = next(name for name in registry.versions() if name != version)
    shutil.rmtree(registry.path / version)
    shutil.copytree(registry.path / other, registry.path / version)
