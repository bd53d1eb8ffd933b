"""The service over loopback: its answers as a ratio to an echo of the same framework, its tail, and what it sheds.

    OMP_NUM_THREADS=1 python tests/benchmarks/http_service.py [--items 100000] [--rate 300] [--seconds 20]

Service and echo are processes of their own; the echo reads the same bodies as JSON and gives them back. The ratio: one
connection to each asks in turn, each request with a datetime of its own; then again beside a client that asks for 256
lists of 125 items in a loop. The tail: an open loop, so that a request that had to wait counts from when it was due.
Overload: as many requests a second as 32 connections in a closed loop have answered, times `--load`, in an open loop;
goodput is the answers in a second as a share of those of the closed loop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from serve.recommender import Recommender  # noqa: E402
from tests.benchmarks.in_process import K, draw_requests, make_bundle  # noqa: E402

N_CONNECTIONS, N_OPEN, WARM_UP, FIRST_MOMENT = 32, 400, 100, 1_700_000_000
HEAVY = {"requests": [{"user_id": user} for user in range(256)], "k": 125}
ECHO = """
import sys, uvicorn
from fastapi import FastAPI
app = FastAPI()
@app.post("/v1/recommend")
async def echo(body: dict) -> dict:
    return body
@app.get("/ready")
def ready() -> dict:
    return {}
uvicorn.run(app, port=int(sys.argv[1]), http="h11", log_level="error")
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument(
        "--rate", type=float, default=300, help="requests a second of the open loop"
    )
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--calls", type=int, default=1000, help="of each kind for the ratio")
    parser.add_argument(
        "--load",
        type=float,
        default=3,
        help="of the overload, as a multiple of what is answered",
    )
    parser.add_argument("--bundle", type=Path, help="a bundle to serve in place of a random one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle or make_bundle(Path(folder), args.items)
        service = [
            "-m",
            "bascule",
            "serve",
            "--bundle",
            str(bundle),
            "--state",
            f"{folder}/state",
            "--port",
        ]
        with running(service) as port, running(["-c", ECHO]) as echo:
            for name, requests in draw_requests(Recommender.load(bundle)).items():
                one_by_one = draw_bodies(requests, args.calls + WARM_UP, 0)
                print(
                    f"{name:8s} one connection: {describe_ratio(compare((echo, port), one_by_one))}"
                )
                with looping(port, json.dumps(HEAVY).encode()) as seconds:
                    print(
                        f"{name:8s} beside 256 x 125: {describe_ratio(compare((echo, port), one_by_one))}"
                    )
                print(
                    f"{name:8s} 256 x 125 took {1e3 * np.median(seconds):.0f} ms, {len(seconds)} times"
                )
                bodies = draw_bodies(requests, int(args.rate * args.seconds), 10**6)
                for side, where in (("echo", echo), ("recommend", port)):
                    answered = asyncio.run(hold_rate(where, bodies, args.rate, N_CONNECTIONS))[1]
                    print(f"{name:8s} {side}, {describe_times(args.rate, len(bodies), answered)}")
                print(f"{name:8s} {overload(port, requests, args.load, args.seconds)}")


@contextmanager
def running(arguments: list[str]) -> Iterator[int]:
    """Start a server on a free port, wait until it is ready, and give the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with subprocess.Popen(
        [sys.executable, *arguments, str(port)], cwd=ROOT, stderr=subprocess.DEVNULL
    ) as process:
        try:
            for _ in range(240):
                try:
                    ask(
                        socket.create_connection(("127.0.0.1", port)),
                        b"",
                        "/ready",
                        "GET",
                    )
                    break
                except OSError:
                    time.sleep(0.25)
            yield port
        finally:
            process.terminate()


def draw_bodies(requests: list[dict[str, Any]], count: int, offset: int) -> list[bytes]:
    """Write requests in turn, each at a moment of its own."""
    moments = range(FIRST_MOMENT + offset, FIRST_MOMENT + offset + count)
    return [
        json.dumps({**requests[at % len(requests)], "datetime": at, "k": K}).encode()
        for at in moments
    ]


def write_request(body: bytes, path: str = "/v1/recommend", method: str = "POST") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def ask(
    connection: socket.socket,
    body: bytes,
    path: str = "/v1/recommend",
    method: str = "POST",
) -> bytes:
    connection.sendall(write_request(body, path, method))
    head, _, rest = connection.recv(1 << 20).partition(b"\r\n\r\n")
    if b" 200 " not in head[:15]:
        raise RuntimeError((head + rest).decode())
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(rest) < length:
        rest += connection.recv(1 << 20)
    return rest


def compare(ports: tuple[int, int], bodies: list[bytes]) -> np.ndarray:
    """Ask the echo and the service in turn; return the milliseconds of both, (calls, 2), after a warm-up."""
    seconds = np.empty((len(bodies), 2))
    with ExitStack() as opened:
        connections = [
            opened.enter_context(socket.create_connection(("127.0.0.1", port))) for port in ports
        ]
        for call, body in enumerate(bodies):
            for side, connection in enumerate(connections):
                started = time.perf_counter()
                ask(connection, body)
                seconds[call, side] = time.perf_counter() - started
    return seconds[WARM_UP:] * 1e3


def describe_ratio(times: np.ndarray) -> str:
    echo, ours = np.percentile(times, [50, 99], axis=0).T
    shown = f"echo p50 {echo[0]:.2f} ms, p99 {echo[1]:.2f}; recommend p50 {ours[0]:.2f}, p99 {ours[1]:.2f}"
    return f"{shown}; p50 x {ours[0] / echo[0]:.2f}"


@contextmanager
def looping(port: int, body: bytes) -> Iterator[list[float]]:
    """Ask one thing again and again on a connection of its own; give the seconds of each answer."""
    seconds: list[float] = []
    is_over = threading.Event()

    def loop() -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            while not is_over.is_set():
                started = time.perf_counter()
                ask(connection, body)
                seconds.append(time.perf_counter() - started)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield seconds
    finally:
        is_over.set()
        thread.join()


def overload(port: int, requests: list[dict[str, Any]], load: float, seconds: float) -> str:
    """Ask for more than can be answered, and describe what is."""
    n_calls = 100 * N_CONNECTIONS
    capacity = (
        n_calls
        / asyncio.run(hold_rate(port, draw_bodies(requests, n_calls, 10**7), 1e9, N_CONNECTIONS))[0]
    )
    rate = load * capacity
    bodies = draw_bodies(requests, int(rate * seconds), 10**8)
    took, answered = asyncio.run(hold_rate(port, bodies, rate, N_OPEN))
    shown = describe_times(rate, len(bodies), answered)
    return (
        f"{capacity:.0f} a second at most; goodput {len(answered) / took / capacity:.2f} at {shown}"
    )


async def hold_rate(
    port: int, bodies: list[bytes], rate: float, n_connections: int
) -> tuple[float, np.ndarray]:
    """Send at a fixed rate, whatever comes back when.

    Return the seconds that all took, and the milliseconds of the answers since each was due, and since it was sent,
    (answers, 2).
    """
    streams: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    for _ in range(n_connections):
        streams.put_nowait(await asyncio.open_connection("127.0.0.1", port))
    loop = asyncio.get_running_loop()
    started = loop.time() + 0.1

    async def send(number: int, body: bytes) -> tuple[float, float, bool]:
        due = started + number / rate
        await asyncio.sleep(max(0.0, due - loop.time()))
        reader, writer = stream = await streams.get()
        sent = loop.time()
        writer.write(write_request(body))
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        streams.put_nowait(stream)
        return loop.time() - due, loop.time() - sent, head[9:12] == b"200"

    answers = await asyncio.gather(*(send(number, body) for number, body in enumerate(bodies)))
    seconds = loop.time() - started
    while not streams.empty():
        writer = streams.get_nowait()[1]
        writer.close()
        await writer.wait_closed()
    return seconds, 1e3 * np.array([times for *times, is_answered in answers if is_answered])


def describe_times(rate: float, n_asked: int, answered: np.ndarray) -> str:
    times = np.percentile(answered, [50, 95, 99, 100], axis=0)
    shown = ", ".join(
        f"{name} {value:.2f}"
        for name, value in zip(("p50", "p95", "p99", "max"), times[:, 0], strict=True)
    )
    shown += f", p99 since it was sent {times[2, 1]:.2f}"
    return f"{rate:.0f} a second: {shown} ms; {n_asked - len(answered)} of {n_asked} not answered"


if __name__ == "__main__":
    main()
