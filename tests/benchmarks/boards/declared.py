"""The boards: a protocol, the configuration and options of the training, how the bundle is asked, what is reported."""

from __future__ import annotations

from dataclasses import dataclass

ALL_BUT_TEST = ("--data.split.kind", "leave_one_out")
STRICT = (*ALL_BUT_TEST, "--data.split.strict", "true")
IDS_ALONE = ("--data.features.item", "{}")
NO_TEST = ("--data.split.kind", "none")
PAIRS = "pairs.parquet"
NO_ORDER = ("--data.interactions.path", f"{{tables}}/{PAIRS}")
HELD_OUT = ("--data.split.kind", "files", "--data.split.test", "{tables}/holdout.csv")
PURCHASES = (
    "--data.events",
    "{view: 1, addtocart: 3, transaction: 5}",
    "--data.targets.events",
    "[transaction]",
)


def from_day(day: str) -> tuple[str, ...]:
    """Return the options of a split by time."""
    return ("--data.split.kind", "time", "--data.split.at", day)


@dataclass(frozen=True)
class Board:
    """A row of the page."""

    name: str
    title: str
    protocol: str
    options: tuple[str, ...]
    """Of `train.py`; `{tables}` is the folder of the prepared tables."""
    config: str | None = None
    """Of configs/, where the tables have features."""
    figures: tuple[str, ...] = ("novel NDCG@10", "novel HR@10")
    """View and metric; the first is drawn."""
    requests: str = "users"
    """users: one a user. contexts: one a target, in its context. strangers: one a user, who is unknown to the bundle,
    with their history."""
    is_by_row: bool = False
    """Every target is judged alone; otherwise all of a user together."""
    trained_as: str | None = None
    """The board whose training is asked; default: its own."""
    twin: str = ""
    """The board that splits the same tables by time, or why there is none."""

    @property
    def has_peers(self) -> bool:
        """Whether the run's own baselines answer other requests, so that peers of this folder stand beside it."""
        return self.is_by_row or self.requests == "strangers"

    @property
    def has_order(self) -> bool:
        """Whether the training reads the order of a user's events."""
        return not {*NO_ORDER} <= {*self.options}

    @property
    def views(self) -> list[str]:
        """The views of the figures, each once."""
        return sorted({figure.split()[0] for figure in self.figures})

    def metrics(self, view: str) -> list[str]:
        """Return the metrics of a view."""
        return [figure.split()[1] for figure in self.figures if figure.startswith(f"{view} ")]


@dataclass(frozen=True)
class Quoted:
    """A peer that was measured once, on the same tables and with the same scorer, by another library."""

    model: str
    figures: dict[str, float]
    by: str


NO_TIMES = "its tables have no times"
BEAUTY = "Amazon Beauty (22,363 users, 12,101 items)"
TOP_20 = ("novel Recall@20", "novel NDCG@20")
IDS_IN_ORDER = "MovieLens-1M (6,040 users, 3,416 films), ids in order alone"

BOARDS = (
    Board(
        "beauty",
        f"{BEAUTY} with attributes; the last event of each user is the test",
        "amazon-beauty",
        ALL_BUT_TEST,
        "amazon-beauty",
        twin="beauty-time",
    ),
    Board(
        "beauty-strict",
        "Amazon Beauty with attributes, strict: the second-last event never trains",
        "amazon-beauty",
        STRICT,
        "amazon-beauty",
        twin="beauty-time",
    ),
    Board(
        "beauty-ids",
        "Amazon Beauty, ids alone; the last event of each user is the test",
        "amazon-beauty",
        (*ALL_BUT_TEST, *IDS_ALONE),
        "amazon-beauty",
        twin="beauty-ids-time",
    ),
    Board(
        "beauty-ids-strict",
        "Amazon Beauty, ids alone, strict: the second-last event never trains",
        "amazon-beauty",
        (*STRICT, *IDS_ALONE),
        "amazon-beauty",
        twin="beauty-ids-time",
    ),
    Board(
        "beauty-time",
        "Amazon Beauty with attributes, split by time: from 2014-04-01 on",
        "amazon-beauty-time",
        from_day("2014-04-01"),
        "amazon-beauty",
    ),
    Board(
        "beauty-ids-time",
        "Amazon Beauty, ids alone, split by time: from 2014-04-01 on",
        "amazon-beauty-time",
        (*from_day("2014-04-01"), *IDS_ALONE),
        "amazon-beauty",
    ),
    Board(
        "movielens-100k",
        "MovieLens-100k (943 users, 1,682 films) with demographics and attributes",
        "movielens-100k",
        ALL_BUT_TEST,
        "bench/movielens-100k",
        twin="movielens-100k-time",
    ),
    Board(
        "movielens-100k-time",
        "MovieLens-100k with demographics and attributes, split by time: from 1998-02-01 on",
        "movielens-100k-time",
        from_day("1998-02-01"),
        "bench/movielens-100k",
    ),
    Board("movielens-1m", f"{IDS_IN_ORDER}, strict", "movielens-1m", STRICT, twin=NO_TIMES),
    Board(
        "movielens-1m-unseen",
        "MovieLens-1M, pairs alone; a fifth of the users is never trained on and gives half of their items",
        "movielens-1m-unseen",
        (*NO_TEST, *NO_ORDER),  # what is asked for is drawn by chance, and not what comes next
        figures=("novel NDCG@100", "novel Recall@20"),
        requests="strangers",
        twin=NO_TIMES,
    ),
    Board(
        "complete-journey",
        "Complete Journey (groceries), December is the test; of all and of novel items",
        "complete-journey",
        from_day("2017-12-01"),
        "bench/complete-journey",
        figures=("all NDCG@20", "novel NDCG@20"),
        twin="it is split by time itself",
    ),
    Board(
        "frappe",
        "Frappe (957 users, 4,082 apps), one list per held-out row, without its context",
        "frappe",
        HELD_OUT,
        "bench/frappe",
        is_by_row=True,
        twin=NO_TIMES,
    ),
    Board(
        "frappe-context",
        "Frappe, one list per held-out row, each asked in its context",
        "frappe",
        HELD_OUT,
        "bench/frappe",
        requests="contexts",
        is_by_row=True,
        trained_as="frappe",
        twin=NO_TIMES,
    ),
    Board(
        "gowalla",
        "Gowalla (29,858 users, 40,981 places) by pairs",
        "gowalla",
        HELD_OUT,
        figures=TOP_20,
        twin=NO_TIMES,
    ),
    Board(
        "lastfm",
        "LastFM (1,880 users, 4,489 artists) by pairs",
        "lastfm",
        HELD_OUT,
        figures=TOP_20,
        twin=NO_TIMES,
    ),
    Board(
        "retailrocket",
        "Retailrocket, the log of a shop (3,431 users, 8,885 items); purchases are the test",
        "retailrocket",
        (*PURCHASES, *HELD_OUT),
        twin="its tables have no order",
    ),
)

RECTOOLS = "RecTools, options chosen on the validation, one fit"
IMPLICIT = "implicit, options chosen on the validation, one fit"
QUOTED = {
    "beauty": [Quoted("SASRec", {"novel NDCG@10": 0.0526, "novel HR@10": 0.0891}, RECTOOLS)],
    "beauty-ids": [Quoted("SASRec", {"novel NDCG@10": 0.0526, "novel HR@10": 0.0891}, RECTOOLS)],
    "movielens-100k": [
        Quoted("SASRec", {"novel NDCG@10": 0.0967, "novel HR@10": 0.1803}, RECTOOLS),
        Quoted("iALS", {"novel NDCG@10": 0.0758, "novel HR@10": 0.1516}, IMPLICIT),
    ],
    "gowalla": [Quoted("iALS", {"novel Recall@20": 0.1680, "novel NDCG@20": 0.1392}, IMPLICIT)],
}
