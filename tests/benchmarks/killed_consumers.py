"""Kill the consumer of a stream, the service beside it and Redis in turn, while events are sent to both.

    OMP_NUM_THREADS=1 python tests/benchmarks/killed_consumers.py [--kills 30]

Prints how many events were acknowledged, how many of these are lost, how many the state has twice, and how fast a
consumer empties a stream that nobody kills.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import redis

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from service.remote.streams import RedisStream, consume  # noqa: E402
from service.state import StateStore  # noqa: E402
from tests.http.services import publish_served  # noqa: E402
from tests.linear_bundle import SHOP  # noqa: E402
from tests.service.killed_consumers import (  # noqa: E402
    IDS,
    Process,
    find_port,
    kill_and_count,
    wait_for,
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=2, help="between two kills")
    parser.add_argument("--events", type=int, default=50_000, help="of the fast run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = publish_served(folder / "run", SHOP)
        print(json.dumps(kill_and_count(bundle, folder, options.kills, options.seconds)))
        print(f"{measure_speed(folder, options.events):,.0f} events a second are kept")


def measure_speed(folder: Path, n_events: int) -> float:
    """Return the events a second of one consumer, of a stream that waits, one event a message."""
    port = find_port()
    server = Process("redis-server", "--save", "", "--dir", folder, "--port", port, folder=folder)
    with closing(server), redis.Redis(port=port) as client:
        time.sleep(1)
        begin = int(time.time()) - 2 * n_events
        with client.pipeline() as pipeline:
            for number in range(n_events):
                event = {
                    "user_id": f"u{number % 1009}",
                    "item_id": IDS[number % len(IDS)],
                    "datetime": begin + number,
                }
                pipeline.xadd("events", {"body": json.dumps(event)})
            pipeline.execute()

        stream = RedisStream(f"redis://localhost:{port}", "events", "bascule", "one")
        stream.join()
        stopping = threading.Event()
        with closing(StateStore(folder / "fast" / "state" / "state.db")) as store:
            work = (stream, store, lambda: SHOP, stopping)
            thread = threading.Thread(target=consume, args=work)
            started = time.perf_counter()
            thread.start()
            wait_for(lambda: client.xinfo_groups("events")[0]["lag"] == 0)
            wait_for(lambda: client.xpending("events", "bascule")["pending"] == 0)
            seconds = time.perf_counter() - started
            stopping.set()
            thread.join()
    return n_events / seconds


if __name__ == "__main__":
    main()
