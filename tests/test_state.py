"""What the store of live events keeps, in which order, for how long, and what is left after it forgets."""

import errno
import math
import re
import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime

import numpy as np
import pytest

from serve.errors import BundleError, SchemaError
from serve.requests import History
from serve.state import Impressions, Observation, StateStore
from serve.state.database import Database
from serve.state.tombstones import add_tombstones
from tests.lost_power import Disk
from tests.served import ROOT

DAY = 86_400
NOW = 1_700_000_000
SENTINEL = "sentinel-6d1f"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "state.db"


@pytest.fixture
def store(path):
    with closing(StateStore(path)) as opened:
        yield opened


def query(path, text):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(text).fetchall()


def answer_of(user_id, request_id="r1", time=NOW, items=("a", "b", "c")):
    return Impressions(request_id, user_id, time, "v1", "greedy", items, [1.0 / (n + 1) for n in range(len(items))])


def events_of(n, user_id="u"):
    return [Observation(user_id, f"i{n}", "view", NOW + n) for n in range(n)]


def test_a_history_is_ordered_by_time_then_by_arrival(store):
    events = [("b", "view", 5), ("a", "buy", 3), ("c", None, 5), ("a", None, 3), ("d", "view", 4), ("b", "buy", 5)]
    for item_id, event, time in events:
        store.observe("u", item_id, event, time)
    store.observe("v", "z", None, 1)
    expected = sorted(events, key=lambda one: one[2])  # stable: ties stay as they arrived
    history = store.history("u")
    assert list(zip(history.item_id, history.event, history.datetime, strict=True)) == expected
    assert history.weight == (None,) * 6
    assert store.history("nobody") == History(())


def test_ids_of_items_keep_their_types(store):
    store.observe(7, 2**63 - 1, None, 1, 0.25)
    store.observe(7, "é\0x", None, 2)
    history = store.history(7)
    assert (history.item_id, history.weight) == ((2**63 - 1, "é\0x"), (0.25, None))


def test_numbers_of_numpy_are_numbers(store, path):
    user_id, *item_ids = np.array([7, 31, 12])
    store.log_impressions([answer_of(user_id, time=np.int64(NOW), items=np.array(item_ids))])
    assert store.observe(user_id, item_ids[1], "view", np.int64(NOW + 5), np.float32(0.5))
    assert store.observe(7, 12, "view", NOW + 5, 0.5)
    assert store.history(7) == History((12,), (NOW + 5,), ("view",), (0.5,))
    rows = query(path, "SELECT user_id, datetime, item_id, event_datetime FROM feedback ORDER BY position")
    assert rows == [(7, NOW, 31, None), (7, NOW, 12, NOW + 5)]
    assert store.forget(7) == {"events": 1, "impressions": 2}
    assert query(path, "SELECT count(*) FROM events") == [(0,)]


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ((["u"], "a", "view", NOW), r"user_id is \['u'\]; allowed: a text, an integer"),
        ((1.0, "a", "view", NOW), "user_id is 1.0"),
        (("u", None, "view", NOW), "item_id is None"),
        (("u", "a", 3, NOW), "event is 3; allowed: a text, None"),
        (("u", "a", "view", NOW + 0.5), r"datetime is 1700000000\.5; allowed: an integer"),
        (("u", "a", "view", datetime.fromtimestamp(NOW, UTC)), "datetime is datetime.datetime"),
        (("u", "a", "view", NOW, "5"), "weight is '5'; allowed: a number, None"),
        (("u", "a", "view", NOW * 1000), "datetime is 1700000000000 .*; expected whole UTC seconds"),
        (("u", "a", "view", 2**63), "datetime is an integer of more than 64 bits"),
        (("u", "a", "view", NOW, -1.0), "weight is -1.0; expected 0 or more"),
        (("u", "a", "view", NOW, math.inf), "weight is inf"),
        (("u", 2**63, "view", NOW), "item_id is an integer of more than 64 bits"),
        ((-(2**63) - 1, "a", "view", NOW), "user_id is an integer of more than 64 bits"),
        (("u", "\ud800", "view", NOW), "item_id is"),
    ],
)
def test_what_nobody_could_read_again_is_not_kept(store, event, words):
    store.observe("u", "b", "view", NOW - 1)
    with pytest.raises(SchemaError, match=words):
        store.observe(*event)
    with pytest.raises(SchemaError, match=words):
        store.observe_many(iter([*events_of(2), Observation(*event)]))
    assert store.history("u").item_id == ("b",)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"time": datetime.fromtimestamp(NOW, UTC)}, "datetime is datetime.datetime"),
        ({"time": NOW * 1000}, "datetime is 1700000000000 .*; expected whole UTC seconds"),
        ({"time": NOW + 0.5}, r"datetime is 1700000000\.5"),
        ({"user_id": 7.0}, "user_id is 7.0"),
        ({"user_id": 2**63}, "user_id is an integer of more than 64 bits"),
    ],
)
def test_what_was_shown_is_kept_if_it_can_be_taken_out_again(store, path, about, words):
    with pytest.raises(SchemaError, match=words):
        store.log_impressions(iter([answer_of("u"), answer_of(**{"user_id": "u", **about})]))
    assert query(path, "SELECT count(*) FROM answers") == [(0,)]


@pytest.mark.parametrize("said", [["7"], [7], 7.0, None, True])
def test_what_is_no_id_is_not_said_to_be_forgotten(store, said):
    store.observe("7", "a", "view", NOW)
    with pytest.raises(SchemaError, match="user_id is"):
        store.forget("7", said)
    assert store.history(7).item_id == ("a",)
    assert store.forget(np.int64(7))["events"] == 1


def test_as_of_milliseconds_nothing_expires(store):
    store.observe("u", "a", "view", NOW)
    with pytest.raises(SchemaError, match=r"now is 1700000000000 .*; expected whole UTC seconds"):
        store.expire(NOW * 1000)
    assert (store.expire(NOW + 0.5), store.expire(np.int64(NOW))) == (0, 0)
    assert store.history("u").item_id == ("a",)


def test_a_weight_that_is_nan_is_none(store):
    store.observe("u", "a", "view", np.int64(NOW), np.float32("nan"))
    store.observe("u", "b", "view", -5, np.float32(0.5))
    assert (store.history("u").weight, store.history("u").datetime) == ((0.5, None), (-5, NOW))


@pytest.mark.parametrize("forms", [(7, "7"), (-7, "-7"), (2**63 - 1, str(2**63 - 1))])
def test_a_user_is_the_same_as_text_and_as_integer(store, forms):
    events = [(forms[n % 3 % 2], n % 5, "dismiss" if n == 4 else "view", NOW + n * 7 % 4) for n in range(17)]
    for event in events:
        store.observe(*event)
    store.observe("07", 99, "view", NOW)
    expected = sorted(
        (event for event in events if event[2] == "view"), key=lambda event: event[3]
    )  # ties as they came
    for user_id in forms:
        assert store.history(user_id).item_id == tuple(item_id for _, item_id, _, _ in expected)
        assert store.dismissed(user_id) == (4,)


def test_what_was_dismissed_is_no_history(store):
    for item_id, event in (("a", "dismiss"), ("b", "view"), ("a", "dismiss"), ("c", "dismiss"), ("a", "buy")):
        store.observe("u", item_id, event, NOW)
    assert store.dismissed("u") == ("a", "c")
    assert store.history("u").item_id == ("b", "a")
    assert store.dismissed("v") == ()


def test_an_event_that_is_sent_again_is_there_once(store):
    events = [Observation("u", "a", None, NOW), Observation("u", "a", None, NOW, 1.0), Observation("u", "a", "x", NOW)]
    events += [Observation("u", "a", None, NOW + 1), Observation("u", "b", None, NOW), Observation("v", "a", None, NOW)]
    for _ in range(2):
        assert store.observe_many([*events, *events]) == 12
    assert len(store.history("u")) == 5
    assert len(store.history("v")) == 1


def test_another_store_sees_it_at_once_and_after_a_restart(store, path):
    store.observe("u", "a", "view", NOW)
    with closing(StateStore(path)) as other:
        assert other.history("u").item_id == ("a",)
        other.observe("u", "b", "view", NOW + 1)
    assert store.history("u").item_id == ("a", "b")


def test_the_folder_of_a_new_store_has_its_name_on_disk(path, tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    with closing(StateStore(path)):
        assert disk.holds(tmp_path)


def test_events_are_kept_all_or_none(store):
    broken = [*events_of(4), Observation("u", None, "view", NOW)]
    with pytest.raises(SchemaError, match="item_id is None"):
        store.observe_many(broken)
    assert len(store.history("u")) == 0
    assert store.observe_many(events_of(4)) == 4  # the transaction before is over
    assert store.observe_many([]) == 0


def test_a_full_disk_is_an_error_that_names_the_file(store, path):
    store.observe("u", "a", "view", NOW)
    ((pages,),) = query(path, "PRAGMA page_count")
    store._database._writer.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(OSError, match=r"full.*state\.db"):
        store.observe_many(events_of(5000))
    assert store.history("u").item_id == ("a",)


def test_a_file_that_another_process_keeps_is_busy(store, path, monkeypatch):
    monkeypatch.setattr("serve.state.database._PATIENCE", 0.05)
    with closing(StateStore(path)) as hasty, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for write in (hasty.observe_many, hasty.log_impressions):
            with pytest.raises(OSError, match=r"locked.*state\.db") as caught:
                write([])
            assert caught.value.errno == errno.EBUSY
        other.execute("ROLLBACK")
        assert hasty.observe("u", "a", "view", NOW)


def test_impressions_have_positions_and_what_followed(store, path):
    store.log_impressions([answer_of("u"), answer_of("u", "r2", NOW + 50, ("b",)), answer_of(None, "r3")])
    store.observe_many(
        [
            Observation("u", "b", "view", NOW + 9),
            Observation("u", "b", "buy", NOW + 60, 2.0, "r2"),
            Observation("u", "c", "dismiss", NOW + 60),
            Observation("u", "a", "view", NOW - 1),
            Observation("v", "a", "view", NOW + 1),
        ]
    )
    rows = query(path, "SELECT * FROM feedback ORDER BY request_id, position")
    assert [(*row[:2], *row[3:7], row[8], row[10]) for row in rows] == [
        ("r1", "u", "v1", "greedy", 1, "a", None, None),
        ("r1", "u", "v1", "greedy", 2, "b", "view", NOW + 9),
        ("r1", "u", "v1", "greedy", 3, "c", "dismiss", NOW + 60),
        ("r2", "u", "v1", "greedy", 1, "b", "buy", NOW + 60),
        ("r3", None, "v1", "greedy", 1, "a", None, None),
        ("r3", None, "v1", "greedy", 2, "b", None, None),
        ("r3", None, "v1", "greedy", 3, "c", None, None),
    ]
    assert [row[7] for row in rows] == pytest.approx([1, 1 / 2, 1 / 3, 1, 1, 1 / 2, 1 / 3])
    assert [row[9] for row in rows] == [None, None, None, 2.0, None, None, None]


def test_an_event_that_names_its_request_follows_it_by_any_clock(store, path):
    store.log_impressions([answer_of("u"), answer_of("u", "r2", NOW + 50), answer_of("v", "r3")])
    late = [("a", NOW - 90, "r1"), ("b", NOW - 1, None), ("c", NOW + 200, "r1"), ("c", NOW - 90, "r3")]
    store.observe_many([Observation("u", item_id, "buy", time, None, request) for item_id, time, request in late])
    found = query(
        path, "SELECT request_id, item_id, event_datetime FROM feedback WHERE event IS NOT NULL ORDER BY 1, 2"
    )
    assert found == [("r1", "a", NOW - 90), ("r1", "c", NOW + 200)]


def test_the_questions_of_the_docs_are_answered(store, path):
    lists = [answer_of("7"), answer_of("7", "r2", NOW + 50, ("b",)), answer_of(8, "r3"), answer_of(None, "r4")]
    store.log_impressions(lists)
    store.observe_many(
        [
            Observation("7", "a", None, NOW + 1, None, "r1"),
            Observation("7", "a", "buy", NOW + 2, 2.0, "r1"),
            Observation("7", "b", "buy", NOW + 60),
            Observation(8, "a", "dismiss", NOW + 1),
            Observation(8, "c", "buy", NOW + DAY),
        ]
    )
    questions = re.findall(r"```sql\n(.*?)```", (ROOT / "docs" / "serving.md").read_text(encoding="utf-8"), re.DOTALL)
    rates, events, somebody = questions
    assert query(path, rates) == [("v1", 1, 3, 2 / 3), ("v1", 2, 2, 1 / 2), ("v1", 3, 2, 0)]
    assert [row[1:4:2] for row in query(path, events)] == [("a", None), ("a", "buy"), ("b", "buy"), ("c", "buy")]
    hers, shown = somebody.strip().split(";")[:2]
    assert [row[:3] for row in query(path, hers)] == [
        (NOW + 1, "a", None),
        (NOW + 2, "a", "buy"),
        (NOW + 60, "b", "buy"),
    ]
    assert [row[:3] for row in query(path, shown)] == [
        (NOW, 1, "a"),
        (NOW, 2, "b"),
        (NOW, 3, "c"),
        (NOW + 50, 1, "b"),
    ]


def test_the_view_of_an_earlier_release_is_replaced_and_nothing_else_changes(path):
    with closing(StateStore(path)) as store:
        store.log_impressions([answer_of("u")])
        store.observe_many([Observation("u", "a", "buy", NOW - 1, None, "r1")])
    expected = query(path, "SELECT sql FROM sqlite_schema ORDER BY name")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP VIEW feedback")
        connection.execute("CREATE VIEW feedback AS SELECT 1 AS event FROM answers")
    for _ in range(2):
        StateStore(path).close()
        assert query(path, "SELECT sql FROM sqlite_schema ORDER BY name") == expected
    assert query(path, "SELECT event FROM feedback WHERE position = 1") == [("buy",)]


def test_a_dismissal_is_taken_back_by_its_own_event_alone(store):
    for item_id, event in (
        (4, "dismiss"),
        (5, "dismiss"),
        (6, "dismiss"),
        (4, "buy"),
        ("5", "undismiss"),
        (7, "undismiss"),
    ):
        store.observe("u", item_id, event, NOW)
    assert store.dismissed("u") == (4, 6)
    store.observe("u", 5, "dismiss", NOW + 1)
    assert store.dismissed("u") == (4, 6, 5)
    assert store.history("u").item_id == (4,)


@pytest.mark.parametrize("n_repeated", [1, 2])  # what is sent again since nobody acknowledged it, one by one or at once
@pytest.mark.parametrize("n_events", [2, 3, 4, 5])
@pytest.mark.parametrize("is_batch", [False, True])
def test_of_one_second_what_came_last_says_whether_an_item_is_dismissed(store, n_events, n_repeated, is_batch):
    events = [Observation("u", 4, ("dismiss", "undismiss")[place % 2], NOW) for place in range(n_events)]
    for one in [events] * n_repeated if is_batch else [[one] * n_repeated for one in events]:
        store.observe_many(one)
    assert store.dismissed("u") == ((4,) if n_events % 2 else ())
    assert store.history("u").item_id == ()


@pytest.mark.parametrize("days", [0, -1, float("nan"), 40_000])
def test_a_retention_that_keeps_nothing_or_for_ever_is_refused(path, days):
    with pytest.raises(ValueError, match=r"retention_days is .*; allowed: above 0, below 36500"):
        StateStore(path, retention_days=days)
    assert not path.exists()


def test_what_is_older_than_the_window_expires(path):
    with closing(StateStore(path, retention_days=10)) as store:
        limit = NOW - 10 * DAY
        assert [store.is_recent(time, NOW) for time in (limit - 1, limit, NOW)] == [False, True, True]
        for item_id, event, time in (("old", "buy", limit - 1), ("x", "dismiss", limit - 1), ("new", "buy", limit)):
            store.observe("u", item_id, event, time)
        store.log_impressions([answer_of("u", time=limit - 1), answer_of("v", "r2", limit)])
        assert store.expire(NOW) == 3
        assert (store.history("u").item_id, store.dismissed("u")) == (("new",), ())
        assert query(path, "SELECT DISTINCT request_id FROM feedback") == [("r2",)]
        assert query(path, "SELECT count(*) FROM shown") == [(3,)]
        assert store.expire(NOW) == 0
        assert path.with_name("state.db-wal").stat().st_size == 0


def test_what_expires_is_overwritten_in_the_file(path):
    with closing(StateStore(path, retention_days=10)) as store:
        store.observe_many(Observation(SENTINEL, f"i{n}", "view", NOW - 20 * DAY + n) for n in range(3000))
        store.observe_many(events_of(5))
        assert SENTINEL.encode() in path.read_bytes() + path.with_name("state.db-wal").read_bytes()
        assert store.expire(NOW) == 3000
        assert store._database.truncate_log()
        assert SENTINEL.encode() not in path.read_bytes()
        assert len(store.history("u")) == 5


def test_what_is_acknowledged_waits_for_the_disk(store, path):
    """SQLite waits where Python does not see it; 2 is `FULL`, with which also the log is waited for."""
    assert store._database._writer.execute("PRAGMA synchronous").fetchone() == (2,)
    assert query(path, "PRAGMA journal_mode") == [("wal",)]


def test_no_byte_of_a_forgotten_user_stays(store, path):
    mixed = [Observation(SENTINEL if n % 3 else f"u{n % 11}", f"i{n}", "view", NOW + n) for n in range(3000)]
    store.observe_many(mixed)
    store.log_impressions(answer_of(SENTINEL if n % 2 else "u1", f"r{n}") for n in range(200))
    store.observe(SENTINEL, "x", "dismiss", NOW)
    files = list(path.parent.iterdir())
    assert any(SENTINEL.encode() in file.read_bytes() for file in files)
    assert store.forget(SENTINEL) == {"events": 2001, "impressions": 300}
    for file in path.parent.iterdir():
        assert SENTINEL.encode() not in file.read_bytes(), file
    assert sum(len(store.history(f"u{n}")) for n in range(11)) == 1000
    assert query(path, "SELECT count(*) FROM shown") == [(300,)]
    assert store.forget(SENTINEL) == {"events": 0, "impressions": 0}


def test_a_user_is_forgotten_though_somebody_else_moves_the_log_just_then(store, path, monkeypatch):
    store.observe(SENTINEL, "a", "view", NOW)
    truncate, is_moved = Database.truncate_log, iter([True, True])  # SQLite gives up at once, however patient we are
    monkeypatch.setattr(Database, "truncate_log", lambda self: not next(is_moved, False) and truncate(self))
    store.forget(SENTINEL)
    assert all(SENTINEL.encode() not in file.read_bytes() for file in path.parent.iterdir())


def test_forgetting_ends_with_an_error_while_somebody_else_reads_on(path, monkeypatch):
    """What she did still lies in the log then."""
    monkeypatch.setattr("serve.state.database._PATIENCE", 0.05)
    with closing(StateStore(path)) as store, closing(sqlite3.connect(path)) as other:
        store.observe_many([*events_of(300), Observation(SENTINEL, "a", "view", NOW)])
        reading = other.execute("SELECT * FROM events")
        reading.fetchone()
        with pytest.raises(OSError, match=r"keeps its log from being emptied: try again.*state\.db") as caught:
            store.forget(SENTINEL)
        assert caught.value.errno == errno.EBUSY
        reading.close()
        store.forget(SENTINEL)
        assert all(SENTINEL.encode() not in file.read_bytes() for file in path.parent.iterdir())


def test_an_id_is_forgotten_as_text_and_as_integer(store):
    for user_id in (7, "7", "07", 77):
        store.observe(user_id, "a", "view", NOW)
    assert store.forget("7")["events"] == 2
    assert [len(store.history(user_id)) for user_id in (7, "7", "07", 77)] == [0, 0, 1, 1]


def test_what_still_arrives_of_a_forgotten_user_is_not_kept(store, path, tmp_path):
    assert store.observe("u", "a", "view", NOW)
    add_tombstones(tmp_path, [SENTINEL])  # as another process does
    assert not store.observe(SENTINEL, "a", "view", NOW)
    assert store.observe_many([Observation("u", "b", "view", NOW), Observation(SENTINEL, "b", "view", NOW)]) == 1
    store.log_impressions([answer_of(SENTINEL), answer_of("u", "r2"), answer_of(None, "r3")])
    assert query(path, "SELECT user_id FROM answers ORDER BY number") == [("u",), (None,)]
    assert store.recall(SENTINEL).is_forgotten
    assert not store.recall("u").is_forgotten


def test_whoever_is_forgotten_in_one_of_many_runs_is_nobody(path, tmp_path):
    runs = [tmp_path / name for name in ("first", "second")]
    with closing(StateStore(path, runs)) as store:
        for user_id, run in zip(("anna", "ben"), runs, strict=True):
            assert store.observe(user_id, "a", "view", NOW)
            run.mkdir()
            add_tombstones(run, [user_id])
            assert store.recall(user_id).is_forgotten
            assert not store.observe(user_id, "b", "view", NOW)
        add_tombstones(tmp_path, ["u"])  # of a folder that is not named
        assert store.observe("u", "a", "view", NOW)
    assert query(path, "SELECT user_id, item_id FROM events") == [("anna", "a"), ("ben", "a"), ("u", "a")]


def test_readers_see_whole_transactions_while_others_write(store):
    n_writers, n_batches, seen = 3, 12, []

    def write(number):
        for batch in range(n_batches):
            store.observe_many([Observation("u", f"{number}-{batch}-{n}", "view", NOW) for n in range(5)])

    writers = [threading.Thread(target=write, args=(number,)) for number in range(n_writers)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        seen.append(len(store.history("u")))
    for writer in writers:
        writer.join()
    assert all(count % 5 == 0 for count in seen)
    assert seen == sorted(seen)
    assert len(store.history("u")) == n_writers * n_batches * 5


@pytest.mark.parametrize("content", [b"not a database at all" * 60, b""])
def test_a_file_that_is_no_database_is_refused_unless_empty(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    if content:
        with pytest.raises(BundleError, match=r"state\.db is no database: move it away"):
            StateStore(path)
    else:
        StateStore(path).close()


def test_a_database_of_others_is_refused_and_left_as_it_is(path):
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(BundleError, match="of another kind or format"):
        StateStore(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["state.db"]


@pytest.mark.parametrize("others", [[], events_of(3, "7")], ids=["one form", "both forms"])
def test_of_very_many_events_the_latest_are_recalled(store, others):
    store.observe_many([*others, *events_of(10_003, 7)])
    history = store.history("7")
    assert history.item_id == tuple(f"i{n}" for n in range(3, 10_003))
