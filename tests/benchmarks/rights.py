"""What people may ask for, checked for many at once: show, opt out, forget.

    python tests/benchmarks/rights.py --users 50

A small shop is trained, its log is filled, and lists and vectors are written. Then, for each of the
users: `bascule user show` against a search of every file; after `opt-out`, what a service keeps of
their events and lists, beside somebody's who has not opted out, and the next training against one of
tables without them, byte by byte; after `forget`, a search of every byte.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from bascule.commands import main as bascule  # noqa: E402
from bascule.rights import gather  # noqa: E402
from pipeline.run import run as run_training  # noqa: E402
from serve.bundle import BUNDLE, STATE, STATE_FILE  # noqa: E402
from serve.files import OPTED_OUT  # noqa: E402
from service.event_log import Impressions  # noqa: E402
from service.forget import add_to_erasure_list  # noqa: E402
from service.state import StateStore  # noqa: E402
from tests.http.services import asking  # noqa: E402
from tests.pipeline.shop import open_shop  # noqa: E402
from tests.pipeline.small_runs import ORDERED, config_of, make_tables  # noqa: E402
from tests.served import ask  # noqa: E402

SAME = ("*.onnx", "*.faiss", "*.npy", "items.parquet", "schema.json", "golden.json")


def fill(folder: Path, users: list[str]) -> Path:
    """Train, log lists and events, write lists and vectors; return the run."""
    config = open_shop(folder / "shop", ORDERED)
    run = config.parent / "my"
    rng = np.random.default_rng(1)
    with closing(StateStore(run / STATE / STATE_FILE)) as store:
        for number, user in enumerate(users):
            items = rng.choice(35, 4, replace=False) + 100
            shown = (items.tolist(), [1.0] * 4, [1.0] * 4)
            arm = f"salt/{number % 2}"
            list_ = Impressions(f"r{number}", user, 1_650_000_000, "v", "greedy", *shown, arm)
            store.log_impressions([list_])
    for words in (
        ["recommend", "--all-users", "--k", "3", "--out", f"{run / 'lists.csv'}"],
        ["recommend", "--all-users", "--k", "3", "--out", f"{run / 'lists.parquet'}"],
        ["export", "--side", "user", "--out", f"{run / 'vectors'}"],
    ):
        assert bascule([*words, "--bundle", str(run / BUNDLE)]) == 0
    return run


def search(run: Path, tables: Path, user: str) -> dict[str, int]:
    """Count by hand the rows of every file that name a user."""
    found: dict[str, int] = {}
    naming = re.compile(rf"(?<!\w){re.escape(user)}(?!\w)")
    for path in [*run.rglob("*"), *tables.glob("*.parquet")]:
        if not path.is_file() or path.suffix in (".db", ".db-wal", ".db-shm"):
            continue
        if path.suffix == ".parquet":
            rows = [str(row) for row in pq.ParquetFile(path).read().to_pylist()]
        else:
            rows = path.read_bytes().decode("latin-1").splitlines()
        n_rows = sum(naming.search(row) is not None for row in rows)
        if n_rows:
            name = re.sub(r"-[0-9a-f]{16}", "", path.name)
            found[name] = found.get(name, 0) + n_rows
    with closing(sqlite3.connect(run / STATE / STATE_FILE)) as database:
        for view in ("events", "answers"):
            query = f"SELECT count(*) FROM {view} WHERE user_id = ?"
            ((n_rows,),) = database.execute(query, (user,)).fetchall()
            found |= {view: n_rows} if n_rows else {}
    return found


NAMES = {
    "interactions": "interactions.parquet",
    "users": "users.parquet",
    "profiles": "users.parquet",
    "live events": "events",
    "impressions": "answers",
}


def compare(run: Path, users: list[str]) -> int:
    """Return for how many users what is shown is what a search finds."""
    held = gather(run, users)
    n_equal = 0
    for user in users:
        shown: dict[str, int] = {}
        for place, rows in held[user].items():
            name = NAMES.get(place, Path(place).name)
            shown[name] = shown.get(name, 0) + len(rows)
        found = search(run, run.parent, user)
        n_equal += shown == found
        if shown != found:
            print(user, "shown:", shown, "found:", found)
    return n_equal


def count_kept(run: Path, users: list[str], other: str) -> dict[str, int]:
    """Let all users opt out, do something and be shown lists; return what was kept of whom."""
    before = {user: count_rows(run, user) for user in [*users, other]}
    with asking(run / BUNDLE) as app:
        for user in [*users, other]:
            posts = [
                ("/v1/users/profiling", {"user_id": user, "profile": user == other}),
                ("/v1/events", {"user_id": user, "item_id": 105}),
                ("/v1/recommend", {"user_id": user, "k": 3}),
            ]
            for path, body in posts:
                assert ask(app, "POST", path, body).status == 200
    after = {user: count_rows(run, user) for user in [*users, other]}
    n_changed = sum(before[user] != after[user] for user in users)
    return {"kept of who opted out": n_changed, "kept of another": after[other] - before[other]}


def count_rows(run: Path, user: str) -> int:
    """Count the rows of a user in the live state."""
    query = "SELECT count(*) FROM {} WHERE user_id = ?"
    with closing(sqlite3.connect(run / STATE / STATE_FILE)) as database:
        found = [database.execute(query.format(view), (user,)) for view in ("events", "answers")]
        return sum(rows.fetchone()[0] for rows in found)


def train_without(folder: Path, users: list[str]) -> tuple[bool, bool]:
    """Tell whether rows and bundle are those of a training on tables without the users."""
    interactions, people, items = make_tables(ORDERED)
    kept = [table[~table["user_id"].isin(users)] for table in (interactions, people)]
    kept = [table.reset_index(drop=True) for table in kept]
    (folder / "out").mkdir(parents=True)
    add_to_erasure_list(folder / "out", users, OPTED_OUT)
    out = run_training(config_of(folder / "out", ORDERED), (interactions, people, items))
    without = run_training(config_of(folder / "without", ORDERED), (*kept, items))
    files = [path for pattern in SAME for path in sorted(without.bundle.glob(pattern))]
    same = [path.read_bytes() == (out.bundle / path.name).read_bytes() for path in files]
    return out.work.rows == without.work.rows, len(same) > 5 and all(same)


def main() -> None:
    """Check everything, and print a line of figures in JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=50)
    options = parser.parse_args()
    users = [f"u{number:03d}" for number in range(options.users)]
    folder = Path(tempfile.mkdtemp(prefix="rights-"))
    run = fill(folder, users)
    n_equal = compare(run, users)

    kept = count_kept(run, users, f"u{len(users):03d}")
    gone = users[: max(1, len(users) // 5)]
    rows_equal, bytes_equal = train_without(folder / "trained", gone)

    words = ["forget", "--run", str(run), "--user", *users]
    assert bascule(["user", *words]) == 0
    left = {user: search(run, folder / "none", user) for user in users}
    state = b"".join(path.read_bytes() for path in (run / STATE).iterdir())
    n_found = sum(bool(left[user]) or user.encode() in state for user in users)
    figures = {
        "users": len(users),
        "shown as found": n_equal,
        **kept,
        "left out of the next training": len(gone),
        "rows as without them": rows_equal,
        "bundle as without them": bytes_equal,
        "found after forget": n_found,
    }
    print(json.dumps(figures))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
