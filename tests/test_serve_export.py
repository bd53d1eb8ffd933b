import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve import export, shards
from serve.__main__ import main
from serve.bundle import Bundle
from serve.durable import write_file
from serve.errors import BundleError, SchemaError
from serve.export_sources import file_items, file_users, profile_users
from serve.profiles import write_profiles
from serve.recommender import Recommender
from serve.row_layout import AS_OURS
from serve.state.erased_exports import check_export, erase_from_export
from tests.linear_bundle import FILMS, SHOP, N, W, item_ids, item_values, publish_linear
from tests.linear_profiles import known_users, make_profiles, requests_of
from tests.lost_power import Disk

ROOT = Path(__file__).parents[1]
WORLDS = {"shop": SHOP, "films": FILMS}
NOWHERE = io.StringIO()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    for name, schema in WORLDS.items():
        path = publish_linear(folder / name, schema, seed=3)
        write_profiles(path.parent / "profiles", make_profiles(schema, known_users(schema)))
    return {name: folder / name / "bundle" for name in WORLDS}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(export, "ROWS_PER_SHARD", 6)
    monkeypatch.setattr(export, "_ROWS_AT_ONCE", 3)


def run(bundle, side, out, *more):
    return main([str(word) for word in ("export", "--bundle", bundle, "--side", side, "--out", out, *more)])


def read(folder, side):
    """Return ids and vectors of all shards."""
    table = pq.read_table(folder)  # names with _ are left out
    assert table.schema.field("vector").type == pa.list_(pa.float32(), W)
    return table.column(f"{side}_id").to_pylist(), np.array(table.column("vector").to_pylist(), np.float32)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_rows(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return path


def shop_rows(n):
    """Return rows of items that no bundle has, with a column that no feature reads."""
    return [{"item_id": f"new{row}", "title": "t", **item_values(row)} for row in range(n)]


@pytest.mark.parametrize("world", WORLDS)
def test_the_catalogue_is_exported_in_its_order(bundles, tmp_path, world, capsys):
    assert run(bundles[world], "item", tmp_path / "out") == 0
    assert f"{N} item vectors" in capsys.readouterr().out
    ids, vectors = read(tmp_path / "out", "item")
    assert ids == item_ids(WORLDS[world])
    np.testing.assert_array_equal(vectors, Bundle.load(bundles[world]).vectors)
    names = [f"part-0000{shard}.parquet" for shard in range(4)]
    assert sorted(contents(tmp_path / "out")) == ["_SUCCESS", "_plan.json", *names]
    assert [pq.read_metadata(tmp_path / "out" / name).num_rows for name in names] == [6, 6, 6, 5]


@pytest.mark.parametrize("world", WORLDS)
def test_users_with_profiles_are_as_served_one_by_one(bundles, tmp_path, world):
    assert run(bundles[world], "user", tmp_path / "out") == 0
    ids, vectors = read(tmp_path / "out", "user")
    assert ids == list(known_users(WORLDS[world]))
    served = Recommender.load(bundles[world])
    single = [served.encode_users([{"user_id": user_id}])[0] for user_id in ids]
    np.testing.assert_allclose(vectors, single, atol=1e-6)


@pytest.mark.parametrize("world", WORLDS)
def test_requests_of_a_file_are_as_served(bundles, tmp_path, world):
    requests = requests_of(WORLDS[world])
    rows = write_rows(tmp_path / "r.jsonl", requests)
    assert run(bundles[world], "user", tmp_path / "out", "--rows", rows) == 0
    ids, vectors = read(tmp_path / "out", "user")
    assert ids == [request.get("user_id") for request in requests]
    np.testing.assert_allclose(vectors, Recommender.load(bundles[world]).encode_users(requests), atol=1e-6)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_items_of_a_file_are_placed_by_their_features(bundles, tmp_path, suffix, capsys):
    rows = shop_rows(17)
    path = write_rows(tmp_path / f"items.{suffix}", rows)
    assert run(bundles["shop"], "item", tmp_path / "out", "--rows", path) == 0
    assert "columns that no feature reads: title" in capsys.readouterr().out
    ids, vectors = read(tmp_path / "out", "item")
    assert ids == [row["item_id"] for row in rows]
    served = Recommender.load(bundles["shop"])
    single = [served.encode_items([item_values(row)])[0] for row in range(17)]
    np.testing.assert_allclose(vectors, single, atol=1e-6)


def test_integer_ids_are_read_from_text(bundles, tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("item_id,price\n7,1.5\n-12,\n")
    assert run(bundles["films"], "item", tmp_path / "out", "--rows", path) == 0
    assert read(tmp_path / "out", "item")[0] == [7, -12]


@pytest.mark.parametrize("side", ["user", "item"])
def test_no_row_gives_an_empty_shard(bundles, tmp_path, side):
    path = tmp_path / "none.jsonl"
    path.write_text("\n")
    assert run(bundles["shop"], side, tmp_path / "out", "--rows", path) == 0
    assert pq.read_table(tmp_path / "out").column_names == [f"{side}_id", "vector"]


def test_a_write_that_fails_at_any_step_is_made_good_by_the_next_run(bundles, tmp_path, monkeypatch):
    recommender = Recommender.load(bundles["shop"])
    path = write_rows(tmp_path / "items.parquet", shop_rows(17))
    export.export_items(recommender, path, tmp_path / "whole", False, NOWHERE)
    whole, out = contents(tmp_path / "whole"), tmp_path / "out"
    for failing in range(5):  # the plan, three shards, success
        names = []

        def write(path, content, failing=failing, names=names):
            names.append(path.name)
            if len(names) == failing + 1:
                raise OSError("disk full")
            write_file(path, content)

        monkeypatch.setattr(shards, "write_file", write)
        with pytest.raises(OSError, match="disk full"):
            export.export_items(recommender, path, out, True, NOWHERE)
        assert "_SUCCESS" not in contents(out)
        export.export_items(recommender, path, out, False, NOWHERE)
        parts = [name for name in names if name.startswith("part")]
        assert sorted(set(parts)) == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
        assert len(parts) == 3 + (1 <= failing <= 3)  # a finished shard is not written again
        assert contents(out) == whole


SLOW = """
import sys, time
from serve import export
from serve.__main__ import main
export.ROWS_PER_SHARD, export._ROWS_AT_ONCE = 6, 3
table = export._encode_all
def slowly(*arguments):
    time.sleep(0.2)
    return table(*arguments)
export._encode_all = slowly
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_a_killed_export_goes_on_where_it_stopped(bundles, tmp_path, sent, status):
    run(bundles["shop"], "item", tmp_path / "whole")
    out = tmp_path / "out"
    words = ["export", "--bundle", bundles["shop"], "--side", "item", "--out", out]
    process = subprocess.Popen([sys.executable, "-c", SLOW, *map(str, words)], cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (out / "part-00000.parquet").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(sent)
    assert process.wait() == status
    assert "_SUCCESS" not in contents(out)
    first = (out / "part-00000.parquet").stat().st_mtime_ns
    assert run(bundles["shop"], "item", out) == 0
    assert contents(out) == contents(tmp_path / "whole")
    assert (out / "part-00000.parquet").stat().st_mtime_ns == first


def test_an_export_that_goes_on_says_how_many_rows_are_left_after_somebody_was_forgotten(bundles, tmp_path, capsys):
    out, path = tmp_path / "out", write_rows(tmp_path / "r.jsonl", [{"user_id": f"x{row}"} for row in range(8)])
    run(bundles["shop"], "user", out, "--rows", path)
    for name in ("_SUCCESS", "part-00001.parquet"):  # as a kill leaves it
        (out / name).unlink()
    assert erase_from_export(out, ["x4"]) == 1
    capsys.readouterr()
    assert run(bundles["shop"], "user", out, "--rows", path) == 0
    assert read(out, "user")[0] == ["x0", "x1", "x2", "x3", "x5", "x6", "x7"]
    assert json.loads((out / "_SUCCESS").read_text())["rows"] == 7
    assert capsys.readouterr().out.startswith("7 user vectors")


@pytest.mark.parametrize("content", ["[]", "7", "{}", '{"rows": 8, "shards": 2}', "no JSON"])
def test_who_is_forgotten_leaves_the_number_of_rows_whatever_was_said_of_it(bundles, tmp_path, content):
    out, path = tmp_path / "out", write_rows(tmp_path / "r.jsonl", [{"user_id": f"x{row}"} for row in range(8)])
    run(bundles["shop"], "user", out, "--rows", path)
    (out / "_SUCCESS").write_text(content)
    assert erase_from_export(out, ["x4", "x7"]) == 2
    assert json.loads((out / "_SUCCESS").read_text()) == {"rows": 6, "shards": 2}


def test_a_folder_belongs_to_one_plan(bundles, tmp_path, capsys):
    out, path = tmp_path / "out", write_rows(tmp_path / "items.jsonl", shop_rows(9))
    recommender = Recommender.load(bundles["shop"])
    export.export_items(recommender, None, out, False, NOWHERE)
    assert run(bundles["shop"], "item", out) == 2
    assert "holds a finished export" in capsys.readouterr().err
    (out / "_SUCCESS").unlink()
    others = {
        "space_id": (bundles["films"], "item"),
        "side": (bundles["shop"], "user"),
        "source": (bundles["shop"], "item", "--rows", path),
    }
    for field, (bundle, side, *more) in others.items():
        assert run(bundle, side, out, *more) == 2
        message = capsys.readouterr().err
        assert f"part of another export, of {field} " in message
        assert len(message.splitlines()) == 1
    assert len(contents(out)) == 5
    assert run(bundles["shop"], "item", out, "--rows", path, "--overwrite") == 0
    assert read(out, "item")[0] == [f"new{row}" for row in range(9)]


def test_shards_of_another_length_or_version_are_of_another_export(bundles, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert run(bundles["shop"], "item", out) == 0
    (out / "_SUCCESS").unlink()
    plan, version = json.loads((out / "_plan.json").read_text()), Bundle.load(bundles["shop"]).manifest.version
    (out / "_plan.json").write_text(json.dumps(plan | {"version": "0" * 12}))
    assert run(bundles["shop"], "item", out) == 2
    assert f'of version "{"0" * 12}", this one "{version}"' in capsys.readouterr().err
    (out / "_plan.json").write_text(json.dumps(plan))
    monkeypatch.setattr(export, "ROWS_PER_SHARD", 9)
    assert run(bundles["shop"], "item", out) == 2
    assert "of rows_per_shard 6, this one 9" in capsys.readouterr().err


def test_changed_rows_or_profiles_are_another_source(bundles, tmp_path):
    recommender, path = Recommender.load(bundles["shop"]), write_rows(tmp_path / "r.jsonl", [{"user_id": "u1"}] * 7)
    export.export_users(recommender, path, tmp_path / "out", False, NOWHERE)
    (tmp_path / "out" / "_SUCCESS").unlink()
    without = Recommender(recommender.bundle, recommender.profiles.without(["u2"]))
    with pytest.raises(SchemaError, match="of source"):
        export.export_users(without, path, tmp_path / "out", False, NOWHERE)
    path.write_text(path.read_text().replace("u1", "u3"))
    with pytest.raises(SchemaError, match="of source"):
        export.export_users(recommender, path, tmp_path / "out", False, NOWHERE)


def test_a_file_that_changes_meanwhile_is_refused(bundles, tmp_path, monkeypatch):
    recommender, path = Recommender.load(bundles["shop"]), write_rows(tmp_path / "items.jsonl", shop_rows(9))
    encode = recommender.encode_item_columns

    def encode_and_append(columns, n_items):
        with path.open("a") as file:
            file.write('{"item_id": "late", "price": 1}\n')
        return encode(columns, n_items)

    monkeypatch.setattr(recommender, "encode_item_columns", encode_and_append)
    with pytest.raises(SchemaError, match=r"items\.jsonl changed while it was read"):
        export.export_items(recommender, path, tmp_path / "out", False, NOWHERE)
    assert "_SUCCESS" not in contents(tmp_path / "out")


def rewrite_alike(path):
    """Write other rows of the same size into the file."""
    content, before = path.read_text(), path.stat()
    path.write_text(content.replace("1", "2"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def replace_alike(path):
    """Put a file of the same size and time in its place."""
    other, before = path.with_name("other"), path.stat()
    other.write_text(path.read_text().replace("1", "2"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, path)


def append(path):
    """Write one more row."""
    path.write_text(path.read_text() * 2)


@pytest.mark.parametrize("change", [append, rewrite_alike, replace_alike])
@pytest.mark.parametrize(
    ("take", "row"), [(file_items, '{"item_id": "late", "price": 1}'), (file_users, '{"user_id": "u1"}')]
)
def test_a_file_that_changes_between_its_hash_and_its_first_row_is_refused(bundles, tmp_path, take, row, change):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{row}\n")
    source = take(Recommender.load(bundles["shop"]), path, 3, AS_OURS)
    change(path)
    with pytest.raises(SchemaError, match=r"rows\.jsonl changed while it was read"):
        list(source.blocks)


def test_other_features_or_other_owners_of_the_same_events_are_another_source(bundles):
    recommender = Recommender.load(bundles["shop"])
    profiles, identities = recommender.profiles, []
    features = {name: np.roll(values, 1) for name, values in profiles.features.items()}
    offsets = profiles.offsets.copy()
    place = int(np.flatnonzero(np.diff(offsets) > 1)[0])
    offsets[place + 1] -= 1  # the last event of one user is the first of the next
    history = replace(profiles.history, item_id=np.roll(profiles.history.item_id, 1))
    changes = ({}, {"features": features}, {"offsets": offsets}, {"history": history})
    for change in changes:
        source = profile_users(Recommender(recommender.bundle, replace(profiles, **change)), 3)
        identities.append(json.dumps(source.identity))
    assert len(set(identities)) == len(changes)
    assert json.dumps(profile_users(Recommender.load(bundles["shop"]), 5).identity) == identities[0]


def test_of_requests_it_is_said_what_training_has_not_seen(bundles, tmp_path, capsys):
    rows = write_rows(tmp_path / "r.jsonl", [{"user_id": "u1"}, {"user_id": "nobody"}, {"features": {"gender": "q"}}])
    assert run(bundles["shop"], "user", tmp_path / "out", "--rows", rows) == 0
    said = "".join(capsys.readouterr())
    assert "1 of 3 requests name a user without a profile" in said
    assert "features.gender" in said


@pytest.mark.parametrize(
    "name", ["_plan.json.part", "_SUCCESS.part", "part-00001.parquet.part", "part-123456.parquet.part"]
)
def test_what_was_being_written_when_an_export_was_killed_is_no_stranger(bundles, tmp_path, name):
    out, whole = tmp_path / "out", tmp_path / "whole"
    for folder in (out, whole):
        assert run(bundles["shop"], "item", folder) == 0
    for lost in ("_SUCCESS", "part-00001.parquet"):
        (out / lost).unlink()
    (out / name).write_bytes(b"half")
    assert run(bundles["shop"], "item", out) == 0
    there = contents(out)
    assert {one: there[one] for one in contents(whole)} == contents(whole)


@pytest.mark.parametrize("content", ["[]", "7", "null", "{", ""])
def test_what_is_no_plan_is_named_before_anything_is_written(bundles, tmp_path, content, capsys):
    out = tmp_path / "out"
    assert run(bundles["shop"], "item", out) == 0
    (out / "_SUCCESS").unlink()
    (out / "_plan.json").write_text(content)
    before = contents(out)
    capsys.readouterr()
    assert run(bundles["shop"], "item", out) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "_plan.json is no plan of an export" in line
    assert contents(out) == before
    assert run(bundles["shop"], "item", out, "--overwrite") == 0


FAULTS = {
    "no.csv": (
        "item_id,price\na,1\nb,2\nc,3\nd,4\ne,5\nf,6\ng,7\nh,old\n",
        "line 9: feature 'price': 'old' is no number",
    ),
    "id.csv": ("item_id,price\na,1\n ,2\n", "line 3: item_id is ' '"),
    "key.csv": (
        "item,price\na,1\n",
        "line 2: no column 'item_id'; name it with --columns item_id=COLUMN; did you mean 'item'",
    ),
    "none.csv": ("item_id,cost\na,1\n", "line 2: no column is a feature of items; allowed: brand, department, price"),
    "long.csv": ("item_id,price\na,1,2\n", "line 2: 3 cells; the header has 2"),
    "bad.jsonl": ('{"item_id": "a", "price": 1}\n\n{"item_id": "b", "price": "x"}\n', "line 3: feature 'price': 'x'"),
    "list.jsonl": ('{"item_id": "a", "price": 1}\n[]\n', "line 2: item is"),
    "array.jsonl": ('[{"item_id": "a", "price": 1}]', "expected an object on each line"),
    "cut.parquet": ("PAR1", "no Parquet that can be read"),
    "rows.xlsx": ("", "cannot read '.xlsx'; allowed: .jsonl, .parquet, .csv, .tsv"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_names_file_and_row_and_keeps_finished_shards(bundles, tmp_path, name, capsys):
    text, message = FAULTS[name]
    (tmp_path / name).write_text(text)
    assert run(bundles["shop"], "item", tmp_path / "out", "--rows", tmp_path / name) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert name in error
    assert message in error
    if name == "no.csv":
        assert sorted(contents(tmp_path / "out")) == ["_plan.json", "part-00000.parquet"]


def test_faults_of_folders_and_requests(bundles, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    alone = publish_linear(tmp_path / "alone", SHOP, seed=3)
    requests = tmp_path / "r.jsonl"
    requests.write_text('{"user_id": "u1"}\n{"user": 3}\n')
    faults = {
        "holds 'notes.txt', which is of no export": (bundles["shop"], "item", tmp_path / "other", "--overwrite"),
        "r.jsonl, line 2: request: unknown name": (
            bundles["shop"],
            "user",
            tmp_path / "a",
            "--rows",
            tmp_path / "r.jsonl",
        ),
        "gone.csv: no such file": (bundles["shop"], "item", tmp_path / "b", "--rows", tmp_path / "gone.csv"),
        "there are no profiles": (alone, "user", tmp_path / "c"),
    }
    for message, arguments in faults.items():
        assert run(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1


def test_two_exports_do_not_write_into_one_folder(bundles, tmp_path):
    plan = shards.Plan("s", "v", "item", {}, 6)
    with (
        shards.Shards.open(tmp_path, plan, False),
        pytest.raises(SchemaError, match="another export writes into"),
        shards.Shards.open(tmp_path, plan, False),
    ):
        pass


def test_nobody_is_erased_from_an_export_that_is_being_written(bundles, tmp_path):
    out, path = tmp_path / "out", write_rows(tmp_path / "r.jsonl", [{"user_id": f"x{row}"} for row in range(8)])
    run(bundles["shop"], "user", out, "--rows", path)
    before = contents(out)
    with shards.locked(out), pytest.raises(SchemaError, match=rf"another export writes into {out}"):
        erase_from_export(out, ["x4"])
    assert contents(out) == before


def test_of_very_many_shards_each_is_written_anew_in_its_own_place(tmp_path):
    kept = shards.Shards(tmp_path)
    for number, ids in ((1, ["a", "b"]), (100_001, ["c", "d", "e"])):
        vectors = pa.array([[1.0]] * len(ids), pa.list_(pa.float32(), 1))
        kept.write(number, pa.table({"user_id": ids, "vector": vectors}))
    assert erase_from_export(tmp_path, ["d"]) == 1
    left = {path.name: pq.read_table(path).column("user_id").to_pylist() for path in tmp_path.iterdir()}
    assert left == {"part-00001.parquet": ["a", "b"], "part-100001.parquet": ["c", "e"]}


@pytest.mark.parametrize("content", ["{}", '{"side": null}', '{"side": "users"}'])
def test_a_plan_that_does_not_say_users_is_of_none(tmp_path, content):
    (tmp_path / "_plan.json").write_text(content)
    with pytest.raises(SchemaError, match=r"is an export of side .*, which names no user; allowed: user"):
        check_export(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no Parquet at all"])
def test_a_damaged_shard_is_named(bundles, tmp_path, content, capsys):
    out, path = tmp_path / "out", write_rows(tmp_path / "r.jsonl", [{"user_id": f"x{row}"} for row in range(8)])
    run(bundles["shop"], "user", out, "--rows", path)
    damaged = out / "part-00001.parquet"
    damaged.write_bytes(content)
    with pytest.raises(BundleError, match=rf"{damaged} is damaged: .*; remove it"):
        erase_from_export(out, ["x4"])
    (out / "_SUCCESS").unlink()
    capsys.readouterr()
    assert run(bundles["shop"], "user", out, "--rows", path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{damaged} is damaged" in line
    damaged.unlink()
    (out / "part-00000.parquet").unlink()  # which has lost x4
    assert run(bundles["shop"], "user", out, "--rows", path) == 0
    assert read(out, "user")[0] == [f"x{row}" for row in range(8)]


@pytest.mark.parametrize(("user_type", "item_type"), [("integer", "string"), ("string", "integer")])
def test_users_and_items_may_have_ids_of_two_types(tmp_path, user_type, item_type):
    schema = replace(SHOP if item_type == "string" else FILMS, user_id_type=user_type)
    bundle = publish_linear(tmp_path / "world", schema, seed=3)
    user_ids = [70, 9, -3] if user_type == "integer" else ["x", "y", "7"]
    rows = write_rows(tmp_path / "r.jsonl", [{"user_id": user_id} for user_id in user_ids])
    assert run(bundle, "user", tmp_path / "users", "--rows", rows) == 0
    assert run(bundle, "item", tmp_path / "items") == 0
    assert read(tmp_path / "users", "user")[0] == user_ids
    assert read(tmp_path / "items", "item")[0] == item_ids(schema)


def test_an_export_that_is_said_to_be_whole_is_so_where_the_power_fails(bundles, tmp_path, monkeypatch):
    disk = Disk(monkeypatch, "_SUCCESS")
    for words in ((), ("--overwrite",)):
        assert run(bundles["shop"], "item", tmp_path / "out", *words) == 0
        assert disk.too_early == disk.unnamed == []


def test_what_is_overwritten_is_gone_from_the_disk_before_what_comes_after_it(bundles, tmp_path, monkeypatch):
    """Else the power may fail and leave shards that are said to be whole, or of another plan."""
    out, steps, unlink, sync = tmp_path / "out", [], Path.unlink, os.fsync
    assert run(bundles["shop"], "item", out) == 0

    def remove(path, missing_ok=False):
        if path.exists():
            steps.append(path.name)
        unlink(path, missing_ok)

    def wait(descriptor):
        if os.fstat(descriptor).st_ino == out.stat().st_ino:
            steps.append("folder")
        sync(descriptor)

    def write(path, content):
        steps.append(f"new {path.name}")
        write_file(path, content)

    monkeypatch.setattr(Path, "unlink", remove)
    monkeypatch.setattr(os, "fsync", wait)
    monkeypatch.setattr(shards, "write_file", write)
    assert run(bundles["shop"], "item", out, "--overwrite") == 0
    assert steps[:2] == ["_SUCCESS", "folder"]
    cleared = steps[2 : steps.index("new _plan.json")]
    assert sorted(cleared[:-1]) == ["_plan.json", *(f"part-0000{shard}.parquet" for shard in range(4))]
    assert cleared[-1] == "folder"


def test_export_imports_nothing_of_training(bundles, tmp_path):
    rows = write_rows(tmp_path / "items.parquet", shop_rows(9))
    requests = write_rows(tmp_path / "r.parquet", [{"user_id": "u1", "datetime": 1_500_000_000}])
    code = (
        "import sys\nfrom serve.__main__ import main\n"
        f"start = ['export', '--bundle', {str(bundles['shop'])!r}, '--out']\n"
        f"out = {str(tmp_path)!r}\n"
        "for number, words in enumerate((['--side', 'item'], ['--side', 'user'], "
        f"['--side', 'item', '--rows', {str(rows)!r}], ['--side', 'user', '--rows', {str(requests)!r}])):\n"
        "    assert main([*start, f'{out}/{number}', *words]) == 0\n"
        "assert not {'pandas', 'torch', 'pytorch_lightning'} & set(sys.modules)\n"
    )
    env = {**os.environ, "PYTHONPATH": "."}
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stderr == ""  # no bar where nobody looks
