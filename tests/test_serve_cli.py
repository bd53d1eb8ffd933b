import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serve import commands
from serve.__main__ import main
from serve.filters.options import ShortLists
from serve.profiles import write_profiles
from serve.recommendations import write_tables
from serve.recommender import Recommender
from tests.linear_bundle import DAY, SHOP, UNTIL, N, item_ids, publish_linear
from tests.linear_profiles import make_profiles

IDS = item_ids(SHOP)
USERS = {
    f"u{number}": {
        "features": {"gender": "f"},
        "history": [
            {"item_id": IDS[(number + step) % N], "datetime": UNTIL - DAY, "event": "buy", "weight": 1.0}
            for step in range(number)
        ],
    }
    for number in (3, 1, 0, 7, 2)
}
REQUESTS = [{"user_id": "u7"}, {"history": [{"item_id": IDS[3]}], "exclude": IDS[5:9]}, {"user_id": "new"}]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = publish_linear(tmp_path_factory.mktemp("cli"), SHOP, seed=3)
    write_profiles(path.parent / "profiles", make_profiles(SHOP, USERS))
    return path


@pytest.fixture
def requests_file(tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(request) + "\n" for request in REQUESTS))
    return path


def run(*arguments):
    return main([str(argument) for argument in arguments])


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(("repeats", "filter_viewed"), [(None, None), ("allow", False), ("exclude", True)])
def test_a_file_of_requests_is_answered(bundle, requests_file, tmp_path, repeats, filter_viewed, capsys):
    option = () if repeats is None else ("--repeats", repeats)
    out = tmp_path / "new" / "recs.csv"
    assert run("recommend", "--bundle", bundle, "--requests", requests_file, "--k", 4, "--out", out, *option) == 0
    assert "3 requests answered" in capsys.readouterr().out
    answers = Recommender.load(bundle).recommend(REQUESTS, 4, filter_viewed)
    rows = read_csv(out)
    assert [row["user_id"] for row in rows] == ["u7"] * 4 + [""] * 4 + ["new"] * 4
    assert [row["item_id"] for row in rows] == answers.item_id.tolist()
    assert [int(row["rank"]) for row in rows] == [1, 2, 3, 4] * 3
    np.testing.assert_allclose([float(row["score"]) for row in rows], answers.score, rtol=1e-6)


@pytest.mark.parametrize("option", ["--requests", "--only"])
@pytest.mark.parametrize("is_linked", [False, True])
def test_a_file_that_is_read_is_not_written_over(bundle, tmp_path, capsys, option, is_linked):
    sources = {"--requests": "user_id\nu7\n", "--only": f"item_id\n{IDS[3]}\n"}
    for name, text in sources.items():
        (tmp_path / f"{name}.csv").write_text(text)
    out = tmp_path / f"{option}.csv"
    if is_linked:
        out = tmp_path / "link.csv"
        out.symlink_to(tmp_path / f"{option}.csv")
    options = [word for name in sources for word in (name, tmp_path / f"{name}.csv")]
    assert run("recommend", "--bundle", bundle, *options, "--out", out) == 2
    assert f"--out {out} is a file that is read" in capsys.readouterr().err
    assert {name: (tmp_path / f"{name}.csv").read_text() for name in sources} == sources


def test_all_users_are_answered_in_batches_and_in_their_order(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "_REQUESTS_AT_ONCE", 2)
    out = tmp_path / "recs.parquet"
    assert run("recommend", "--bundle", bundle, "--all-users", "--k", 3, "--out", out) == 0
    table = pq.read_table(out)
    assert table.column("user_id").to_pylist() == [user_id for user_id in USERS for _ in range(3)]
    expected = Recommender.load(bundle).recommend([{"user_id": user_id} for user_id in USERS], 3)
    assert table.column("item_id").to_pylist() == expected.item_id.tolist()
    assert pq.ParquetFile(out).num_row_groups == 3


def test_other_profiles_can_be_named(bundle, tmp_path):
    write_profiles(tmp_path / "others", make_profiles(SHOP, {"only": USERS["u1"]}))
    out, profiles = tmp_path / "recs.csv", tmp_path / "others"
    assert run("recommend", "--bundle", bundle, "--all-users", "--profiles", profiles, "--k", 2, "--out", out) == 0
    assert [row["user_id"] for row in read_csv(out)] == ["only"] * 2


def test_what_the_bundle_does_not_know_is_said_after_the_answers(bundle, tmp_path, capsys):
    requests = [
        {"user_id": "secret", "context": {"device": "fridge"}, "history": [{"item_id": "gone"}, {"item_id": IDS[3]}]},
        {"user_id": "u1"},
    ]
    path, out = tmp_path / "r.jsonl", tmp_path / "recs.csv"
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    assert run("recommend", "--bundle", bundle, "--requests", path, "--k", 2, "--out", out) == 0
    said = capsys.readouterr()
    assert said.out == f"2 requests answered: {out}\n"
    assert said.err.splitlines() == [
        "note: 1 of 2 requests name values not seen in training: context.device 'fridge' (1 times); taken as unknown",
        "note: the histories of 1 of 2 requests hold 1 items that are not in the bundle; left out",
    ]
    assert run("recommend", "--bundle", bundle, "--all-users", "--k", 2, "--out", out) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            (),
            "no command is given; allowed: activate, export, forget, http, list, publish, recommend, rollback, "
            "similar, verify; see python -m serve --help",
        ),
        (("recomend",), "unknown command 'recomend'; did you mean 'recommend'?"),
        (("verify", "--bundel", "b"), "unknown option '--bundel'; did you mean '--bundle'?"),
        (("similar", "--bundle", "b"), "the following arguments are required: --item; see python -m serve similar"),
    ],
)
def test_a_slip_on_the_command_line_is_one_line(words, message, capsys):
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_no_request_gives_a_file_without_rows(bundle, tmp_path, suffix):
    empty, out = tmp_path / "none.jsonl", tmp_path / f"recs.{suffix}"
    empty.write_text("")
    assert run("recommend", "--bundle", bundle, "--requests", empty, "--k", 2, "--out", out) == 0
    names = ["user_id", "item_id", "score", "rank"]
    if suffix == "csv":
        assert out.read_text().split() == [",".join(names)]
    else:
        assert pq.read_table(out).column_names == names


def test_similar_shows_the_item_and_its_neighbours(bundle, capsys):
    assert run("similar", "--bundle", bundle, "--item", IDS[5], "--k", 3) == 0
    header, first, *others = capsys.readouterr().out.splitlines()
    assert header.split() == ["cosine", "item_id", "title", "department", "price", "brand"]
    assert first.split()[:3] == [IDS[5], "Title", "5"]
    ids, cosines = Recommender.load(bundle).similar_items(IDS[5], 3)
    assert [line.split()[1] for line in others] == ids.tolist()
    assert [float(line.split()[0]) for line in others] == [round(float(cosine), 3) for cosine in cosines]


def test_verify_says_what_it_checked(bundle, capsys):
    assert run("verify", "--bundle", bundle) == 0
    assert "8 requests answered as when exported" in capsys.readouterr().out


def test_faults_are_one_line_and_leave_the_file_as_it_was(bundle, requests_file, tmp_path, capsys):
    out = tmp_path / "recs.csv"
    out.write_text("old")
    with requests_file.open("a") as file:
        file.write('{"user_id": "u1", "hist": []}\n')
    faults = {
        r"requests.jsonl, line 4.*'hist'.*mean 'history'": (
            "--requests",
            requests_file,
            "--out",
            out,
        ),
        "no such file": ("--requests", tmp_path / "none.jsonl", "--out", out),
        f"{tmp_path} is a folder; allowed: a file, .jsonl": ("--requests", tmp_path, "--out", out),
        r"cannot write '.txt'; allowed: .csv, .parquet": ("--all-users", "--out", tmp_path / "recs.txt"),
        "k is 0; allowed: 1 or more": ("--all-users", "--k", 0, "--out", out),
        "no profiles here": ("--all-users", "--profiles", tmp_path, "--out", out),
        "exists": ("--all-users", "--out", requests_file / "recs.csv"),
    }
    for message, arguments in faults.items():
        assert run("recommend", "--bundle", bundle, *arguments) == 2
        stderr = capsys.readouterr().err
        assert len(stderr.splitlines()) == 1
        assert re.search(message, stderr)
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recs.csv", "requests.jsonl"]


def test_all_users_where_there_are_none_are_no_answers_without_a_word(bundle, tmp_path, capsys):
    alone, out = tmp_path / "bundle", tmp_path / "recs.csv"
    shutil.copytree(bundle, alone)
    out.write_text("old")
    assert run("recommend", "--bundle", alone, "--all-users", "--out", out) == 2
    said = "error: there are no profiles: give their folder with --profiles, or requests with --requests\n"
    assert capsys.readouterr().err == said
    assert out.read_text() == "old"


def test_faults_of_similar_and_verify(bundle, tmp_path, capsys):
    assert run("similar", "--bundle", bundle, "--item", "gone") == 2
    assert "'gone'" in capsys.readouterr().err
    assert run("verify", "--bundle", tmp_path) == 2
    assert "manifest.json" in capsys.readouterr().err


def test_a_write_that_fails_midway_leaves_the_old_file(tmp_path):
    out, table = tmp_path / "recs.parquet", pa.table({"a": [1, 2]})
    out.write_bytes(b"old")

    def tables():
        yield table
        raise OSError("disk full")

    with pytest.raises(OSError, match=r"disk full.*recs\.parquet"):
        write_tables(tables(), table.schema, out)
    assert out.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["recs.parquet"]


def test_the_module_runs_without_training_packages_and_help_without_any(bundle, tmp_path):
    out = tmp_path / "recs.parquet"
    code = (
        "import sys\n"
        "import serve.__main__ as cli\n"
        "assert not {'numpy', 'pyarrow', 'onnxruntime', 'faiss'} & set(sys.modules)\n"
        f"bundle = ['--bundle', {str(bundle)!r}]\n"
        f"assert cli.main(['recommend', *bundle, '--all-users', '--out', {str(out)!r}]) == 0\n"
        f"assert cli.main(['similar', *bundle, '--item', {IDS[0]!r}]) == 0\n"
        "assert not {'pandas', 'torch', 'pytorch_lightning'} & set(sys.modules)\n"
    )
    env, root = {**os.environ, "PYTHONPATH": "."}, Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env=env, capture_output=True)
    command = [sys.executable, "-m", "serve", "verify", "--bundle", str(tmp_path)]
    result = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1


def write_only(folder, ids, suffix):
    path = folder / f"only.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps({"item_id": item_id, "x": 1}) + "\n" for item_id in ids))
    elif suffix == "csv":
        path.write_text("title,item_id\n" + "".join(f"t,{item_id}\n" for item_id in ids))
    else:
        pq.write_table(pa.table({"item_id": ids}), path)
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_options_filter_all_requests_beside_their_own(bundle, tmp_path, suffix, capsys):
    requests = [{"user_id": "u7", "filters": {"where": "price <= 5", "at_most": {"department": 2}}}, {"user_id": "new"}]
    path, out = tmp_path / "r.jsonl", tmp_path / "recs.csv"
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    only = write_only(tmp_path, [*IDS[:14], "gone"], suffix)
    options = ("--where", "brand = 'x'", "--only", only, "--at-most", "department=1", "--at-most", "title=3")
    assert run("recommend", "--bundle", bundle, "--requests", path, "--k", 5, "--out", out, *options) == 0
    all_of = {"only": IDS[:14], "at_most": {"department": 1}}
    filtered = [
        {"user_id": "u7", "filters": {"where": "brand = 'x' and price <= 5", **all_of}},
        {"user_id": "new", "filters": {"where": "brand = 'x'", **all_of}},
    ]
    answers = Recommender.load(bundle).recommend(filtered, 5)
    assert [row["item_id"] for row in read_csv(out)] == answers.item_id.tolist()
    assert len(answers.item_id) == 8
    assert all(IDS.index(item_id) % 2 == 0 for item_id in answers.item_id)
    stranger, note = capsys.readouterr().err.splitlines()
    assert stranger.startswith("note: 1 of 2 requests name a user without a profile")
    assert re.fullmatch(r"note: 2 of 2 requests got fewer than 5 items; the first since only 4 items are .*", note)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--where", "prise <= 2"), "unknown column 'prise'; did you mean 'price'?"),
        (("--where", "price <="), "where, character 9: expected a text, a number"),
        (("--where", "price <= 'x'"), "column 'price' holds numbers; got 'x'"),
        (("--at-most", "brand"), "--at-most is 'brand'; expected COLUMN=N"),
        (("--at-most", "brand=x"), "--at-most is 'brand=x'; expected COLUMN=N"),
        (("--at-most", "brand=0"), "filters.at_most of 'brand' is 0"),
        (("--at-most", "brnd=2"), "unknown column 'brnd'; did you mean 'brand'?"),
        (("--at-most", "brand=2", "--at-most", "brand=3"), "--at-most names 'brand' twice"),
        (("--at-most", "=2"), "--at-most is '=2'; expected COLUMN=N"),
        (("--at-most", "brand=x=2"), "unknown column 'brand=x'"),
    ],
)
def test_faults_of_filter_options_are_one_line(bundle, tmp_path, options, message, capsys):
    out = tmp_path / "recs.csv"
    assert run("recommend", "--bundle", bundle, "--all-users", "--out", out, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not out.exists()


def test_a_limit_of_any_length_is_read(bundle, tmp_path):
    lists = []
    for words in ((), ("--at-most", f"brand={'9' * 5000}"), ("--at-most", f"brand={' ' * 20}99 ")):
        assert run("recommend", "--bundle", bundle, "--all-users", "--out", tmp_path / "recs.csv", *words) == 0
        lists.append(read_csv(tmp_path / "recs.csv"))
        (tmp_path / "recs.csv").unlink()
    assert lists[0] == lists[1] == lists[2]


def test_short_lists_are_counted_over_all_answers_and_the_first_is_shown(bundle):
    recommender, short = Recommender.load(bundle), ShortLists()
    for filters in (None, {"only": IDS[:2]}, {"only": IDS[:3]}):
        requests = [{"user_id": user_id, "filters": filters} for user_id in ("u0", "new")]
        short.count(recommender.recommend(requests, 4, filter_viewed=False))
    assert short.notes(4) == [
        "note: 4 of 6 requests got fewer than 4 items; "
        f"the first since only 2 items are admissible: 'only' leaves 2 of {N}"
    ]
    assert ShortLists().notes(4) == []


def test_faults_of_filters_in_files_are_placed(bundle, tmp_path, capsys):
    path, out = tmp_path / "r.jsonl", tmp_path / "recs.csv"
    path.write_text('{"user_id": "u1"}\n{"filters": {"where": "prise > 2"}}\n')
    assert run("recommend", "--bundle", bundle, "--requests", path, "--out", out) == 2
    assert "r.jsonl, line 2: filters: unknown column 'prise'" in capsys.readouterr().err
    only = tmp_path / "only.csv"
    only.write_text("item\n3\n")
    assert run("recommend", "--bundle", bundle, "--all-users", "--only", only, "--out", out) == 2
    assert "only.csv: no column 'item_id'; did you mean 'item'?" in capsys.readouterr().err
