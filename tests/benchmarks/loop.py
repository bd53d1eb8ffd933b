"""The loop, end to end: a shop with known tastes, fashions, new items and position bias runs for eight weeks.

    python tests/benchmarks/loop.py [--seeds 2] [--weeks 8] [--results FOLDER] [--picture docs/loop.png]

Three services are asked by the same people: one is never retrained, one each week on its log, one the same with
exploration. Some visits begin with a list, on the others people come across items without one; who found something
comes sooner again. In week 4 what both train on is broken: genres are shuffled among the items, a third of the events
are lost, or the weights are those of the first week, by turns of the seeds. Lists come from a real service over HTTP
and are confirmed as shown, what people do goes to /v1/events, `pipeline.retrain` trains on the log, judges, publishes
and activates. A seed that fails is reported and leaves the others; finished ones lie in the folder of results and are
not repeated. Exit status 1: no seed ended, or retraining is worth nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import sqlite3
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from serve.recommender import Recommender  # noqa: E402
from service.registry import Registry, publish_version  # noqa: E402
from tests.served import JSON, Server, serving  # noqa: E402
from train import main as train  # noqa: E402

from evaluation import gate  # noqa: E402
from pipeline import retrain  # noqa: E402

USERS = 400
GENRES = 8
ITEMS = 120
NEW = 12
"""Items that come each week."""
K = 8
VISITS = 2
"""Turns of a week in which a user may come."""
WITH_LIST = 0.6
"""Share of the visits that begin with a list."""
MET = 12
"""Items that people come across on a visit without one."""
COMES = 0.6
"""Chance to come in a turn."""
COMES_AGAIN = 0.9
"""The same, after a visit on which something was taken."""
WEEK = 7 * 86_400
PAST = 4
"""Weeks of data before the first."""
BROKEN = 4
"""The week of a broken training."""
BREAKS = ("shuffled genres", "lost events", "stale weights")
"""Of seeds 0, 1, 2, 3, ..."""
TRIES = 8
"""Of a request to a busy service."""
PAUSE = 1.0
"""Seconds before the second try, doubled each time."""
SEEN = 1 / np.log2(np.arange(K) + 2)
"""How many look at each slot."""
TOKEN = "a token of more than 16 characters"
FOUND = 5
"""People who took a new item from lists: it is found."""
POLICY = {
    "kind": "explore",
    "temperature": 1.0,
    "slots": 2,
    "new_items": 1.5,
    "lists_per_day": 1000,
}
SCENARIOS = ("never retrained", "retrained", "retrained, explored")
KEPT = ("name", "taken", "new_share", "weeks", "verdicts", "truths")
"""Of a scenario, in the file of results."""
WORSE = -0.05
EQUAL = 0.01
"""Of what is taken per list, by the truth: a training is worse by more than the one, equal within the other."""


class Shop:
    """People, items and what they like; weeks count from the first one of the services."""

    def __init__(self, seed: int, n_weeks: int) -> None:
        rng = np.random.default_rng(seed)
        self.seed = seed
        n_items = ITEMS + NEW * n_weeks
        self.born = np.concatenate([np.full(ITEMS, -PAST), np.repeat(np.arange(n_weeks), NEW)])
        self.genre = rng.integers(GENRES, size=n_items)
        self.quality = rng.normal(0, 0.8, n_items)
        self.taste = rng.normal(0, 1.3, (USERS, GENRES))
        self.fashion = np.cumsum(rng.normal(0, 0.45, (n_weeks + PAST, GENRES)), axis=0)
        self.start = int(time.time()) // 86_400 * 86_400 - WEEK * (n_weeks + 1)

    def like(self, week: int) -> np.ndarray:
        """Return the probability that a user takes an item they look at, (U, N)."""
        liking = self.taste[:, self.genre] + self.quality + self.fashion[week + PAST][self.genre]
        chance: np.ndarray = 1 / (1 + np.exp(2.2 - liking))
        return np.where(self.born <= week, chance, 0.0)

    def browse(self, rng: np.random.Generator, week: int, share: float) -> pd.DataFrame:
        """Return what people found without lists: of a few items each that they came across."""
        like = self.like(week)
        there = np.flatnonzero(self.born <= week)
        rows = []
        for user in np.flatnonzero(rng.random(USERS) < share):
            met = rng.choice(there, MET, replace=False)
            taken = met[rng.random(MET) < like[user, met]]
            rows += [(user, item, self.at(rng, week)) for item in taken]
        return pd.DataFrame(rows, columns=["user_id", "item_id", "datetime"])

    def meet(
        self, rng: np.random.Generator, week: int, users: Sequence[int]
    ) -> list[tuple[int, int]]:
        """Return the users and items that they took of those that they came across."""
        like = self.like(week)
        there = np.flatnonzero(self.born <= week)
        taken: list[tuple[int, int]] = []
        for user in users:
            met = rng.choice(there, MET, replace=False)
            taken += [(user, int(item)) for item in met[rng.random(MET) < like[user, met]]]
        return taken

    def at(self, rng: np.random.Generator, week: int) -> int:
        return self.start + week * WEEK + int(rng.integers(WEEK))

    def items(self, week: int) -> pd.DataFrame:
        """Return the table of the items that there are."""
        there = np.flatnonzero(self.born <= week)
        return pd.DataFrame(
            {"item_id": there, "genre": [f"genre {one}" for one in self.genre[there]]}
        )


@dataclass
class Scenario:
    """One service, its registry and what became of it."""

    name: str
    folder: Path
    runs: list[Path] = field(default_factory=list)
    taken: list[float] = field(default_factory=list)
    """Items taken per list, by week."""
    new_share: list[float] = field(default_factory=list)
    """Of the slots, by week."""
    takers: dict[int, int] = field(default_factory=dict)
    """New item -> people who took it from lists."""
    weeks: dict[int, int] = field(default_factory=dict)
    """New item -> weeks until it was found."""
    verdicts: list[str] = field(default_factory=list)
    truths: list[float] = field(default_factory=list)
    """How much more is taken from lists of each training than from those of the version in use."""
    histories: dict[int, list[int]] = field(default_factory=dict)
    """User -> items that they took, the last one last."""
    is_pleased: np.ndarray = field(default_factory=lambda: np.zeros(USERS, bool))
    """Took something the last time."""

    @property
    def registry(self) -> Registry:
        return Registry(self.folder / "registry")

    @property
    def config(self) -> Path:
        return self.folder / "shop.yaml"


def prepare(shop: Shop, scenario: Scenario, rng: np.random.Generator) -> None:
    """Write the data before the first week, train on it and publish the first version."""
    scenario.folder.mkdir(parents=True)
    past = pd.concat([shop.browse(rng, week, 0.9) for week in range(-PAST, 0)])
    past = past.sort_values("datetime")
    past.to_csv(scenario.folder / "events.csv", index=False)
    for user, item in zip(past["user_id"], past["item_id"], strict=True):
        scenario.histories.setdefault(int(user), []).append(int(item))
    shop.items(-1).to_csv(scenario.folder / "items.csv", index=False)
    data = {
        "interactions": {"path": str(scenario.folder / "events.csv")},
        "items": {"path": str(scenario.folder / "items.csv")},
        "features": {"item": {"genre": "categorical"}},
        "split": {"kind": "none"},
    }
    scenario.config.write_text(yaml.safe_dump({"data": data, "evaluation": {"baselines": []}}))
    scenario.runs.append(scenario.folder / "run")
    quietly(lambda: train(["--config", str(scenario.config), "--out", str(scenario.runs[0])]))
    publish_version(scenario.registry, scenario.runs[0] / "bundle", is_activated=True)


def run_week(
    shop: Shop, scenario: Scenario, server: Server, week: int, rng: np.random.Generator
) -> None:
    """Put the new items live, let people visit, and send what they take."""
    for item in np.flatnonzero(shop.born == week).tolist():
        columns = {"genre": f"genre {shop.genre[item]}"}
        ask(server, f"/v1/items/{item}", {"columns": columns}, "PUT")
    n_lists = n_taken = n_new = 0
    shown: dict[str, int] = {}
    for visit in range(VISITS):
        at = shop.start + week * WEEK + visit * WEEK // VISITS
        comes = rng.random(USERS) < np.where(scenario.is_pleased, COMES_AGAIN, COMES)
        has_list = rng.random(USERS) < WITH_LIST
        met = shop.meet(rng, week, np.flatnonzero(comes & ~has_list).tolist())
        events = [{"user_id": user, "item_id": item, "datetime": at + 60} for user, item in met]
        asking = np.flatnonzero(comes & has_list).tolist()
        for start in range(0, len(asking), 25):
            users = asking[start : start + 25]
            requests = [{"user_id": user, "datetime": at} for user in users]
            answer = ask(server, "/v1/recommend", {"requests": requests, "k": K})
            request_id = answer["request_id"]
            ask(server, "/v1/shown", {"request_id": request_id})
            shown[request_id] = at
            lists = [[one["item_id"] for one in each["items"]] for each in answer["answers"]]
            taken = take(shop, scenario, week, users, lists, rng)
            n_taken += len(taken)
            n_lists += len(lists)
            n_new += sum(int((shop.born[items] >= 0).sum()) for items in lists)
            for user, item in taken:
                named = {"user_id": user, "item_id": item, "request_id": request_id}
                events.append({**named, "datetime": at + 60})
        scenario.is_pleased[comes] = False
        for event in events:
            scenario.is_pleased[event["user_id"]] = True
            scenario.histories.setdefault(event["user_id"], []).append(event["item_id"])
        for first in range(0, len(events), 250):
            ask(server, "/v1/events", {"events": events[first : first + 250]})
    set_times(scenario.registry.path / "state" / "state.db", shown)
    scenario.taken.append(n_taken / n_lists)
    scenario.new_share.append(n_new / (n_lists * K))


def take(
    shop: Shop,
    scenario: Scenario,
    week: int,
    users: Sequence[int],
    lists: Sequence[Sequence[int]],
    rng: np.random.Generator,
) -> list[tuple[int, int]]:
    """Return the users and items that they took from their lists."""
    like = shop.like(week)
    taken: list[tuple[int, int]] = []
    for user, items in zip(users, lists, strict=True):
        for item, seen in zip(items, SEEN, strict=False):
            if rng.random() < like[user, item] * seen:
                taken.append((user, item))
                if shop.born[item] >= 0:
                    scenario.takers[item] = scenario.takers.get(item, 0) + 1
                    if scenario.takers[item] == FOUND:
                        scenario.weeks[item] = week - int(shop.born[item])
    return taken


def set_times(path: Path, shown: dict[str, int]) -> None:
    """Log the lists at the time of the shop: the service has logged them at that of the machine."""
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection:
        for request_id, at in shown.items():
            n_lists = 0
            while not n_lists:  # lists are written a moment after the answer
                with connection:
                    change = "UPDATE answer_rows SET datetime = ? WHERE request_id = ? AND policy != 'shown'"
                    n_lists = connection.execute(change, (at, request_id)).rowcount
                time.sleep(0 if n_lists else 0.1)


def ask(server: Server, path: str, body: Any, method: str = "POST") -> Any:
    """Ask until the service has time."""
    for number in range(TRIES):
        reply = server.ask(method, path, body)
        if reply.status != 503:
            break
        time.sleep(PAUSE * 2**number)
    if reply.status != 200:
        raise RuntimeError(reply.content.decode())
    return reply.json


def learn(shop: Shop, scenario: Scenario, server: Server, week: int) -> None:
    """Train on the log of all weeks but the last, judge by the last one, and let the service take up what passed."""
    shop.items(week).to_csv(scenario.folder / "items.csv", index=False)
    out, at = scenario.folder / f"run-{week + 2}", shop.start + week * WEEK
    broken = BREAKS[shop.seed % len(BREAKS)] if week == BROKEN else ""
    kept = break_tables(scenario, broken)
    words = {
        "--config": scenario.config,
        "--run": scenario.runs[0 if broken == "stale weights" else -1],
        "--registry": scenario.registry.path,
    }
    given = [str(word) for pair in (words | {"--out": out, "--at": at}).items() for word in pair]
    status = quietly(lambda: retrain.main(given), (0, gate.STOPPED))
    for path, content in kept.items():
        path.write_bytes(content)
    scenario.verdicts.append("passed" if status == 0 else "stopped")
    scenario.truths.append(find_truth(shop, scenario, out, week + 1))
    if status == 0:
        scenario.runs.append(out)
        reply = server.ask(
            "POST", "/v1/reload", headers=JSON | {"authorization": f"Bearer {TOKEN}"}
        )
        if reply.status != 200:
            raise RuntimeError(reply.content.decode())


def find_truth(shop: Shop, scenario: Scenario, out: Path, week: int) -> float:
    """Return how much more people take in a week from lists of a run than from those of the version in use.

    By the chances of the shop itself, for the same requests, of all who have a history; no list is shown to anybody.
    """
    like = shop.like(week)
    users = sorted(scenario.histories)
    expected = []
    for run in (out, scenario.runs[-1]):
        recommender = Recommender.load(run / "bundle")
        requests = [{"history": scenario.histories[user]} for user in users]
        lists = recommender.recommend(requests, k=K)
        items = lists.item_ids[lists.item_row].reshape(len(users), K)
        chances = like[np.array(users)[:, None], items]
        expected.append(float((chances * SEEN).sum(axis=1).mean()))
    return expected[0] / expected[1] - 1


def break_tables(scenario: Scenario, broken: str) -> dict[Path, bytes]:
    """Break a table as a join or a pipeline may; return the files as they were."""
    kept = {
        path: path.read_bytes()
        for path in (scenario.folder / "events.csv", scenario.folder / "items.csv")
    }
    rng = np.random.default_rng(0)
    if broken == "shuffled genres":
        items = pd.read_csv(scenario.folder / "items.csv")
        items.assign(genre=rng.permutation(items["genre"])).to_csv(
            scenario.folder / "items.csv", index=False
        )
    if broken == "lost events":
        events = pd.read_csv(scenario.folder / "events.csv")
        events[rng.random(len(events)) > 1 / 3].to_csv(scenario.folder / "events.csv", index=False)
    return kept


def quietly(work: Any, allowed: tuple[int, ...] = (0,)) -> int:
    """Run a command without what it prints; one that fails shows it."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = work()
        except SystemExit as end:
            status = end.code
    if status not in allowed:
        raise RuntimeError(said.getvalue())
    return int(status or 0)


@contextlib.contextmanager
def served(scenario: Scenario) -> Iterator[Server]:
    options: list[str | Path] = [
        "--registry",
        scenario.registry.path,
        "--retention-days",
        "1000",
        "--clock",
        "now",
    ]
    options += ["--profiles", scenario.runs[0] / "profiles"]
    if scenario.name == SCENARIOS[2]:
        experiment = scenario.folder / "experiment.json"
        experiment.write_text(
            json.dumps({"salt": "loop", "arms": {"all": {"share": 1, "policy": POLICY}}})
        )
        options += ["--experiment", experiment]
    with serving(*options, variables={"BASCULE_RELOAD_TOKEN": TOKEN}) as server:
        yield server


def simulate(seed: int, n_weeks: int, folder: Path) -> list[Scenario]:
    """Run all scenarios in one shop."""
    shop = Shop(seed, n_weeks)
    scenarios = [Scenario(name, folder / f"{seed}-{name[:9]}{len(name)}") for name in SCENARIOS]
    for scenario in scenarios:
        prepare(shop, scenario, np.random.default_rng(seed + 1))
        with served(scenario) as server:
            for week in range(n_weeks):
                rng = np.random.default_rng([seed, week])  # each week begins alike in all scenarios
                run_week(shop, scenario, server, week, rng)
                if scenario.name != SCENARIOS[0] and week < n_weeks - 1:
                    learn(shop, scenario, server, week)
    return scenarios


def simulate_seed(given: tuple[int, int, Path]) -> list[Scenario] | None:
    """Run a seed, unless its results are there; None where it fails."""
    seed, n_weeks, results = given
    path = results / f"{seed}-{n_weeks}.json"
    if not path.exists():
        try:
            with tempfile.TemporaryDirectory() as folder:
                ended = simulate(seed, n_weeks, Path(folder))
        except Exception:
            print(f"seed {seed} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
            return None
        path.write_text(json.dumps([{name: getattr(one, name) for name in KEPT} for one in ended]))
    found = [Scenario(folder=Path(), **facts) for facts in json.loads(path.read_text())]
    for scenario in found:
        scenario.weeks = {int(item): weeks for item, weeks in scenario.weeks.items()}
    return found


def find_share(scenario: Scenario, n_weeks: int) -> float:
    """Return the share of the new items that were found in the week they came or the next, of those old enough."""
    born = np.repeat(np.arange(n_weeks), NEW)
    items = ITEMS + np.flatnonzero(born < n_weeks - 1)
    return float(np.mean([scenario.weeks.get(item, n_weeks) <= 1 for item in items.tolist()]))


def describe(values: Sequence[float]) -> str:
    """Return the mean over seeds with twice its standard error."""
    error = 2 * np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{np.mean(values):.3f} +- {error:.3f}"


def report(found: list[list[Scenario]], n_weeks: int) -> bool:
    """Print the figures; return whether the loop did what it is for."""
    later = {
        name: [np.mean(one[place].taken[1:]) for one in found]
        for place, name in enumerate(SCENARIOS)
    }
    shares = {
        name: [find_share(one[place], n_weeks) for one in found]
        for place, name in enumerate(SCENARIOS)
    }
    frozen, retrained, explored = SCENARIOS
    print(
        f"{len(found)} seeds, {n_weeks} weeks, {USERS} people; means over seeds, +- two standard errors"
    )
    for place, name in enumerate(SCENARIOS):
        new = [float(np.mean(one[place].new_share[1:])) for one in found]
        print(
            f"{name:20s} taken per list {describe(later[name])}; new items: {describe(new)} of the slots, "
            f"{describe(shares[name])} found within two weeks"
        )
    for name in (retrained, explored):
        gains = [one / other - 1 for one, other in zip(later[name], later[frozen], strict=True)]
        print(f"{name:20s} over {frozen}: {describe(gains)}, seed by seed")
    for place in (1, 2):
        if n_weeks > BROKEN + 1:
            ends = [
                f"{BREAKS[seed % len(BREAKS)]} {one[place].verdicts[BROKEN]}"
                for seed, one in enumerate(found)
            ]
            print(f"week {BROKEN}, {SCENARIOS[place]}: {', '.join(ends)}")
    judged: list[tuple[float, str]] = []
    for one in found:
        for place in (1, 2):
            judged += zip(one[place].truths, one[place].verdicts, strict=True)
    kinds = {
        "truly better": [verdict for truth, verdict in judged if truth > EQUAL],
        "equal": [verdict for truth, verdict in judged if abs(truth) <= EQUAL],
        "worse by 1 to 5 %": [verdict for truth, verdict in judged if WORSE < truth < -EQUAL],
        "worse by 5 % and more": [verdict for truth, verdict in judged if truth <= WORSE],
    }
    for kind, verdicts in kinds.items():
        print(f"trainings that are {kind}: {verdicts.count('passed')} of {len(verdicts)} passed")
    gain = np.mean(shares[explored]) - np.mean(shares[retrained])
    print(
        f"new items are found {'earlier' if gain > 0 else 'no earlier'} with exploration ({gain:+.3f})"
    )
    return bool(np.mean(later[retrained]) > np.mean(later[frozen]))


def draw(found: list[list[Scenario]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg" if path.suffix == ".svg" else "agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    titles = ("items taken per list", "share of slots with new items")
    for axis, title, of in zip(axes, titles, ("taken", "new_share"), strict=True):
        for place, name in enumerate(SCENARIOS):
            values = np.array([getattr(one[place], of) for one in found])
            weeks = np.arange(values.shape[1])
            error = (
                2 * values.std(axis=0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
            )
            shift = 0.08 * (place - 1)  # so that bars do not hide each other
            axis.errorbar(weeks + shift, values.mean(axis=0), error, marker="o", label=name)
        axis.axvline(BROKEN, color="grey", linestyle=":")
        where = {
            "xycoords": ("data", "axes fraction"),
            "xytext": (5, 4),
            "textcoords": "offset points",
        }
        axis.annotate(
            "a training on broken data",
            (BROKEN, 0),
            fontsize=8,
            color="grey",
            **where,
        )
        axis.set(title=title, xlabel="week")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--weeks", type=int, default=8)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "loop")
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    work = [(seed, given.weeks, given.results) for seed in range(given.seeds)]
    # Each keeps one processor busy.
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        ended = list(pool.map(simulate_seed, work))
    found = [scenarios for scenarios in ended if scenarios is not None]
    if not found:
        sys.exit(1)
    is_worth_it = report(found, given.weeks)
    if given.picture:
        draw(found, given.picture)
    sys.exit(0 if is_worth_it else 1)


if __name__ == "__main__":
    main()
