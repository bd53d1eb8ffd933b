"""A user who is forgotten stands in no file, table or answer of a run; the receipt says what is out of reach."""

import json
import os
import re
import shutil
import threading
import time
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bascule.commands import main
from serve.arrays import to_arrow
from serve.errors import BundleError
from serve.files import is_forgotten, read_erasure_list
from serve.profiles import Profiles, stage_profiles
from serve.recommender import Recommender
from serve.requests import History, Request
from service.event_log import Impressions, Observation
from service.forget import (
    Erasures,
    add_to_erasure_list,
    erase_forgotten,
    forget_known,
    forget_users,
)
from service.known_users import complete
from service.live_items import LiveItems
from service.state import StateStore
from tests.around.lost_power import Disk
from tests.linear_bundle import SHOP, UNTIL, item_ids, publish_linear
from tests.linear_profiles import known_users, make_profiles, write_profiles

from service import export

ROOT = Path(__file__).parents[2]
SENTINEL = "sentinel-4c7"
IDS = item_ids(SHOP)
REJECTED = [
    ("events.csv", 3, "datetime", f"{SENTINEL},i1,yesterday", "too few columns"),
    ("events.csv", 4, "weight", "many", "not a number"),
    ("users.csv", 5, "user_id", None, "missing"),
    ("events.csv", 6, None, f"x{SENTINEL}y,i1", "too many columns"),
]


def users_of(schema, sentinel):
    known = known_users(schema)
    return {sentinel: next(iter(known.values())), **known}


def write_rejects(path, rows=REJECTED):
    path.parent.mkdir(exist_ok=True)
    columns = zip(*rows, strict=True)
    types = (object, np.int64, object, object, object)
    arrays = [
        to_arrow(np.array(column, dtype=kind)) for column, kind in zip(columns, types, strict=True)
    ]
    names = ["file", "line", "column", "value", "reason"]
    pq.write_table(pa.Table.from_arrays(arrays, names=names), path, compression="zstd")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Make a run, its live state and an export of its users, with the sentinel in all of them."""
    folder = tmp_path_factory.mktemp("forgetting")
    run = publish_linear(folder / "run", SHOP, seed=3).parent
    profiles = make_profiles(SHOP, users_of(SHOP, SENTINEL))
    write_profiles(run / "profiles", profiles)
    stage_profiles(run / "profiles", [profiles], "another")
    write_rejects(run / "rejects.parquet")
    write_rejects(run / ".beside-1" / "rejects.parquet")
    with closing(StateStore(run / "state" / "state.db")) as store:
        store.observe_many(
            Observation(user, IDS[3], "buy", UNTIL + n)
            for n in range(9)
            for user in (SENTINEL, "u1")
        )
        store.observe(SENTINEL, IDS[4], "dismiss", UNTIL)
        store.log_impressions(
            Impressions("r", user, UNTIL, "v", "greedy", IDS[:4], [1.0] * 4, [1.0] * 4)
            for user in (SENTINEL, "u1")
        )
    words = [
        "export",
        "--bundle",
        run / "bundle",
        "--side",
        "user",
        "--out",
        folder / "users",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "ROWS_PER_SHARD", 4)
        patch.setattr("datamodules.read.ROWS_AT_ONCE", 2)
        assert main([str(word) for word in words]) == 0
        words[4:] = ["item", "--out", folder / "items"]
        assert main([str(word) for word in words]) == 0
        words[4:] = ["user", "--out", run / "vectors"]
        assert main([str(word) for word in words]) == 0
    for name in ("recommendations.csv", "recommendations.parquet"):
        words = [
            "recommend",
            "--bundle",
            run / "bundle",
            "--all-users",
            "--k",
            3,
            "--out",
            run / name,
        ]
        assert main([str(word) for word in words]) == 0
    return folder


@pytest.fixture
def folder(template, tmp_path):
    shutil.copytree(template, tmp_path / "copy")
    return tmp_path / "copy"


def find(folder, text):
    """Name the files that hold a text: by their bytes, and by the cells of what is compressed."""
    found = []
    for path in (path for path in folder.rglob("*") if path.is_file()):
        cells = repr(pq.ParquetFile(path).read().to_pydict()) if path.suffix == ".parquet" else ""
        if text.encode() in path.read_bytes() or text in cells:
            found.append(str(path.relative_to(folder)))
    return sorted(re.sub(r"-[0-9a-f]{16}|-wal|-shm", "", name) for name in found)


def test_who_is_forgotten_does_not_come_back_where_the_power_fails(folder, monkeypatch):
    (folder / "users" / "_SUCCESS").unlink()  # an export that has not ended
    disk = Disk(monkeypatch)
    forget_users(folder / "run", [SENTINEL], [folder / "users"])
    assert disk.too_early == disk.unnamed == []
    assert disk.holds(folder / "run" / "profiles")


def test_the_sentinel_is_in_no_file_afterwards(folder):
    before = find(folder, SENTINEL)
    assert set(before) == {
        "run/.beside-1/rejects.parquet",
        "run/profiles/users.parquet",
        "run/recommendations.csv",
        "run/recommendations.parquet",
        "run/rejects.parquet",
        "run/state/state.db",
        "run/vectors/part-00000.parquet",
        "users/part-00000.parquet",
    }
    receipt = forget_users(folder / "run", [SENTINEL], [folder / "users"])
    assert find(folder, SENTINEL) == []
    assert SENTINEL not in json.dumps(receipt)
    assert receipt["at"].endswith("+00:00")
    assert abs(datetime.fromisoformat(receipt["at"]).timestamp() - time.time()) < 3600
    assert receipt["erased"] == {
        "profiles": 1,
        "events": 10,
        "impressions": 4,
        "rejects": 2,
        "rejected_values": 4,
        "outputs": {
            "recommendations.csv": 3,
            "recommendations.parquet": 3,
            "vectors": 1,
        },
        "exports": {str(folder / "users"): 1},
    }
    assert {"weights", "source tables", "report", "copies", "memory"} <= receipt[
        "not_reached"
    ].keys()
    assert (
        Recommender.load(folder / "run" / "bundle").bundle.manifest.version
        in receipt["not_reached"]["weights"]
    )
    assert "neighbours" in receipt["not_reached"]["weights"]


def test_the_others_stay_as_they_were(folder):
    run, others = folder / "run", list(known_users(SHOP))
    old, vectors = Profiles.load(run / "profiles"), read_export(folder / "users")
    listed = (run / "recommendations.csv").read_text().splitlines()
    forget_users(run, [SENTINEL], [folder / "users"])
    new = Profiles.load(run / "profiles")
    assert new.user_ids.tolist() == others
    for user_id in others:
        assert (
            new.get(user_id).history.item_id.tolist() == old.get(user_id).history.item_id.tolist()
        )
    assert Profiles.load(run / "profiles", "another").user_ids.tolist() == others
    with closing(StateStore(run / "state" / "state.db")) as store:
        assert len(store.recall("u1").history) == 9
    left = pq.read_table(run / "rejects.parquet").to_pylist()
    assert [tuple(row.values()) for row in left] == [
        (*row[:3], None, row[4]) for row in REJECTED[1:]
    ]
    del vectors[SENTINEL]
    assert read_export(run / "vectors") == vectors
    assert pq.read_table(run / "recommendations.parquet").column("user_id").to_pylist() == [
        u for u in others for _ in "abc"
    ]
    lines = (run / "recommendations.csv").read_text().splitlines()
    assert lines == [line for line in listed if SENTINEL not in line]
    assert read_export(folder / "users") == vectors
    success = json.loads((folder / "users" / "_SUCCESS").read_text())
    assert success == {"rows": len(others), "shards": 2}


def read_export(folder):
    table = pq.read_table(folder)
    return dict(
        zip(
            table.column("user_id").to_pylist(),
            table.column("vector").to_pylist(),
            strict=True,
        )
    )


def test_of_somebody_who_is_not_there_only_the_erasure_list_is_written(folder):
    run = folder / "run"
    shutil.rmtree(run / "vectors")
    forget_users(run, [SENTINEL])  # empties the list of rejects
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in run.rglob("*")
        if path.is_file()
    }
    forget_users(run, ["nobody", "7"])
    after = {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in run.rglob("*")
        if path.is_file()
    }
    changed = {path.name for path in after if after[path] != before.get(path)}
    assert changed == {"forgotten.json", "state.db"}  # the state remembers how long the list is
    assert set(after) == set(before)


def test_a_table_in_the_folder_that_cannot_be_read_stops_forgetting(folder):
    (folder / "run" / "mine.parquet").write_bytes(b"PAR1")
    with pytest.raises(BundleError, match=r"mine\.parquet is damaged"):
        forget_users(folder / "run", [SENTINEL])


def test_those_who_come_while_others_are_erased_are_erased_together(folder, monkeypatch):
    run, gate, asked = folder / "run", threading.Event(), []

    def forget(run, user_ids, *more, **shared):
        assert gate.wait(20)
        asked.append(user_ids)
        return forget_known(run, user_ids, *more, **shared)

    monkeypatch.setattr("service.forget.forget_known", forget)
    with closing(Erasures([run])) as erasures:
        first = erasures.add("nobody")
        while not first.running():
            pass
        time.sleep(0.01)
        others = [erasures.add(user) for user in (SENTINEL, "u1", SENTINEL)]
        gate.set()
        (receipt,) = others[0].result(20)
        assert others[2].result(20) == [receipt]
        assert asked == [["nobody"], [SENTINEL, "u1"]]
        assert (receipt["erased"]["profiles"], receipt["erased"]["events"]) == (2, 19)
        assert str(run) not in json.dumps(receipt)
    assert find(run, SENTINEL) == []


def test_what_holds_persons_is_for_its_owner_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        run = publish_linear(tmp_path / "run", SHOP, seed=3).parent
        write_profiles(run / "profiles", make_profiles(SHOP, users_of(SHOP, SENTINEL)))
        live = LiveItems(run / "state" / "items.db", Recommender.load(run / "bundle"))
        with closing(live), closing(StateStore(run / "state" / "state.db")) as store:
            store.observe("u1", IDS[3], "buy", UNTIL)
            store.recall("u1")
            forget_users(run, [SENTINEL])
            private = [run / "profiles", run / "state", run / "forgotten.json"]
            private += [path for folder in private[:2] for path in folder.iterdir()]
            assert {
                "state.db",
                "state.db-wal",
                "state.db-shm",
                "items.db",
                "manifest.json",
            } <= {p.name for p in private}
            assert {
                path.name: path.stat().st_mode & 0o077
                for path in private
                if path.stat().st_mode & 0o077
            } == {}
    finally:
        os.umask(before)


def test_no_answer_knows_her_afterwards(folder):
    run = folder / "run"
    before = Recommender.load(run / "bundle")  # as a server that does not reload
    nobody = before.recommend([Request()], 5).of(0)
    with closing(StateStore(run / "state" / "state.db")) as store:
        first = before.recommend([complete(Request(SENTINEL), before.profiles, store)], 5).of(0)
        forget_users(run, [SENTINEL])
        assert not store.observe(SENTINEL, IDS[3], "buy", UNTIL)
        second = before.recommend([complete(Request(SENTINEL), before.profiles, store)], 5).of(0)
        given = Request(SENTINEL, {"gender": "f"}, History(np.array([IDS[2]], dtype=object)))
        assert complete(given, before.profiles, store) == replace(given, user_known=False)
    assert first.item_id.tolist() != nobody.item_id.tolist()
    assert second.item_id.tolist() == nobody.item_id.tolist()
    reloaded = Recommender.load(run / "bundle").recommend([Request(SENTINEL)], 5).of(0)
    assert reloaded.item_id.tolist() == nobody.item_id.tolist()
    np.testing.assert_allclose(reloaded.score, nobody.score)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--user", "u"],
            r"no folder of a run: expected 'bundle', 'profiles' or 'state'",
        ),
        (["--user", ""], r"user is '' \(str\); expected a text that is not empty"),
        (
            ["--user", "u", "--exports", "nowhere"],
            "nowhere holds no export.*give the --out of",
        ),
        (
            ["--user", "u", "--exports", "{items}"],
            "is an export of side 'item', which names no user",
        ),
    ],
)
def test_slips_are_one_line_and_erase_nothing(template, folder, words, message, capsys):
    run = folder / "empty" if "no folder" in message else folder / "run"
    words = [word.replace("{items}", str(folder / "items")) for word in words]
    assert main(["forget", "--run", str(run), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert find(folder, SENTINEL) == find(template, SENTINEL)
    assert not (run / "forgotten.json").exists()


def test_who_was_forgotten_while_a_training_had_her_at_hand_is_not_published(folder):
    run = folder / "run"
    profiles = make_profiles(SHOP, users_of(SHOP, SENTINEL))
    forget_users(run, [SENTINEL])
    stage_profiles(run / "profiles", [profiles], "late")
    assert find(run, SENTINEL) == ["profiles/users.parquet"]
    erase_forgotten(run, profiles)
    assert find(run, SENTINEL) == []
    assert Profiles.load(run / "profiles", "late").user_ids.tolist() == list(known_users(SHOP))
    add_to_erasure_list(run, ["none of them"])
    erase_forgotten(run, profiles.without([SENTINEL]))
    assert len(Profiles.load(run / "profiles", "late")) == len(known_users(SHOP))


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
    for call in (
        lambda: read_erasure_list(tmp_path),
        lambda: is_forgotten(tmp_path, "anna"),
    ):
        with pytest.raises(BundleError, match=r"forgotten\.json is damaged"):
            call()
    with pytest.raises(BundleError, match="is damaged"):
        add_to_erasure_list(tmp_path, ["anna"])
    assert (tmp_path / "forgotten.json").read_text() == content


def test_a_file_that_changes_is_read_again(tmp_path):
    for number in range(3):
        assert not is_forgotten(tmp_path, f"u{number}")
        add_to_erasure_list(tmp_path, [f"u{number}"])
        assert is_forgotten(tmp_path, f"u{number}")
    assert is_forgotten(tmp_path, "u0")


def count(run, text):
    """Count by hand, file by file, the rows that name a user."""
    found = {}
    for path in (path for path in run.rglob("*") if path.suffix in (".parquet", ".csv")):
        if path.suffix == ".csv":
            rows = path.read_text().splitlines()
            n_rows = sum(text in line.replace('"', "").split(",") for line in rows)
        else:
            rows = pq.ParquetFile(path).read().to_pylist()
            words = [re.split(r"[^\w-]+", str(row)) for row in rows]
            n_rows = sum(text in found for found in words)
        if n_rows:
            name = re.sub(r"-[0-9a-f]{16}", "", str(path.relative_to(run)))
            found[name] = n_rows
    with closing(StateStore(run / "state" / "state.db")) as store:
        state = store._writer
        for table in ("events", "answers"):
            query = f"SELECT count(*) FROM {table} WHERE user_id = ?"
            ((n_rows,),) = state.execute(query, (text,)).fetchall()
            found |= {table: n_rows} if n_rows else {}
    return found


def test_what_is_shown_of_users_is_what_a_search_of_every_file_finds(folder, capsys):
    run = folder / "run"
    users = [SENTINEL, *known_users(SHOP), "nobody"]
    assert main(["user", "show", "--run", str(run), "--json", "--user", *users]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert list(shown) == users
    names = {"profiles": "profiles/users.parquet", "live events": "events"}
    names |= {"impressions": "answers"}
    for user in users:
        places = {
            names.get(place, str(Path(place).relative_to(run)) if "/" in place else place): len(
                rows
            )
            for place, rows in shown[user].items()
        }
        assert places == count(run, user), user
    assert len(shown[SENTINEL]) == 8
    (profile,) = shown["u1"]["profiles"]
    history = known_users(SHOP)["u1"]["history"]
    assert profile["item_id"] == [event["item_id"] for event in history]
    assert [item["item_id"] for item in shown["u1"]["impressions"][0]["items"]] == IDS[:4]


def test_an_export_is_a_file_for_its_owner_and_says_who_has_left(folder, capsys):
    run, out = folder / "run", folder / "u1.json"
    words = ["--run", str(run), "--user", "u1"]
    log = folder / "log"
    assert main(["user", "opt-out", *words]) == 0
    assert main(["user", "export", *words, "--out", str(out)]) == 0
    held = json.loads(out.read_text())["u1"]
    assert out.stat().st_mode & 0o077 == 0
    (key,) = held["opted_out.json"]
    log.write_text(f"one\nits users are {key}\nthree\n")
    assert main(["user", "opt-in", *words]) == 0
    assert main(["user", "export", *words, "--log", str(log), "--out", str(out)]) == 0
    held = json.loads(out.read_text())["u1"]
    assert "opted_out.json" not in held
    assert held["audit lines"] == [f"its users are {key}"]
    assert main(["user", "forget", *words]) == 0
    assert main(["user", "export", *words, "--out", str(out)]) == 0
    assert list(json.loads(out.read_text())["u1"]) == ["forgotten.json"]
    assert main(["user", "show", "--run", str(folder), "--user", "u1"]) == 2
    assert capsys.readouterr().err.count("\n") == 4
