import hashlib
import hmac
import json
import os
import threading

import pytest

from serve.errors import BundleError
from serve.state.tombstones import (
    TombstoneFile,
    Tombstones,
    add_tombstones,
    both_forms,
    inherit_tombstones,
    read_tombstones,
)
from tests.lost_power import Disk


def test_users_are_told_by_keyed_hashes_alone(tmp_path):
    hashes = add_tombstones(tmp_path, ["anna", 7])
    text = (tmp_path / "forgotten.json").read_text()
    (users,) = json.loads(text)["users"]
    assert "anna" not in text
    expected = [hmac.new(bytes.fromhex(users["salt"]), name, hashlib.sha256).hexdigest() for name in (b"anna", b"7")]
    assert hashes == expected
    assert users["hashes"] == sorted(expected)
    tombstones = read_tombstones(tmp_path)
    assert [tombstones.holds(one) for one in ("anna", 7, "7", "Anna", "07", 8, "")] == [True] * 3 + [False] * 4
    assert len(tombstones) == 2


def test_ids_that_are_no_utf8_are_told_apart(tmp_path):
    add_tombstones(tmp_path, ["a\udce9"])  # as a byte that is no character is read
    tombstones = read_tombstones(tmp_path)
    assert [tombstones.holds(one) for one in ("a\udce9", "a\udce8", "a?", "a")] == [True, False, False, False]


def test_salts_are_random_and_kept(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first, other = (add_tombstones(tmp_path / name, ["anna"]) for name in ("one", "two"))
    assert first != other
    assert add_tombstones(tmp_path / "one", ["anna", "ben"])[0] == first[0]
    assert len(read_tombstones(tmp_path / "one")) == 2


def test_nobody_is_forgotten_where_there_is_no_file(tmp_path):
    assert read_tombstones(tmp_path) == Tombstones()
    assert inherit_tombstones(tmp_path, tmp_path / "nowhere" / "bundle") == Tombstones()
    assert not TombstoneFile(tmp_path).holds("anna")
    assert list(tmp_path.iterdir()) == []


def test_a_run_takes_over_those_of_the_run_before_it_and_of_the_one_before_that(tmp_path):
    runs = [tmp_path / name for name in ("first", "second", "third")]
    for run, user_id in zip(runs, ("anna", "ben", "carl"), strict=True):
        run.mkdir()
        add_tombstones(run, [user_id])
    inherit_tombstones(runs[1], runs[0] / "bundle")
    for _ in range(2):  # twice changes nothing
        inherited = inherit_tombstones(runs[2], runs[1] / "bundle")
        assert [inherited.holds(one) for one in ("anna", "ben", "carl", "dora")] == [True, True, True, False]
        assert len(inherited) == 3
        assert read_tombstones(runs[2]).sets == inherited.sets
    add_tombstones(runs[2], ["dora"])
    assert len(read_tombstones(runs[2])) == 4
    assert len(read_tombstones(runs[0])) == 1


def test_a_run_keeps_its_own_where_the_run_before_it_has_none(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "old").mkdir()
    add_tombstones(tmp_path / "new", ["anna"])
    assert inherit_tombstones(tmp_path / "new", tmp_path / "old" / "bundle").holds("anna")
    assert inherit_tombstones(tmp_path / "new", None).holds("anna")


def test_a_link_to_a_bundle_leads_to_those_of_its_run(tmp_path):
    for name, user_id in (("old", "anna"), ("links", "ben")):
        (tmp_path / name).mkdir()
        add_tombstones(tmp_path / name, [user_id])
    (tmp_path / "old" / "bundle").mkdir()
    (tmp_path / "links" / "latest").symlink_to(tmp_path / "old" / "bundle")
    (tmp_path / "new").mkdir()
    inherited = inherit_tombstones(tmp_path / "new", tmp_path / "links" / "latest")
    assert [inherited.holds(one) for one in ("anna", "ben", "carl")] == [True, True, False]
    assert read_tombstones(tmp_path / "new").sets == inherited.sets


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": 1, "users": [{"salt": "xyz", "hashes": []}]}',
        '{"format": 1, "users": {}}',
        '{"format": 1, "users": ""}',
        '{"format": 1, "users": [{"salt": "00", "hashes": {}}]}',
        '{"format": 1, "users": [{"salt": "00", "hashes": ""}]}',
    ],
)
def test_a_damaged_file_is_an_error_and_no_empty_list(tmp_path, content):
    (tmp_path / "forgotten.json").write_text(content)
    for call in (lambda: read_tombstones(tmp_path), lambda: TombstoneFile(tmp_path).holds("anna")):
        with pytest.raises(BundleError, match=r"forgotten\.json is damaged"):
            call()
    with pytest.raises(BundleError, match="is damaged"):
        add_tombstones(tmp_path, ["anna"])
    assert (tmp_path / "forgotten.json").read_text() == content


def test_a_file_of_a_later_format_is_refused(tmp_path):
    (tmp_path / "forgotten.json").write_text('{"format": 2, "users": []}')
    with pytest.raises(BundleError, match="of format 2; allowed: 1"):
        read_tombstones(tmp_path)


def test_a_file_that_cannot_be_reached_is_no_empty_list(tmp_path):
    (tmp_path / "forgotten.json").symlink_to("forgotten.json")  # a link that leads nowhere, whoever asks
    for call in (lambda: read_tombstones(tmp_path), lambda: TombstoneFile(tmp_path).holds("anna")):
        with pytest.raises(OSError, match="symbolic links"):
            call()


def test_who_was_forgotten_stays_so_where_the_power_fails(tmp_path, monkeypatch):
    disk, runs = Disk(monkeypatch), [tmp_path / "one", tmp_path / "two"]
    for run in runs:
        run.mkdir()
    for change in (lambda: add_tombstones(runs[0], ["anna"]), lambda: inherit_tombstones(runs[1], runs[0] / "bundle")):
        change()
        assert disk.too_early == disk.unnamed == []
    assert all(disk.holds(run / "forgotten.json") for run in runs)


def test_a_file_that_changes_is_read_again(tmp_path):
    watched = TombstoneFile(tmp_path)
    for number in range(3):
        assert not watched.holds(f"u{number}")
        add_tombstones(tmp_path, [f"u{number}"])
        assert watched.holds(f"u{number}")
    assert watched.holds("u0")


def test_a_file_that_is_written_over_or_replaced_by_one_as_old_is_read_again(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        add_tombstones(tmp_path / name, [name])
    path, other = (tmp_path / name / "forgotten.json" for name in ("one", "two"))
    watched = TombstoneFile(tmp_path / "one")
    before, time = path.read_bytes(), path.stat().st_mtime_ns
    assert watched.holds("one")
    path.write_bytes(other.read_bytes())
    os.utime(path, ns=(0, time + 1))
    assert (watched.holds("one"), watched.holds("two")) == (False, True)
    other.write_bytes(before)
    os.utime(other, ns=(0, time + 1))
    os.replace(other, path)
    assert (watched.holds("one"), watched.holds("two")) == (True, False)


def test_old_tombstones_never_stand_under_the_mark_of_new_ones(tmp_path, monkeypatch):
    add_tombstones(tmp_path, ["anna"])
    has_read, goes_on = threading.Event(), threading.Event()

    def read(run):
        tombstones = read_tombstones(run)
        if threading.current_thread() is slow:
            has_read.set()
            assert goes_on.wait(20)
        return tombstones

    class Overtaken(TombstoneFile):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            if has_read.is_set() and threading.current_thread() is not slow:
                goes_on.set()
                slow.join()

    watched = Overtaken(tmp_path)
    slow = threading.Thread(target=watched.holds, args=("anna",))
    monkeypatch.setattr("serve.state.tombstones.read_tombstones", read)
    slow.start()
    assert has_read.wait(20)
    add_tombstones(tmp_path, ["ben"])
    assert [watched.holds("ben") for _ in range(2)] == [True, True]


def test_nobody_is_lost_where_many_forget_at_once(tmp_path):
    threads = [threading.Thread(target=add_tombstones, args=(tmp_path, [f"u{n}", "all"])) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tombstones = read_tombstones(tmp_path)
    assert len(tombstones) == 9
    assert all(tombstones.holds(f"u{n}") for n in range(8))


@pytest.mark.parametrize(
    ("user_id", "forms"),
    [
        *[("u", ["u"]), (7, ["7", 7]), ("-7", ["-7", -7]), ("07", ["07"]), ("9" * 19, ["9" * 19]), ("٣", ["٣"])],
        *[(edge, [str(edge), edge]) for edge in (2**63 - 1, -(2**63))],
        *[(str(beyond), [str(beyond)]) for beyond in (2**63, -(2**63) - 1)],
    ],
)
def test_both_forms_of_an_id(user_id, forms):
    assert both_forms(user_id) == forms
