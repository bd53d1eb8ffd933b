"""The service over loopback: its answers as a ratio to the same server's echo, and the tail at a fixed rate.

    OMP_NUM_THREADS=1 python tests/benchmarks/http_service.py [--items 100000] [--rate 300] [--seconds 20]

The server is another process, one worker. Its echo takes the same bodies by the same checks and gives them back.
The ratio: one connection that asks echo and recommend in turn, for a known user and for a history of 50 events; first
each request with a datetime of its own, so that nothing was kept for it, then requests that were all asked before.
The tail: an open loop, so that a request that had to wait counts from when it was due, not from when it could be
sent; echo at the same rate beside it, no request like another. Also: seconds from the start of the process until it is
ready.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

K, HISTORY, DIM = 10, 50, 64
N_CONNECTIONS = 32
WARM_UP = 100  # calls
MOST_KNOWN = 400  # questions that are asked again: the service keeps that many
FIRST_MOMENT = 1_700_000_000
ECHO, ASK = "/echo", "/v1/recommend"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=300, help="requests a second of the open loop")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--calls", type=int, default=1000, help="of each kind for the ratio")
    parser.add_argument("--bundle", type=Path, help="a bundle to serve in place of a random one")
    parser.add_argument("--kept", type=Path, help="folder to keep the bundle in, and to find it in again")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle or make_bundle(args.kept or Path(folder), args.items)
        with running(bundle) as (port, seconds):
            print(f"ready after {seconds:.2f} s")
            numbers = itertools.count()
            for name, requests in draw_requests(bundle).items():
                warm_up = draw_bodies(requests, itertools.islice(numbers, WARM_UP))
                first = draw_bodies(requests, itertools.islice(numbers, args.calls))
                known = draw_bodies(requests, range(min(len(requests), args.calls, MOST_KNOWN)))
                again = list(itertools.islice(itertools.cycle(known), args.calls))
                print(f"{name:8s} first: {compare(port, warm_up, first)}")
                print(f"{name:8s} again: {compare(port, known, again)}")
                for path in (ECHO, ASK):  # the first is what client, loopback and machine add to the tail
                    bodies = draw_bodies(requests, itertools.islice(numbers, int(args.rate * args.seconds)))
                    print(f"{name:8s} {path}, {asyncio.run(hold_rate(port, path, bodies, args.rate))}")


def make_bundle(folder: Path, n_items: int) -> Path:
    path = folder / f"http-{n_items}"
    if not (path / "bundle").exists():
        script = str(ROOT / "tests" / "benchmarks" / "synthetic.py")
        sizes = map(str, (n_items, HISTORY, DIM))
        command = [sys.executable, script, "bundle", str(path), "exclude", *sizes]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return path / "bundle"


@contextmanager
def running(bundle: Path) -> Iterator[tuple[int, float]]:
    """Start the server and give its port, and the seconds until it was ready."""
    started = time.perf_counter()
    command = [sys.executable, str(Path(__file__).with_name("echo_server.py")), str(bundle)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            line = process.stderr.readline() if process.stderr else ""
            port = int(line.rsplit(":", 1)[1])
            Caller(port).ask("/ready", b"", "GET")
            yield port, time.perf_counter() - started
        finally:
            process.terminate()


def draw_requests(bundle: Path) -> dict[str, list[dict[str, Any]]]:
    from serve.recommender import Recommender
    from tests.benchmarks.latency import write_history

    recommender = Recommender.load(bundle)
    users = recommender.profiles.user_ids.tolist()
    known = [{"user_id": user, "context": {}} for user in users]
    inline = [{"history": write_history(recommender, user), "context": {}} for user in users]
    return {"profile": known, "inline": inline}


def draw_bodies(requests: list[dict[str, Any]], numbers: Iterable[int]) -> list[bytes]:
    return [json.dumps({**at_its_moment(requests, number), "k": K}).encode() for number in numbers]


def at_its_moment(requests: list[dict[str, Any]], number: int) -> dict[str, Any]:
    """Return the request of a number, in turn and each time at another moment: no two numbers ask the same."""
    return requests[number % len(requests)] | {"datetime": FIRST_MOMENT + number}


def write_request(path: str, body: bytes, method: str = "POST") -> bytes:
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Caller:
    """One connection of a client that does as little as it can."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, path: str, body: bytes, method: str = "POST") -> bytes:
        self._socket.sendall(write_request(path, body, method))
        head, _, rest = self._read(b"").partition(b"\r\n\r\n")
        if b" 200 " not in head[:15]:
            raise RuntimeError((head + rest).decode())
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        while len(rest) < length:
            rest = self._read(rest)
        return rest

    def _read(self, before: bytes) -> bytes:
        return before + self._socket.recv(1 << 20)


def compare(port: int, before: list[bytes], bodies: list[bytes]) -> str:
    """Ask echo and recommend in turn and describe both; what is asked before does not count."""
    caller = Caller(port)
    seconds = np.empty((len(before) + len(bodies), 2))
    for call, body in enumerate([*before, *bodies]):
        for side, path in enumerate((ECHO, ASK)):
            started = time.perf_counter()
            caller.ask(path, body)
            seconds[call, side] = time.perf_counter() - started
    echo, ours = np.percentile(seconds[len(before) :] * 1e3, [50, 99], axis=0).T
    return (
        f"one connection: echo p50 {echo[0]:.2f} ms, p99 {echo[1]:.2f}; recommend p50 {ours[0]:.2f}, p99 {ours[1]:.2f};"
        f" p50 x {ours[0] / echo[0]:.2f}"
    )


async def hold_rate(port: int, path: str, bodies: list[bytes], rate: float) -> str:
    """Send at a fixed rate, whatever comes back when, and describe the times since each request was due."""
    streams: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    for _ in range(N_CONNECTIONS):
        streams.put_nowait(await asyncio.open_connection("127.0.0.1", port))
    loop = asyncio.get_running_loop()
    started = loop.time() + 0.1

    async def ask(number: int, body: bytes) -> tuple[float, int]:
        due = started + number / rate
        await asyncio.sleep(max(0.0, due - loop.time()))
        reader, writer = stream = await streams.get()
        writer.write(write_request(path, body))
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        streams.put_nowait(stream)
        return loop.time() - due, int(head[9:12])

    answers = await asyncio.gather(*(ask(number, body) for number, body in enumerate(bodies)))
    times = np.percentile([1e3 * took for took, _ in answers], [50, 95, 99, 100])
    n_failed = sum(status != 200 for _, status in answers)
    shown = ", ".join(f"{name} {value:.2f}" for name, value in zip(("p50", "p95", "p99", "max"), times, strict=True))
    return f"{rate:.0f} a second for {len(bodies) / rate:.0f} s: {shown} ms; {n_failed} of {len(bodies)} not answered"


if __name__ == "__main__":
    main()
