"""The boards: the data, the split and the features that each trains on, as arguments of train.py."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ALL_BUT_TEST = ("--data.split.kind", "leave_one_out")
STRICT = (*ALL_BUT_TEST, "--data.split.strict", "true")
DECEMBER = ("--data.split.kind", "time", "--data.split.at", "2017-12-01")
BY_FILE = ("--data.split.kind", "files", "--data.split.test", "{tables}/holdout.csv")
IDS_ONLY = ("--data.features.item", "{{}}")
LIKED = (*ALL_BUT_TEST, "--data.targets.min_weight", "4")
NO_DEMOGRAPHICS = ("--data.features.user", "{{}}")
LAST_EVENT = "each user's last event is the test, all others train"
LAST_LIKED = "each user's last event of 4 or 5 stars is the test, all before it trains"
LAST_TWO_EVENTS = "each user's last event is the test; the second-last is validation and never trains"
BY_MONTH = "December 2017 is the test, all before trains; one list per household, asked at its beginning"
BY_PAIR = "a fifth of each user's apps is the test; one list per user for all of them"
EXCLUDED, ALLOWED = "what the user has is excluded", "what the user has may come again"
AT_TEN, REPEATED = ("NDCG@10", "HR@10"), ("all NDCG@20", "novel NDCG@20")
INTERACTIONS = "interactions.csv"


@dataclass(frozen=True)
class Board:
    """A data set with a protocol."""

    name: str
    dataset: str
    protocol: str
    options: tuple[str, ...]
    """Of train.py; `{tables}` is the folder of the prepared tables."""
    figures: tuple[str, ...] = AT_TEN
    """Metrics, after the name of the view where there are several."""
    repeats: str = EXCLUDED
    table: str = INTERACTIONS
    """Of the prepared ones, what is read as interactions."""
    bench: str | None = None
    """Protocol of the bench's own scorer, where it asks for other lists or counts other targets than we do."""
    has_peers: bool = True
    """It trains on the rows of the bench's peers, and is judged by their test."""
    without: str | None = None
    """Of which board this is the one with something taken out: the difference of the two is a row."""

    def arguments(self, tables: Path) -> list[str]:
        """Return the command line of train.py, without seed and folder."""
        words = ["--config", str(ROOT / "configs" / "bench" / f"{self.dataset}.yaml")]
        words += ["--data.interactions.path", str(tables / self.table)]
        for side in ("users", "items"):
            words += [f"--data.{side}.path", str(tables / f"{side}.csv")]
        return words + [word.format(tables=tables) for word in self.options]


ON_MOVIES, ON_BEAUTY, ON_GROCERIES = "movielens-100k", "amazon-beauty", "complete-journey"
BENCH_MONTH = "the same test without users and items that came in December, asked without a moment"
BENCH_PAIR = "the same test, one list per held-out row"
BOARDS = (
    Board(ON_MOVIES, ON_MOVIES, LAST_EVENT, ALL_BUT_TEST),
    Board(
        f"{ON_MOVIES}-no-demographics",
        ON_MOVIES,
        f"{LAST_EVENT}; no user features",
        (*ALL_BUT_TEST, *NO_DEMOGRAPHICS),
        without=ON_MOVIES,
    ),
    Board(f"{ON_MOVIES}-strict", ON_MOVIES, LAST_TWO_EVENTS, STRICT, has_peers=False),
    Board(f"{ON_MOVIES}-liked", ON_MOVIES, LAST_LIKED, LIKED, has_peers=False),
    Board(ON_BEAUTY, ON_BEAUTY, LAST_EVENT, ALL_BUT_TEST),
    Board(
        f"{ON_BEAUTY}-ids",
        ON_BEAUTY,
        f"{LAST_EVENT}; no item features",
        (*ALL_BUT_TEST, *IDS_ONLY),
        without=ON_BEAUTY,
    ),
    Board(f"{ON_BEAUTY}-strict", ON_BEAUTY, LAST_TWO_EVENTS, STRICT, has_peers=False),
    Board(ON_GROCERIES, ON_GROCERIES, BY_MONTH, DECEMBER, REPEATED, ALLOWED, bench=BENCH_MONTH),
    Board(
        f"{ON_GROCERIES}-no-demographics",
        ON_GROCERIES,
        f"{BY_MONTH}; no user features",
        (*DECEMBER, *NO_DEMOGRAPHICS),
        REPEATED,
        ALLOWED,
        bench=BENCH_MONTH,
        without=ON_GROCERIES,
    ),
    Board("frappe", "frappe", BY_PAIR, BY_FILE, table="train.csv", bench=BENCH_PAIR),
)


def find_boards(names: Sequence[str] | None) -> list[Board]:
    """Return the boards of these names, in the order of the list; None names all."""
    return [board for board in BOARDS if names is None or board.name in names]


def make_tables(bench: Path, raw: Path, tables: Path) -> Path:
    """Prepare a data set as the bench does, unless it is there; return the folder of the tables."""
    if not (tables / "meta.json").exists():
        subprocess.run([sys.executable, bench / "prepare.py", raw.name, raw, tables], check=True)
    return tables
