"""A town's library whose readers choose by known rules: the second bundled sample, and the truth behind it.

    python -m tests.benchmarks.library_world --out datamodules/sample/library   # writes the tables
    python -m tests.benchmarks.library_world --run runs/library                 # the truth beside a run

A reader's next loan is drawn from one distribution over the titles that the library has by then and
that they have not read. With a probability it is the next volume of the series they just read; else
the logit of a title is a sum of the reader's taste for its genre, the title's appeal, whether its
genre is that of the loan before, whether they have read its author, and whether it is new. The truth ranks by
exactly this, so nothing can rank better but by luck.

Letters: R readers, T titles, G genres.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from tests.benchmarks.make_sample import write_table

SEED = 7
N_READERS, N_TITLES, N_AUTHORS = 1400, 1400, 220
BEGIN = pd.Timestamp("2023-01-02")
N_DAYS, DAY = 730, 24 * 60  # of loans; the minutes of a day
MEAN_LOANS, MIN_LOANS = 24, 4
SPREAD = 1.5  # of the negative binomial distribution of loans: some borrow often
NEXT_VOLUME = 0.4  # of those whose series goes on
SAME_GENRE, SAME_AUTHOR, IS_NEW = 0.8, 1.6, 0.7  # logits
NEW_DAYS = 60
TASTE, LIKED = (
    0.3,
    6,
)  # shape of a reader's taste for a genre: few each; times as much for what their age likes
APPEAL = 1.2  # standard deviation of the logits of titles

GENRES = {
    "picture books": "animals bedtime counting friends family weather",
    "children's fiction": "school friends animals magic holidays siblings",
    "young adult": "school friendship identity music first love dystopia",
    "crime": "detectives cold cases small towns forensics journalists courts",
    "thriller": "spies hackers conspiracies soldiers islands journalists",
    "fantasy": "magic dragons quests kingdoms witches maps",
    "science fiction": "space robots time travel first contact dystopia islands",
    "romance": "weddings small towns second chances holidays letters gardens",
    "historical fiction": "courts soldiers letters emigration islands siblings",
    "literary fiction": "family memory marriage emigration letters music",
    "history": "empires soldiers courts emigration maps trade",
    "nature": "gardens birds weather animals islands maps",
    "travel": "trains islands maps food deserts walking",
    "cooking": "bread gardens food family baking trade",
}
SUBJECTS_OF_TWO_WORDS = {"cold cases", "small towns", "first love", "time travel"}
SUBJECTS_OF_TWO_WORDS |= {"first contact", "second chances"}
AGES = {
    "0-9": ["picture books", "children's fiction"],
    "10-15": ["children's fiction", "young adult", "fantasy"],
    "16-29": ["young adult", "fantasy", "science fiction", "romance", "travel"],
    "30-49": ["crime", "thriller", "romance", "picture books", "cooking", "travel"],
    "50-69": ["crime", "historical fiction", "literary fiction", "history", "cooking"],
    "70+": ["crime", "history", "literary fiction", "nature", "historical fiction"],
}
FIRST_NAMES = "Ada Ben Clara David Elif Fatima Georg Hana Ivo Jana Karim Lena Milan Nora Omar Petra"
LAST_NAMES = "Abel Brandt Costa Dvorak Engel Fischer Grau Horn Ilic Jansen Klein Lund Moreau Novak"
OPENERS = "Last Silent Hidden Golden Broken Northern Borrowed Burning Winter Second Paper Long"
NOUNS = (
    "Harbour Garden Letter River Lighthouse Orchard Mirror Bridge House Map Season Voyage Key Tower"
)
NOUNS += " Ferry Station Well Clock Meadow Island Tide Lantern Gate Road Window Hill Bell Summer"
PLACES = "Elmswick Saltby Stonham Glasson Rainford Foxley Moonby Lindenau Crowley Amberton Milldale"


@dataclass(frozen=True)
class World:
    """What the rules of loans read; times are days since `BEGIN`."""

    genre_of_title: np.ndarray  # (T,)
    author_of_title: np.ndarray  # (T,)
    next_volume: np.ndarray  # (T,), -1: none
    appeal: np.ndarray  # (T,)
    bought_on_day: np.ndarray  # (T,)
    taste: np.ndarray  # (R, G)

    def probabilities(self, reader: int, titles: list[int], day: float) -> np.ndarray:
        """Return the distribution of a reader's next loan.

        Args:
            reader: row of the reader.
            titles: rows of what they have read, oldest first.
            day: the moment of the loan.

        Returns:
            (T,) probabilities; 0 of what they have read and of what is not there yet.
        """
        can_be_read = self.bought_on_day <= day
        can_be_read[titles] = False
        is_new = self.bought_on_day > np.maximum(day - NEW_DAYS, 0)
        logits = self.taste[reader, self.genre_of_title] + self.appeal + IS_NEW * is_new
        logits += SAME_AUTHOR * np.isin(self.author_of_title, self.author_of_title[titles])
        following = -1
        if titles:
            logits += SAME_GENRE * (self.genre_of_title == self.genre_of_title[titles[-1]])
            following = self.next_volume[titles[-1]]

        chances = np.where(can_be_read, np.exp(logits), 0)
        chances /= chances.sum()
        if following >= 0 and can_be_read[following]:
            chances *= 1 - NEXT_VOLUME
            chances[following] += NEXT_VOLUME
        return chances


def make(seed: int = SEED) -> tuple[World, dict[str, pd.DataFrame]]:
    """Draw the library, its readers and their loans.

    Returns:
        The rules, and the tables interactions, users and items.
    """
    rng = np.random.default_rng(seed)
    items = draw_titles(rng)
    users = draw_readers(rng)
    world = World(
        genre_of_title=pd.Categorical(items["genre"], list(GENRES)).codes.astype(int),
        author_of_title=items["author"].factorize()[0],
        next_volume=find_next_volumes(items),
        appeal=rng.normal(0, APPEAL, N_TITLES),
        bought_on_day=(items["acquired"] - BEGIN).dt.days.to_numpy(float),
        taste=draw_tastes(rng, users["age"]),
    )
    loans = draw_loans(rng, world)
    events = {
        "user_id": users["user_id"].to_numpy()[loans["reader"]],
        "item_id": items["item_id"].to_numpy()[loans["title"]],
        "datetime": loans["datetime"],
    }
    is_silent = rng.random(N_READERS) < 1 / 8  # they have not said their age
    users["age"] = users["age"].mask(is_silent)
    return world, {"interactions": pd.DataFrame(events), "users": users, "items": items}


def draw_titles(rng: np.random.Generator) -> pd.DataFrame:
    """Draw the catalogue: authors, each of one genre, write single titles and series of 3 to 6 volumes."""
    names = [f"{first} {last}" for first in FIRST_NAMES.split() for last in LAST_NAMES.split()]
    authors = rng.permutation(names)[:N_AUTHORS]
    genre_of_author = rng.choice(list(GENRES), N_AUTHORS)
    series_names = [f"{place} {noun}" for place in PLACES.split() for noun in NOUNS.split()]
    free_names = iter(rng.permutation(series_names))
    rows: list[dict[str, object]] = []
    while len(rows) < N_TITLES:
        author = int(min(rng.geometric(0.02) - 1, N_AUTHORS - 1))
        n_volumes = int(rng.integers(3, 7)) if rng.random() < 0.35 else 1
        series = str(next(free_names)) if n_volumes > 1 else None
        rows += draw_work(rng, authors[author], genre_of_author[author], series, n_volumes)

    items = pd.DataFrame(rows[:N_TITLES])
    items.insert(0, "item_id", [f"t{row:04d}" for row in range(N_TITLES)])
    is_late = rng.random(N_TITLES) < 0.25  # bought while readers borrow
    days = pd.Series(np.where(is_late, rng.integers(1, N_DAYS, N_TITLES), 0))
    work = items["series"].fillna(items["item_id"])
    days = days.groupby(work).cummax()  # no volume comes before the one before
    return items.assign(acquired=BEGIN + pd.to_timedelta(days, unit="D"))


def draw_work(
    rng: np.random.Generator, author: str, genre: str, series: str | None, n_volumes: int
) -> list[dict[str, object]]:
    """Draw a single title or the volumes of a series, which share author, genre and subjects."""
    noun, place = rng.choice(NOUNS.split()), rng.choice(PLACES.split())
    title = f"The {rng.choice(OPENERS.split())} {noun} of {place}"
    subjects = "|".join(sorted(rng.choice(split_subjects(genre), 2, replace=False)))
    year = int(rng.integers(1975, 2020))
    pages = int(rng.integers(24, 60) if genre == "picture books" else rng.integers(140, 560))
    about = {"author": author, "genre": genre, "subjects": subjects, "pages": pages}
    if series is None:
        return [{"title": title, "series": None, "year": year, **about}]
    return [
        {"title": f"{series} {volume + 1}", "series": series, "year": year + volume, **about}
        for volume in range(n_volumes)
    ]


def split_subjects(genre: str) -> list[str]:
    """Return the subjects that titles of a genre have."""
    text = GENRES[genre]
    for pair in SUBJECTS_OF_TWO_WORDS:
        text = text.replace(pair, pair.replace(" ", "_"))
    return [word.replace("_", " ") for word in text.split()]


def find_next_volumes(items: pd.DataFrame) -> np.ndarray:
    """Return the row of the volume after each title, -1 where there is none."""
    rows = pd.Series(np.arange(len(items)))
    following = rows.groupby(items["series"]).shift(-1)
    return following.fillna(-1).to_numpy(int)


def draw_readers(rng: np.random.Generator) -> pd.DataFrame:
    """Draw readers, their ages and the branches that they go to, which say nothing of their taste."""
    ages = rng.choice(list(AGES), N_READERS, p=[0.1, 0.14, 0.16, 0.26, 0.2, 0.14])
    branches = rng.choice(["Centre", "Harbour", "Hill", "Park", "Station"], N_READERS)
    users = pd.DataFrame({"user_id": [f"r{row:04d}" for row in range(N_READERS)]})
    return users.assign(age=ages, branch=branches)


def draw_tastes(rng: np.random.Generator, ages: pd.Series) -> np.ndarray:
    """Draw the logit of each genre for each reader; what their age likes is likelier."""
    liked = np.array([[genre in AGES[age] for genre in GENRES] for age in ages])
    shares = rng.gamma(np.where(liked, LIKED * TASTE, TASTE)) + 0.02
    return np.log(shares / shares.sum(axis=1, keepdims=True))


def draw_loans(rng: np.random.Generator, world: World) -> pd.DataFrame:
    """Draw each reader's loans in the order of time, no two at one minute."""
    rows = []
    for reader in range(N_READERS):
        titles: list[int] = []
        for minute in draw_minutes(rng):
            chances = world.probabilities(reader, titles, minute / DAY)
            titles.append(int(rng.choice(N_TITLES, p=chances)))
            rows.append((reader, titles[-1], minute))

    loans = pd.DataFrame(rows, columns=["reader", "title", "minute"])
    return loans.assign(datetime=BEGIN + pd.to_timedelta(loans["minute"], unit="min"))


def draw_minutes(rng: np.random.Generator) -> np.ndarray:
    """Draw the minutes of a reader's loans, ascending, in the hours in which a library is open."""
    more = MEAN_LOANS - MIN_LOANS
    n_loans = MIN_LOANS + int(rng.negative_binomial(SPREAD, SPREAD / (SPREAD + more)))
    joined = rng.integers(0, int(0.6 * N_DAYS))
    days = rng.integers(joined, N_DAYS, n_loans)
    minutes = np.sort(days * DAY + rng.integers(9 * 60, 19 * 60, n_loans))
    places = np.arange(n_loans)
    return np.maximum.accumulate(minutes - places) + places


def write(folder: Path) -> None:
    """Write the three tables."""
    _, tables = make()
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in tables.items():
        table = pa.Table.from_pandas(frame, preserve_index=False)
        write_table(pack(table), folder / f"{name}.parquet")
        print(f"{name}: {len(frame):,} rows")


def pack(table: pa.Table) -> pa.Table:
    """Store times in seconds, as UTC, and whole numbers in 32 bits."""
    for place, field in enumerate(table.schema):
        kind = field.type
        if pa.types.is_timestamp(kind) and field.name == "acquired":
            kind = pa.date32()
        elif pa.types.is_timestamp(kind):
            kind = pa.timestamp("ms", tz="UTC")
        elif pa.types.is_integer(kind):
            kind = pa.int32()
        table = table.set_column(place, field.name, table[field.name].cast(kind))
    return table


def rank_truth() -> pd.DataFrame:
    """Rank each reader's last loan by the distribution that it was drawn from.

    Returns:
        user_id, and the rank of the loan from 1 on.
    """
    world, tables = make()
    loans, items = tables["interactions"], tables["items"]
    row_of_title = dict(zip(items["item_id"], range(N_TITLES), strict=True))
    ranks = []
    for reader, (user_id, own) in enumerate(loans.groupby("user_id", sort=True)):
        titles = [row_of_title[item_id] for item_id in own["item_id"]]
        day = (own["datetime"].iloc[-1] - BEGIN) / pd.Timedelta(days=1)
        chances = world.probabilities(reader, titles[:-1], day)
        ranks.append((user_id, 1 + int((chances > chances[titles[-1]]).sum())))
    return pd.DataFrame(ranks, columns=["user_id", "rank"])


def compare(run: Path) -> None:
    """Print NDCG@10 and HR@10 of the truth beside those of a run and of its baselines."""
    ranks = rank_truth()["rank"]
    is_listed = ranks <= 10
    ndcg = np.where(is_listed, 1 / np.log2(1 + ranks), 0)
    print(f"{'the truth':20} {ndcg.mean():.4f} {is_listed.mean():.4f}  {len(ranks)} readers")
    test = json.loads((run / "metrics.json").read_text())["test"]
    for name, views in test.items():
        figures = views["novel"]
        print(f"{name:20} {figures['NDCG@10']:.4f} {figures['HR@10']:.4f}")


def main() -> None:
    """Write the sample, or compare a run with the truth."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("--out", type=Path, help="folder to write the tables into")
    work.add_argument("--run", type=Path, help="folder of a run on the sample")
    options = parser.parse_args()
    if options.out:
        write(options.out)
    else:
        compare(options.run)


if __name__ == "__main__":
    main()
