"""Versions of a bundle: published whole, one current, gone back from, and loaded by a service whatever is damaged."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from serve.errors import BundleError
from service.publish import Stage, publish
from service.registry import Registry, activate, describe_registry, publish_version, rollback
from service.sources import RegistrySource
from tests.around.lost_power import Disk
from tests.linear_bundle import SHOP, write_linear


@pytest.fixture
def registry(tmp_path) -> Registry:
    """No folder yet."""
    return Registry(tmp_path / "runs" / "registry")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def date(registry: Registry, version: str, day: int) -> None:
    """Let a version be published on a day."""
    os.utime(registry.path / version, (day * 86_400, day * 86_400))


def test_a_version_is_a_whole_copy_that_is_not_current_before_it_is_activated(
    registry, published, versions
):
    assert publish_version(registry, published[1], keep=3).version == versions[1]
    assert names(registry.path) == {".lock", versions[1]}
    assert contents(registry.path / versions[1]) == contents(published[1])
    with pytest.raises(
        BundleError,
        match=r"no version is current in .*CURRENT is missing; choose one with `bascule activate`",
    ):
        registry.current()
    activate(registry, versions[1])
    assert (registry.path / "CURRENT").read_text() == f"{versions[1]}\n"


def test_rollback_goes_back_step_by_step_and_to_nothing_that_was_left_before(
    registry, published, versions
):
    for seed in (1, 2, 3):
        publish_version(registry, published[seed], keep=9, is_activated=True)
    done = rollback(registry)
    assert (done.version, done.left, done.skipped) == (versions[2], versions[3], [])
    assert registry.current() == versions[2]
    activate(registry, versions[3])
    activate(registry, versions[1])
    assert registry.past() == [versions[3], versions[2]]
    assert [rollback(registry).version for _ in range(2)] == [versions[3], versions[2]]
    with pytest.raises(BundleError, match=r"no version to go back to.*use `bascule activate`"):
        rollback(registry)
    assert registry.current() == versions[2]


def test_rollback_leaves_out_what_is_damaged_or_gone_and_says_so(registry, published, versions):
    for seed in (1, 2, 3, 4):
        publish_version(registry, published[seed], keep=9, is_activated=True)
    (registry.path / versions[3] / "items.faiss").unlink()
    shutil.rmtree(registry.path / versions[2])
    done = rollback(registry)
    assert done.version == versions[1]
    assert [
        re.search(r"items\.faiss is missing|is not in the registry", fault)[0]
        for fault in done.skipped
    ] == [
        "items.faiss is missing",
        "is not in the registry",
    ]
    assert registry.past() == []


def test_the_latest_versions_stay_and_those_that_are_served_or_gone_back_to(
    registry, published, versions
):
    for seed in (1, 2, 3):
        publish_version(registry, published[seed], keep=9)
        date(registry, versions[seed], day=seed)
    activate(registry, versions[2])
    activate(registry, versions[1])
    assert registry.versions() == [versions[3], versions[2], versions[1]]
    assert publish_version(registry, published[4], keep=1).removed == [versions[3]]
    assert set(registry.versions()) == {versions[1], versions[2], versions[4]}
    date(registry, versions[4], day=4)
    activate(registry, versions[4])
    assert publish_version(registry, published[3], keep=2).removed == [versions[2]]
    date(registry, versions[3], day=0)
    assert publish_version(registry, published[3], keep=1).removed == []
    assert names(registry.path) == {
        ".lock",
        "CURRENT",
        "HISTORY",
        versions[1],
        versions[3],
        versions[4],
    }


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "../bundle",
        "/etc",
        "",
        "CURRENT",
        "0123456789AB",
        "0123456789ab\n",
        "0" * 300,
    ],
)
def test_what_names_no_version_is_refused_before_anything_is_opened(registry, published, name):
    publish_version(registry, published[1], keep=3)
    with pytest.raises(
        BundleError, match=r"version is '.*expected the 12 digits 0-9a-f of a version"
    ):
        activate(registry, name)


def test_what_a_killed_publisher_left_goes_when_a_service_starts_unless_one_is_at_work(
    registry, published
):
    publish_version(registry, published[1], keep=3)
    with registry.writing():
        staged = registry.path / ".version-1"
        staged.mkdir()
        _clear(registry)
        assert staged.exists()
    assert not staged.exists()
    staged = registry.path / ".version-1"
    staged.mkdir()
    (staged / "items.faiss").touch()
    _clear(registry)
    assert not staged.exists()
    _clear(Registry(registry.path / "nowhere"))
    assert not (registry.path / "nowhere").exists()


@pytest.mark.parametrize(("how", "fewest"), [("kill", 45), ("fail", 25)])
def test_stopped_at_any_step_a_service_finds_the_old_version_or_the_new(tmp_path, how, fewest):
    command = [sys.executable, "-m", "tests.around.killed_registry", str(tmp_path), how]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    before, old = report["old"]
    *stopped, finished = report["found"]
    new = finished["new"]
    assert len(stopped) >= fewest
    assert finished["code"] == 0
    assert finished["at_once"]["version"] == new
    for step in stopped:
        assert step["at_once"]["version"] in (old, new)
        assert step["at_once"]["reason"] is None
        assert step["at_once"]["left"] == [".lock"]
        assert {step["at_once"]["version"]} <= set(step["at_once"]["versions"])
        assert step["later"]["version"] == new
        assert set(step["later"]["versions"]) <= {before, old, new}
        assert step["later"]["left"] == [".lock"]


def _clear(registry: Registry) -> None:
    with contextlib.suppress(OSError, BundleError), registry.writing(wait=False):
        pass


@pytest.mark.parametrize("change", [publish_version, partial(publish_version, is_activated=True)])
def test_a_version_is_on_disk_before_it_counts(registry, published, monkeypatch, change):
    disk = Disk(monkeypatch, "CURRENT")
    for seed in (1, 2):
        change(registry, published[seed], keep=3)
        assert disk.too_early == disk.unnamed == []


def damage_current(registry: Registry, version: str, how: str) -> None:
    pointer, folder = registry.path / "CURRENT", registry.path / version
    if how in (
        "link",
        "missing",
        "folder",
        "pipe",
    ):  # what was current cannot be told but by the history
        pointer.rename(registry.path.parent / "CURRENT")
        shutil.rmtree(folder)
    if how == "link":
        pointer.symlink_to(registry.path.parent / "CURRENT")
    elif how == "folder":
        pointer.mkdir()
    elif how == "pipe":
        os.mkfifo(pointer)
    elif how == "nothing there":
        shutil.rmtree(folder)
    elif how == "link to version":
        folder.rename(registry.path.parent / version)
        folder.symlink_to(registry.path.parent / version)
    elif how == "another":
        other = next(name for name in registry.versions() if name != version)
        shutil.rmtree(folder)
        shutil.copytree(registry.path / other, folder)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "how",
    [
        "link",
        "missing",
        "folder",
        "pipe",
        "nothing there",
        "link to version",
        "another",
    ],
)
def test_a_first_start_without_a_valid_current_version_takes_the_one_before_and_says_so(
    registry, published, versions, how
):
    for seed in (1, 2):
        publish_version(registry, published[seed], keep=3, is_activated=True)
    damage_current(registry, versions[2], how)
    recommender, reason = RegistrySource(registry).start()
    assert recommender.version == versions[1]
    assert reason.endswith(f"; the earlier version {versions[1]} answers")


def test_the_list_shows_what_is_current_when_it_came_and_how_good_it_is(
    registry, published, versions, tmp_path
):
    assert describe_registry(registry) == [
        f"no versions in {registry.path}: publish a bundle into it first"
    ]
    publish_version(registry, published[1], keep=3)
    assert "CURRENT is missing" in describe_registry(registry)[-1]
    activate(registry, versions[1])
    header, line = describe_registry(registry)
    assert re.split(r"\s{2,}", header.strip()) == [
        "version",
        "published (UTC)",
        "data until (UTC)",
        "headline",
    ]
    pattern = rf"\*  {versions[1]}  \d{{4}}-\d\d-\d\d \d\d:\d\d  2017-07-14 02:40  not tested"
    assert re.fullmatch(pattern, re.sub(r" {2,}", "  ", line))
    with Stage.open(tmp_path / "run") as stage:
        metrics = {
            "test": {
                "bascule": {
                    "all": {"NDCG@10": 0.1, "NDCG@20": 0.25},
                    "novel": {"NDCG@10": 0.2},
                }
            }
        }
        bundle = publish(stage.prepare(write_linear(stage, SHOP, 7), metrics)).path
    new = publish_version(registry, bundle, keep=3).version
    assert any(
        new in line and line.endswith("NDCG@20 0.2500 (all)")
        for line in describe_registry(registry)
    )
    (registry.path / versions[1] / "manifest.json").write_bytes(b"{}")
    assert any(
        f"{versions[1]} " in line and "damaged: manifest.json" in line
        for line in describe_registry(registry)
    )
    shutil.rmtree(registry.path / versions[1])
    assert f"version {versions[1]} is not in the registry" in describe_registry(registry)[-1]
