"""People who opt out, for good or in one request, are answered as nobody, and nothing new is kept of them."""

import json
import sqlite3
from argparse import Namespace
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bascule.answering import recommend
from bascule.commands import main
from pipeline.tables import prepare
from serve.bundle import BUNDLE, STATE, STATE_FILE
from serve.errors import BundleError
from serve.files import OPTED_OUT, read_opt_outs
from serve.recommender import Recommender
from service.event_log import Impressions, Observation
from service.forget import Erasures, add_to_erasure_list, inherit_left_out, opt_in
from service.remote.ray_engine import PartMaker
from service.state import StateStore
from tests.around.lost_power import Disk
from tests.http.services import NOW, asking, listed, publish_served
from tests.linear_bundle import SHOP, UNTIL, item_ids
from tests.pipeline.small_runs import ORDERED, config_of, make_tables
from tests.served import ask

import bascule

IDS = item_ids(SHOP)
PERSONAL = {"user_id": "u1", "features": {"gender": "f"}, "history": [IDS[2], IDS[5]]}
PLACE = {"context": {"device": "phone"}} if "device" in str(SHOP.context_features) else {}


@pytest.fixture
def run(tmp_path):
    return publish_served(tmp_path, SHOP).parent


def dump(run):
    """Return every row of a state, but those of the salt."""
    with closing(sqlite3.connect(run / STATE / STATE_FILE)) as database:
        tables = ("users", "event_rows", "answer_rows", "shown")
        return [database.execute(f"SELECT * FROM {table}").fetchall() for table in tables]


def post(app, path, body):
    reply = ask(app, "POST", path, body)
    assert reply.status == 200, reply
    return reply.json


def choose(app, user_id, profile):
    post(app, "/v1/users/profiling", {"user_id": user_id, "profile": profile})


def test_a_request_without_profiling_is_answered_as_nobodys_and_not_kept(run):
    with asking(run / BUNDLE) as app:
        nobodys = listed(app, **PLACE)
        assert listed(app, **PERSONAL, **PLACE) != nobodys
        assert listed(app, user_id="u1") != listed(app)
        before = app.state.shared.service.impressions
        bodies = [PERSONAL, {"user_id": "u1"}, {"features": {"gender": "f"}}, {"history": [IDS[2]]}]
        for body in bodies:
            assert listed(app, **body, **PLACE, profile=False) == nobodys
        body = {**NOW, **PERSONAL, "explain": True, "profile": False}
        (answer,) = post(app, "/v1/recommend", body)["answers"]
        assert answer["profile"] is False
        assert "segment" not in answer
        assert "user_known" not in answer
        assert {reason["kind"] for item in answer["items"] for reason in item["reasons"]} <= {
            "popular",
            "context",
        }
        assert post(app, "/v1/due", {"user_id": "u1", "profile": False})["items"] == []
    assert before.n_lost == 0
    *_, answers, shown = dump(run)
    assert len(answers) == 4  # those of the first lines
    assert {len([row for row in shown if row[0] == answer[0]]) for answer in answers} == {10}


def test_of_who_opts_out_nothing_new_is_kept_until_they_opt_in(run):
    event = {"user_id": "u1", "item_id": IDS[3]}
    with asking(run / BUNDLE) as app:
        assert post(app, "/v1/events", event)["kept"] == 1
        known, nobodys = listed(app, user_id="u1"), listed(app)
        assert known != nobodys
        choose(app, "u1", profile=False)
    kept = dump(run)
    with asking(run / BUNDLE) as app:
        assert listed(app, user_id="u1") == nobodys
        assert listed(app, **PERSONAL) == nobodys
        assert post(app, "/v1/events", {**event, "item_id": IDS[4]})["kept"] == 0
        assert listed(app, user_id="u4") != nobodys
    _, events, answers, _ = dump(run)
    assert events == kept[1]
    assert len(answers) == len(kept[2]) + 1  # that of u4
    with asking(run / BUNDLE) as app:
        choose(app, "u1", profile=True)
        assert listed(app, user_id="u1") == known
        assert post(app, "/v1/events", {**event, "item_id": IDS[4]})["kept"] == 1


def test_lists_and_vectors_of_all_users_are_of_those_who_have_not_opted_out(run):
    add_to_erasure_list(run, ["u1", "u4"], OPTED_OUT)
    words = ["--bundle", str(run / BUNDLE), "--out"]
    assert main(["recommend", "--all-users", "--k", "2", *words, str(run / "all.parquet")]) == 0
    assert main(["export", "--side", "user", *words, str(run / "vectors")]) == 0
    for path in (run / "all.parquet", run / "vectors" / "part-00000.parquet"):
        users = pq.read_table(path).column("user_id").to_pylist()
        assert set(users) == {"u0", "u2", "u3"}


def write_requests(path):
    """Write requests of somebody who is to opt out, by id and with a history; and nobody's."""
    requests = [{"user_id": "u1"}, PERSONAL, {"user_id": "u4"}, {}]
    path.write_text("".join(f"{json.dumps({**PLACE, **request})}\n" for request in requests))
    return requests


def check_lists(table):
    """Check that the lists of the first two requests are those of nobody, and the third is not."""
    shown = table.group_by("request").aggregate([("item_id", "list"), ("score", "list")])
    *lists, nobodys = zip(*shown.sort_by("request").to_pydict().values(), strict=True)
    for _, *of_one in lists[:2]:
        assert of_one == [*nobodys[1:]]
    assert lists[2][1:] != nobodys[1:]


def add_numbers(path, k):
    table = pq.read_table(path)
    return table.append_column("request", pa.array(np.arange(len(table)) // k))


def test_a_command_answers_who_opted_out_as_nobody_also_with_a_history_in_the_file(run, tmp_path):
    write_requests(tmp_path / "asked.jsonl")
    add_to_erasure_list(run, ["u1"], OPTED_OUT)
    words = ["--bundle", str(run / BUNDLE), "--requests", str(tmp_path / "asked.jsonl"), "--k", "5"]
    assert main(["recommend", *words, "--out", str(tmp_path / "lists.parquet")]) == 0
    check_lists(add_numbers(tmp_path / "lists.parquet", 5))


def test_an_actor_of_ray_answers_who_opted_out_as_nobody(run, tmp_path):
    add_to_erasure_list(run, ["u1"], OPTED_OUT)
    options = Namespace(
        command="recommend", bundle=run / BUNDLE, profiles=None, trusted_keys=None, engine="local"
    )
    options.__dict__ |= {"k": 5, "where": None, "only": None, "at_most": [], "names": False}
    options.__dict__ |= {"repeats": None, "again": None, "variants": None}
    rows = pa.Table.from_pylist([{"user_id": user} for user in ("u1", "u1", "u4", None)])
    version = Recommender.load(run / BUNDLE).version
    part = PartMaker(recommend, options, version)(rows)
    assert part["fault"].to_pylist() == [""]
    path = tmp_path / "part.parquet"
    path.write_bytes(part["content"][0].as_py())
    check_lists(add_numbers(path, 5))


def test_python_answers_who_opted_out_as_nobody_also_after_it_was_loaded(run, tmp_path):
    loaded = bascule.load(run)
    add_to_erasure_list(run, ["u1"], OPTED_OUT)
    saved = bascule.load(loaded.save(tmp_path / "saved"))
    requests = write_requests(tmp_path / "asked.jsonl")
    for recommender in (loaded, bascule.load(run), saved):
        check_lists(recommender.recommend(requests, 5).to_arrow())
        nobodys, theirs = recommender.encode_users([{}, "u1"])
        assert theirs.tolist() == nobodys.tolist()
    neighbours = saved.similar_users("u4", 4).to_pandas()["user_id"]
    assert set(neighbours) == {"u0", "u2", "u3"}


def test_a_choice_is_written_beside_the_profiles_and_beside_the_state(tmp_path):
    runs = [tmp_path / "run", tmp_path / "elsewhere"]
    for folder in runs:
        folder.mkdir()
    with closing(Erasures(runs)) as erasures:
        hashes = erasures.choose("u1", is_out=True)
        assert all(read_opt_outs(folder).holds("u1") for folder in runs)
        assert erasures.choose("u1", is_out=False) == hashes
    assert not any(read_opt_outs(folder).holds("u1") for folder in runs)
    assert all(len(bytes.fromhex(user_hash)) == 32 for user_hash in hashes)


def test_a_file_that_is_no_table_is_named_and_what_is_held_is_shown(run, capsys):
    (run / "notes.csv").write_text("")
    (run / "torn.parquet").write_bytes(b"PAR1")
    assert main(["user", "show", "--run", str(run), "--user", "u1"]) == 0
    printed = capsys.readouterr()
    assert "profiles: 1" in printed.out
    for name in ("notes.csv", "torn.parquet"):
        assert name in printed.err


def test_a_choice_is_on_disk_and_holds_no_id(run, monkeypatch):
    disk = Disk(monkeypatch)
    with closing(Erasures([run])) as erasures:
        erasures.choose("sentinel-77", is_out=True)
        assert read_opt_outs(run).holds("sentinel-77")
        assert b"sentinel" not in (run / OPTED_OUT).read_bytes()
        erasures.choose("sentinel-77", is_out=False)
        erasures.choose(7, is_out=True)
    assert not read_opt_outs(run).holds("sentinel-77")
    assert read_opt_outs(run).holds("7")
    assert disk.too_early == disk.unnamed == []


def test_a_damaged_list_lets_no_user_be_profiled(run):
    (run / OPTED_OUT).write_text("{")
    with asking(run / BUNDLE) as app:
        assert ask(app, "POST", "/v1/recommend", {**NOW, "user_id": "u1"}).status == 503
        assert ask(app, "GET", "/ready").status == 503
        assert ask(app, "POST", "/v1/recommend", NOW).status == 200
    with pytest.raises(BundleError):
        read_opt_outs(run)


def test_a_training_leaves_them_out_as_if_they_had_no_rows(tmp_path):
    interactions, users, items = make_tables(ORDERED)
    gone = ["u007", "u033"]

    def rows_of(name, *tables):
        config = config_of(tmp_path / name, ORDERED)
        (tmp_path / "beside").mkdir(exist_ok=True)
        return prepare(config, tables, tmp_path / "beside").rows

    without = [table[~table["user_id"].isin(gone)] for table in (interactions, users)]
    expected = rows_of("without", *[table.reset_index(drop=True) for table in without], items)
    whole = rows_of("whole", interactions, users, items)
    (tmp_path / "left").mkdir()
    add_to_erasure_list(tmp_path / "left", gone, OPTED_OUT)
    assert rows_of("left", interactions, users, items) == expected != whole
    for user_id in gone:
        opt_in(tmp_path / "left", user_id)
    assert rows_of("left", interactions, users, items) == whole


def test_the_list_beside_a_state_counts_and_others_are_copies(tmp_path):
    home, second, third = (tmp_path / name for name in ("home", "second", "third"))
    for folder in (home / STATE, second, third):
        folder.mkdir(parents=True)
    add_to_erasure_list(home, ["u1", "u2"], OPTED_OUT)
    assert inherit_left_out(second, home / BUNDLE).holds("u1")
    opt_in(home, "u1")
    inherit_left_out(third, home / BUNDLE)  # as `bascule retrain` does first
    left_out = inherit_left_out(third, second / BUNDLE)
    assert (left_out.holds("u1"), left_out.holds("u2")) == (False, True)


def test_each_kind_of_data_has_a_retention_of_its_own(tmp_path, capsys):
    path = tmp_path / STATE / STATE_FILE
    days = [1, 5, 20]
    now = UNTIL
    with closing(StateStore(path, None, 10, 2)) as store:
        for age in days:
            moment = now - age * 86_400
            store.observe_many([Observation("u", IDS[0], None, moment)])
            shown = ([IDS[0]], [1.0], [1.0])
            store.log_impressions([Impressions(f"r{age}", "u", moment, "v", "greedy", *shown)])
        removed = [*store.expire_slices(now)]
    assert sum(of_slice["events"] for of_slice in removed) == 1
    assert sum(of_slice["impressions"] for of_slice in removed) == 2
    _, events, answers, shown = dump(tmp_path)
    assert (len(events), len(answers), len(shown)) == (2, 1, 1)
    words = ["--run", str(tmp_path), "--retention-days", "36000"]
    assert main(["expire", *words]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == {"events": 0, "impressions": 0}
    assert main(["expire", *words[:3], "1"]) == 2  # all of it, without a word
    assert main(["expire", *words[:3], "1", "--expire-most"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == {"events": 2, "impressions": 1}


@pytest.mark.parametrize("days", [(0.0,), (-1.0,), (10.0, 0.0), (float("nan"),), (1e9,)])
def test_a_retention_that_keeps_nothing_or_everything_is_refused(tmp_path, days):
    with pytest.raises(ValueError, match="retention"):
        StateStore(tmp_path / STATE / STATE_FILE, None, *days)
    assert not (tmp_path / STATE).exists()
