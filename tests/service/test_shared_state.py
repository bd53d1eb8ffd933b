"""The engines of the state keep one protocol: in a file and in PostgreSQL."""

import json
import logging
import random
import signal
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import replace
from operator import itemgetter
from pathlib import Path

import psycopg
import pytest
from evaluation.feedback import main as read_feedback
from serve.errors import BundleError, SchemaError
from serve.files import read_erasure_list, read_opt_outs
from service.engine import ServerError, State
from service.event_log import DISMISS, UNDISMISS, Impressions, Observation, read_log
from service.forget import Erasures, add_to_erasure_list, forget_users
from service.remote.fetched import fetch_state
from service.remote.shared import open_remote, open_shared
from service.state import StateStore
from tests.http.services import NOW, asking, listed, publish_served
from tests.linear_bundle import SHOP, item_ids
from tests.served import ask
from tests.state_servers import POSTGRES, retry, running

NOON = 1_700_000_000
DAY = 86_400
DAYS = 10  # of retention
SENTINEL = "sentinel-6d1f"
IDS = item_ids(SHOP)
USERS = [7, "7", "u1", "é\0x", 2**62, "-3", "a\tb", '"']
ITEMS = [4, "4", "a\0b", "i", '"],']


@pytest.fixture(scope="module")
def one_server():
    if not POSTGRES.exists():
        pytest.skip("PostgreSQL is not installed")
    with running() as found:
        yield found


@pytest.fixture(params=[pytest.param("postgres", marks=pytest.mark.service)])
def server(one_server):
    return one_server


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.service)])
def replicas(request, tmp_path):
    """Two stores of one state, empty."""
    path = tmp_path / "state" / "state.db"
    with ExitStack() as stack:
        opened = []
        for _ in range(2):
            if request.param == "sqlite":
                store = StateStore(path, retention_days=DAYS)
            else:
                address = request.getfixturevalue("one_server").address
                store = open_remote(address, retention_days=DAYS)
            opened.append(stack.enter_context(closing(store)))
        yield opened
        if request.param != "sqlite":
            empty(opened[0])


def empty(store):
    """Forget all users of a server, its erasure list, too."""
    store._ask("TRUNCATE bascule_rows, bascule_users, bascule_opted_out")


def read_all(store):
    """Return all that a server would tell about users."""
    tables = ("bascule_rows", "bascule_users")
    query = "SELECT string_agg(t::text, '') FROM {} t"
    return "".join(store._ask(query.format(table)) or "" for table in tables)


def ask_until_it_fails(store):
    """Ask on: a backend of PostgreSQL ends a moment after its parent."""
    for _ in range(100):
        store.recall("u")
        time.sleep(0.05)


class Model:
    """What a state says, by lists alone."""

    def __init__(self):
        self.rows = []  # observations and impressions, as they came
        self.forgotten = set()

    def of(self, user_id, kind):
        user = str(user_id)
        return [row for row in self.rows if isinstance(row, kind) and str(row.user_id) == user]

    def is_kept(self, row):
        return row.user_id is None or str(row.user_id) not in self.forgotten

    def observe(self, events):
        events = [event for event in events if self.is_kept(event)]
        for event in events:
            like = [
                (row.event, row.weight)
                for row in self.of(event.user_id, Observation)
                if row.datetime == event.datetime
                and (type(row.item_id), row.item_id) == (type(event.item_id), event.item_id)
            ]
            opposite = {DISMISS: UNDISMISS, UNDISMISS: DISMISS}.get(event.event)
            undone = [place for place, (name, _) in enumerate(like) if name and name == opposite]
            if (event.event, event.weight) not in like[undone[-1] + 1 if undone else 0 :]:
                self.rows.append(event)
        return len(events)

    def recall(self, user_id):
        events = self.of(user_id, Observation)
        signs = [event for event in events if event.event in (DISMISS, UNDISMISS)]
        last = {str(sign.item_id): sign.event for sign in signs}
        history = [
            (event.item_id, event.event, event.datetime, event.weight)
            for event in sorted(events, key=lambda event: event.datetime)
            if event.event not in (DISMISS, UNDISMISS)
        ]
        dismissed = {item for item, event in last.items() if event == DISMISS}
        return history, dismissed, str(user_id) in self.forgotten

    def count(self, user_id, since, policy):
        answers = self.of(user_id, Impressions)
        return sum(row.datetime >= since and row.policy.startswith(policy) for row in answers)

    def expire(self, now):
        begin = now - DAYS * DAY
        old = [row for row in self.rows if row.datetime < begin]
        self.rows = [row for row in self.rows if row.datetime >= begin]
        return len(old)

    def known(self):
        return {str(row.user_id) for row in self.rows if row.user_id is not None}

    def forget(self, user_id):
        events, answers = (self.of(user_id, kind) for kind in (Observation, Impressions))
        gone = {id(row) for row in (*events, *answers)}
        self.rows = [row for row in self.rows if id(row) not in gone]
        self.forgotten.add(str(user_id))
        return {"events": len(events), "impressions": sum(len(row.item_ids) for row in answers)}


def draw_event(rng, now):
    return Observation(
        rng.choice(USERS),
        rng.choice(ITEMS),
        rng.choice(["view", DISMISS, UNDISMISS, None, "a, b"]),
        now - rng.randrange(3) - rng.choice([0, 0, 5, 9]) * DAY,
        rng.choice([None, None, 2.0, 0.5]),
        rng.choice([None, "r1"]),
        rng.choice([None, '{"device": "web"}']),
        rng.choice([0, 17]),
    )


def draw_answer(rng, now):
    items = rng.sample(ITEMS, rng.randrange(1, 4))
    share = [1 / (1 + place) for place in range(len(items))]
    policy = rng.choice(["greedy", "explore .1", "explorer"])
    user = rng.choice([*USERS, None])
    seconds = now - rng.choice([0, 5, 9]) * DAY
    return Impressions("r1", user, seconds, "v1", policy, items, share, share, None)


def say(recalled):
    history = recalled.history
    columns = [history.item_id]
    columns += [history.event, history.datetime, history.weight] if len(history) else [[]] * 3
    rows = zip(*map(list, columns), strict=True)
    events = [
        (item, event, int(time), None if weight != weight else float(weight))
        for item, event, time, weight in rows
    ]
    return events, set(map(str, recalled.dismissed)), recalled.is_forgotten


@pytest.mark.parametrize("seed", range(2))
def test_an_engine_says_what_a_model_of_lists_says(replicas, tmp_path, seed):
    rng, model, now = random.Random(seed), Model(), NOON
    n_changes = 0
    for _ in range(80):
        store = rng.choice(replicas)
        now += rng.randrange(DAY // 2)
        what = rng.random()
        if what < 0.5:
            events = [draw_event(rng, now) for _ in range(rng.choice([1, 1, 2, 7]))]
            assert store.observe_many(iter(events)) == model.observe(events)
            n_changes += 1
        elif what < 0.7:
            answers = [draw_answer(rng, now) for _ in range(3)]
            store.log_impressions(iter(answers))
            model.rows += [answer for answer in answers if model.is_kept(answer)]
        elif what < 0.72:
            user = rng.choice(USERS)
            add_to_erasure_list(tmp_path, [user])  # that of the run, as `forget_known` does
            assert store.forget(user, user) == model.forget(user)
        elif what < 0.8:
            assert sum(map(Counter.total, store.expire_slices(now))) == model.expire(now)
        other = rng.choice(replicas)
        for user in rng.sample(USERS, 3):
            assert say(other.recall(user)) == model.recall(user)
            since = now - rng.randrange(8) * DAY
            policy = rng.choice(["greedy", "explore"])
            assert other.count_answers(user, since, policy) == model.count(user, since, policy)
        assert other.list_known(USERS) >= model.known()
        assert other.list_known(["nobody", *model.forgotten]) == set()
    assert n_changes > 20
    assert len(model.rows) > 10


def test_users_of_whom_nothing_is_left_are_known_no_more(replicas):
    store, other = replicas
    store.observe_many(Observation(user, "a", "view", NOON - user * DAY) for user in range(20))
    store.log_impressions([draw_answer(random.Random(1), NOON)])
    assert other.list_known(range(20)) >= set(map(str, range(20)))
    assert sum(map(Counter.total, other.expire_slices(NOON))) == 9
    expected = {str(user) for user in range(11)}
    assert store.list_known(range(8, 20)) == expected - set(map(str, range(8)))


def test_lists_of_many_strangers_in_one_second_are_all_kept(replicas):
    store, other = replicas
    drawn = draw_answer(random.Random(1), NOON)
    store.log_impressions(
        replace(drawn, request_id=f"r{number}", user_id=None) for number in range(2500)
    )
    assert sum(map(Counter.total, other.expire_slices(NOON + 365 * DAY))) == 2500


def test_confirmations_do_not_wait_for_each_other(server):
    seen = [Impressions.confirm(f"r{number}", NOON) for number in range(3000)]
    with closing(open_remote(server.address, retention_days=DAYS)) as store:
        store.log_impressions(seen)
        with psycopg.connect(server.address) as held:  # until it commits
            held.execute("SELECT 1 FROM bascule_users FOR UPDATE")
            store.log_impressions(seen[:1000])
        assert sum(map(Counter.total, store.expire_slices(NOON + 365 * DAY))) >= 3000
        store.log_impressions(seen[:1])
        assert len(store._read("read", "answers")) == 1
        empty(store)


@pytest.mark.parametrize("n_threads", [6])
def test_what_several_send_at_once_counts_once(replicas, n_threads):
    events = [Observation(f"u{n % 3}", f"i{n}", "view", NOON + n) for n in range(60)]
    faults = []

    def send(place):
        try:
            shuffled = random.Random(place).sample(events, len(events))
            for start in range(0, len(events), 7):
                replicas[place % 2].observe_many(shuffled[start : start + 7])
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=send, args=(place,)) for place in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    for user in range(3):
        history = replicas[0].recall(f"u{user}").history
        assert history.item_id.tolist() == [f"i{n}" for n in range(user, 60, 3)]


def test_all_engines_have_the_methods_of_the_protocol(replicas):
    names = [name for name in vars(State) if not name.startswith("_")]
    assert len(names) == 9
    assert all(callable(getattr(replicas[0], name)) for name in names)
    with pytest.raises(SchemaError, match="now is 1700000000000"):
        sum(map(Counter.total, replicas[0].expire_slices(NOON * 1000)))
    with pytest.raises(SchemaError, match="user_id is"):
        replicas[0].forget("7", None)


def test_the_log_of_a_server_is_read_as_that_of_a_file(server, tmp_path, monkeypatch):
    rng = random.Random(5)
    path = tmp_path / "run" / "state" / "state.db"
    events = [draw_event(rng, NOON + n) for n in range(80)]
    answers = [draw_answer(rng, NOON + n) for n in range(40)]
    with closing(open_remote(server.address)) as shared, closing(StateStore(path)) as store:
        for state in (shared, store):
            state.observe_many(events)
            state.log_impressions([*answers, Impressions.confirm("r1", NOON)])
            state.forget("u1")
        read_feedback(["--run", str(tmp_path / "run")])
        monkeypatch.setenv("BASCULE_STATE", server.address)
        fetched = fetch_state(None, tmp_path / "other")
        assert read_erasure_list(fetched.parent).holds("u1")
        assert not read_erasure_list(fetched.parent).holds("7")
        read_feedback(["--run", str(tmp_path / "other")])
        expected = read_log(path)
        read = read_log(fetched / "state.db")
        empty(shared)
    of_file, of_server = (
        json.loads((tmp_path / name / "feedback" / "figures.json").read_bytes())
        for name in ("run", "other")
    )
    assert of_server == of_file
    assert of_file["all"]["lists"] > 30
    assert len(expected.slots) > 30
    assert len(expected.events) > 30
    names = [column for column in expected.lists.column_names if column != "list"]
    assert read.lists.select(names).to_pylist() == expected.lists.select(names).to_pylist()
    names = expected.slots.column_names[1:]
    assert read.slots.select(names).to_pylist() == expected.slots.select(names).to_pylist()
    by_all = itemgetter(*expected.events.column_names[:2])
    assert read.events.num_rows == expected.events.num_rows
    for user in {row["user_id"] for row in expected.events.to_pylist()}:
        of_user = [
            [row for row in log.events.to_pylist() if row["user_id"] == user]
            for log in (read, expected)
        ]
        assert [by_all(row) for row in of_user[0]] == [by_all(row) for row in of_user[1]]
        assert of_user[0] == of_user[1]


def test_a_user_who_is_forgotten_at_one_service_is_refused_by_all(server, tmp_path):
    runs = [tmp_path / name for name in ("here", "there")]
    for run in runs:
        (run / "state").mkdir(parents=True)
    with ExitStack() as stack:
        here, there = (
            stack.enter_context(closing(open_remote(server.address, [run]))) for run in runs
        )
        here.observe_many([Observation("u1", "a", "view", NOON)])
        here.log_impressions([Impressions("r", "u1", NOON, "v", "greedy", ["a"], [1.0], [1.0])])
        receipt = forget_users(runs[0], ["u1"], shared=here)
        assert (receipt["erased"]["events"], receipt["erased"]["impressions"]) == (1, 1)
        assert receipt["unknown"] == []
        assert "other machines" in receipt["not_reached"]
        assert there.recall("u1").is_forgotten
        assert there.observe_many([Observation("u1", "a", "view", NOON)]) == 0
        erasures = Erasures([runs[1]], there)
        stack.callback(erasures.close)
        there.observe_many([Observation("u2", "a", "view", NOON)])
        assert erasures.add("u2").result()[0]["erased"]["events"] == 1
        assert here.recall("u2").is_forgotten
        here.observe_many([Observation(SENTINEL, f"i{n}", "view", NOON + n) for n in range(9)])
        here.log_impressions([Impressions("r", SENTINEL, NOON, "v", "greedy", ["a"], [1.0], [1.0])])
        assert SENTINEL in read_all(there)
        assert here.forget(SENTINEL) == {"events": 9, "impressions": 1}
        assert SENTINEL not in read_all(there)
        assert str(server.address) not in json.dumps(receipt)
        empty(here)


def test_a_server_that_is_gone_fails_soon_and_is_found_again(server, monkeypatch):
    monkeypatch.setattr("service.remote.remote_state._PAUSE", 0.2)
    events = [Observation("u", f"i{n}", "view", NOON + n) for n in range(3)]
    with closing(open_remote(server.address)) as state:
        state.observe_many(events[:1])
        server.process.send_signal(signal.SIGSTOP)
        try:
            state._idle.pop().close()  # a backend goes on without its parent
            with pytest.raises(ServerError):
                state.recall("u")
            assert isinstance(state.fault, ServerError)
            monkeypatch.setattr(state, "_run", lambda *_: pytest.fail("waits again"))
            with pytest.raises(ServerError):
                state.observe_many(events[1:2])
            monkeypatch.delattr(state, "_run")
        finally:
            server.process.send_signal(signal.SIGCONT)
        assert retry(lambda: state.observe_many(events[1:2])) == 1
        server.kill()
        with pytest.raises(ServerError):
            ask_until_it_fails(state)
        server.start()
        assert retry(lambda: state.observe_many(events[2:])) == 1
        assert state.recall("u").history.item_id.tolist() == ["i0", "i1", "i2"]
        assert state.fault is None
        empty(state)


def test_a_postgres_that_could_lose_what_it_acknowledged_is_refused(server):
    with closing(open_remote(server.address)) as state:
        state._ask("ALTER ROLE me SET synchronous_commit = off")
        try:
            with pytest.raises(SchemaError, match="has synchronous_commit off"):
                open_remote(server.address)
        finally:
            state._ask("ALTER ROLE me RESET synchronous_commit")
        open_remote(server.address).close()


def test_an_event_that_is_sent_to_one_replica_counts_in_the_next_answer_of_the_other(
    server, tmp_path, monkeypatch
):
    monkeypatch.setenv("BASCULE_STATE", server.address)
    event = {"user_id": "u2", "item_id": IDS[3], "event": DISMISS}
    asked = NOW | {"user_id": "u2", "k": len(IDS)}
    with ExitStack() as stack:
        one, two = (
            stack.enter_context(asking(publish_served(tmp_path / name, SHOP)))
            for name in ("one", "two")
        )
        assert IDS[3] in listed(two, **asked)
        assert ask(one, "POST", "/v1/events", event).json["kept"] == 1
        assert IDS[3] not in listed(two, **asked)
        assert IDS[3] not in listed(one, **asked)
        server.kill()
        try:
            for path, body in (("/v1/recommend", asked), ("/v1/events", event)):
                reply = ask(two, "POST", path, body)
                assert (reply.status, reply.headers["retry-after"]) == (503, "1")
            assert listed(two, k=3) != []  # asked for nobody
            ready = ask(two, "GET", "/ready")
            assert (ready.status, list(ready.json["faults"])) == (200, ["server"])
        finally:
            server.start()
        end = time.monotonic() + 20
        for replica in (one, two):
            while ask(replica, "POST", "/v1/recommend", asked).status != 200:
                assert time.monotonic() < end
                time.sleep(0.1)
        assert IDS[3] not in listed(two, **asked)
        assert ask(two, "GET", "/ready").json == {"status": "ready"}
        assert ask(two, "POST", "/v1/users/forget", {"user_id": "u2"}).status == 200
        assert IDS[3] in listed(one, **asked)  # a stranger from now on
        assert ask(one, "POST", "/v1/events", event).json["kept"] == 0
        with closing(open_remote(server.address)) as state:
            empty(state)


def test_the_password_of_an_address_is_never_shown(caplog):
    secret = "se?cr@et"
    said = []
    pytest.importorskip("psycopg")
    for address in (
        f"mysql://u:{secret}@h/0",
        f"redis://u:{secret}@127.0.0.1:1/0",
        f"postgresql://u:{secret}@[h/0",
        "postgresql://u:secret@127.0.0.1:1/0?connect_timeout=se%cret",
        "postgresql://u:secret@127.0.0.1:1/0",
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            try:
                with closing(open_remote(address)) as state, pytest.raises(ServerError) as caught:
                    state.recall("u")
            except SchemaError as error:
                said.append(str(error))
            else:
                said += [str(caught.value), caplog.text]
    assert len(said) >= 7
    assert all(said)
    assert not any("cret" in text or "cr@et" in text or "se?" in text for text in said)


def test_a_folder_that_is_named_or_an_empty_variable_is_no_server(monkeypatch, tmp_path):
    monkeypatch.setenv("BASCULE_STATE", "postgresql://127.0.0.1:1/0")
    assert open_shared(tmp_path) is None
    assert fetch_state(tmp_path, Path("state")) == tmp_path
    monkeypatch.setenv("BASCULE_STATE", "")
    assert open_shared() is None
    assert fetch_state(None, tmp_path / "state") == tmp_path / "state"


def test_who_opts_out_at_one_service_is_nobody_at_all_of_them(server, tmp_path, monkeypatch):
    event = Observation("u1", "a", "view", NOON)
    answer = Impressions("r", "u1", NOON, "v", "greedy", ["a"], [1.0], [1.0])
    (tmp_path / "run" / "state").mkdir(parents=True)
    with ExitStack() as stack:
        opened = [open_remote(server.address) for _ in range(2)]
        here, there = (stack.enter_context(closing(state)) for state in opened)
        here.observe_many([event])
        erasures = stack.enter_context(closing(Erasures([tmp_path / "run"], here)))
        for user in ("u1", "stranger"):
            erasures.choose(user, is_out=True)
            assert there.recall(user).is_opted_out
            assert there.observe_many([replace(event, user_id=user, item_id="b")]) == 0
            there.log_impressions([replace(answer, user_id=user)])
        assert there.observe_many([replace(event, user_id="u2"), event]) == 1
        assert there.list_known(["u1", "u2", "stranger"]) == {"u1", "u2"}
        assert there.count_answers("u1", 0, "") == there.count_answers("stranger", 0, "") == 0
        monkeypatch.setenv("BASCULE_STATE", server.address)
        state = fetch_state(None, tmp_path / "none")
        assert [*read_log(state / "state.db").events.column("user_id").to_pylist()] == ["u1", "u2"]
        assert read_opt_outs(state.parent).holds("stranger")
        erasures.choose("u1", is_out=False)
        assert len(there.recall("u1").history) == 1
        assert there.observe_many([replace(event, item_id="b")]) == 1
        assert len(here.list_users("opted_out")) == 1
        empty(here)


def test_each_kind_of_data_expires_by_its_own_days(replicas):
    store, other = replicas
    store.days = {"events": 10, "impressions": 2}
    for age in (1, 5, 20):
        moment = NOON - age * DAY
        store.observe_many([Observation("u", "a", None, moment)])
        shown = ("v", "greedy", ["a"], [1.0], [1.0])
        store.log_impressions([Impressions(f"r{age}", "u", moment, *shown)])
    removed = sum(store.expire_slices(NOON), Counter())
    assert removed == {"events": 1, "impressions": 2}
    assert len(other.recall("u").history) == 2
    assert other.count_answers("u", 0, "") == 1


def test_a_clock_that_runs_ahead_removes_nothing_and_most_of_a_log_stays_without_a_word(replicas):
    store, other = replicas
    assert store.date_expiry(NOON) == NOON  # nothing is there
    store.days = {"events": 10, "impressions": 20}
    shown = ("v", "greedy", ["a"], [1.0], [1.0])
    for number in range(20):
        moment = NOON - number * DAY // 4
        store.observe_many([Observation(f"u{number}", "a", None, moment)])
        user = None if number % 2 else f"u{number}"
        store.log_impressions([Impressions(f"r{number}", user, moment - DAY, *shown)])
    for now, expected in ((NOON - DAY, NOON - DAY), (NOON + 7 * DAY, NOON)):
        assert store.date_expiry(now) == expected
    # of 40 rows: all events, and lists before NOON - 4 days or before NOON - 2 days
    assert store.date_expiry(NOON + 10 * DAY) == NOON
    assert sum(map(Counter.total, store.expire_slices(NOON))) == 0
    for ahead in (18, 400):
        with pytest.raises(BundleError):
            store.date_expiry(NOON + ahead * DAY)
    assert len(other.list_known(f"u{number}" for number in range(20))) == 20


def fill(server, name, seconds, number):
    """Keep many events of a user, as quickly as can be."""
    with psycopg.connect(server.address) as connection:
        connection.execute(
            "INSERT INTO bascule_rows (kind, user_key, datetime, record, n_shown, policy) "
            "SELECT 'events', %s, %s, '[]', 0, '' FROM generate_series(1, %s)",
            (name, seconds, number),
        )


def test_the_age_of_a_log_of_several_pages_is_that_of_all_of_them(server):
    with closing(open_remote(server.address, retention_days=DAYS)) as store:
        empty(store)
        n_rows = 6000
        fill(server, "old", NOON - 2 * DAYS * DAY, n_rows)
        fill(server, "new", NOON - DAY, n_rows)
        assert len(store._read("age", 0, 0)) > 1
        assert store.date_expiry(NOON) == NOON - DAY
        fill(server, "older", NOON - 3 * DAYS * DAY, 1)
        with pytest.raises(BundleError):
            store.date_expiry(NOON)
        empty(store)
