"""The median of one call of the state, in a file and in PostgreSQL on this machine, in one run.

    OMP_NUM_THREADS=1 python tests/benchmarks/state_latency.py [--calls 500] [--events 50]

`observe` keeps one event, on disk when it returns; `recall` reads the events of a user. All engines take turns, so that
what else the machine does counts for all of them. A write of 1 kB with fsync stands beside them: what the disk takes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from service.engine import State  # noqa: E402
from service.event_log import Observation  # noqa: E402
from service.remote.shared import open_remote  # noqa: E402
from service.state import StateStore  # noqa: E402
from tests.state_servers import running  # noqa: E402

BEGIN, N_USERS = 1_700_000_000, 50


def take(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--events", type=int, default=50, help="events of a user")
    options = parser.parse_args()

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stores: dict[str, State] = {
            "sqlite": stack.enter_context(closing(StateStore(folder / "state" / "state.db")))
        }
        address = stack.enter_context(running()).address
        stores["postgres"] = stack.enter_context(closing(open_remote(address)))
        file = stack.enter_context((folder / "file").open("wb", buffering=0))

        for store in stores.values():
            for user in range(N_USERS):
                store.observe_many(
                    Observation(user, f"i{n}", "view", BEGIN + n) for n in range(options.events)
                )

        times: dict[tuple[str, str], list[float]] = {}
        for number in range(options.calls):
            event = Observation(number % N_USERS, "new", "view", BEGIN + 1000 + number)
            for name, store in stores.items():
                seconds = take(lambda store=store, event=event: store.observe_many([event]))
                times.setdefault((name, "observe"), []).append(seconds)
                user = (number + 7) % N_USERS
                seconds = take(lambda store=store, user=user: store.recall(user))
                times.setdefault((name, "recall"), []).append(seconds)
            seconds = take(lambda: (file.write(bytes(1000)), os.fsync(file.fileno())))
            times.setdefault(("disk", "fsync"), []).append(seconds)

    for (name, call), seconds in times.items():
        p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1000
        base = np.median(times["sqlite", call]) * 1000 if name != "disk" else p50
        print(
            f"{name:10} {call:8} p50 {p50:7.3f} ms  p99 {p99:7.2f} ms  {p50 / base:6.2f} x sqlite"
        )


if __name__ == "__main__":
    main()
