"""What a good client feels of swaps, of slow clients and of hostile bodies.

    OMP_NUM_THREADS=1 python tests/benchmarks/http_trouble.py [--items 12000] [--seconds 60] [--swaps 100]

Swaps: four clients that ask one request after the other, first in peace, then while the service is exchanged between
two versions again and again; two of them ask what nobody asked before, two a dozen questions again and again. Every
answer is recomputed afterwards under the version that it names. Slow clients: 200
connections that never finish a request, made anew when they are cut off, and a good one that asks a hundred times a
second. Hostile bodies: 10,000 mutated ones, a connection each; the memory of the server before and after.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.test_http_hostile import mutate  # noqa: E402

from serve.recommendations import Answer  # noqa: E402
from serve.recommender import Recommender  # noqa: E402
from serve.versions import Registry, activate, publish_version
from tests.benchmarks.http_service import Caller, K, at_its_moment, draw_bodies, draw_requests, make_bundle  # noqa: E402
from tests.served import Server, serving, write_request  # noqa: E402

TOKEN = "a-token-of-this-benchmark"
N_PAIRS, N_SLOW, N_HOSTILE = 2, 200, 10_000
N_REPEATED = 12
PAUSE = 0.01
"""Seconds between two requests of the good client beside slow ones."""
CLOSE = 1e-4
"""Largest difference of a score: answers have six decimals, and a batch rounds otherwise than one request."""


@dataclass
class Client(threading.Thread):
    """Ask one request after the other, and keep every answer."""

    port: int
    requests: list[dict[str, Any]]
    numbers: Iterator[int]
    """Of the requests to come."""
    seconds: float
    pause: float = 0.0
    times: list[float] = field(default_factory=list)
    answers: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    """With the number of the request."""

    def __post_init__(self) -> None:
        super().__init__()
        self.start()

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        caller, end = Caller(self.port), time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            number = next(self.numbers)
            (body,) = draw_bodies(self.requests, [number])
            started = time.perf_counter()
            answer = caller.ask("/v1/recommend", body)  # raises where the status is not 200
            self.times.append(time.perf_counter() - started)
            self.answers.append((number, json.loads(answer)))
            time.sleep(self.pause)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=12_000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--kept", type=Path, help="folder to keep the bundles in, and to find them in again")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kept = args.kept or Path(folder)
        bundles = [make_bundle(kept, n_items) for n_items in (args.items, args.items - 1)]
        requests = draw_requests(bundles[1])["inline"]  # its items are in both
        numbers = itertools.count(N_REPEATED)
        registry = Registry(Path(folder) / "registry")
        versions = [publish_version(registry, bundle, keep=2, is_activated=True).version for bundle in bundles]
        by_version = dict(zip(versions, bundles, strict=True))
        with serving("--registry", registry.path, variables={"BASCULE_RELOAD_TOKEN": TOKEN}) as server:
            swap_under_load(server, registry, by_version, requests, numbers, args.seconds, args.swaps)
            bear_slow_clients(server, requests, numbers, args.seconds / 4)
            bear_hostile_bodies(server, draw_bodies(requests, range(len(requests))))


def swap_under_load(
    server: Server,
    registry: Registry,
    bundles: dict[str, Path],
    requests: list[dict[str, Any]],
    numbers: Iterator[int],
    seconds: float,
    n_swaps: int,
) -> None:
    """Compare the times in peace and while versions are exchanged, and recompute all answers."""
    load(server, requests, numbers, 2.0)  # the first ones warm up
    peace = load(server, requests, numbers, seconds)
    clients = start_clients(server, requests, numbers, seconds)
    versions, end = list(bundles), time.monotonic() + seconds
    for number in range(n_swaps):
        activate(registry, versions[number % 2])
        reply = server.ask("POST", "/v1/reload", headers={"authorization": f"Bearer {TOKEN}"})
        if reply.status != 200:
            raise SystemExit(f"reload {number} failed: {reply.content.decode()}")
        time.sleep(max(0.0, (end - time.monotonic()) / (n_swaps - number)))
    for client in clients:
        client.join()
    answers = [answer for client in clients for answer in client.answers]
    swapped = np.concatenate([client.times for client in clients[::2]])
    n_wrong = sum(count_wrong(path, version, requests, answers) for version, path in bundles.items())
    seen = {answer["version"] for _, answer in answers}
    calm, stormy = np.percentile(peace, 99) * 1e3, np.percentile(swapped, 99) * 1e3
    print(
        f"{n_swaps} swaps in {seconds:.0f} s: {len(answers)} answers of {len(seen)} versions, {n_wrong} wrong; "
        f"p99 of new questions {stormy:.1f} ms, in peace {calm:.1f} ({len(peace)} answers): x {stormy / calm:.2f}; "
        f"{count_given_again(server)} lists given again"
    )


def start_clients(
    server: Server, requests: list[dict[str, Any]], numbers: Iterator[int], seconds: float
) -> list[Client]:
    """Start clients that ask something new, and after each one that asks the same again."""
    sources = [source for _ in range(N_PAIRS) for source in (numbers, itertools.cycle(range(N_REPEATED)))]
    return [Client(server.port, requests, source, seconds) for source in sources]


def load(server: Server, requests: list[dict[str, Any]], numbers: Iterator[int], seconds: float) -> np.ndarray:
    """Ask with all clients; return the seconds of each answer to a new question."""
    clients = start_clients(server, requests, numbers, seconds)
    for client in clients:
        client.join()
    return np.concatenate([client.times for client in clients[::2]])


def count_given_again(server: Server) -> int:
    lines = server.ask("GET", "/metrics").content.decode().splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith("bascule_given_again "))))


def count_wrong(
    path: Path, version: str, requests: list[dict[str, Any]], answers: list[tuple[int, dict[str, Any]]]
) -> int:
    """Count the answers that name this version and are not what its bundle gives."""
    recommender = Recommender.load(path)
    named = [(number, answer["answers"][0]["items"]) for number, answer in answers if answer["version"] == version]
    expected = recommender.recommend([at_its_moment(requests, number) for number, _ in named], K)
    return sum(not is_same(items, one) for (_, items), one in zip(named, expected, strict=True))


def is_same(items: list[dict[str, Any]], expected: Answer) -> bool:
    """Tell whether a list is the expected one; items whose scores are next to equal may change places."""
    scores = np.array([item["score"] for item in items])
    if len(scores) != len(expected.score) or not np.allclose(scores, expected.score, atol=CLOSE):
        return False
    is_other = np.array([item["item_id"] for item in items]) != expected.item_id
    return bool((expected.score[is_other] <= expected.score[-1] + CLOSE).all() or _are_tied(expected.score, is_other))


def _are_tied(scores: np.ndarray, is_other: np.ndarray) -> bool:
    near = np.abs(np.diff(scores)) <= CLOSE
    return bool((np.append(near, False) | np.append(False, near))[is_other].all())


def bear_slow_clients(server: Server, requests: list[dict[str, Any]], numbers: Iterator[int], seconds: float) -> None:
    """Measure a good client beside slow ones."""
    with slow_clients(server.port):
        good = Client(server.port, requests, numbers, seconds, PAUSE)
        good.join()
    times = np.percentile(good.times, [50, 99, 100]) * 1e3
    print(
        f"beside {N_SLOW} slow clients: {len(good.times)} answers, p50 {times[0]:.1f} ms, p99 {times[1]:.1f}, "
        f"max {times[2]:.1f}"
    )


@contextmanager
def slow_clients(port: int) -> Iterator[None]:
    """Keep connections open that never finish a request, new ones in place of those that are cut off."""
    is_over = threading.Event()
    beginning = write_request("POST", "/v1/recommend", {"k": 3})[:-3]

    def keep_open() -> None:
        while not is_over.is_set():
            with ExitStack() as opened:
                for number in range(N_SLOW):
                    one = opened.enter_context(socket.create_connection(("127.0.0.1", port)))
                    one.sendall([b"", b"POST /v1", beginning][number % 3])
                is_over.wait(5.5)  # a little longer than they are borne

    thread = threading.Thread(target=keep_open)
    thread.start()
    try:
        time.sleep(1.0)
        yield
    finally:
        is_over.set()
        thread.join()


def bear_hostile_bodies(server: Server, bodies: list[bytes]) -> None:
    """Measure the server's memory before and after mutated bodies, the first thousand not counted."""
    rng = random.Random(0)
    statuses: dict[int, int] = {}
    before = 0.0
    for number in range(N_HOSTILE + 1000):
        if number == 1000:
            before, statuses = resident(server.process.pid), {}
        status = server.ask("POST", "/v1/recommend", mutate(rng.choice(bodies), rng)).status
        statuses[status] = statuses.get(status, 0) + 1
    after = resident(server.process.pid)
    counts = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    print(f"{N_HOSTILE} hostile bodies: {counts}; resident memory {before:.1f} MB before, {after:.1f} after")


def resident(pid: int) -> float:
    """Return the resident memory of a process in MB (Linux)."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
