"""Raw public files -> the tables of a protocol: what trains, what is held out, what is excluded, and their hashes.

A protocol is prepared once into a folder: `interactions.csv` (what `train.py` reads), `train.csv` (what a user has when
asked), `holdout.csv` (the targets), `users.csv` and `items.csv` where there are features, and `protocol.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

PAIR = ["user_id", "item_id"]
PROTOCOL = "protocol.json"

# Drawn once for all, whatever the seed of a training.
APPS_SEED = 20260101
PEOPLE_SEED = 20261201

APPS_SHARE = 0.2
PEOPLE_SHARE = 0.2
LEAST_LINES = 20

GENRES = [
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
]
SITUATION = ["daytime", "weekday", "isweekend", "homework", "weather", "country", "city"]


@dataclass(frozen=True)
class Tables:
    """Tables of a data set; rows of the interactions are in the order of each user's events."""

    interactions: pd.DataFrame
    users: pd.DataFrame | None = None
    items: pd.DataFrame | None = None


@dataclass(frozen=True)
class Parts:
    """The parts of the interactions."""

    interactions: pd.DataFrame
    """What `train.py` is given, the test of its own split included."""
    train: pd.DataFrame
    """What users have when they are asked."""
    holdout: pd.DataFrame
    """The targets, a row each; a request's context stands in the first row of its pair."""


@dataclass(frozen=True)
class Protocol:
    """A data set, and what of it is held out."""

    name: str
    dataset: str
    """Folder of the raw files."""
    files: tuple[str, ...]
    """Raw files that are read, and hashed."""
    read: Callable[[Path], Tables]
    split: Callable[[pd.DataFrame], Parts]
    held_out: str
    excluded: str = "what a user has in train never stands in a list"


def prepare(protocol: Protocol, data: Path, folder: Path) -> dict[str, Any]:
    """Write the tables of a protocol, unless they are there of the same raw files and by this code.

    Returns:
        The protocol in words, the counts, and the SHA-256 of raw files and tables.
    """
    raw = data / protocol.dataset
    missing = [name for name in protocol.files if not (raw / name).exists()]
    if missing:
        raise SystemExit(f"{raw} has no {', '.join(missing)}: put the public files there")

    hashes = {name: tell_hash(raw / name) for name in protocol.files}
    code = tell_hash(Path(__file__))
    done = folder / PROTOCOL
    if done.exists():
        told: dict[str, Any] = json.loads(done.read_text())
        if (told["raw"], told["code"]) == (hashes, code):
            return told

    tables = protocol.read(raw)
    parts = protocol.split(tables.interactions)
    frames = vars(parts) | {
        "users": keep_known(tables.users, "user_id", parts),
        "items": keep_known(tables.items, "item_id", parts),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in frames.items():
        if frame is not None:
            frame.to_csv(folder / f"{name}.csv", index=False)

    told = {
        "name": protocol.name,
        "held_out": protocol.held_out,
        "excluded": protocol.excluded,
        "counts": count(parts),
        "raw": hashes,
        "code": code,
        "tables": {path.name: tell_hash(path) for path in sorted(folder.glob("*.csv"))},
    }
    # Written last: a preparation that was stopped is made anew.
    done.write_text(json.dumps(told, indent=2) + "\n")
    return told


def keep_known(frame: pd.DataFrame | None, key: str, parts: Parts) -> pd.DataFrame | None:
    """Leave out the users or items without an event."""
    if frame is None:
        return None
    known = pd.concat([parts.interactions[key], parts.holdout[key]])
    return frame[frame[key].astype(str).isin(known.astype(str))]


def tell_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def count(parts: Parts) -> dict[str, int]:
    """Count what a reader compares first."""
    everything = pd.concat([parts.train[PAIR], parts.holdout[PAIR]])
    return {
        "users": everything["user_id"].nunique(),
        "items": everything["item_id"].nunique(),
        "train": len(parts.train),
        "targets": len(parts.holdout),
        "users_with_targets": parts.holdout["user_id"].nunique(),
        "targets_owned": int(is_owned(parts.holdout, parts.train).sum()),
        "targets_of_items_not_in_train": int(
            (~parts.holdout["item_id"].isin(parts.train["item_id"])).sum()
        ),
    }


def is_owned(rows: pd.DataFrame, train: pd.DataFrame) -> np.ndarray:
    """Mark the rows whose pair of user and item is in train."""
    pairs = pd.MultiIndex.from_frame(rows[PAIR])
    return np.asarray(pairs.isin(pd.MultiIndex.from_frame(train[PAIR])))


# ---- readers


def read_movielens_100k(raw: Path) -> Tables:
    """Read `u.data`, `u.user` and `u.item`; the genres are one column."""
    names = [*PAIR, "rating", "timestamp"]
    events = pd.read_csv(raw / "u.data", sep="\t", names=names)
    names = ["user_id", "age", "gender", "occupation", "zip"]
    users = pd.read_csv(raw / "u.user", sep="|", names=names, dtype=str)
    names = ["item_id", "title", "release_date", "video_date", "url", *GENRES]
    films = pd.read_csv(raw / "u.item", sep="|", names=names, encoding="latin-1")
    flags = films[GENRES].to_numpy() == 1
    genres = ["|".join(np.array(GENRES)[row]) for row in flags]
    items = films[["item_id", "title"]].assign(year=films["release_date"].str[-4:], genres=genres)
    return Tables(number_events(events, "timestamp"), users, items)


def read_beauty(raw: Path) -> Tables:
    """Read the sequences with their days, and check them against the published file without days."""
    events = pd.read_csv(raw / "beauty_with_time.csv")
    events = events.rename(columns={"user": "user_id", "item": "item_id"})
    events = events.sort_values(["user_id", "position"], kind="stable", ignore_index=True)
    published = {}
    for line in (raw / "Beauty.txt").read_text().splitlines():
        user, *items = line.split()
        published[int(user)] = [int(item) for item in items]
    if events.groupby("user_id")["item_id"].agg(list).to_dict() != published:
        raise SystemExit(
            f"{raw}: beauty_with_time.csv and Beauty.txt are of two downloads; use the files of one"
        )

    attributes = json.loads((raw / "Beauty_item2attributes.json").read_text())
    item_ids = np.unique(events["item_id"])
    joined = ["|".join(map(str, attributes.get(str(item), []))) for item in item_ids]
    items = pd.DataFrame({"item_id": item_ids, "attributes": joined})
    users = pd.DataFrame({"user_id": np.unique(events["user_id"])})
    return Tables(events[[*PAIR, "timestamp", "position"]], users, items)


def read_complete_journey(raw: Path) -> Tables:
    """Read the lines of purchases, the demographics and the products."""
    lines = pd.read_parquet(raw / "transactions.parquet")
    lines = lines.rename(columns={"household_id": "user_id", "product_id": "item_id"})
    seconds = lines["transaction_timestamp"].astype("datetime64[s]").astype("int64")
    events = lines[[*PAIR, "quantity", "basket_id", "store_id"]].assign(timestamp=seconds)
    people = pd.read_parquet(raw / "demographics.parquet")
    people = people.rename(columns={"household_id": "user_id"}).astype({"user_id": "int64"})
    buyers = pd.DataFrame({"user_id": np.unique(events["user_id"])})
    users = buyers.merge(people, on="user_id", how="left")
    items = pd.read_parquet(raw / "products.parquet").rename(columns={"product_id": "item_id"})
    return Tables(number_events(events, "timestamp"), users, items)


def read_frappe(raw: Path) -> Tables:
    """Read the uses of apps with their situations, and the apps; they have no times."""
    events = pd.read_csv(raw / "frappe.csv", sep="\t")
    events = events.rename(columns={"user": "user_id", "item": "item_id"})
    apps = pd.read_csv(raw / "meta.csv", sep="\t", dtype=str).rename(columns={"item": "item_id"})
    cost = events.groupby("item_id")["cost"].first().reset_index().astype({"item_id": str})
    items = cost.merge(apps, on="item_id", how="left")
    users = pd.DataFrame({"user_id": np.unique(events["user_id"])})
    return Tables(events[[*PAIR, "cnt", *SITUATION]], users, items)


def read_movielens_1m(raw: Path) -> Tables:
    """Read the order of SASRec's authors, which has no times."""
    events = pd.read_parquet(raw / "interactions.parquet")
    events = events.sort_values(["user_id", "position"], kind="stable", ignore_index=True)
    return Tables(events)


def read_parts(raw: Path) -> Tables:
    """Read the given parts of a data set as one table with a column `part`."""
    parts = []
    for name in ("train", "test", "holdout"):
        for path in raw.glob(f"{name}.*"):
            is_text = path.suffix == ".csv"
            rows = pd.read_csv(path) if is_text else pd.read_parquet(path)
            parts.append(rows.assign(part=name))
    return Tables(pd.concat(parts, ignore_index=True))


def number_events(events: pd.DataFrame, time: str) -> pd.DataFrame:
    """Order each user's events by time, then as the file has them, and number them."""
    ordered = events.sort_values(["user_id", time], kind="stable", ignore_index=True)
    return ordered.assign(position=ordered.groupby("user_id").cumcount())


# ---- splits


def leave_last_out(events: pd.DataFrame) -> Parts:
    """Hold out the last event of each user who has more than one."""
    is_last = ~events.duplicated("user_id", keep="last")
    is_last &= events.duplicated("user_id", keep="first")
    return Parts(events, events[~is_last], events[is_last])


def split_by_time(events: pd.DataFrame, at: str, least_lines: int = 0) -> Parts:
    """Hold out the distinct pairs from a moment on, of users and items known before it.

    Items of fewer than `least_lines` events before the moment are left out of all parts.
    """
    is_late = events["timestamp"] >= pd.Timestamp(at).timestamp()
    lines = events.loc[~is_late, "item_id"].value_counts()
    is_kept = events["item_id"].isin(lines.index[lines >= least_lines])
    is_kept &= events["user_id"].isin(events.loc[~is_late & is_kept, "user_id"])
    train = events[is_kept & ~is_late]
    late = events[is_kept & is_late]
    return Parts(events[is_kept], train, late.drop_duplicates(PAIR))


def split_by_pair(events: pd.DataFrame) -> Parts:
    """Hold out a share of each user's items with all events on them."""
    pairs = events[PAIR].drop_duplicates()
    drawn = pairs.sample(frac=1.0, random_state=APPS_SEED).sort_values("user_id", kind="stable")
    rank = drawn.groupby("user_id").cumcount()
    size = drawn.groupby("user_id")["item_id"].transform("size")
    n_held_out = np.floor(size * APPS_SHARE + 0.5).clip(upper=size - 1)
    is_test = is_owned(events, drawn[rank < n_held_out])
    train = events[~is_test]
    return Parts(train, train, events[is_test].drop_duplicates(PAIR))


def take_parts(events: pd.DataFrame) -> Parts:
    """Take the parts as they were given; targets are purchases where events have kinds."""
    is_train = events["part"] == "train"
    rows = events.drop(columns="part")
    holdout = rows[~is_train]
    if "event" in rows:
        holdout = holdout.assign(event="transaction")
    return Parts(rows[is_train], rows[is_train], holdout)


def hide_people(events: pd.DataFrame) -> Parts:
    """Hold out a share of the users whole: half of their items, drawn by chance, is given when they ask."""
    rng = np.random.default_rng(PEOPLE_SEED)
    users = rng.permutation(np.unique(events["user_id"]))
    is_hidden = events["user_id"].isin(users[: int(PEOPLE_SHARE * len(users))])
    hidden = events[is_hidden]
    lot = pd.Series(rng.random(len(hidden)), index=hidden.index)
    rank = lot.groupby(hidden["user_id"]).rank()
    size = hidden.groupby("user_id")["item_id"].transform("size")
    is_given = rank <= size / 2
    return Parts(events[~is_hidden], hidden[is_given], hidden[~is_given])


# ---- what there is

LAST = "each user's last event by time, then by the order of the file"
_MOVIELENS = ("movielens-100k", ("u.data", "u.user", "u.item"), read_movielens_100k)
_BEAUTY = (
    "amazon-beauty",
    ("Beauty.txt", "beauty_with_time.csv", "Beauty_item2attributes.json"),
    read_beauty,
)
_PAIRS = ("train.parquet", "test.parquet")
_OWNED_COUNT = "nothing; the view of novel items is of lists without what a user has in train"

DECLARED = (
    Protocol("movielens-100k", *_MOVIELENS, leave_last_out, LAST),
    Protocol(
        "movielens-100k-time",
        *_MOVIELENS,
        partial(split_by_time, at="1998-02-01"),
        "from 1998-02-01 on, of users and items known before",
    ),
    Protocol("amazon-beauty", *_BEAUTY, leave_last_out, "each user's last event by position"),
    Protocol(
        "amazon-beauty-time",
        *_BEAUTY,
        partial(split_by_time, at="2014-04-01"),
        "from 2014-04-01 on, of users and items known before",
    ),
    Protocol(
        "complete-journey",
        "complete-journey",
        ("transactions.parquet", "demographics.parquet", "products.parquet"),
        read_complete_journey,
        partial(split_by_time, at="2017-12-01", least_lines=LEAST_LINES),
        "from 2017-12-01 on, of households and of products with 20 lines before",
        _OWNED_COUNT,
    ),
    Protocol(
        "frappe",
        "frappe",
        ("frappe.csv", "meta.csv"),
        read_frappe,
        split_by_pair,
        f"a fifth of each user's apps with all their rows, seed {APPS_SEED}; there are no times",
    ),
    Protocol(
        "movielens-1m",
        "movielens-1m",
        ("interactions.parquet",),
        read_movielens_1m,
        leave_last_out,
        "each user's last event by position; there are no times",
    ),
    Protocol(
        "movielens-1m-unseen",
        "movielens-1m",
        ("interactions.parquet",),
        read_movielens_1m,
        hide_people,
        f"a fifth of the users, seed {PEOPLE_SEED}; half of their items, drawn by chance, is given inline",
    ),
    Protocol(
        "gowalla", "gowalla", _PAIRS, read_parts, take_parts, "LightGCN's test; there are no times"
    ),
    Protocol(
        "lastfm", "lastfm", _PAIRS, read_parts, take_parts, "LightGCN's test; there are no times"
    ),
    Protocol(
        "retailrocket",
        "retailrocket",
        ("train.parquet", "holdout.csv"),
        read_parts,
        take_parts,
        "one bought item of each of 824 buyers with all their events on it; there is no order",
    ),
)
PROTOCOLS = {protocol.name: protocol for protocol in DECLARED}
