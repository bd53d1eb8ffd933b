"""The loop, end to end: a shop with known tastes, fashions, newcomers, new items and position bias for eight weeks.

    python tests/benchmarks/loop.py [--seeds 2] [--weeks 8] [--results FOLDER] [--page docs/loop.md]

Three services are asked by the same people: one is never retrained, one each week on its log, one the same with
exploration. Some visits begin with a list, on the others people come across items without one; who found something
comes sooner again. Most people come by other channels and never get a list; what they do goes into the log like
everything else. In week 4 what both train on is broken: each event before the week has the item of another one, a
third of these events is lost, or the weights are those of the first version, by turns of the seeds.

Lists come from a real service over HTTP and are confirmed as shown, what people do goes to /v1/events, and
`pipeline.retrain` trains on the log, judges, publishes and activates. Of each training the shop says how much more
is taken from its lists than from those of the version in use; nobody is shown any list for that.

A seed that fails is reported and leaves the others; finished ones lie in the folder of results and are not repeated.
--page writes the table between the markers of a page and draws the picture beside it. Exit status 1: no seed ended,
or retraining is worth nothing.

What no list depends on is left out: segments, the page of a report, and the compilation of graphs, which are traced
as in a quick run.
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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from evaluation.holdout import profiles_from_frame  # noqa: E402
from serve.bundle import Bundle  # noqa: E402
from serve.recommender import Recommender  # noqa: E402
from service.live_items import LiveItems  # noqa: E402
from service.registry import Registry, publish_version  # noqa: E402
from tests.benchmarks.loop_breaks import BREAKS, break_data  # noqa: E402
from tests.benchmarks.loop_report import (  # noqa: E402
    SCENARIOS,
    Outcome,
    Training,
    draw,
    report,
    write_page,
)
from tests.benchmarks.loop_shop import WEEK, Shop  # noqa: E402
from tests.served import JSON, Server, serving  # noqa: E402
from train import main as train  # noqa: E402

from evaluation import gate  # noqa: E402
from evaluation import report as run_report  # noqa: E402
from models import export  # noqa: E402
from pipeline import pack, retrain  # noqa: E402

K = 8
VISITS = 2
"""Turns of a week in which people may come."""
WITH_LIST = 0.6
"""Share of the visits that begin with a list, of people to whom lists are shown."""
BROKEN = 4
"""The week of a broken training."""
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
MODEL: dict[str, Any] = {"dim": 32, "batch_size": 256, "max_epochs": 6}
"""Of the shop's configuration: as good by validation as the defaults, in a third of the time."""
AT_ONCE = {"lists": 25, "events": 250}
"""In one request."""


@dataclass
class Service:
    """One service, its registry, and what became of it."""

    folder: Path
    outcome: Outcome
    owned: np.ndarray
    is_pleased: np.ndarray
    """Whether each person took something the last time, (U,)."""
    runs: list[Path] = field(default_factory=list)
    events: list[tuple[int, int, int]] = field(default_factory=list)
    """Person, item and time of all that was taken, oldest first."""

    @property
    def registry(self) -> Registry:
        return Registry(self.folder / "registry")

    @property
    def config(self) -> Path:
        return self.folder / "shop.yaml"

    def take(self, events: Sequence[dict[str, Any]]) -> None:
        """Remember what was taken."""
        for event in events:
            person, item = event["user_id"], event["item_id"]
            self.is_pleased[person] = True
            self.owned[person, item] = True
            self.events.append((person, item, event["datetime"]))


# ---- the first version


def open_shop(shop: Shop, folder: Path) -> pd.DataFrame:
    """Train on what was before the first week, into `folder/run`; return these events."""
    folder.mkdir(parents=True)
    past = shop.remember(np.random.default_rng(shop.seed + 1))
    config = write_tables(shop, folder, past)
    quietly(lambda: train(["--config", str(config), "--out", str(folder / "run")]))
    return past


def write_tables(shop: Shop, folder: Path, past: pd.DataFrame) -> Path:
    """Write the events before the first week, the items and the configuration; return the latter."""
    past.to_csv(folder / "events.csv", index=False)
    shop.items(-1).to_csv(folder / "items.csv", index=False)
    data = {
        "interactions": {"path": str(folder / "events.csv")},
        "items": {"path": str(folder / "items.csv")},
        "features": {"item": {"genre": "categorical"}},
        "split": {"kind": "none"},
    }
    content = {"data": data, "model": MODEL, "evaluation": {"baselines": []}}
    path = folder / "shop.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def open_service(shop: Shop, name: str, folder: Path, first: Path, past: pd.DataFrame) -> Service:
    """Publish the first version in a registry of the service's own."""
    folder.mkdir(parents=True)
    write_tables(shop, folder, past)
    owned = np.zeros((len(shop.arrives), len(shop.born)), bool)
    owned[past["user_id"], past["item_id"]] = True
    events = [tuple(map(int, row)) for row in past.itertuples(index=False)]
    nobody = np.zeros(len(shop.arrives), bool)
    service = Service(folder, Outcome(name), owned, nobody, [first], events)
    publish_version(service.registry, first / "bundle", is_activated=True)
    return service


# ---- a week


def run_week(
    shop: Shop, service: Service, server: Server, week: int, rng: np.random.Generator
) -> None:
    """Put the new items live, let people visit, and send what they take."""
    for item in np.flatnonzero(shop.born == week).tolist():
        columns = {"genre": f"genre {shop.genre[item]}"}
        ask(server, f"/v1/items/{item}", {"columns": columns}, "PUT")

    lists: list[list[int]] = []
    n_taken = 0
    shown: dict[str, int] = {}
    for visit in range(VISITS):
        at = shop.start + week * WEEK + visit * WEEK // VISITS
        comes = shop.come(rng, week, service.is_pleased)
        has_list = shop.is_listed & (rng.random(len(comes)) < WITH_LIST)
        met = shop.meet(rng, week, np.flatnonzero(comes & ~has_list).tolist(), service.owned)
        events = [{"user_id": one, "item_id": item, "datetime": at + 60} for one, item in met]

        asking = np.flatnonzero(comes & has_list).tolist()
        for start in range(0, len(asking), AT_ONCE["lists"]):
            people = asking[start : start + AT_ONCE["lists"]]
            requests = [{"user_id": one, "datetime": at} for one in people]
            answer = ask(server, "/v1/recommend", {"requests": requests, "k": K})
            request_id = answer["request_id"]
            ask(server, "/v1/shown", {"request_id": request_id})
            shown[request_id] = at
            answered = [[one["item_id"] for one in each["items"]] for each in answer["answers"]]
            lists += answered
            taken = take(shop, service, week, people, answered, rng)
            n_taken += len(taken)
            named = {"request_id": request_id, "datetime": at + 60}
            events += [{"user_id": one, "item_id": item, **named} for one, item in taken]

        service.is_pleased[comes] = False
        service.take(events)
        for first in range(0, len(events), AT_ONCE["events"]):
            ask(server, "/v1/events", {"events": events[first : first + AT_ONCE["events"]]})

    set_times(service.registry.path / "state" / "state.db", shown)
    is_new = [bool(shop.born[item] >= 0) for items in lists for item in items]
    service.outcome.taken.append(n_taken / len(lists))
    service.outcome.new_share.append(float(np.mean(is_new)))


def take(
    shop: Shop,
    service: Service,
    week: int,
    people: Sequence[int],
    lists: Sequence[Sequence[int]],
    rng: np.random.Generator,
) -> list[tuple[int, int]]:
    """Return people and the items that they took from their lists."""
    like = shop.like(week)
    outcome = service.outcome
    taken: list[tuple[int, int]] = []
    for person, items in zip(people, lists, strict=True):
        for item, seen in zip(items, SEEN, strict=False):
            if rng.random() < like[person, item] * seen:
                taken.append((person, item))
                if shop.born[item] >= 0:
                    outcome.takers[item] = outcome.takers.get(item, 0) + 1
                    if outcome.takers[item] == FOUND:
                        outcome.weeks[item] = week - int(shop.born[item])
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


# ---- a training


def learn(shop: Shop, service: Service, server: Server, week: int) -> None:
    """Train on the log of all weeks but the last, judge by the last one, and let the service take up what passed."""
    shop.items(week).to_csv(service.folder / "items.csv", index=False)
    out, at = service.folder / f"run-{week + 2}", shop.start + week * WEEK
    broken = BREAKS[shop.seed % len(BREAKS)] if week == BROKEN else ""
    table = (service.folder / "events.csv").read_bytes()
    words = {
        "--state": break_data(service.folder, service.registry.path / "state", broken, at),
        "--config": service.config,
        "--run": service.runs[0 if broken == "stale weights" else -1],
        "--registry": service.registry.path,
    }
    given = [str(word) for pair in (words | {"--out": out, "--at": at}).items() for word in pair]
    with judging_back(service.runs[-1] / "bundle") as verdicts:
        status = quietly(lambda: retrain.main(given), (0, gate.STOPPED))
    (service.folder / "events.csv").write_bytes(table)

    verdicts.append(json.loads((out / retrain.VERDICT).read_bytes()))
    truths = find_truths(shop, service, out, week)
    back, ahead = (
        Training.judged(service.outcome.name, week, broken, truths, verdict["checks"])
        for verdict in verdicts
    )
    service.outcome.trainings.append(ahead)
    if not broken:
        service.outcome.trainings.append(back.turned())
    if status == 0:
        service.runs.append(out)
        authorized = JSON | {"authorization": f"Bearer {TOKEN}"}
        reply = server.ask("POST", "/v1/reload", headers=authorized)
        if reply.status != 200:
            raise RuntimeError(reply.content.decode())


@contextlib.contextmanager
def judging_back(in_use: Path) -> Iterator[list[gate.Verdict]]:
    """Let the gate judge each training twice: the second time the version in use, as if it were to replace that one.

    So there are as many candidates that are worse as there are better trainings. This publishes nothing.
    """
    decide = gate.decide
    verdicts: list[gate.Verdict] = []

    def decide_both(options: argparse.Namespace, read: gate.Read) -> None:
        back = argparse.Namespace(**vars(options) | {"registry": None, "candidate": in_use})
        verdicts.append(gate.judge(back, Bundle.load(options.candidate), read))
        decide(options, read)

    gate.decide = decide_both
    try:
        yield verdicts
    finally:
        gate.decide = decide


def find_truths(shop: Shop, service: Service, out: Path, week: int) -> tuple[float, float]:
    """Return how much more people take from lists of a run than from those of the version in use.

    By the chances of the shop itself, with all items that are live, of all who have a history. No list is shown to
    anybody.

    Args:
        shop: knows the chances.
        service: has the version in use.
        out: folder of the run.
        week: of the test.

    Returns:
        What those to whom lists are shown take in the week after the test, and the others in that of the test.
    """
    tested = shop.start + week * WEEK
    ahead = find_change(shop, service, out, week + 1, tested + WEEK, shop.is_listed)
    return ahead, find_change(shop, service, out, week, tested, ~shop.is_listed)


def find_change(
    shop: Shop, service: Service, out: Path, week: int, at: int, is_meant: np.ndarray
) -> float:
    """Return the true change in a week, for requests of some people at a moment."""
    like = shop.like(week)
    table = pd.DataFrame(service.events, columns=["user_id", "item_id", "datetime"])
    table = table[(table["datetime"] < at) & is_meant[table["user_id"]]]
    people = np.unique(table["user_id"])
    requests = [{"user_id": one, "datetime": at} for one in people.tolist()]
    expected = []
    for run in (out, service.runs[-1]):
        bundle = Bundle.load(run / "bundle")
        profiles = profiles_from_frame(table, table[["user_id"]][:0], bundle.schema)
        path = service.registry.path / "state" / "items.db"
        recommender = LiveItems(path, Recommender(bundle, profiles)).recommender
        lists = recommender.recommend(requests, k=K)
        items = lists.item_ids[lists.item_row].reshape(len(people), K)
        expected.append(float((like[people[:, None], items] * SEEN).sum(axis=1).mean()))
    new, old = expected
    return new / old - 1


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


def leave_out() -> None:
    """Leave out what no list depends on: it takes two thirds of a small training."""
    compile_graph = export.export_graph
    pack.write_segments = lambda recommender, *_: recommender
    run_report.write_report = lambda *_: None
    export.export_graph = lambda *given: compile_graph(*given[:4], is_traced=True)


# ---- services and seeds


@contextlib.contextmanager
def served(service: Service) -> Iterator[Server]:
    options: list[str | Path] = ["--registry", service.registry.path]
    options += ["--retention-days", "1000", "--clock", "now"]
    options += ["--profiles", service.runs[0] / "profiles"]
    if service.outcome.name == SCENARIOS[2]:
        arms = {"all": {"share": 1, "policy": POLICY}}
        experiment = service.folder / "experiment.json"
        experiment.write_text(json.dumps({"salt": "loop", "arms": arms}))
        options += ["--experiment", experiment]
    with serving(*options, variables={"BASCULE_RELOAD_TOKEN": TOKEN}) as server:
        yield server


def simulate(seed: int, n_weeks: int, folder: Path) -> list[Outcome]:
    """Run all services in one shop."""
    shop = Shop(seed, n_weeks)
    past = open_shop(shop, folder / "first")
    outcomes = []
    for number, name in enumerate(SCENARIOS):
        service = open_service(shop, name, folder / str(number), folder / "first" / "run", past)
        outcomes.append(service.outcome)
        with served(service) as server:
            for week in range(n_weeks):
                rng = np.random.default_rng([seed, week])  # each week begins alike in all services
                run_week(shop, service, server, week, rng)
                if name != SCENARIOS[0] and week < n_weeks - 1:
                    learn(shop, service, server, week)
    return outcomes


def simulate_seed(given: tuple[int, int, Path]) -> list[Outcome] | None:
    """Run a seed, unless its results are there; None where it fails."""
    seed, n_weeks, results = given
    path = results / f"seed-{seed}-weeks-{n_weeks}.json"
    if not path.exists():
        try:
            with tempfile.TemporaryDirectory() as folder:
                ended = simulate(seed, n_weeks, Path(folder))
        except Exception:
            print(f"seed {seed} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
            return None
        path.write_text(json.dumps([asdict(outcome) for outcome in ended]))
    return [Outcome.read(facts) for facts in json.loads(path.read_text())]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--weeks", type=int, default=8)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--results", type=Path, default=ROOT / "runs" / "loop")
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    work = [(seed, given.weeks, given.results) for seed in range(given.seeds)]
    # Each keeps one processor busy.
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, spawned, initializer=leave_out) as pool:
        ended = list(pool.map(simulate_seed, work))
    found = [outcomes for outcomes in ended if outcomes is not None]
    if not found:
        sys.exit(1)
    is_worth_it = report(found)
    if given.page:
        write_page(found, given.page)
        draw(found, given.page.with_name("loop.png"))
    sys.exit(0 if is_worth_it else 1)


if __name__ == "__main__":
    main()
