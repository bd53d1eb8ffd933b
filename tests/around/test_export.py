import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bascule.commands import main
from serve import files as durable
from serve.bundle import Bundle
from serve.files import replacing, take_lock
from serve.recommender import Recommender
from tests.linear_bundle import WORLDS, N, W, item_ids, item_values
from tests.linear_profiles import known_users, requests_of

from service import export

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(export, "ROWS_PER_SHARD", 6)
    monkeypatch.setattr("datamodules.read.ROWS_AT_ONCE", 3)


def run(bundle, side, out, *more):
    return main(
        [
            str(word)
            for word in (
                "export",
                "--bundle",
                bundle,
                "--side",
                side,
                "--out",
                out,
                *more,
            )
        ]
    )


def read(folder, side):
    """Return ids and vectors of all shards."""
    table = pq.read_table(folder)  # names with _ are left out
    assert table.schema.field("vector").type == pa.list_(pa.float32(), W)
    return table.column(f"{side}_id").to_pylist(), np.array(
        table.column("vector").to_pylist(), np.float32
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def write_rows(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def shop_rows(n):
    """Return rows of items that no bundle has, with a column that no feature reads."""
    return [{"item_id": f"new{row}", "title": "t", **item_values(row)} for row in range(n)]


@pytest.mark.parametrize("world", WORLDS)
def test_the_catalogue_is_exported_in_its_order(bundle_paths, tmp_path, world, capsys):
    assert run(bundle_paths[world], "item", tmp_path / "out") == 0
    assert f"{N} item vectors" in capsys.readouterr().out
    ids, vectors = read(tmp_path / "out", "item")
    assert ids == item_ids(WORLDS[world])
    np.testing.assert_array_equal(vectors, Bundle.load(bundle_paths[world]).vectors)
    names = [f"part-0000{shard}.parquet" for shard in range(4)]
    assert sorted(contents(tmp_path / "out")) == ["_SUCCESS", "_plan.json", *names]
    assert [pq.read_metadata(tmp_path / "out" / name).num_rows for name in names] == [
        6,
        6,
        6,
        5,
    ]


@pytest.mark.parametrize("world", WORLDS)
def test_users_with_profiles_are_as_served_one_by_one(bundle_paths, tmp_path, world):
    assert run(bundle_paths[world], "user", tmp_path / "out") == 0
    ids, vectors = read(tmp_path / "out", "user")
    assert ids == list(known_users(WORLDS[world]))
    served = Recommender.load(bundle_paths[world])
    single = [served.encode_users([{"user_id": user_id}])[0] for user_id in ids]
    np.testing.assert_allclose(vectors, single, atol=1e-6)


@pytest.mark.parametrize("world", WORLDS)
def test_requests_of_a_file_are_as_served(bundle_paths, tmp_path, world):
    requests = requests_of(WORLDS[world])
    rows = write_rows(tmp_path / "r.jsonl", requests)
    assert run(bundle_paths[world], "user", tmp_path / "out", "--rows", rows) == 0
    ids, vectors = read(tmp_path / "out", "user")
    assert ids == [request.get("user_id") for request in requests]
    np.testing.assert_allclose(
        vectors, Recommender.load(bundle_paths[world]).encode_users(requests), atol=1e-6
    )


def test_items_of_a_file_are_placed_by_their_features(bundle_paths, tmp_path):
    rows = shop_rows(17)
    path = write_rows(tmp_path / "items.parquet", rows)
    assert run(bundle_paths["shop"], "item", tmp_path / "out", "--rows", path) == 0
    ids, vectors = read(tmp_path / "out", "item")
    assert ids == [row["item_id"] for row in rows]
    served = Recommender.load(bundle_paths["shop"])
    single = [served.encode_items([item_values(row)])[0] for row in range(17)]
    np.testing.assert_allclose(vectors, single, atol=1e-6)


def test_a_write_that_fails_at_any_step_is_made_good_by_the_next_run(
    bundle_paths, tmp_path, monkeypatch
):
    recommender = Recommender.load(bundle_paths["shop"])
    path = write_rows(tmp_path / "items.parquet", shop_rows(17))
    export.export_items(recommender, path, tmp_path / "whole", False)
    whole, out = contents(tmp_path / "whole"), tmp_path / "out"
    for failing in range(5):  # the plan, three shards, success
        names = []

        @contextmanager
        def write(path, *mode, failing=failing, names=names):
            names.append(path.name)
            if len(names) == failing + 1:
                raise OSError("disk full")
            with replacing(path, *mode) as file:
                yield file

        for module in (export, durable):
            monkeypatch.setattr(module, "replacing", write)
        with pytest.raises(OSError, match="disk full"):
            export.export_items(recommender, path, out, True)
        assert "_SUCCESS" not in contents(out)
        export.export_items(recommender, path, out, False)
        parts = [name for name in names if name.startswith("part")]
        assert sorted(set(parts)) == [
            "part-00000.parquet",
            "part-00001.parquet",
            "part-00002.parquet",
        ]
        assert len(parts) == 3 + (1 <= failing <= 3)  # a finished shard is not written again
        assert contents(out) == whole


SLOW = """
import sys, time
from serve import files as durable
from service import export
from bascule.commands import main
export.ROWS_PER_SHARD = 6
table = export.write_table
def slowly(*arguments):
    time.sleep(0.2)
    return table(*arguments)
export.write_table = slowly
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_a_killed_export_goes_on_where_it_stopped(bundle_paths, tmp_path, sent, status):
    run(bundle_paths["shop"], "item", tmp_path / "whole")
    out = tmp_path / "out"
    words = ["export", "--bundle", bundle_paths["shop"], "--side", "item", "--out", out]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *map(str, words)],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    while not (out / "part-00000.parquet").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(sent)
    assert process.wait() == status
    assert "_SUCCESS" not in contents(out)
    first = (out / "part-00000.parquet").stat().st_mtime_ns
    assert run(bundle_paths["shop"], "item", out) == 0
    assert contents(out) == contents(tmp_path / "whole")
    assert (out / "part-00000.parquet").stat().st_mtime_ns == first


def test_a_folder_belongs_to_one_plan(bundle_paths, tmp_path, capsys):
    out, path = tmp_path / "out", write_rows(tmp_path / "items.jsonl", shop_rows(9))
    recommender = Recommender.load(bundle_paths["shop"])
    export.export_items(recommender, None, out, False)
    assert run(bundle_paths["shop"], "item", out) == 2
    assert "holds a finished export" in capsys.readouterr().err
    (out / "_SUCCESS").unlink()
    others = {
        "space_id": (bundle_paths["films"], "item"),
        "side": (bundle_paths["shop"], "user"),
        "source": (bundle_paths["shop"], "item", "--rows", path),
    }
    for bundle, side, *more in others.values():
        assert run(bundle, side, out, *more) == 2
        message = capsys.readouterr().err
        assert "part of another export" in message
        assert len(message.splitlines()) == 1
    assert len(contents(out)) == 5
    assert run(bundle_paths["shop"], "item", out, "--rows", path, "--overwrite") == 0
    assert read(out, "item")[0] == [f"new{row}" for row in range(9)]


def test_two_exports_do_not_write_into_one_folder(bundle_paths, tmp_path):
    (tmp_path / "out").mkdir()
    with (
        take_lock(tmp_path / "out" / ".lock"),
        pytest.raises(BlockingIOError, match="another process writes here"),
    ):
        export.export_items(Recommender.load(bundle_paths["shop"]), None, tmp_path / "out", False)
