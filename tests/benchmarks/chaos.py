"""Everything that a service is to survive, at full size: a table of what was lost, mixed, reset or leaked.

    OMP_NUM_THREADS=1 python tests/benchmarks/chaos.py [--small] [--only "drains swaps"]

bodies      mutated bodies of all routes, on one connection
streams     raw bytes, each on a connection of their own
document    schemathesis with all its checks
kills       SIGKILL of the consumer of a stream, of the service and of Redis in turn, while events are sent
publishers  publishers that end at one step after the other
swaps       versions that are exchanged while four clients ask
loop        SIGKILL of retraining, judging and activating, which then go on
drains      SIGTERM under twelve clients

The columns: `failed` are answers from 500 on, and faults that schemathesis names; `lost` is what was acknowledged, or
was to come, and is not there; `twice` is what counts twice; `mixed` are answers or folders of no one version; `reset`
are connections that broke; `leaked` are answers, lines of the log, files or descriptors that should not be there.
Ends with status 1 if any of them is not 0.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from threading import Event, Thread
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from serve.files import place_folder  # noqa: E402
from serve.recommender import Recommender  # noqa: E402
from tests.around.killed_publisher import KILLED  # noqa: E402
from tests.http.services import NOW, TOKEN, publish_served  # noqa: E402
from tests.linear_bundle import SHOP, publish_linear  # noqa: E402
from tests.served import JSON, Server, serving  # noqa: E402
from tests.service import test_fuzz as fuzz  # noqa: E402
from tests.service.test_edge import ask_on  # noqa: E402

COLUMNS = ("failed", "lost", "twice", "mixed", "reset", "leaked")
FULL = {
    "bodies": 100_000,
    "streams": 10_000,
    "document": 60,
    "kills": 30,
    "publishers": 2,
    "swaps": 100,
    "loop": 20,
    "drains": 10,
}
SMALL = {
    "bodies": 1000,
    "streams": 100,
    "document": 5,
    "kills": 3,
    "publishers": 1,
    "swaps": 5,
    "loop": 0,
    "drains": 2,
}
N_ASKING = 4
SECONDS_BETWEEN = 2.0  # two kills, in which a process is there again
SPARE_FILES = 8  # descriptors more than at the start that are no leak
Found = dict[str, Any]  # `how many`, and the columns that the attack can tell of


def count_files(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def count_left_open(server: Server, before: int) -> int:
    """Return how many descriptors are still open more than before, once clients have gone."""
    time.sleep(1)
    return max(0, count_files(server) - before - SPARE_FILES)


def send_bodies(folder: Path, n_bodies: int) -> Found:
    rng = random.Random(n_bodies)
    found: Counter[str] = Counter(dict.fromkeys(("failed", "lost", "reset", "leaked"), 0))
    log: list[str] = []
    with fuzz.serving_with_keys(folder, log) as server:
        first = server.ask("POST", "/v1/recommend", fuzz.GOOD, fuzz.HEADERS).json["answers"]
        n_files = count_files(server)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        with closing(connection):
            for _ in range(n_bodies):
                method, path, body = fuzz.draw_call(rng)
                try:
                    connection.request(method, path, body, fuzz.HEADERS)
                    reply = connection.getresponse()
                    answer = reply.read()
                except (OSError, http.client.HTTPException):
                    found["reset"] += 1
                    connection.close()
                    continue
                found["failed"] += reply.status >= 500
                found["leaked"] += fuzz.is_echo(reply.status, answer)
        last = server.ask("POST", "/v1/recommend", fuzz.GOOD, fuzz.HEADERS).json["answers"]
        found["lost"] += first != last
        found["leaked"] += count_left_open(server, n_files)
    found["leaked"] += len(fuzz.list_leaks(log))
    return {"how many": n_bodies, **found}


def send_streams(folder: Path, n_streams: int) -> Found:
    rng = random.Random(n_streams)
    found: Counter[str] = Counter(dict.fromkeys(("failed", "lost", "leaked"), 0))
    log: list[str] = []
    with fuzz.serving_with_keys(folder, log) as server:
        first = server.ask("POST", "/v1/recommend", fuzz.GOOD, fuzz.HEADERS).json["answers"]
        n_files = count_files(server)
        for _ in range(n_streams):
            answer = fuzz.send_stream(server, fuzz.draw_stream(rng))
            status = fuzz.read_status(answer)
            found["failed"] += status >= 500
            found["leaked"] += fuzz.is_echo(status, answer)
        last = server.ask("POST", "/v1/recommend", fuzz.GOOD, fuzz.HEADERS).json["answers"]
        found["lost"] += first != last
        found["leaked"] += count_left_open(server, n_files)
    found["leaked"] += len(fuzz.list_leaks(log))
    return {"how many": n_streams, **found}


def follow_document(folder: Path, seconds: int) -> Found:
    log: list[str] = []
    with fuzz.serving_with_keys(folder, log) as server:
        command = fuzz.list_schemathesis(server, folder, seconds)
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    cases = re.search(r"([\d,]+) generated", done.stdout)
    if done.returncode:
        print(done.stdout[-6000:], file=sys.stderr)
    n_cases = int(cases[1].replace(",", "")) if cases else 0
    return {
        "how many": n_cases,
        "failed": int(done.returncode != 0 or not n_cases),
        "leaked": len(fuzz.list_leaks(log)),
    }


def kill_processes(folder: Path, n_kills: int) -> Found:
    from tests.service.killed_consumers import kill_and_count

    bundle = publish_served(folder / "run", SHOP)
    report = kill_and_count(bundle, folder, n_kills, SECONDS_BETWEEN)
    assert report["acknowledged"] > 0
    return {"how many": n_kills, "lost": report["lost"], "twice": report["twice"]}


def run_program(module: str, *words: str) -> Any:
    """Run a program of the tests that prints a report in JSON."""
    command = [sys.executable, "-m", module, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def kill_publishers(folder: Path, n_places: int) -> Found:
    """Kill publishers over a bundle and, as a second place, into a registry."""
    found: Counter[str] = Counter(dict.fromkeys(("how many", "lost", "mixed", "leaked"), 0))
    report = run_program(
        "tests.around.killed_publisher", str(folder / "bundle"), "kill", "exchange"
    )
    old, new = report["versions"]
    for step in report["found"]:
        found["how many"] += step["code"] == KILLED
        found["mixed"] += step["at_once"] not in (old, new)
        found["lost"] += step["later"] not in (old, new)
        found["leaked"] += len(set(step["left"]) - {"bundle", ".lock"})
    if n_places > 1:
        report = run_program("tests.around.killed_registry", str(folder / "registry"), "kill")
        *_, old = report["old"]
        for step in report["found"]:
            at_once = step["at_once"]
            found["how many"] += step["code"] == KILLED
            found["mixed"] += at_once["version"] not in (old, step["new"])
            found["mixed"] += at_once["reason"] is not None
            found["lost"] += step["later"]["version"] != step["new"]
            found["leaked"] += len([*at_once["left"], *step["later"]["left"]]) - 2  # the locks
    return dict(found)


class Asking(Thread):
    """Ask on and on; compare each list with that of the version that it names."""

    def __init__(self, server: Server, expected: dict[str, list[Any]], is_over: Event) -> None:
        super().__init__()
        self._server, self._expected, self._is_over = server, expected, is_over
        self.found: Counter[str] = Counter()
        self.versions: set[str] = set()
        self.start()

    def run(self) -> None:
        while not self._is_over.is_set():
            try:
                reply = self._server.ask("POST", "/v1/recommend", REQUEST)
            except OSError:
                self.found["reset"] += 1
                continue
            if reply.status != 200:
                self.found["failed" if reply.status else "reset"] += 1
                continue
            version = reply.json["version"]
            items = [item["item_id"] for item in reply.json["answers"][0]["items"]]
            self.versions.add(version)
            self.found["mixed"] += items != self._expected.get(version)


REQUEST = {"user_id": "u1", "k": 5, **NOW}


def swap_versions(folder: Path, n_swaps: int) -> Found:
    bundle = publish_served(folder / "run", SHOP, seed=3)
    other = publish_linear(folder / "other", SHOP, seed=8)
    expected = {}
    for path in (bundle, other):
        recommender = Recommender.load(path, folder / "run" / "profiles")
        (answer,) = recommender.recommend([{"user_id": "u1", **NOW}], 5)
        expected[recommender.version] = answer.item_id.tolist()
    found: Counter[str] = Counter(dict.fromkeys(("failed", "mixed", "reset", "leaked"), 0))
    authorised = JSON | {"authorization": f"Bearer {TOKEN}"}
    with serving("--bundle", bundle, variables={"BASCULE_RELOAD_TOKEN": TOKEN}) as server:
        n_files = count_files(server)
        is_over = Event()
        clients = [Asking(server, expected, is_over) for _ in range(N_ASKING)]
        try:
            for _ in range(n_swaps):
                place_folder(other, bundle)  # both change places
                reply = server.ask("POST", "/v1/reload", headers=authorised)
                found["failed"] += reply.status != 200
        finally:
            is_over.set()
            for client in clients:
                client.join()
                found.update(client.found)
        assert set().union(*(client.versions for client in clients)) == set(expected)
        found["leaked"] += count_left_open(server, n_files)
        found["failed"] += server.end() != 0
    return {"how many": n_swaps, **found}


def kill_loop(folder: Path, n_kills: int) -> Found:
    """Kill the loop at each of its seven steps, then a retraining at random moments."""
    found: Counter[str] = Counter(dict.fromkeys(("how many", "lost", "mixed", "leaked"), 0))
    report = run_program("tests.pipeline.killed_gate", str(folder / "gate"))
    whole = report["whole"]
    *kills, last = report["killed"].values()
    new, old = whole["history"]
    for kill in kills:
        found["how many"] += kill["code"] == -9
        found["mixed"] += kill["history"] not in ([old], [new, old])
        found["mixed"] += (kill["loaded"], kill["reason"]) != (kill["history"][0], None)
        found["lost"] += kill["log"] != whole["log"]
    found["lost"] += {**last, "steps": whole["steps"]} != {"code": 0, **whole}
    if n_kills:
        words = (str(folder / "runs"), "retrain", str(n_kills), "7")
        report = run_program("tests.pipeline.killed_runs", *words)
        found["how many"] += report["codes"].count(-9)
        found["lost"] += report["last"] != 0 or report["killed"] != report["whole"]
        found["leaked"] += len(report["left"])
    return dict(found)


def drain(folder: Path, n_drains: int) -> Found:
    found: Counter[str] = Counter(dict.fromkeys(("failed", "reset"), 0))
    bundle = publish_served(folder / "run", SHOP)
    for number in range(n_drains):
        workers = ("--workers", "1") if number % 2 else ()
        outcomes: list[Any] = []
        is_over = Event()
        with serving("--bundle", bundle, *workers) as server:
            threads = [
                Thread(target=ask_on, args=(server.port, place % 2 == 0, is_over, outcomes))
                for place in range(12)
            ]
            for thread in threads:
                thread.start()
            while len(outcomes) < 100:
                time.sleep(0.01)
            found["failed"] += server.end() != 0
            is_over.set()
            for thread in threads:
                thread.join(30)
        for outcome in outcomes:
            found["failed" if isinstance(outcome, int) else "reset"] += outcome != 200
    return {"how many": n_drains, **found}


ATTACKS: dict[str, Callable[[Path, int], Found]] = {
    "bodies": send_bodies,
    "streams": send_streams,
    "document": follow_document,
    "kills": kill_processes,
    "publishers": kill_publishers,
    "swaps": swap_versions,
    "loop": kill_loop,
    "drains": drain,
}


def cpu_seconds() -> float:
    """Return the CPU time of this process and of all that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a minute of it")
    parser.add_argument("--only", default=" ".join(ATTACKS), help="names of attacks")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    sizes = SMALL if options.small else FULL
    print(f"{'attack':12}{'how many':>9}", *(f"{name:>7}" for name in COLUMNS), f"{'CPU s':>7}")
    total = 0
    for name in options.only.split():
        folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        before = cpu_seconds()
        try:
            found = ATTACKS[name](folder, sizes[name])
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        cells = [f"{found.get(column, '-'):>7}" for column in COLUMNS]
        print(f"{name:12}{found['how many']:>9}", *cells, f"{cpu_seconds() - before:7.0f}")
        sys.stdout.flush()
        total += sum(found.get(column, 0) for column in COLUMNS)
        total += not found["how many"]  # an attack that did not take place

    if total:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
