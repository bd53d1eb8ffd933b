"""`bascule`: files in, files out; a fault is one line, status 2, and leaves the file as it was."""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import closing

import numpy as np
import pyarrow.parquet as pq
import pytest
from serve.recommender import Recommender
from service.command_line import ENDED, ending_on_signals
from service.state import StateStore
from tests.linear_bundle import DAY, SHOP, UNTIL, N, item_ids, publish_linear
from tests.linear_profiles import make_profiles, write_profiles
from tests.served import ROOT

from bascule import answering
from bascule import commands as cli

IDS = item_ids(SHOP)
USERS = {
    f"u{number}": {
        "features": {"gender": "f"},
        "history": [
            {
                "item_id": IDS[(number + step) % N],
                "datetime": UNTIL - DAY,
                "event": "buy",
                "weight": 1.0,
            }
            for step in range(number)
        ],
    }
    for number in (3, 1, 0, 7, 2)
}
REQUESTS = [
    {"user_id": "u7"},
    {"history": [{"item_id": IDS[3]}], "exclude": IDS[5:9]},
    {"user_id": "new"},
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = publish_linear(tmp_path_factory.mktemp("cli"), SHOP, seed=3)
    write_profiles(path.parent / "profiles", make_profiles(SHOP, USERS))
    return path


@pytest.fixture
def requests_file(tmp_path):
    return write_requests(tmp_path / "requests.jsonl", REQUESTS)


def write_requests(path, requests):
    path.write_text("".join(json.dumps(request) + "\n" for request in requests))
    return path


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("repeats", "filter_viewed"), [(None, None), ("allow", False), ("exclude", True)]
)
def test_a_file_of_requests_is_answered(
    bundle, requests_file, tmp_path, repeats, filter_viewed, capsys
):
    option = () if repeats is None else ("--repeats", repeats)
    out = tmp_path / "new" / "recs.csv"
    assert (
        run(
            "recommend",
            "--bundle",
            bundle,
            "--requests",
            requests_file,
            "--k",
            4,
            "--out",
            out,
            *option,
        )
        == 0
    )
    assert "3 requests answered" in capsys.readouterr().out
    answers = Recommender.load(bundle).recommend(REQUESTS, 4, filter_viewed)
    rows = read_csv(out)
    assert [row["user_id"] for row in rows] == ["u7"] * 4 + [""] * 4 + ["new"] * 4
    assert [row["item_id"] for row in rows] == answers.item_id.tolist()
    assert [int(row["rank"]) for row in rows] == [1, 2, 3, 4] * 3
    np.testing.assert_allclose([float(row["score"]) for row in rows], answers.score, rtol=1e-6)


def test_an_option_lists_what_the_requests_have_just_now(bundle, requests_file, tmp_path):
    loaded = Recommender.load(bundle)
    lists = {}
    for again in ("due", "any"):
        out = tmp_path / f"{again}.csv"
        command = ("recommend", "--bundle", bundle, "--requests", requests_file, "--out", out)
        assert run(*command, "--k", N, "--again", again) == 0
        lists[again] = [row["item_id"] for row in read_csv(out)]
        asked = [{**request, "again": again} for request in REQUESTS]
        assert lists[again] == loaded.recommend(asked, N).item_id.tolist()
    assert len(lists["any"]) - len(lists["due"]) == 1  # the item of the one basket


def test_all_users_are_answered_in_batches_and_in_their_order(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(answering, "_BATCH", 2)
    out = tmp_path / "recs.parquet"
    assert run("recommend", "--bundle", bundle, "--all-users", "--k", 3, "--out", out) == 0
    table = pq.read_table(out)
    assert table.column("user_id").to_pylist() == [user_id for user_id in USERS for _ in range(3)]
    expected = Recommender.load(bundle).recommend([{"user_id": user_id} for user_id in USERS], 3)
    assert table.column("item_id").to_pylist() == expected.item_id.tolist()
    assert pq.ParquetFile(out).num_row_groups == 3


def test_values_and_items_that_the_bundle_does_not_know_are_noted(bundle, tmp_path, capsys):
    history = [{"item_id": "gone"}, {"item_id": IDS[3]}]
    path = write_requests(
        tmp_path / "r.jsonl",
        [{"context": {"device": "fridge"}, "history": history}, {}],
    )
    assert (
        run(
            "recommend",
            "--bundle",
            bundle,
            "--requests",
            path,
            "--k",
            2,
            "--out",
            tmp_path / "recs.csv",
        )
        == 0
    )
    items, values, *_ = capsys.readouterr().err.splitlines()
    assert "items: 1, the first 'gone'" in items
    assert "values: 1, the first context.device" in values


def test_users_without_a_profile_are_counted_once_and_the_first_is_named(bundle, tmp_path, capsys):
    users = ["u7", "eve", None, "adam", "eve", "u1"]
    path = write_requests(
        tmp_path / "r.jsonl", [{"user_id": user, "history": [IDS[3]]} for user in users]
    )
    out = tmp_path / "recs.csv"
    assert run("recommend", "--bundle", bundle, "--requests", path, "--k", 2, "--out", out) == 0
    line, *_ = capsys.readouterr().err.splitlines()
    assert "unknown users: 2, the first 'eve'" in line


def test_names_of_items_are_a_last_column_for_whoever_asks(bundle, requests_file, tmp_path):
    words = ("recommend", "--bundle", bundle, "--requests", requests_file, "--k", 3, "--out")
    for name in ("plain.csv", "named.csv", "named.parquet"):
        options = ["--names"] if "named" in name else []
        assert run(*words, tmp_path / name, *options) == 0
    plain, named = (read_csv(tmp_path / name) for name in ("plain.csv", "named.csv"))
    assert list(plain[0]) == ["user_id", "item_id", "score", "rank"]
    titles = [row.pop("name") for row in named]
    assert named == plain
    assert titles == [f"Title {IDS.index(row['item_id'])}" for row in plain]
    assert pq.read_table(tmp_path / "named.parquet").column("name").to_pylist() == titles


def test_options_filter_all_requests_beside_their_own(bundle, tmp_path, capsys):
    requests = [
        {
            "user_id": "u7",
            "filters": {"where": "price <= 5", "at_most": {"department": 2}},
        },
        {"user_id": "new"},
    ]
    path, only = write_requests(tmp_path / "r.jsonl", requests), tmp_path / "only.csv"
    only.write_text("\n".join(["title,item_id", *(f"t,{one}" for one in (*IDS[:14], "gone"))]))
    options = (
        "--where",
        "brand = 'x'",
        "--only",
        only,
        "--at-most",
        "department=1",
        "--at-most",
        "title=3",
    )
    out = tmp_path / "recs.csv"
    assert (
        run(
            "recommend",
            "--bundle",
            bundle,
            "--requests",
            path,
            "--k",
            5,
            "--out",
            out,
            *options,
        )
        == 0
    )
    all_of = {"only": IDS[:14], "at_most": {"department": 1}}
    filtered = [
        {"user_id": "u7", "filters": {"where": "brand = 'x' and price <= 5", **all_of}},
        {"user_id": "new", "filters": {"where": "brand = 'x'", **all_of}},
    ]
    answers = Recommender.load(bundle).recommend(filtered, 5)
    assert [row["item_id"] for row in read_csv(out)] == answers.item_id.tolist()
    assert "2 of 2 lists are short; the first because 4 of 5" in capsys.readouterr().err


@pytest.mark.parametrize(("again", "n_held"), [("due", 3), ("any", 0)])
def test_a_file_of_answers_says_how_many_items_are_held_back(tmp_path, capsys, again, n_held):
    bundle = publish_linear(tmp_path, SHOP, 0)
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps({"history": IDS[:n]}) + "\n" for n in (1, 2)))
    out = tmp_path / "lists.csv"
    asked = ("--requests", path, "--out", out, "--k", N, "--again", again)
    assert run("recommend", "--bundle", bundle, *asked) == 0
    assert len(read_csv(out)) == 2 * N - n_held
    assert f"held back: {n_held}," in capsys.readouterr().err or not n_held


def test_faults_are_one_line_and_leave_the_file_as_it_was(bundle, requests_file, tmp_path, capsys):
    out = tmp_path / "recs.csv"
    out.write_text("old")
    with requests_file.open("a") as file:
        file.write('{"user_id": "u1", "hist": []}\n')
    faults = {
        r"requests.jsonl.*4.*'hist'.*mean 'history'": (
            "--requests",
            requests_file,
            "--out",
            out,
        ),
        "no such file|No such file": (
            "--requests",
            tmp_path / "none.jsonl",
            "--out",
            out,
        ),
        r"cannot write '.txt'; allowed: .csv, .parquet": (
            "--all-users",
            "--out",
            tmp_path / "recs.txt",
        ),
        "k is 0; allowed: 1 or more": ("--all-users", "--k", 0, "--out", out),
        "did you mean 'price'": ("--all-users", "--where", "prise <= 2", "--out", out),
        "--at-most is 'brand'; expected COLUMN=N": (
            "--all-users",
            "--at-most",
            "brand",
            "--out",
            out,
        ),
        "would replace a file": ("--requests", out, "--out", out),
        "required: --out": ("--all-users",),
        "give either --requests or --all-users": ("--out", out),
        "no profiles": ("--all-users", "--profiles", tmp_path, "--out", out),
        "unrecognized arguments: --fast": ("--all-users", "--out", out, "--fast"),
    }
    for message, arguments in faults.items():
        assert run("recommend", "--bundle", bundle, *arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert re.match("error: ", line)
        assert re.search(message, line)
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "recs.csv",
        "requests.jsonl",
    ]


def test_similar_shows_the_item_and_its_neighbours(bundle, capsys):
    assert run("similar", "--bundle", bundle, "--item", IDS[5], "--k", 3) == 0
    header, first, *others = capsys.readouterr().out.splitlines()
    assert header.split() == [
        "cosine",
        "item_id",
        "title",
        "department",
        "price",
        "brand",
    ]
    assert first.split()[:3] == [IDS[5], "Title", "5"]
    ids, cosines = Recommender.load(bundle).similar_items(IDS[5], 3)
    assert [line.split()[1] for line in others] == ids.tolist()
    assert [float(line.split()[0]) for line in others] == [
        round(float(cosine), 3) for cosine in cosines
    ]
    assert run("similar", "--bundle", bundle, "--item", "gone") == 2


def test_verify_says_what_it_checked(bundle, tmp_path, capsys):
    assert run("verify", "--bundle", bundle) == 0
    assert "8 requests answered as when exported" in capsys.readouterr().out
    assert run("verify", "--bundle", tmp_path) == 2
    assert "manifest.json" in capsys.readouterr().err


def test_versions_are_published_activated_listed_and_rolled_back(
    bundle, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    other, versions = publish_linear(tmp_path / "other", SHOP, seed=8), []
    where = shlex.join(
        ["--profiles", f"{bundle.parent}/profiles", "--state", f"{bundle.parent}/state"]
    )
    for path in (bundle, other):
        assert run("publish", "--bundle", path, "--activate") == 0
        first, current, *more = capsys.readouterr().out.splitlines()
        versions.append(first.split()[1])
        assert current == f"current: {versions[-1]}"
        assert more == (
            [f"profiles stay where they are: serve the registry with {where}"]
            if path == bundle
            else []
        )
    assert run("rollback") == 0
    assert capsys.readouterr().out == f"current: {versions[0]}, in place of {versions[1]}\n"
    assert run("activate", "--version", versions[1]) == run("list") == 0
    assert re.search(rf"^\* +{versions[1]} ", capsys.readouterr().out, re.MULTILINE)
    for words in (
        ("activate", "--version", "../x"),
        ("rollback", "--registry", "none"),
        ("publish", "--bundle", "."),
    ):
        assert run(*words) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_forgotten_user_leaves_a_receipt_which_tells_a_mistyped_one_from_them(
    bundle, tmp_path, capsys
):
    own = shutil.copytree(bundle.parent, tmp_path / "run")
    with closing(StateStore(own / "state" / "state.db")) as store:
        store.observe("newcomer", IDS[0], None, 1)
    assert run("forget", "--run", own, "--user", "u7", "u7typo", "newcomer") == 0
    shown = capsys.readouterr()
    receipt = json.loads(shown.out)
    assert receipt["erased"]["profiles"] == receipt["erased"]["events"] == 1
    assert receipt["unknown"] == receipt["forgotten"][1:2]
    assert ("u7typo" in shown.err, "newcomer" in shown.err) == (True, False)
    assert "u7" not in Recommender.load(own / "bundle").profiles.user_ids.tolist()


def test_the_module_runs_without_training_packages_and_help_without_any(bundle, tmp_path):
    code = (
        "import sys\n"
        "import bascule.commands as cli\n"
        "assert not {'numpy', 'pyarrow', 'onnxruntime', 'faiss'} & set(sys.modules)\n"
        f"bundle = ['--bundle', {str(bundle)!r}]\n"
        f"assert cli.main(['recommend', *bundle, '--all-users', '--out', {str(tmp_path / 'recs.parquet')!r}]) == 0\n"
        f"assert cli.main(['similar', *bundle, '--item', {IDS[0]!r}]) == 0\n"
        "from serve.recommender import Recommender\n"
        "recommender = Recommender.load(bundle[1])\n"
        "recommender.rank_owned([{'user_id': 'u1'}]).to_table(), recommender.encode_items([{'price': 1.0}])\n"
        "assert not {'pandas', 'torch', 'pytorch_lightning', 'fastapi'} & set(sys.modules)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "."},
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_with_its_status(number, status):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as end, ending_on_signals():
        os.kill(os.getpid(), number)
    assert (end.value.code, status in ENDED, signal.getsignal(number)) == (
        status,
        True,
        before,
    )


def test_a_second_signal_ends_the_process_at_once():
    code = (
        "import os, signal\nfrom service.command_line import ending_on_signals\n"
        "with ending_on_signals():\n try:\n  os.kill(os.getpid(), signal.SIGTERM)\n"
        " except SystemExit:\n  os.kill(os.getpid(), signal.SIGTERM)\n  print('alive')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "")
