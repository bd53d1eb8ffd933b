from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from serve import bundle as golden
from serve.bundle import Bundle
from serve.errors import BundleError
from serve.registry import pointer
from serve.registry.changes import activate, publish, publish_and_activate, rollback
from serve.registry.pointer import find_current, read_current, read_past, write_current
from serve.registry.sources import RegistrySource
from serve.registry.versions import Registry
from tests.linear_bundle import SHOP, publish_linear
from tests.lost_power import Disk


@pytest.fixture
def registry(tmp_path) -> Registry:
    """None yet."""
    return Registry(tmp_path / "runs" / "registry")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def date(registry: Registry, version: str, day: int) -> None:
    """Let a version be published on a day."""
    os.utime(registry.path / version / "manifest.json", (day * 86_400, day * 86_400))


def test_a_version_is_a_whole_copy_that_is_not_current_before_it_is_activated(registry, published, versions):
    assert publish(registry, published[1], keep=3).version == versions[1]
    assert names(registry.path) == {".lock", versions[1]}
    assert contents(registry.path / versions[1]) == contents(published[1])
    with pytest.raises(BundleError, match=r"no version is current in .*CURRENT is missing; choose one with `activate`"):
        read_current(registry.path)
    activate(registry, versions[1])
    assert (registry.path / "CURRENT").read_text() == f"{versions[1]}\n"


def test_what_is_published_twice_is_copied_once(registry, published, versions):
    assert publish(registry, published[1], keep=3).is_new
    before = (registry.path / versions[1]).stat()
    again = publish_and_activate(registry, published[1], keep=3)
    assert (again.version, again.is_new, again.removed) == (versions[1], False, [])
    assert (registry.path / versions[1]).stat().st_ino == before.st_ino
    assert read_current(registry.path) == versions[1]


def test_a_damaged_version_is_replaced_when_it_is_published_again(registry, published, versions):
    publish_and_activate(registry, published[1], keep=3)
    (registry.path / versions[1] / "items.faiss").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"items\.faiss"):
        activate(registry, versions[1])
    assert publish(registry, published[1], keep=3).is_new
    assert contents(registry.path / versions[1]) == contents(published[1])
    assert names(registry.path) == {".lock", "CURRENT", "HISTORY", versions[1]}


def test_a_damaged_bundle_is_not_published(registry, published, versions, tmp_path):
    bundle = Path(shutil.copytree(published[1], tmp_path / "bundle"))
    (bundle / "items.faiss").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"items\.faiss has 5 bytes"):
        publish(registry, bundle, keep=3)
    assert names(registry.path) == {".lock"}
    publish_and_activate(registry, published[2], keep=3)
    with pytest.raises(BundleError, match=r"items\.faiss has 5 bytes"):
        publish_and_activate(registry, bundle, keep=3)
    assert registry.versions() == [versions[2]]
    assert read_current(registry.path) == versions[2]


def test_rollback_goes_back_step_by_step_and_to_nothing_that_was_left_before(registry, published, versions):
    for seed in (1, 2, 3):
        publish_and_activate(registry, published[seed], keep=9)
    done = rollback(registry)
    assert (done.version, done.left, done.skipped) == (versions[2], versions[3], [])
    assert read_current(registry.path) == versions[2]
    activate(registry, versions[3])
    activate(registry, versions[1])
    assert read_past(registry.path, versions[1]) == [versions[3], versions[2]]
    assert [rollback(registry).version for _ in range(2)] == [versions[3], versions[2]]
    with pytest.raises(BundleError, match=r"no version to go back to.*use `activate`"):
        rollback(registry)
    assert read_current(registry.path) == versions[2]


def test_rollback_leaves_out_what_is_damaged_or_gone_and_says_so(registry, published, versions):
    for seed in (1, 2, 3, 4):
        publish_and_activate(registry, published[seed], keep=9)
    (registry.path / versions[3] / "items.faiss").unlink()
    shutil.rmtree(registry.path / versions[2])
    done = rollback(registry)
    assert done.version == versions[1]
    assert [re.search(r"items\.faiss is missing|is not in the registry", fault)[0] for fault in done.skipped] == [
        "items.faiss is missing",
        "is not in the registry",
    ]
    assert read_past(registry.path, versions[1]) == []


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("../../etc/passwd\n")])
def test_rollback_without_a_pointer_goes_to_the_latest_of_the_history(registry, published, versions, damage):
    for seed in (1, 2):
        publish_and_activate(registry, published[seed], keep=9)
    damage(registry.path / "CURRENT")
    done = rollback(registry)
    assert (done.version, done.left) == (versions[2], None)


def test_a_pointer_that_was_written_by_hand_is_what_a_rollback_leaves(registry, published, versions):
    for seed in (1, 2, 3):
        publish(registry, published[seed], keep=9)
    activate(registry, versions[1])
    activate(registry, versions[2])
    (registry.path / "CURRENT").write_text(versions[3])
    assert rollback(registry).version == versions[2]
    assert rollback(registry).version == versions[1]


def test_the_latest_versions_stay_and_those_that_are_served_or_gone_back_to(registry, published, versions):
    for seed in (1, 2, 3):
        publish(registry, published[seed], keep=9)
        date(registry, versions[seed], day=seed)
    activate(registry, versions[2])
    activate(registry, versions[1])
    assert registry.versions() == [versions[3], versions[2], versions[1]]
    assert publish(registry, published[4], keep=1).removed == [versions[3]]
    assert set(registry.versions()) == {versions[1], versions[2], versions[4]}
    date(registry, versions[4], day=4)
    activate(registry, versions[4])
    assert publish(registry, published[3], keep=2).removed == [versions[2]]
    date(registry, versions[3], day=0)
    assert publish(registry, published[3], keep=1).removed == []
    assert names(registry.path) == {".lock", "CURRENT", "HISTORY", versions[1], versions[3], versions[4]}


@pytest.mark.parametrize("days", [(1, 2, 3), (3, 2, 1), (2, 2, 2)])
def test_versions_are_in_the_order_of_their_days_whatever_they_are_called(registry, versions, days):
    dates = {versions[seed]: day for seed, day in zip((1, 2, 3), days, strict=True)}
    for version, day in dates.items():
        (registry.path / version).mkdir(parents=True)
        (registry.path / version / "manifest.json").touch()
        date(registry, version, day)
    assert registry.versions() == sorted(dates, key=lambda version: (-dates[version], version))


def test_a_registry_that_was_activated_very_often_can_still_be_read(tmp_path):
    versions = [f"{number:012x}" for number in range(2_000)]  # more than are read of a file
    write_current(tmp_path, versions[0], versions[1:])
    assert read_current(tmp_path) == versions[0]
    assert read_past(tmp_path, versions[0]) == versions[1:100]


def test_a_version_that_answers_differently_here_is_neither_published_nor_activated(
    registry, published, versions, monkeypatch
):
    for seed in (1, 2):
        publish_and_activate(registry, published[seed], keep=3)
    before = names(registry.path)
    monkeypatch.setattr(golden, "TOLERANCE", -1.0)  # nothing is within it
    for change in (
        lambda: publish(registry, published[3], keep=1),
        lambda: activate(registry, versions[1]),
        lambda: rollback(registry),
    ):
        with pytest.raises(BundleError, match="it answers differently here"):
            change()
    assert names(registry.path) == before
    assert read_current(registry.path) == versions[2]


def test_a_version_under_the_name_of_another_is_not_activated(registry, published, versions):
    publish_and_activate(registry, published[1], keep=3)
    shutil.copytree(registry.path / versions[1], registry.path / versions[2])
    with pytest.raises(BundleError, match=rf"version {versions[2]} holds manifest\.json of {versions[1]}"):
        activate(registry, versions[2])
    assert read_current(registry.path) == versions[1]


def test_the_latest_version_that_a_rollback_can_go_to_stays(registry, published, versions):
    for seed in (1, 2, 3):
        publish_and_activate(registry, published[seed], keep=9)
        date(registry, versions[seed], day=seed)
    shutil.rmtree(registry.path / versions[2])
    assert publish(registry, published[4], keep=1).removed == []
    assert rollback(registry).version == versions[1]


def test_a_pointer_that_does_not_read_as_it_was_written_is_told(tmp_path, versions, monkeypatch):
    write = pointer.write_file
    monkeypatch.setattr(pointer, "write_file", lambda path, _: write(path, f"{versions[2]}\n".encode()))
    with pytest.raises(BundleError, match="CURRENT does not read as it was written: somebody else writes into"):
        write_current(tmp_path, versions[1], [])


def test_lines_of_a_history_that_name_no_version_are_passed_over(tmp_path):
    first, second, third = ("0123456789a" + digit for digit in "bcd")
    (tmp_path / "HISTORY").write_text(f"{third}\n../x\n{second}\n\n0123456789AB\n{first}")
    assert read_past(tmp_path, second) == [first]
    assert read_past(tmp_path, None) == read_past(tmp_path, "e" * 12) == [third, second, first]


def test_a_history_that_nobody_wrote_is_refused_whole(tmp_path):
    line = "0123456789ab\n"
    (tmp_path / "HISTORY").write_text(line * (16_384 // len(line)))
    assert len(read_past(tmp_path, None)) == 16_384 // len(line)
    (tmp_path / "HISTORY").write_text(line * 16_384)
    with pytest.raises(BundleError, match="HISTORY is no list of versions: remove it"):
        read_past(tmp_path, None)


@pytest.mark.parametrize("name", ["CURRENT", "HISTORY"])
def test_a_pointer_of_other_letters_is_one_that_is_damaged(tmp_path, name):
    (tmp_path / name).write_bytes("０１２３456789ab\n".encode())
    with pytest.raises(BundleError, match=f"{name} is no list of versions"):
        read_current(tmp_path) if name == "CURRENT" else read_past(tmp_path, None)
    assert find_current(tmp_path) is None


@pytest.mark.timeout(20)
def test_nobody_waits_for_a_pipe_in_the_place_of_a_pointer(tmp_path):
    os.mkfifo(tmp_path / "CURRENT")
    with pytest.raises(BundleError, match="CURRENT is no plain file"):
        read_current(tmp_path)


def test_nothing_is_removed_where_it_cannot_be_told_what_is_served(registry, published, versions):
    publish_and_activate(registry, published[1], keep=9)
    (registry.path / "CURRENT").write_text("?")
    assert publish(registry, published[2], keep=1).removed == []
    assert set(registry.versions()) == {versions[1], versions[2]}


@pytest.mark.parametrize(
    "name", ["..", "../bundle", "/etc", "", "CURRENT", "0123456789AB", "0123456789ab\n", "0" * 300]
)
def test_what_names_no_version_is_refused_before_anything_is_opened(registry, published, name):
    publish(registry, published[1], keep=3)
    with pytest.raises(BundleError, match=r"version is '.*expected the 12 digits 0-9a-f of a version"):
        activate(registry, name)


def test_a_version_that_is_not_there_is_named_with_its_nearest(registry, published, versions):
    publish(registry, published[1], keep=3)
    near = versions[1][:-1] + ("0" if versions[1][-1] != "0" else "1")
    with pytest.raises(BundleError, match=f"version {near} is not in the registry; did you mean '{versions[1]}'"):
        activate(registry, near)


@pytest.mark.parametrize("change", [lambda registry: activate(registry, "0" * 12), rollback])
def test_where_there_is_no_registry_none_is_made(registry, change):
    with pytest.raises(BundleError, match=r"no registry at .*registry: publish a bundle into it first"):
        change(registry)
    assert not registry.path.exists()


def test_keeping_none_is_refused(registry, published):
    with pytest.raises(BundleError, match="keep is 0; allowed: 1 or more"):
        publish(registry, published[1], keep=0)
    assert not registry.path.exists()


def test_a_link_in_the_place_of_a_version_is_neither_followed_nor_replaced(registry, published, versions):
    registry.path.mkdir(parents=True)
    (registry.path / versions[1]).symlink_to(published[1])
    for change in (lambda: activate(registry, versions[1]), lambda: publish(registry, published[1], keep=3)):
        with pytest.raises(BundleError, match=f"version {versions[1]} is no folder in the registry, or a link"):
            change()
    assert registry.versions() == []
    assert (registry.path / versions[1]).is_symlink()


def test_what_a_killed_publisher_left_goes_when_a_service_starts_unless_one_is_at_work(registry, published):
    publish(registry, published[1], keep=3)
    with registry.writing():
        staged = registry.new_folder()
        registry.clear()
        assert staged.exists()
    assert not staged.exists()
    staged = registry.new_folder()
    (staged / "items.faiss").touch()
    registry.clear()
    assert not staged.exists()
    Registry(registry.path / "nowhere").clear()
    assert not (registry.path / "nowhere").exists()


@pytest.mark.parametrize(("how", "fewest"), [("kill", 45), ("fail", 25)])
def test_stopped_at_any_step_a_service_finds_the_old_version_or_the_new(tmp_path, how, fewest):
    command = [sys.executable, "-m", "tests.killed_registry", str(tmp_path), how]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False)
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


def publish_some(path: Path, bundles: list[Path]) -> None:
    for bundle in bundles:
        publish_and_activate(Registry(path), bundle, keep=99)


@pytest.mark.parametrize("change", [publish, publish_and_activate])
def test_a_version_is_on_disk_before_it_counts(registry, published, monkeypatch, change):
    disk = Disk(monkeypatch, "CURRENT")
    for seed in (1, 2):
        change(registry, published[seed], keep=3)
        assert disk.too_early == disk.unnamed == []


def test_publishers_at_once_lose_no_version_and_the_pointer_is_valid_at_every_instant(registry, tmp_path):
    bundles = [publish_linear(tmp_path / str(seed), SHOP, seed) for seed in range(8)]
    publish_and_activate(registry, bundles[0], keep=99)
    spawn = multiprocessing.get_context("spawn")
    processes = [
        spawn.Process(target=publish_some, args=(registry.path, bundles[start::4] + bundles[:2])) for start in range(4)
    ]
    seen: set[str] = set()
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            seen.add(Bundle.load(registry.folder(read_current(registry.path))).manifest.version)

    reader = threading.Thread(target=read)
    reader.start()
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    is_over.set()
    reader.join()
    assert [process.exitcode for process in processes] == [0] * 4
    expected = {Bundle.load(bundle).manifest.version for bundle in bundles}
    assert set(registry.versions()) == expected
    assert seen <= expected
    assert read_current(registry.path) in expected
    assert set(read_past(registry.path, None)) == expected
    for version in expected:
        activate(registry, version)


def test_a_file_in_the_place_of_a_registry_is_named(tmp_path, registry):
    registry.path.parent.mkdir(parents=True)
    registry.path.write_text("mine")
    with pytest.raises(BundleError, match=r"runs/registry is no folder: give another place for the registry"):
        publish(registry, tmp_path / "bundle", keep=3)
    assert registry.path.read_text() == "mine"


@pytest.mark.parametrize(
    "change", [lambda registry, versions: activate(registry, versions[3]), lambda registry, _: rollback(registry)]
)
def test_a_folder_in_the_place_of_the_pointer_is_named_and_the_history_stays(registry, published, versions, change):
    for seed in (1, 2):
        publish_and_activate(registry, published[seed], keep=9)
    publish(registry, published[3], keep=9)
    before = (registry.path / "HISTORY").read_text()
    (registry.path / "CURRENT").unlink()
    (registry.path / "CURRENT").mkdir()
    with pytest.raises(BundleError, match=r"CURRENT in .*registry is a folder; expected a file: move the folder away"):
        change(registry, versions)
    assert (registry.path / "HISTORY").read_text() == before
    (registry.path / "CURRENT").rmdir()
    change(registry, versions)
    assert read_current(registry.path) in versions.values()


@pytest.mark.parametrize("place", [".", "registry", "nested/registry"])
def test_no_registry_is_made_in_a_bundle(published, tmp_path, place):
    bundle = Path(shutil.copytree(published[1], tmp_path / "bundle"))
    before = contents(bundle)
    with pytest.raises(BundleError, match=r"is in the bundle: give another|is a bundle, no registry: give another"):
        publish_and_activate(Registry(bundle / place), bundle, keep=3)
    assert contents(bundle) == before


@pytest.mark.parametrize(
    "use", [lambda registry: activate(registry, "0" * 12), rollback, lambda registry: RegistrySource(registry).start()]
)
def test_a_bundle_in_the_place_of_a_registry_is_named_and_stays_whole(published, tmp_path, use):
    bundle = Path(shutil.copytree(published[1], tmp_path / "bundle"))
    with pytest.raises(BundleError, match="bundle is a bundle, no registry: give another folder, or the bundle as --b"):
        use(Registry(bundle))
    assert Bundle.load(bundle).manifest.version == Bundle.load(published[1]).manifest.version
