"""Events by a stream and by HTTP into one state, while its processes are killed; used by a test and by a benchmark."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, suppress
from itertools import cycle
from threading import Event, Thread

import redis
from service.event_log import read_log
from tests.linear_bundle import SHOP, item_ids
from tests.served import ROOT, Reply, read_reply, write_request

IDS = item_ids(SHOP)
SECONDS = 60
STREAM, GROUP = "events", "bascule"
POISON = b"{no event"


def find_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def wait_for(what):
    end = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


class Process:
    """A process that is killed and started again."""

    def __init__(self, *command, folder):
        self._command, self._folder = [*map(str, command)], folder
        self._log = (folder / f"{command[-1]}.log").open("ab")
        self.start()

    def start(self):
        self.process = subprocess.Popen(self._command, cwd=ROOT, stdout=self._log, stderr=self._log)

    def kill(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        return self.process.wait(SECONDS)

    def close(self):
        self.process.kill()
        self.process.wait()
        self._log.close()


class Senders:
    """Two threads that send different events one after the other, each again until it is acknowledged."""

    def __init__(self, redis_port, http_port):
        self.acknowledged, self.n_poison = [], 0
        self._redis_port, self._http_port = redis_port, http_port
        self._begin = int(time.time()) - 200_000
        self._is_over = Event()
        sends = (self.send_to_stream, self.send_to_service)
        self.threads = [Thread(target=self.run, args=place) for place in enumerate(sends)]
        for thread in self.threads:
            thread.start()

    def run(self, place, send):
        number = place
        while not self._is_over.is_set():
            event = {
                "user_id": f"u{number % 97}",
                "item_id": IDS[number % len(IDS)],
                "datetime": self._begin + number,
            }
            while not send(json.dumps(event).encode()) and not self._is_over.is_set():
                time.sleep(0.02)
            else:
                if not self._is_over.is_set():
                    self.acknowledged.append(tuple(map(str, event.values())))
            number += 2

    def send_to_stream(self, body):
        with suppress(redis.RedisError), redis.Redis(port=self._redis_port) as client:
            if len(self.acknowledged) % 50 == 0:
                client.xadd(STREAM, {"body": POISON})
                self.n_poison += 1
            return client.xadd(STREAM, {"body": body})
        return None

    def send_to_service(self, body):
        reply = Reply(0)
        with (
            suppress(OSError),
            socket.create_connection(("127.0.0.1", self._http_port), timeout=20) as connection,
        ):
            connection.sendall(write_request("POST", "/v1/events", body))
            reply = read_reply(connection)
        return reply.status == 200 and reply.json["kept"] == 1

    def stop(self):
        self._is_over.set()
        for thread in self.threads:
            thread.join(SECONDS)


def kill_and_count(bundle, folder, n_kills, seconds_between):
    """Kill consumer, service and Redis in turn while events are sent; return what became of the events.

    Returns:
        Numbers: `acknowledged`, `lost` of these, `twice` in the state, and `poison` that was sent.
    """
    redis_port, http_port = find_port(), find_port()
    python = [sys.executable, "-m", "bascule"]
    durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    place = ["--bundle", bundle, "--state", folder / "state"]
    with ExitStack() as stack:

        def start(*command):
            process = Process(*command, folder=folder)
            stack.callback(process.close)
            return process

        server = start("redis-server", *durable, "--dir", folder, "--port", redis_port)
        address = f"BASCULE_STREAM=redis://localhost:{redis_port}"
        consumer = start("env", address, *python, "consume", *place, "--stream", STREAM)
        service = start(*python, "serve", *place, "--port", http_port)
        senders = Senders(redis_port, http_port)
        stack.callback(senders.stop)
        for _, victim in zip(range(n_kills), cycle([consumer, service, server]), strict=False):
            time.sleep(seconds_between)
            victim.kill()
            victim.start()
        time.sleep(seconds_between)
        wait_for(lambda: len(senders.acknowledged) > 0)
        senders.stop()

        client = stack.enter_context(redis.Redis(port=redis_port))

        def is_read():
            with suppress(redis.RedisError):
                groups = client.xinfo_groups(STREAM)  # none before a consumer first came
                return [(group["pending"], group["lag"]) for group in groups] == [(0, 0)]
            return False

        wait_for(is_read)
        assert consumer.kill(signal.SIGTERM) == 0

    events = read_log(folder / "state" / "state.db").events.to_pylist()
    kept = Counter((e["user_id"], e["item_id"], str(e["datetime"])) for e in events)
    return {
        "acknowledged": len(senders.acknowledged),
        "lost": sum(event not in kept for event in senders.acknowledged),
        "twice": sum(number > 1 for number in kept.values()),
        "poison": senders.n_poison,
    }
