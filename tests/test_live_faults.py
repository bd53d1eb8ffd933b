"""What live items refuse, and what of them a disk, a kill or another writer can and cannot do."""

import errno
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from threading import Barrier, Thread

import numpy as np
import pytest

from serve.bundle import Bundle
from serve.errors import BundleError, SchemaError
from serve.live.items import LiveItems
from serve.recommender import Recommender
from tests.linear_bundle import FILMS, SHOP, N, item_ids, publish_linear
from tests.linear_profiles import requests_of
from tests.linear_reference import naive_item

SEED = 3
MILK = {"department": "dairy", "price": 1.5, "brand": "y", "title": "Milk"}


@pytest.fixture(scope="module")
def recommenders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("linear")
    worlds = {"shop": SHOP, "films": FILMS}
    return {name: Recommender(Bundle.load(publish_linear(folder / name, one, SEED))) for name, one in worlds.items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "items.db"


@pytest.fixture
def shop(recommenders, path):
    with closing(LiveItems(path, recommenders["shop"])) as live:
        yield live


def lists(live: LiveItems, item_id) -> bool:
    return item_id in live.recommender.recommend([{}], N + 50, filter_viewed=False).item_id


def run_sql(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)


@pytest.mark.parametrize(
    ("item_id", "columns", "message"),
    [
        ("milk", {"prise": 1.0}, r"unknown column 'prise' \(str\); did you mean 'price'"),
        ("milk", {"repeat_rate": 1.0}, "unknown column 'repeat_rate'"),
        ("milk", {"item_id": "x"}, "unknown column 'item_id'"),
        ("milk", {"price": "dear"}, r"column 'price' is 'dear' \(str\); expected a number"),
        ("milk", {"price": float("nan")}, "column 'price' is nan"),
        ("milk", {"price": True}, "column 'price' is True"),
        ("milk", {"in_stock": 1}, r"column 'in_stock' is 1 \(int\); expected true or false"),
        ("milk", {"department": ["dairy"]}, r"column 'department' is \['dairy'\]"),
        ("milk", {"title": "half \ud800"}, "column 'title' is .*surrogate"),
        (
            "milk",
            {"title": "Milk", "in_stock": True},
            r"'milk' \(str\) is new .* at least one of department, price, brand",
        ),
        ("milk", {"brand": " "}, r"'milk' \(str\) is new and nothing says what it is"),
        ("", MILK, r"item_id is '' \(str\); expected a text"),
        (item_ids(SHOP)[0], {"department": {}}, r"column 'department' is \{\}"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(shop, item_id, columns, message):
    before = shop.recommender
    with pytest.raises(SchemaError, match=message):
        shop.put_many({"cheese": MILK, item_id: columns})
    assert shop.recommender is before
    assert not lists(shop, "cheese")


@pytest.mark.parametrize("item_id", [["milk"], {"milk": 1}, None, 1.5])
def test_what_is_no_id_is_refused_as_such_whether_it_is_put_or_removed(shop, item_id):
    for change in (lambda: shop.put(item_id, MILK), lambda: shop.remove(item_id)):
        with pytest.raises(SchemaError, match=r"item_id is .*; expected a text that is not empty"):
            change()


def test_what_the_disk_refuses_changes_nothing(shop, monkeypatch):
    shop.put("milk", MILK)
    before = shop.recommender

    def refuse(changes):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(shop._store, "write", refuse)
        for change in (lambda: shop.put("cheese", MILK), lambda: shop.remove("milk")):
            with pytest.raises(OSError, match="disk full"):
                change()
    assert shop.recommender is before
    shop.put("milk", {"price": 2})
    shop.put("bread", MILK)
    vectors = shop.recommender.catalogue.vectors[N:]
    expected = [MILK | {"price": 2}, MILK]
    np.testing.assert_allclose(vectors, [naive_item(SEED, item) for item in expected], rtol=1e-4, atol=1e-4)
    assert lists(shop, "milk")
    assert lists(shop, "bread")


def test_a_recommender_that_was_taken_never_changes(shop):
    shop.put("milk", MILK)
    taken = shop.recommender
    before = taken.recommend(requests_of(SHOP), N + 9)
    faults: list[str] = []

    def ask():
        for _ in range(30):
            after = taken.recommend(requests_of(SHOP), N + 9)
            if after.item_id.tolist() != before.item_id.tolist() or after.score.tolist() != before.score.tolist():
                faults.append("another answer")

    thread = Thread(target=ask)
    thread.start()
    for number in range(60):
        shop.put(f"new-{number % 40}", MILK | {"price": number})
        shop.put("milk", {"price": number})
        shop.remove(item_ids(SHOP)[number % N])
    thread.join()
    assert faults == []


def test_no_change_is_lost_where_many_come_at_once(shop, path, recommenders):
    known, starting = item_ids(SHOP), Barrier(8)

    def change(first):
        starting.wait(20)
        for number in range(first, 16, 8):
            shop.remove(known[number])
            shop.put(f"new-{number}", MILK | {"price": number})

    threads = [Thread(target=change, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {*known[16:], *(f"new-{number}" for number in range(16))}
    assert set(shop.recommender.recommend([{}], N + 20).item_id) == expected
    shop.close()
    with closing(LiveItems(path, recommenders["shop"])) as again:
        assert set(again.recommender.recommend([{}], N + 20).item_id) == expected


@pytest.mark.usefixtures("shop")
def test_a_file_has_one_writer(path, recommenders):
    with pytest.raises(BlockingIOError, match=r"another process changes .*items\.db"):
        LiveItems(path, recommenders["shop"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda path: path.write_bytes(b"no database, but long enough to be read as one" * 9),
            "no store of live items",
        ),
        (lambda path: run_sql(path, "PRAGMA user_version = 9"), "its format is 9; expected 1"),
        (lambda path: run_sql(path, "PRAGMA user_version = 0"), "its format is 0; expected 1"),
    ],
)
def test_another_file_is_refused(path, recommenders, spoil, message):
    LiveItems(path, recommenders["shop"]).close()
    spoil(path)
    with pytest.raises(BundleError, match=message):
        LiveItems(path, recommenders["shop"])


def test_a_folder_in_the_place_of_the_file_is_named(path, recommenders):
    path.mkdir(parents=True)
    with pytest.raises(OSError, match=r"unable to open database file: '.*items\.db'"):
        LiveItems(path, recommenders["shop"])


def test_a_file_that_another_process_keeps_is_not_called_another_file(path, recommenders, monkeypatch):
    LiveItems(path, recommenders["shop"]).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, timeout=0))
        with pytest.raises(OSError, match="database is locked") as fault:
            LiveItems(path, recommenders["shop"])
    assert (fault.value.errno, fault.value.filename) == (errno.EBUSY, str(path))


def test_a_bundle_with_ids_of_another_type_serves_without_the_items_that_it_cannot_name(shop, path, recommenders):
    n_items = recommenders["films"].catalogue.n_listed
    shop.put_many({"milk": MILK, "cheese": MILK, "7000001": MILK})
    shop.remove("cheese")  # of which nobody misses anything
    shop.rebase(recommenders["films"])
    note = "live items: 'milk' (str) is no id of the bundle: it is not listed (1 times)"
    assert note in shop.notes
    assert shop.recommender.catalogue.n_listed == n_items + 1
    shop.close()
    with closing(LiveItems(path, recommenders["films"])) as again:
        assert note in again.notes
    with closing(LiveItems(path, recommenders["shop"])) as back:
        assert lists(back, "milk")
        assert back.notes == []


def test_what_was_acknowledged_waits_for_the_disk(shop):
    """No test can take the power away: SQLite says whether a commit waits until all of it is on disk."""
    connection = shop._store._connection
    assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_what_was_acknowledged_survives_a_kill(path, recommenders):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from serve.bundle import Bundle\n"
        "from serve.live.items import LiveItems\n"
        "from serve.recommender import Recommender\n"
        f"bundle = Bundle.load(Path({str(recommenders['shop'].bundle.path)!r}))\n"
        f"live = LiveItems(Path({str(path)!r}), Recommender(bundle))\n"
        "for number in range(50):\n"
        "    live.put(f'new-{number}', {'price': number})\n"
        "    if number % 3 == 0: live.remove(f'new-{number}')\n"
        "    print(number, flush=True)\n"
        "assert not {'pandas', 'torch', 'pytorch_lightning'} & set(sys.modules)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.split() == [str(number) for number in range(50)]
    with closing(LiveItems(path, recommenders["shop"])) as live:
        assert [lists(live, f"new-{number}") for number in range(50)] == [number % 3 > 0 for number in range(50)]


def test_a_bundle_that_cannot_be_taken_up_leaves_everything_as_it_was(shop, recommenders, monkeypatch):
    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Recommender, "with_catalogue", fail)
        with pytest.raises(MemoryError):
            shop.rebase(recommenders["films"])
    shop.put("new", {"brand": "x"})
    assert lists(shop, "new")


def test_a_file_with_a_damaged_page_is_a_fault_of_the_disk_and_let_go_of(path, recommenders):
    with closing(LiveItems(path, recommenders["shop"])) as live:
        live.put("milk", MILK)
    content = bytearray(path.read_bytes())
    content[4096:8192] = b"\xff" * 4096
    path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(OSError, match=r"items\.db"):
            LiveItems(path, recommenders["shop"])
