"""A version is exchanged while requests come."""

from __future__ import annotations

import errno
import mmap
import shutil
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from serve.errors import BundleError, SchemaError
from serve.profiles import write_profiles
from serve.recommender import Recommender
from serve.registry.changes import activate, publish, publish_and_activate
from serve.registry.pointer import write_current
from serve.registry.serving import Serving
from serve.registry.snapshot import Snapshot
from serve.registry.sources import BundleSource, RegistrySource
from serve.registry.versions import Registry
from tests.linear_bundle import SHOP, item_ids
from tests.linear_profiles import known_users, make_profiles, requests_of
from tests.linear_reference import naive_scores
from tests.linear_registry import (
    ask,
    point_by_folder,
    point_by_link,
    point_nowhere,
    point_to_a_link,
    point_to_another,
    point_to_nothing,
)

ROWS = {item_id: row for row, item_id in enumerate(item_ids(SHOP))}


def test_a_bundle_and_a_registry_are_served_with_the_profiles_beside(registry, published, versions, tmp_path):
    serving = Serving.start(RegistrySource(registry))
    assert serving.current().version == versions[2]
    assert serving.current().folder == registry.path / versions[2]
    assert len(serving.current().recommender.profiles) == len(known_users(SHOP))
    assert serving.last_reload is None
    bundle = Serving.start(BundleSource(published[2]))
    assert bundle.current().version == versions[2]
    assert len(bundle.current().recommender.profiles) == 0
    named = Serving.start(BundleSource(published[2], registry.path / "profiles"))
    assert ask(named.current()) == ask(serving.current()) != ask(bundle.current())


def test_a_first_start_clears_what_a_killed_publisher_left(registry, versions):
    left = registry.new_folder()
    (left / "items.faiss").touch()
    assert Serving.start(RegistrySource(registry)).current().version == versions[2]
    assert not left.exists()


def test_a_reload_takes_up_what_is_current_and_says_so(registry, versions):
    source = RegistrySource(registry)
    serving = Serving.start(source)
    before, began = serving.current(), time.time()
    activate(registry, versions[1])
    assert serving.current() is before
    outcome = serving.reload(source)
    assert began <= outcome.time <= time.time()
    assert (outcome.is_loaded, outcome.version, outcome.reason) == (True, versions[1], None)
    assert serving.last_reload == outcome
    assert serving.current().version == versions[1]
    assert ask(serving.current()) != ask(before)


def test_a_bundle_s_source_is_another_once_anything_that_it_reads_is_replaced(published, tmp_path):
    folder, named = tmp_path / "bundle", tmp_path / "elsewhere" / "profiles"
    shutil.copytree(published[1], folder)
    beside, by_name = BundleSource(folder), BundleSource(folder, named)

    def changes(change):
        before = (beside.identify(), by_name.identify())
        change()
        return [one != other for one, other in zip(before, (beside.identify(), by_name.identify()), strict=True)]

    profiles = make_profiles(SHOP, {"u1": known_users(SHOP)["u1"]})
    assert changes(lambda: None) == [False, False]
    assert changes(lambda: write_profiles(tmp_path / "profiles", profiles)) == [True, False]
    assert changes(lambda: write_profiles(named, profiles)) == [False, True]
    assert changes(lambda: write_profiles(tmp_path / "profiles", profiles)) == [True, False]
    assert changes(lambda: (shutil.rmtree(folder), shutil.copytree(published[2], folder))) == [True, True]


def test_a_registry_s_source_is_another_once_anything_that_it_reads_is_replaced(registry, published, versions):
    named = registry.path.parent / "elsewhere" / "profiles"
    profiles = make_profiles(SHOP, {"u1": known_users(SHOP)["u1"]})
    write_profiles(named, profiles)
    beside, by_name, current = RegistrySource(registry), RegistrySource(registry, named), registry.path / versions[2]
    assert by_name.load().recommender.profiles.user_ids.tolist() == ["u1"]
    assert len(beside.load().recommender.profiles) == len(known_users(SHOP))

    def changes(change):
        before = (beside.identify(), by_name.identify())
        change()
        return [one != other for one, other in zip(before, (beside.identify(), by_name.identify()), strict=True)]

    assert changes(lambda: None) == [False, False]
    assert changes(lambda: write_profiles(registry.path / "profiles", profiles)) == [True, False]
    assert changes(lambda: write_profiles(named, profiles)) == [False, True]
    assert changes(lambda: (shutil.rmtree(current), shutil.copytree(published[2], current))) == [True, True]
    assert changes(lambda: activate(registry, versions[1])) == [True, True]
    assert changes((registry.path / "CURRENT").unlink) == [True, True]


def test_where_another_version_becomes_current_while_one_is_read_the_other_is_loaded(registry, versions, monkeypatch):
    load = Recommender.load

    def load_too_late(folder, profiles):
        if folder.name == versions[2]:
            write_current(registry.path, versions[1], [versions[2]])
            shutil.rmtree(folder)
        return load(folder, profiles)

    monkeypatch.setattr(Recommender, "load", load_too_late)
    assert RegistrySource(registry).load().version == versions[1]


def test_a_first_start_takes_none_that_came_after_the_current_version(registry, versions):
    assert (registry.path / "HISTORY").read_text().split() == [versions[2], versions[1]]
    (registry.path / "CURRENT").write_text(f"{versions[1]}\n")
    (registry.path / versions[1] / "items.faiss").unlink()
    with pytest.raises(BundleError, match="nor can an earlier version be loaded"):
        Serving.start(RegistrySource(registry))


def test_a_reload_reads_the_profiles_anew(registry):
    source = RegistrySource(registry)
    serving = Serving.start(source)
    write_profiles(registry.path / "profiles", make_profiles(SHOP, {"u1": known_users(SHOP)["u1"]}))
    assert serving.reload(source).is_loaded
    assert serving.current().recommender.profiles.user_ids.tolist() == ["u1"]


def test_no_answer_is_of_two_versions_while_a_hundred_swaps_happen(registry, versions):
    source, asked = RegistrySource(registry), requests_of(SHOP)
    serving = Serving.start(source)
    is_over = threading.Event()
    answered: list[tuple[str, int, list[int], list[float]]] = []
    faults: list[Exception] = []

    def keep_asking(first: int) -> None:
        number = first
        try:
            while not is_over.is_set():
                snapshot, place = serving.current(), number % len(asked)
                answer = snapshot.recommender.recommend([asked[place]], 5, filter_viewed=False)
                rows = [ROWS[item_id] for item_id in answer.item_id.tolist()]
                answered.append((snapshot.version, place, rows, answer.score.tolist()))
                number += 1
                is_over.wait(0.002)
        except (ValueError, OSError, RuntimeError) as error:
            faults.append(error)

    threads = [threading.Thread(target=keep_asking, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for swap in range(100):
        write_current(registry.path, versions[1 + swap % 2], [])
        assert serving.reload(source).version == versions[1 + swap % 2]
    is_over.set()
    for thread in threads:
        thread.join()
    assert faults == []
    assert {version for version, *_ in answered} == {versions[1], versions[2]}
    scores = [score for *_, listed in answered for score in listed]
    expected = {
        versions[seed]: [naive_scores(SHOP, seed, known_users(SHOP), request)[1] for request in asked]
        for seed in (1, 2)
    }
    recomputed = [expected[version][place][row] for version, place, rows, _ in answered for row in rows]
    np.testing.assert_allclose(scores, recomputed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "damage", [point_by_link, point_by_folder, point_nowhere, point_to_nothing, point_to_a_link, point_to_another]
)
def test_a_first_start_without_a_valid_current_version_takes_the_one_before_and_says_so(registry, versions, damage):
    damage(registry, versions[2])
    if damage in (point_by_link, point_by_folder, point_nowhere):  # what was current cannot be told but by the history
        shutil.rmtree(registry.path / versions[2])
    serving = Serving.start(RegistrySource(registry))
    assert serving.current().version == versions[1]
    assert not serving.last_reload.is_loaded
    assert serving.last_reload.version == versions[1]
    assert serving.last_reload.reason.endswith(f"; {versions[1]} answers, which was current before")


def test_a_first_start_never_takes_a_version_that_was_not_activated(published, tmp_path):
    registry = Registry(tmp_path / "registry")
    publish(registry, published[1], keep=3)
    with pytest.raises(BundleError, match=r"no version is current.*nor can an earlier version be loaded"):
        Serving.start(RegistrySource(registry))
    damaged = publish_and_activate(registry, published[2], keep=3).version
    (registry.path / damaged / "items.faiss").unlink()
    with pytest.raises(BundleError, match=r"items\.faiss is missing.*nor can an earlier version be loaded"):
        Serving.start(RegistrySource(registry))


def test_a_first_start_of_a_damaged_bundle_is_an_error(published, tmp_path):
    folder = Path(shutil.copytree(published[1], tmp_path / "bundle"))
    (folder / "items.faiss").unlink()
    with pytest.raises(BundleError, match=r"items\.faiss is missing"):
        Serving.start(BundleSource(folder))


def test_profiles_that_cannot_be_read_leave_the_old_ones_and_tell_nothing_of_them(registry, versions):
    serving = Serving.start(RegistrySource(registry))
    (registry.path / "profiles" / "manifest.json").write_text("{")
    outcome = serving.reload(RegistrySource(registry))
    assert outcome.reason.startswith("registry/profiles/manifest.json: not a manifest of profiles")
    profiles = make_profiles(SHOP, {"secret": {"features": {"income": 1.5}, "history": []}})
    amounts = np.array(["lots of money"], dtype=object)
    write_profiles(registry.path / "profiles", replace(profiles, features={"income": amounts}))
    outcome = serving.reload(RegistrySource(registry))
    assert outcome.reason == "a value of the profiles, the live items or the golden requests does not fit the bundle"
    assert serving.current().version == versions[2]
    assert len(serving.current().recommender.profiles) == len(known_users(SHOP))


@pytest.mark.parametrize("is_relative", [True, False])
def test_no_reason_holds_a_path_of_the_machine(published, tmp_path, monkeypatch, is_relative):
    monkeypatch.chdir(tmp_path)
    root = Path("somewhere") if is_relative else tmp_path / "somewhere"
    registry = Registry(root / "registry")
    publish_and_activate(registry, published[1], keep=3)
    shutil.copytree(published[1], root / "bundle")
    own = root / "deeper" / "profiles"
    unnamed, named = (BundleSource(root / "bundle"), RegistrySource(registry)), BundleSource(root / "bundle", own)
    for source in (*unnamed, named, RegistrySource(registry, own)):
        profiles = source.profiles or (registry.path if isinstance(source, RegistrySource) else root) / "profiles"
        write_profiles(profiles, make_profiles(SHOP, known_users(SHOP)))
        serving = Serving.start(source)
        (profiles / "manifest.json").write_text("{")
        reason = serving.reload(source).reason
        assert "manifest.json: not a manifest of profiles" in reason
        assert "somewhere" not in reason
        assert "deeper" not in reason
        assert str(tmp_path) not in reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "Cannot allocate memory"),
        (OSError(errno.EACCES, "Permission denied", "/home/somebody/items.faiss"), "items.faiss: Permission denied"),
        (OSError("somebody's words"), "a file cannot be read"),
        (MemoryError(), "the memory does not suffice for a second version beside the one that answers"),
    ],
)
def test_a_fault_of_the_disk_is_told_with_the_name_of_the_file_where_it_has_one(registry, monkeypatch, error, reason):
    source = RegistrySource(registry)
    serving = Serving.start(source)

    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(mmap, "mmap", fail)
    outcome = serving.reload(source)
    assert (outcome.is_loaded, outcome.reason) == (False, reason)


@dataclass(frozen=True)
class Given:
    """Loads what it is given, after `hold` where that is asked for."""

    snapshot: Snapshot
    hold: threading.Event
    error: Exception | None = None
    marks: list[str] = field(default_factory=list, compare=False)
    version: list[int] = field(default_factory=lambda: [0], compare=False)

    def start(self):
        return self.snapshot, None

    def load(self):
        self.marks.append("load")
        assert self.hold.wait(60)
        if self.error is not None:
            raise self.error
        return replace(self.snapshot)

    def identify(self):
        return self.version[0]

    def explain(self, error):
        return f"it is broken: {error}"


@pytest.fixture
def given(published) -> Given:
    return Given(Snapshot(Recommender.load(published[1]), published[1]), threading.Event())


def reload_together(serving: Serving, source: Given, n: int) -> tuple[list[threading.Thread], list]:
    """Ask `n` times at once for a reload; return when one loads and all others wait for it."""
    outcomes: list = []
    threads = [threading.Thread(target=lambda: outcomes.append(serving.reload(source))) for _ in range(n)]
    for thread in threads:
        thread.start()
    while source.marks != ["load"] or len(serving._load.is_over._cond._waiters) < n - 1:
        time.sleep(0.001)
    return threads, outcomes


@pytest.mark.parametrize("error", [None, BundleError("a file"), OSError(28, "No space"), MemoryError()])
def test_twenty_reloads_at_once_are_one_load(given, error):
    source = replace(given, error=error)
    serving = Serving.start(source)
    before = serving.current()
    threads, outcomes = reload_together(serving, source, 20)
    assert serving.current() is before
    source.hold.set()
    for thread in threads:
        thread.join()
    assert source.marks == ["load"]
    assert outcomes == [serving.last_reload] * 20
    assert outcomes[0].is_loaded == (error is None)
    assert (serving.current() is before) == (error is not None)


def test_who_asks_for_what_came_after_the_load_began_is_not_told_of_that_load(given):
    serving = Serving.start(given)
    threads, outcomes = reload_together(serving, given, 1)
    given.version[0] += 1
    late = threading.Thread(target=lambda: outcomes.append(serving.reload(given)))
    late.start()
    while not serving._load.is_over._cond._waiters:
        time.sleep(0.001)
    given.hold.set()
    for thread in (*threads, late):
        thread.join()
    assert given.marks == ["load", "load"]
    assert [outcome.is_loaded for outcome in outcomes] == [True, True]


def test_an_error_that_nobody_foresaw_reaches_the_caller_and_is_remembered(given):
    source = replace(given, error=KeyError("secret"))
    source.hold.set()
    serving = Serving.start(source)
    before = serving.current()
    with pytest.raises(KeyError, match="secret"):
        serving.reload(source)
    assert serving.current() is before
    assert serving.last_reload.reason == "an error that was not foreseen"
    assert serving.reload(replace(source, error=None)).is_loaded


def test_who_waited_for_a_load_that_ended_by_such_an_error_loads_again(given):
    source = replace(given, error=KeyError("secret"))
    serving, faults = Serving.start(source), []

    def reload():
        try:
            serving.reload(source)
        except KeyError as error:
            faults.append(error)

    threads = [threading.Thread(target=reload) for _ in range(3)]
    for thread in threads:
        thread.start()
    while source.marks != ["load"] or len(serving._load.is_over._cond._waiters) < 2:
        time.sleep(0.001)
    source.hold.set()
    for thread in threads:
        thread.join()
    assert faults == [source.error] * 3
    assert source.marks == ["load"] * 3


@pytest.mark.parametrize("is_reload", [True, False], ids=["reload", "change"])
def test_a_change_that_comes_while_another_is_made_is_not_lost(given, is_reload):
    changing: list[threading.Thread] = []

    def mark(snapshot):
        return replace(snapshot, folder=snapshot.folder / "marked")

    def meanwhile(snapshot):
        changing[0].start()
        changing[0].join(0.2)  # it has to wait for this one; if it did not, it would be over by then
        return replace(snapshot, folder=Path("first"))

    serving = Serving.start(given, lambda snapshot: meanwhile(snapshot) if changing else snapshot)
    given.hold.set()
    changing.append(threading.Thread(target=serving.change, args=(mark,)))
    if is_reload:
        assert serving.reload(given).is_loaded
    else:
        serving.change(meanwhile)
    changing[0].join()
    assert serving.current().folder == Path("first/marked")


def test_what_is_put_on_top_comes_with_every_version_and_changes_are_not_lost(registry, versions):
    names = ["first"]

    def complete(snapshot: Snapshot) -> Snapshot:
        return replace(snapshot, folder=Path(*names))

    serving = Serving.start(RegistrySource(registry), complete)
    assert serving.current().folder == Path("first")
    names.append("second")
    assert serving.change(complete).folder == serving.current().folder == Path("first/second")
    activate(registry, versions[1])
    assert serving.reload(RegistrySource(registry)).is_loaded
    assert serving.current().folder == Path("first/second")


def test_what_cannot_be_put_on_top_leaves_the_old_version(registry, versions):
    faults: list[SchemaError] = []

    def complete(snapshot: Snapshot) -> Snapshot:
        if faults:
            raise faults[0]
        return snapshot

    serving = Serving.start(RegistrySource(registry), complete)
    activate(registry, versions[1])
    faults.append(SchemaError("price is 'secret'"))
    outcome = serving.reload(RegistrySource(registry))
    assert (outcome.is_loaded, outcome.version) == (False, versions[2])
    assert "secret" not in outcome.reason
    assert serving.current().version == versions[2]
