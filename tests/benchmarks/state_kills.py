"""Two replicas on one server of the state, all of them killed at random moments: what is lost, what counts twice.

    OMP_NUM_THREADS=1 python tests/benchmarks/state_kills.py [--kills 30] [--seed 0]

Replicas are processes of `bascule serve`; two clients send events to either of them, one or a few at a time, and send
what was not acknowledged again, as a queue does. Each kill is a SIGKILL of a replica or of the server, which is
started again.
In the end the whole log is read from the server.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack, closing
from pathlib import Path
from threading import Event, Thread
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from service.event_log import read_log  # noqa: E402
from service.remote.fetched import fetch_state  # noqa: E402
from service.remote.shared import open_remote  # noqa: E402
from tests.http.services import publish_served  # noqa: E402
from tests.linear_bundle import SHOP, UNTIL  # noqa: E402
from tests.served import JSON, serving  # noqa: E402
from tests.state_servers import Server, running  # noqa: E402

N_USERS, N_CLIENTS = 40, 2


class Replica:
    """A service that is started again after a kill."""

    def __init__(self, bundle: Path, address: str) -> None:
        self._words = ("--bundle", bundle, "--retention-days", "36000")
        self._address = address
        self.start()

    def start(self) -> None:
        self._stack = ExitStack()
        variables = {"BASCULE_STATE": self._address}
        self._server = self._stack.enter_context(serving(*self._words, variables=variables))
        self.port = self._server.port
        # a log that nobody reads would hold it up
        Thread(target=self._server.process.stderr.read, daemon=True).start()

    def kill(self) -> None:
        self._server.process.kill()
        self._stack.close()


class Client(Thread):
    """Send events until it is told to end, each until it is acknowledged."""

    def __init__(self, name: int, replicas: list[Replica], is_over: Event) -> None:
        super().__init__(daemon=True)
        self._rng = random.Random(name)
        self._name, self._replicas, self._is_over = name, replicas, is_over
        self.sent: list[tuple[str, str, int]] = []
        self.acknowledged: list[tuple[str, str, int]] = []
        self.outcomes: Counter[str] = Counter()

    def run(self) -> None:
        while not self._is_over.is_set():
            events = [self._draw() for _ in range(self._rng.choice([1, 1, 1, 4]))]
            while not self._send(events):
                if self._is_over.wait(0.05):
                    return
            self.acknowledged += [(e["user_id"], e["item_id"], e["datetime"]) for e in events]

    def _draw(self) -> dict[str, Any]:
        number = len(self.sent)
        event = {
            "user_id": f"u{self._rng.randrange(N_USERS)}",
            "item_id": f"c{self._name}-{number}",
            "event": "view",
            "datetime": UNTIL + number // 10,
        }
        self.sent.append((event["user_id"], event["item_id"], event["datetime"]))
        return event

    def _send(self, events: list[dict[str, Any]]) -> bool:
        port = self._rng.choice(self._replicas).port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            with closing(connection):
                connection.request("POST", "/v1/events", json.dumps({"events": events}), JSON)
                reply = connection.getresponse()
                reply.read()
        except (OSError, http.client.HTTPException) as error:
            self.outcomes[type(error).__name__] += 1
            return False
        self.outcomes[str(reply.status)] += 1
        return reply.status == 200


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    os.environ["OMP_NUM_THREADS"] = "1"
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    try:
        with running() as server:
            report = measure(server, folder, options.kills, options.seed)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(report, indent=1))
    if report["lost"] or report["twice"] or report["never_sent"]:
        raise SystemExit(1)


def measure(server: Server, folder: Path, n_kills: int, seed: int) -> dict[str, Any]:
    """Kill, then compare what was acknowledged with what the server has."""
    rng = random.Random(seed)
    replicas = [
        Replica(publish_served(folder / name, SHOP), server.address) for name in ("one", "two")
    ]
    is_over = Event()
    clients = [Client(name, replicas, is_over) for name in range(N_CLIENTS)]
    for client in clients:
        client.start()

    killed: Counter[str] = Counter()
    targets = {"server": server, "replica one": replicas[0], "replica two": replicas[1]}
    for _ in range(n_kills):
        time.sleep(rng.uniform(0.2, 1.5))
        name = rng.choice(["server", "server", "replica one", "replica two"])
        targets[name].kill()
        targets[name].start()
        killed[name] += 1

    time.sleep(2)
    is_over.set()
    for client in clients:
        client.join()
    for replica in replicas:
        replica.kill()

    with closing(open_remote(server.address)) as state:
        assert state.fault is None
    os.environ["BASCULE_STATE"] = server.address
    events = read_log(fetch_state(None, folder) / "state.db").events.to_pylist()
    kept = Counter((row["user_id"], row["item_id"], row["datetime"]) for row in events)
    acknowledged = {event for client in clients for event in client.acknowledged}
    sent = {event for client in clients for event in client.sent}
    return {
        "killed": dict(killed),
        "acknowledged": len(acknowledged),
        "kept": sum(kept.values()),
        "lost": len(acknowledged - set(kept)),
        "twice": sum(count > 1 for count in kept.values()),
        "never_sent": len(set(kept) - sent),
        "outcomes": dict(sum((client.outcomes for client in clients), Counter())),
    }


if __name__ == "__main__":
    main()
