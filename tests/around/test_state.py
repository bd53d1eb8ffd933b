"""The store of live events: what it keeps, for how long, and what is left after a kill or forgetting."""

import errno
import json
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from serve.errors import BundleError, SchemaError
from service.database import DAMAGED, check_database, open_database, user_key
from service.engine import State
from service.event_log import (
    MARK,
    TABLES,
    Impressions,
    Observation,
    parse_observations,
    read_log,
)
from service.faults import lacks_erasures, name_fault_of
from service.forget import add_to_erasure_list, forget_users
from service.impressions import ImpressionLog
from service.state import StateStore
from tests.around.killed_observer import N_EVENTS, N_USERS, draw_events
from tests.linear_bundle import FILMS, SHOP

ROOT = Path(__file__).parents[2]
DAY = 86_400
NOW = 1_700_000_000
SENTINEL = "sentinel-6d1f"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "state.db"


def query(path, text):
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(text).fetchall()


def items_of(store, user_id):
    return store.recall(user_id).history.item_id.tolist()


def answer_of(user_id, request_id="r1", time=NOW, items=("a", "b", "c")):
    return Impressions(
        request_id,
        user_id,
        time,
        "v1",
        "greedy",
        items,
        [1.0 / (n + 1) for n in range(len(items))],
        [1.0] * len(items),
    )


def events_of(n, user_id="u"):
    return [Observation(user_id, f"i{n}", "view", NOW + n) for n in range(n)]


def test_the_sqlite_store_is_a_state(path):
    names = [name for name in vars(State) if not name.startswith("_")]
    assert len(names) == 9
    state: State
    with closing(StateStore(path)) as state:
        assert state.fault is None
        assert all(callable(getattr(state, name)) for name in names)


def make_old_file(path):
    """Write a file as the version before did, with one event of u."""
    with closing(open_database(path, MARK, TABLES)) as database:
        database.execute("INSERT INTO users VALUES (1, 'u', 0, 17)")
        ((salt,),) = database.execute("SELECT value FROM salt").fetchall()
        database.execute("INSERT INTO user_keys VALUES (?, 1)", (user_key(salt, "u"),))
        database.execute("INSERT INTO event_rows VALUES (1, 17, 'a', 'view', ?, 2.0, 'r')", (NOW,))
    assert "context" not in [row[1] for row in query(path, "PRAGMA table_info(event_rows)")]


@pytest.mark.parametrize("is_read_first", [True, False])
def test_a_file_of_the_version_before_is_read_and_written_on(path, is_read_first):
    make_old_file(path)
    if is_read_first:
        assert read_log(path).events["context"].to_pylist() == [None]
    context = {"device": "web", "mood": ["calm"]}
    raw = {"user_id": "u", "item_id": "b", "datetime": NOW + 1, "context": {"device": "web"}}
    with closing(StateStore(path)) as store, closing(StateStore(path)) as other:
        assert items_of(store, "u") == ["a"]
        assert store.recall("u").history.context is None
        store.observe_many(parse_observations([raw], SHOP, NOW + 2))
        other.observe_many([Observation("u", "c", None, NOW + 2, context=json.dumps(context))])
        history = store.recall("u").history
        assert history.item_id.tolist() == ["a", "b", "c"]
        assert [key != 0 for key in history.context] == [False, True, False]
        assert store.forget("u")["events"] == 3
    with closing(StateStore(path)) as store:
        store.observe_many(parse_observations([raw], SHOP, NOW + 2))
    assert [row["context"] for row in read_log(path).events.to_pylist()] == ['{"device": "web"}']


def test_a_history_is_ordered_by_time_then_by_arrival(store):
    events = [
        ("b", "view", 5),
        ("a", "buy", 3),
        ("c", None, 5),
        (2**53 + 1, None, 3),
        ("é\0x", "view", 4),
    ]
    events.append(("b", "buy", 5))
    for item_id, event, at in events:
        store.observe("u", item_id, event, at, None if item_id == "b" else np.float32(0.5))
    store.observe("v", "z", None, 1)
    expected = sorted(events, key=lambda one: one[2])  # stable: ties stay as they arrived
    history = store.recall("u").history
    columns = (history.item_id, history.event, history.datetime)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected
    assert np.isnan(history.weight).tolist() == [item_id == "b" for item_id, _, _ in expected]
    assert len(store.recall("nobody").history) == 0


@pytest.mark.parametrize(
    "event",
    [
        *(
            (["u"], "a", "view", NOW),
            (1.0, "a", "view", NOW),
            ("u", None, "view", NOW),
            ("u", "a", 3, NOW),
        ),
        *(
            ("u", "a", "view", NOW + 0.5),
            ("u", "a", "view", datetime.fromtimestamp(NOW, UTC)),
        ),
        *(
            ("u", "a", "view", NOW, "5"),
            ("u", "a", "view", NOW * 1000),
            ("u", "a", "view", NOW, float("inf")),
        ),
        *(("u", 2**63, "view", NOW), ("u", "\ud800", "view", NOW)),
    ],
)
def test_an_event_that_nobody_could_read_again_is_not_kept(store, event):
    store.observe("u", "b", "view", NOW - 1)
    with pytest.raises(SchemaError):
        store.observe(*event)
    with pytest.raises(SchemaError):
        store.observe_many(iter([*events_of(2), Observation(*event)]))
    assert items_of(store, "u") == ["b"]


def test_forgotten_users_and_limits_are_checked_too(store):
    store.observe("7", "a", "view", NOW)
    for said in (["7"], 7.0, None, True):
        with pytest.raises(SchemaError, match="user_id is"):
            store.forget("7", said)
    with pytest.raises(SchemaError, match="now is 1700000000000"):
        sum(map(Counter.total, store.expire_slices(NOW * 1000)))
    assert items_of(store, 7) == ["a"]
    assert store.forget(np.int64(7))["events"] == 1


@pytest.mark.parametrize("forms", [(7, "7"), (-7, "-7"), (2**63 - 1, str(2**63 - 1))])
def test_a_user_is_the_same_as_text_and_as_integer(store, forms):
    events = [
        (forms[n % 3 % 2], n % 5, "dismiss" if n == 4 else "view", NOW + n * 7 % 4)
        for n in range(17)
    ]
    for event in events:
        store.observe(*event)
    store.observe("07", 99, "view", NOW)
    views = [event for event in events if event[2] == "view"]
    expected = sorted(views, key=lambda event: event[3])  # ties as they came
    for user_id in forms:
        assert items_of(store, user_id) == [item_id for _, item_id, _, _ in expected]
        assert store.recall(user_id).dismissed == (4,)


def test_impressions_have_positions_and_what_followed(store, path):
    store.log_impressions(
        [answer_of("u"), answer_of("u", "r2", NOW + 50, ("b",)), answer_of(None, "r3")]
    )
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


def test_the_questions_of_the_docs_are_answered(store, path):
    lists = [
        answer_of(7),
        answer_of(7, "r2", NOW + 50, ("b",)),
        answer_of(8, "r3"),
        answer_of(None, "r4"),
    ]
    store.log_impressions(lists)
    store.observe_many(
        [
            Observation(7, "a", None, NOW + 1, None, "r1"),
            Observation(7, "a", "buy", NOW + 2, 2.0, "r1"),
            Observation(7, "b", "buy", NOW + 60),
            Observation(8, "a", "dismiss", NOW + 1),
            Observation(8, "c", "buy", NOW + DAY),
        ]
    )
    questions = re.findall(
        r"```sql\n(.*?)```",
        (ROOT / "docs" / "serving.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    rates, events, somebody = questions
    assert query(path, rates) == [
        ("v1", 1, 3, 2 / 3),
        ("v1", 2, 2, 1 / 2),
        ("v1", 3, 2, 0),
    ]
    assert [row[1:4:2] for row in query(path, events)] == [
        ("a", None),
        ("a", "buy"),
        ("b", "buy"),
        ("c", "buy"),
    ]
    events_of_one, shown = somebody.strip().split(";")[:2]
    did = [(NOW + 1, "a", None), (NOW + 2, "a", "buy"), (NOW + 60, "b", "buy")]
    assert [row[:3] for row in query(path, events_of_one)] == did
    seen = [(NOW, 1, "a"), (NOW, 2, "b"), (NOW, 3, "c"), (NOW + 50, 1, "b")]
    assert [row[:3] for row in query(path, shown)] == seen


@pytest.mark.parametrize(
    "n_repeated", [1, 2]
)  # what is sent again since nobody acknowledged it, one by one or at once
@pytest.mark.parametrize("n_events", [2, 3, 4, 5])
@pytest.mark.parametrize("is_batch", [False, True])
def test_of_one_second_what_came_last_says_whether_an_item_is_dismissed(
    store, n_events, n_repeated, is_batch
):
    events = [
        Observation("u", 4, ("dismiss", "undismiss")[place % 2], NOW) for place in range(n_events)
    ]
    for one in [events] * n_repeated if is_batch else [[one] * n_repeated for one in events]:
        store.observe_many(one)
    assert store.recall("u").dismissed == ((4,) if n_events % 2 else ())
    assert items_of(store, "u") == []


def test_what_is_older_than_the_window_expires(path):
    with closing(StateStore(path, retention_days=10)) as store:
        limit = NOW - 10 * DAY
        for item_id, event, time in (
            ("old", "buy", limit - 1),
            ("x", "dismiss", limit - 1),
            ("new", "buy", limit),
        ):
            store.observe("u", item_id, event, time)
        store.log_impressions([answer_of("u", time=limit - 1), answer_of("v", "r2", limit)])
        assert sum(map(Counter.total, store.expire_slices(NOW))) == 3
        assert (items_of(store, "u"), store.recall("u").dismissed) == (["new"], ())
        assert query(path, "SELECT DISTINCT request_id FROM feedback") == [("r2",)]
        assert query(path, "SELECT count(*) FROM shown") == [(3,)]
        assert sum(map(Counter.total, store.expire_slices(NOW))) == 0
        assert path.with_name("state.db-wal").stat().st_size == 0


def draw_id(rng):
    """Draw an id of 1 to 256 bytes, or an integer."""
    if rng.random() < 0.4:
        return rng.choice([rng.randrange(-(2**63), 2**63), rng.randrange(10**7, 10**12)])
    return "".join(rng.choice("0123456789abcdefghijkxyzé-") for _ in range(rng.randrange(1, 256)))[
        :200
    ]


def read_all(path):
    return b"".join(file.read_bytes() for file in path.parent.iterdir())


def test_nothing_leads_to_users_forgotten_in_any_order_while_pages_split_and_merge(store, path):
    rng = random.Random(3)
    users, gone = [draw_id(rng) for _ in range(200)], {}
    for turn in range(12):
        times = [NOW + turn * 100 + rng.randrange(100) for _ in range(rng.randrange(100, 500))]
        store.observe_many(
            Observation(rng.choice(users), f"i{rng.randrange(500)}", "view", time) for time in times
        )
        store.log_impressions(
            answer_of(rng.choice(users), f"r{turn}") for _ in range(rng.randrange(50))
        )
        for _ in range(rng.randrange(5, 15)):
            user = users.pop(rng.randrange(len(users)))
            text = f"CAST(x'{str(user).encode().hex()}' AS TEXT)"
            numbers = query(path, f"SELECT number FROM users WHERE id = {text}")
            gone |= {str(user).encode(): number.to_bytes(8, "big") for (number,) in numbers}
            store.forget(user)
        users += [draw_id(rng) for _ in range(rng.randrange(20))]
        content = read_all(path)
        assert not any(user in content for user in gone if len(user) > 5)
        assert not any(
            user + number in content for user, number in gone.items()
        )  # as `users` has them
    assert len(gone) > 70
    named = query(path, "SELECT user_id FROM events UNION SELECT user_id FROM answers")
    assert {user for (user,) in named} <= set(users)
    assert (
        sum(len(items_of(store, user)) for user in users)
        == query(path, "SELECT count(*) FROM events")[0][0]
    )
    assert query(path, "PRAGMA integrity_check") == [("ok",)]


def test_users_of_whom_nothing_is_left_expire_too(path):
    with closing(StateStore(path, retention_days=10)) as store:
        store.observe_many(
            Observation(f"{SENTINEL}-{n}", "a", "view", NOW - 11 * DAY) for n in range(50)
        )
        store.observe_many([Observation(f"{SENTINEL}-7", "b", "view", NOW), *events_of(3, 8)])
        sum(map(Counter.total, store.expire_slices(NOW)))
        content = read_all(path)
        assert [n for n in range(50) if f"{SENTINEL}-{n}".encode() in content] == [7]
        assert items_of(store, f"{SENTINEL}-7") == ["b"]
        store.observe(f"{SENTINEL}-9", "c", "view", NOW)
        found = query(path, "SELECT DISTINCT user_id FROM events ORDER BY number")
        assert found == [(f"{SENTINEL}-7",), (8,), (f"{SENTINEL}-9",)]
        assert query(path, "SELECT count(*) FROM users") == [
            (51,)
        ]  # the last in the place of another


def test_to_forget_nobody_writes_nothing(store, path):
    store.observe_many(events_of(100))
    before = {
        file.name: file.read_bytes() for file in path.parent.iterdir() if file.suffix != ".db-shm"
    }
    assert store.forget("nobody", 7) == {"events": 0, "impressions": 0}
    assert {name: path.with_name(name).read_bytes() for name in before} == before


def test_events_do_not_wait_until_all_rows_of_a_user_or_of_a_time_are_erased(store):
    store.log_impressions(
        answer_of(user, f"r{n}", NOW - n) for user in ("u", "v") for n in range(4000)
    )
    for erase in (
        lambda: store.forget("u"),
        lambda: sum(map(Counter.total, store.expire_slices(NOW + 500 * DAY))),
    ):
        thread, n_events = threading.Thread(target=erase), 0
        thread.start()
        while thread.is_alive():
            n_events += store.observe("w", "a", "view", NOW + 499 * DAY + n_events)
        assert n_events > 2


def test_no_byte_of_a_forgotten_user_stays(store, path):
    mixed = [
        Observation(SENTINEL if n % 3 else f"u{n % 11}", f"i{n}", "view", NOW + n)
        for n in range(3000)
    ]
    store.observe_many(mixed)
    store.log_impressions(answer_of(SENTINEL if n % 2 else "u1", f"r{n}") for n in range(200))
    store.observe(SENTINEL, "x", "dismiss", NOW)
    files = list(path.parent.iterdir())
    assert any(SENTINEL.encode() in file.read_bytes() for file in files)
    assert store.forget(SENTINEL) == {"events": 2001, "impressions": 300}
    for file in path.parent.iterdir():
        assert SENTINEL.encode() not in file.read_bytes(), file
    assert sum(len(store.recall(f"u{n}").history) for n in range(11)) == 1000
    assert query(path, "SELECT count(*) FROM shown") == [(300,)]
    assert store.forget(SENTINEL) == {"events": 0, "impressions": 0}


def test_forgetting_ends_with_an_error_while_somebody_else_reads_on(path, monkeypatch):
    """What they did still lies in the log then."""
    monkeypatch.setattr("service.state._LOG_PATIENCE", 0.05)
    with closing(StateStore(path)) as store, closing(sqlite3.connect(path)) as other:
        store.observe_many([*events_of(300), Observation(SENTINEL, "a", "view", NOW)])
        reading = other.execute("SELECT * FROM events")
        reading.fetchone()
        with pytest.raises(
            OSError, match=r"keeps its log from being emptied: try again.*state\.db"
        ) as caught:
            store.forget(SENTINEL)
        assert caught.value.errno == errno.EBUSY
        reading.close()
        store.forget(SENTINEL)
        assert all(SENTINEL.encode() not in file.read_bytes() for file in path.parent.iterdir())


def test_what_still_arrives_of_a_forgotten_user_is_not_kept(store, path, tmp_path):
    assert store.observe("u", "a", "view", NOW)
    add_to_erasure_list(tmp_path, [SENTINEL])  # as another process does
    assert not store.observe(SENTINEL, "a", "view", NOW)
    assert (
        store.observe_many(
            [
                Observation("u", "b", "view", NOW),
                Observation(SENTINEL, "b", "view", NOW),
            ]
        )
        == 1
    )
    store.log_impressions([answer_of(SENTINEL), answer_of("u", "r2"), answer_of(None, "r3")])
    assert query(path, "SELECT user_id FROM answers ORDER BY number") == [
        ("u",),
        (None,),
    ]
    assert store.recall(SENTINEL).is_forgotten
    assert not store.recall("u").is_forgotten


@pytest.mark.parametrize("mark", [0, 0x42530002], ids=["of others", "of an earlier format"])
def test_a_database_of_another_kind_is_refused_and_left_as_it_is(path, mark):
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
        connection.execute(f"PRAGMA application_id = {mark}")
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(BundleError, match="of another kind or format"):
        StateStore(path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["state.db"]


def test_what_arrived_last_says_whether_an_item_is_dismissed_whatever_the_clocks_of_its_senders_say(
    path,
):
    ahead, behind = (
        Observation("u", 4, "dismiss", NOW + 3_600),
        Observation("u", 4, "undismiss", NOW),
    )
    with closing(StateStore(path)) as store:
        for one, expected in (
            (ahead, (4,)),
            (behind, ()),
            (ahead, ()),
        ):  # the last is sent again, as a queue does
            store.observe_many([one])
            assert store.recall("u").dismissed == expected
        store.observe("u", 5, "undismiss", NOW + 3_600)
        store.observe("u", 5, "dismiss", NOW)
    with closing(StateStore(path)) as store:
        assert store.recall("u").dismissed == (5,)


def test_events_are_read_as_the_bundle_types_them():
    raw = [
        {
            "user_id": "u",
            "item_id": "a",
            "event": " buy ",
            "datetime": "2023-11-14T22:13:19Z",
            "weight": 2,
        },
        {"user_id": 7, "item_id": "unknown to all", "request_id": "r-1"},
        {
            "user_id": "u",
            "item_id": "a",
            "event": None,
            "datetime": None,
            "weight": None,
            "request_id": None,
        },
    ]
    read = parse_observations(raw, SHOP, NOW)
    assert all(event.context_key != 0 for event in read)  # the hour is known
    assert [replace(event, context_key=0) for event in read] == [
        Observation("u", "a", "buy", NOW - 1, 2.0),
        Observation("7", "unknown to all", None, NOW, None, "r-1"),
        Observation("u", "a", None, NOW),
    ]
    (event,) = parse_observations(
        [{"user_id": "7", "item_id": "-3", "datetime": NOW * 1000}], FILMS, NOW
    )
    assert replace(event, context_key=0) == Observation(7, -3, None, NOW)
    timeless = replace(SHOP, context_features=SHOP.context_features[:1])
    unseen = {"user_id": "u", "item_id": "a", "context": {"device": "fridge"}}
    (event,) = parse_observations([unseen], timeless, NOW)
    assert (json.loads(event.context), event.context_key) == ({"device": "fridge"}, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"user_id": None}, "events[1].user_id is None (NoneType)"),
        ({"item_id": ""}, "events[1].item_id is '' (str)"),
        ({"event": ["view"]}, "events[1].event is ['view'] (list)"),
        ({"datetime": "yesterday"}, "events[1].datetime is 'yesterday' (str)"),
        ({"datetime": NOW + 86_401}, f"events[1].datetime is {NOW + 86_401} (int)"),
        ({"weight": "-1"}, "events[1].weight is '-1' (str)"),
        ({"context": {"divice": "web"}}, "events[1].context: unknown name 'divice'"),
        ({"context": {"device": [[1]]}}, "events[1].context.device"),
        ({"request_id": "a b"}, "events[1].request_id is 'a b' (str)"),
        ({"request_id": "x" * 65}, "events[1].request_id is 'xxx"),
    ],
)
def test_faults_name_the_event_and_the_value(change, message):
    good = {"user_id": "u", "item_id": "a"}
    with pytest.raises(SchemaError, match=re.escape(message)):
        parse_observations([good, good | change], SHOP, NOW)


def kill_after(path, seed, n_lines):
    """Start an observer and kill it after some acknowledgements; return how many events were acknowledged in all."""
    command = [
        sys.executable,
        "-m",
        "tests.around.killed_observer",
        str(path),
        str(seed),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        lines = [child.stdout.readline() for _ in range(n_lines)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.read().splitlines()
        whole = [line for line in lines if line.strip()]
    assert child.returncode == -signal.SIGKILL
    return int(whole[-1]) if whole else 0


@pytest.mark.parametrize("seed", range(3))
def test_no_acknowledged_event_is_lost(tmp_path, seed):
    path = tmp_path / "state" / "state.db"
    n_acknowledged = kill_after(path, seed, random.Random(seed).randrange(1, 240))
    assert 0 < n_acknowledged < N_EVENTS
    events = draw_events(seed)
    with closing(StateStore(path)) as store:
        kept = set()
        for user_id in (f"u{number}" for number in range(N_USERS)):
            history = store.recall(user_id).history
            kept |= {
                (user_id, *one)
                for one in zip(
                    *map(
                        np.ndarray.tolist,
                        (history.item_id, history.event, history.datetime),
                    ),
                    strict=True,
                )
            }
        assert {user for user, *_ in kept} <= {one.user_id for one in events}
        at_least = [one for one in events[:n_acknowledged] if one.event == "view"]
        expected = {(one.user_id, one.item_id, one.event, one.datetime) for one in at_least}
        assert expected <= kept
        for one in events[:n_acknowledged]:
            if one.event == "dismiss":
                assert one.item_id in store.recall(one.user_id).dismissed
        assert store.observe("u0", "after", "view", 1)
        assert store.recall("u0").history.item_id[0] == "after"


class Store:
    """Writes into a list, once the gate is open and no fault is left."""

    def __init__(self, *faults):
        self.faults = list(faults)
        self.gate = threading.Event()
        self.written = []

    def log_impressions(self, answers):
        assert self.gate.wait(20)
        if self.faults:
            raise self.faults.pop()
        self.written += answers

    def date_expiry(self, now):
        return now

    def expire_slices(self, now):
        """Find nothing that is old."""
        return iter(())


def test_what_waits_is_written_in_order_before_the_end():
    store = Store()
    log, batches = (
        ImpressionLog(store),
        [[answer_of("u", f"r{number}")] * 3 for number in range(300)],
    )
    for batch in batches:
        log.add(batch)
    store.gate.set()
    log.close()
    assert store.written == [one for batch in batches for one in batch]
    assert log.n_lost == 0


@pytest.mark.parametrize(
    "fault",
    [
        OSError(28, "no room"),
        BundleError("forgotten.json is damaged: u77123"),
        sqlite3.InterfaceError("unforeseen"),
    ],
    ids=lambda fault: type(fault).__name__,
)
def test_what_cannot_be_written_is_counted_and_later_ones_are_written(fault, caplog):
    store = Store(fault)
    log = ImpressionLog(store)
    log.add([answer_of("u", "r1"), answer_of("u", "r2")])
    store.gate.set()
    while not log.n_lost:
        pass
    log.add([answer_of("u", "r3")])
    log.close()
    assert log.n_lost == 2
    assert store.written == [answer_of("u", "r3")]
    assert "77123" not in caplog.text
    assert "2 impressions could not be written" in caplog.text


def test_a_process_that_comes_and_goes_leaves_the_log_to_the_others(store):
    """To close a file ends the locks of a process on it: the last one to go would take the log along."""
    ask = "import sys; from pathlib import Path; from service.state import StateStore; "
    ask += "store = StateStore(Path(sys.argv[1])); print(len(store.recall('u').history)); store.close()"
    for n in range(3):
        store.observe("u", f"i{n}", "view", NOW + n)
        assert len(store.recall("u").history) == n + 1
        command = [sys.executable, "-c", ask, str(store.path)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        assert done.stdout == f"{n + 1}\n"


def test_a_clock_that_runs_ahead_removes_nothing_and_most_of_a_log_stays_without_a_word(path):
    with closing(StateStore(path, retention_days=10)) as store:
        for day in range(20):
            store.observe(f"u{day}", "i", None, NOW - day * DAY // 4)
        assert store.date_expiry(NOW + 7 * DAY) == NOW  # the log ends there
        assert store.date_expiry(NOW - DAY) == NOW - DAY
        for ahead in (9, 400):  # of a clock that runs ahead, or after the last event
            with pytest.raises(BundleError):
                store.date_expiry(NOW + ahead * DAY)
        store.observe("u0", "i", None, NOW + 400 * DAY)
        with pytest.raises(BundleError):
            store.date_expiry(NOW + 400 * DAY)


def test_a_log_of_the_impressions_names_what_waits_for_a_word(path):
    with closing(StateStore(path, retention_days=10)) as store:
        store.observe("u", "i", None, NOW - 400 * DAY)
        store.observe("u", "i", None, NOW)
        store.observe("u", "j", None, NOW - 399 * DAY)
        for expires_most in (False, True):
            log = ImpressionLog(store, expires_most)
            until = time.monotonic() + 20
            while not log.keeps_old and len(store.recall("u").history) > 1:
                assert time.monotonic() < until
                time.sleep(0.01)
            assert log.keeps_old is not expires_most
            log.close()
        assert len(store.recall("u").history) == 0


def test_a_lock_is_waited_for_once_by_all_and_what_waited_is_written(path, monkeypatch):
    monkeypatch.setattr("service.database.PATIENCE", 0.3)
    with closing(StateStore(path)) as store, closing(sqlite3.connect(path)) as other:
        store.observe("u", "i", None, NOW)
        log = ImpressionLog(store)
        other.execute("BEGIN IMMEDIATE")
        log.add([answer_of("u", "r1")])
        faults = []

        def observe():
            try:
                store.observe("u", "j", None, NOW)
            except OSError as error:
                faults.append(error.errno)

        begun = time.monotonic()
        threads = [threading.Thread(target=observe) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - begun < 5  # one after another they would wait for 6 seconds
        assert faults == [errno.EBUSY] * 20
        assert store.fault.errno == errno.EBUSY
        assert name_fault_of(store) == "lock"
        other.rollback()
        log.close()
        assert log.n_lost == 0
        assert store.fault is None
        assert [row[0] for row in query(path, "SELECT request_id FROM answers")] == ["r1"]


def test_damage_is_found_at_the_start(path):
    with closing(StateStore(path)) as store:
        events = [Observation(f"u{n % 7}", f"i{n}", None, NOW + n) for n in range(2000)]
        store.observe_many(events)
        assert name_fault_of(store) == ""
    check_database(path)
    content = bytearray(path.read_bytes())
    place = len(content) // 2
    content[place : place + 4096] = b"x" * 4096
    path.write_bytes(content)
    with pytest.raises(OSError, match="damaged") as raised:
        check_database(path)
    assert raised.value.errno == DAMAGED


def test_a_list_of_forgotten_users_that_is_gone_or_shorter_is_noticed(tmp_path):
    path = tmp_path / "state" / "state.db"
    with closing(StateStore(path)) as store:
        store.observe("u1", "i", None, NOW)
    for user in ("u1", "u2"):
        forget_users(tmp_path, [user])
    listed = (tmp_path / "forgotten.json").read_bytes()
    with closing(StateStore(path)) as store:
        assert store.recall("u1").is_forgotten
        (tmp_path / "forgotten.json").unlink()
        assert lacks_erasures(store, [tmp_path])
        with pytest.raises(BundleError):
            store.recall("u1")
    forget_users(tmp_path, ["u3"])  # a new list of one
    with closing(StateStore(path)) as store:
        assert lacks_erasures(store, [tmp_path])
        with pytest.raises(BundleError):
            store.observe("u1", "i", None, NOW)
        (tmp_path / "forgotten.json").write_bytes(listed)
        assert not lacks_erasures(store, [tmp_path])
        assert store.recall("u2").is_forgotten
