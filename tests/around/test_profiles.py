"""Profiles in files of their own: read back as they were, replaced in one step, and erased for good."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from serve.errors import BundleError
from serve.kinds import Feature
from serve.profiles import Profiles, erase_users, feature_values, settle_profiles, stage_profiles
from serve.requests import History
from tests.around.lost_power import Disk
from tests.linear_profiles import write_profiles

FEATURES = (
    Feature("age", "numeric", "birth_year", mean=3.0, scale=2.0),
    Feature("gender", "categorical", "sex", ("f", "7")),
    Feature("user_id", "multi_categorical", "likes", ("a", "b", "c"), width=2),
    Feature("hour", "hour_of_day", "datetime"),
)
COLUMNS = {
    "birth_year": [1.5, None, 4, float("nan"), 5],
    "sex": [" f", None, 7.0, "m", ""],
    "likes": ["a|b", ["c", "a"], None, [], "x"],
}
N_EVENTS = 11


def texts(values):
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def make(user_ids=("u0", "u1", "é", "007", "a b"), item_ids=None) -> Profiles:
    return Profiles(
        user_ids=texts(user_ids) if isinstance(user_ids[0], str) else np.array(user_ids),
        features=feature_values(FEATURES, COLUMNS),
        history=History(
            item_id=np.arange(N_EVENTS) * 2**55 if item_ids is None else texts(item_ids),
            datetime=np.arange(N_EVENTS) + 1_700_000_000,
            event=texts(["view", None, "buy"] * 3 + ["view"] * 2),
            weight=np.linspace(0, 1, N_EVENTS),
        ),
        offsets=np.array([0, 3, 3, 4, 9, 11]),
    )


NEW = ("v0", "v1", "v2", "v3", "v4")


def assert_same(left: Profiles, right: Profiles):
    assert left.user_ids.tolist() == right.user_ids.tolist()
    assert left.offsets.tolist() == right.offsets.tolist()
    assert left.features.keys() == right.features.keys()
    for name in left.features:
        np.testing.assert_array_equal(left.features[name], right.features[name])
    assert left.history.columns().keys() == right.history.columns().keys()
    for name, values in left.history.columns().items():
        assert values.tolist() == right.history.columns()[name].tolist()


@pytest.mark.parametrize("user_ids", [("u0", "u1", "é", "007", "a b"), (5, -3, 2**60, 0, 7)])
@pytest.mark.parametrize(
    "item_ids", [None, ["a", "b", "a", "é", "", "007", "a", "b", "c", "d", "a"]]
)
def test_round_trip(tmp_path, user_ids, item_ids):
    profiles = make(user_ids, item_ids)
    write_profiles(tmp_path / "profiles", profiles)
    assert_same(Profiles.load(tmp_path / "profiles"), profiles)


def test_erased_users_are_in_no_file(tmp_path):
    write_profiles(tmp_path, make(("u0", "u1", "é", "secret", "a b")))
    before = {path.name for path in tmp_path.iterdir()}
    assert erase_users(tmp_path, ["secret", "unknown"]) == {"secret"}
    after = {path.name for path in tmp_path.iterdir()}
    assert len(after) == len(before) == 4
    assert len(after & before) == 2  # the manifest and the lock
    assert Profiles.load(tmp_path).user_ids.tolist() == ["u0", "u1", "é", "a b"]
    assert erase_users(tmp_path, ["secret"]) == set()
    assert erase_users(tmp_path, ["u0", "u1", "é", "a b"]) == {"u0", "u1", "é", "a b"}
    assert len(Profiles.load(tmp_path)) == 0


@pytest.mark.parametrize("part", ["users", "events"])
def test_an_altered_or_missing_file_is_named(tmp_path, part):
    write_profiles(tmp_path, make())
    path = next(tmp_path.glob(f"{part}-*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=f"'{path.name}' was altered"):
        Profiles.load(tmp_path)
    path.unlink()
    with pytest.raises(BundleError, match=f"'{path.name}' is missing"):
        Profiles.load(tmp_path)


def test_profiles_are_on_disk_before_they_are_named(tmp_path, monkeypatch):
    disk = Disk(monkeypatch, "manifest.json")
    for user_ids in (NEW, NEW[::-1]):
        write_profiles(tmp_path, make(user_ids))
        assert disk.too_early == disk.unnamed == []
    erase_users(tmp_path, NEW[:1])
    assert disk.too_early == disk.unnamed == []
    assert disk.holds(tmp_path)


@pytest.mark.parametrize(
    ("version", "kept"), [("version-2", NEW), ("version-1", None), (None, None)]
)
def test_staged_profiles_stay_with_their_bundle(tmp_path, version, kept):
    write_profiles(tmp_path, make())
    stage_profiles(tmp_path, [make(NEW)], "version-2")
    for other in (None, "version-1"):
        assert_same(Profiles.load(tmp_path, other), make())
    assert_same(Profiles.load(tmp_path, "version-2"), make(NEW))
    settle_profiles(tmp_path, version)
    settle_profiles(tmp_path, version)
    assert_same(Profiles.load(tmp_path, "version-2"), make(kept) if kept else make())
    assert_same(Profiles.load(tmp_path), make(kept) if kept else make())
    assert len(list(tmp_path.iterdir())) == 4


KILLED_AT_EACH_STEP = """
import os, sys
from pathlib import Path
from serve.profiles import erase_users

def count_steps(real, left):
    def step(*arguments, **options):
        if next(left, None) is None:
            os._exit(9)
        return real(*arguments, **options)
    return step

for number, folder in enumerate(sys.argv[1:]):
    child = os.fork()
    if not child:
        left = iter(range(number))
        os.fsync, os.replace = count_steps(os.fsync, left), count_steps(os.replace, left)
        Path.unlink = count_steps(Path.unlink, left)
        erase_users(Path(folder), ["007"])
        os._exit(7 if "pandas" in sys.modules else 0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_killed_at_any_step_it_is_the_old_or_the_new_profiles(tmp_path):
    folders = [tmp_path / f"step{number}" for number in range(20)]
    for folder in folders:
        write_profiles(folder, make())
    arguments = [sys.executable, "-c", KILLED_AT_EACH_STEP, *map(str, folders)]
    child = subprocess.run(
        arguments, check=True, capture_output=True, cwd=Path(__file__).parents[2]
    )
    codes = [int(code) for code in child.stdout.split()]
    assert codes == [9] * codes.count(9) + [0] * codes.count(0)
    assert 6 < codes.count(9) < 20 == len(codes)
    users = [Profiles.load(folder).user_ids.tolist() for folder in folders]
    assert {tuple(ids) for ids in users} == {
        ("u0", "u1", "é", "007", "a b"),
        ("u0", "u1", "é", "a b"),
    }
    assert users[-1] == ["u0", "u1", "é", "a b"]
    for folder in folders:  # what a killed one has left goes with the next write
        erase_users(folder, ["007"])
        assert len(list(folder.iterdir())) == 4
