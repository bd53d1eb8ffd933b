"""CPU that a question costs the service, as a ratio to an echo of the same framework in the same run.

    OMP_NUM_THREADS=1 python tests/benchmarks/service_cost.py [--bundle DIR] [--calls 300] [--rounds 3]

Service and echo are processes of their own. One connection to each asks in turn, and their CPU time is read from the
kernel around each block, so that what else runs on the machine counts little.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from serve.recommender import Recommender  # noqa: E402
from tests.benchmarks.http_service import ECHO, ask, running  # noqa: E402
from tests.benchmarks.in_process import K, draw_requests, make_bundle  # noqa: E402

N_HISTORY, BLOCK = 20, 50


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=12_500)
    parser.add_argument("--bundle", type=Path, help="a bundle to serve in place of a random one")
    parser.add_argument("--calls", type=int, default=300, help="of each kind and round")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle or make_bundle(Path(folder), args.items)
        service = ["-m", "bascule", "serve", "--bundle", str(bundle), "--state", f"{folder}/state"]
        kinds = draw_bodies(Recommender.load(bundle))
        with running([*service, "--port"]) as port, running(["-c", ECHO]) as echo:
            for name, bodies in kinds.items():
                ratios = [compare(echo, port, bodies, args.calls) for _ in range(args.rounds + 1)]
                echo_ms, ours_ms = np.median(ratios[1:], axis=0)
                print(
                    f"{name:16s} echo {echo_ms:.2f} ms, service {ours_ms:.2f} ms of CPU, "
                    f"x {np.median([ours / theirs for theirs, ours in ratios[1:]]):.2f}",
                    flush=True,
                )


def draw_bodies(recommender: Recommender) -> dict[str, list[bytes]]:
    """Write requests of each kind, of many users in turn."""
    requests = draw_requests(recommender)
    known = requests["profile"]
    inline = [{"history": one["history"][-N_HISTORY:]} for one in requests["inline"]]
    kinds: dict[str, list[dict[str, Any]]] = {
        "known user": known,
        "history of 20": inline,
        "ids of 20": [{"history": [e["item_id"] for e in one["history"]]} for one in inline],
        "explained": [one | {"explain": True} for one in known],
    }
    return {
        name: [json.dumps(one | {"k": K}).encode() for one in bodies]
        for name, bodies in kinds.items()
    }


def compare(echo: int, port: int, bodies: list[bytes], n_calls: int) -> list[float]:
    """Return the milliseconds of CPU of a call of the echo and of the service."""
    ports = [echo, port]
    pids = [find_process(one) for one in ports]
    seconds = [0.0, 0.0]
    connections = [socket.create_connection(("127.0.0.1", one)) for one in ports]
    for start in range(0, n_calls, BLOCK):
        for side in range(2):
            begun = read_cpu(pids[side])
            for number in range(start, start + BLOCK):
                ask(connections[side], bodies[number % len(bodies)])
            seconds[side] += read_cpu(pids[side]) - begun
    for connection in connections:
        connection.close()
    return [1e3 * one / n_calls for one in seconds]


def find_process(port: int) -> int:
    """Return the child of this process whose command names a port."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if str(port).encode() in words:
                return int(entry.name)
    raise ProcessLookupError(port)


def read_cpu(pid: int) -> float:
    """Return the seconds that all threads of a process have run."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
    return total / 1e9


if __name__ == "__main__":
    main()
