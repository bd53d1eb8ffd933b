"""PostgreSQL for a state, started for a test in a folder of its own, and killed at will."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from serve.errors import SchemaError
from service.engine import ServerError
from service.remote.shared import open_remote

_POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("none"))
POSTGRES = _POSTGRES / "postgres"
_SECONDS = 30  # in which a server answers


def free_port() -> int:
    """Return a port that nobody uses."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Server:
    """PostgreSQL that keeps what it has, however it ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user is not None:
            shutil.chown(folder, self._user)
        data = str(folder / "data")
        command = [str(_POSTGRES / "initdb"), "-D", data, "-A", "trust", "-U", "me", "-N"]
        subprocess.run(command, check=True, capture_output=True, user=self._user, cwd=folder)
        self.address = f"postgresql://me@/postgres?host={folder}&port={self._port}"

    def start(self, *more: str) -> None:
        """Start the server, and wait until it answers."""
        words = ["-D", str(self._folder / "data"), "-k", str(self._folder)]
        words += ["-p", str(self._port), "-c", "listen_addresses=", *more]
        end = time.monotonic() + _SECONDS
        while not self._is_up():
            assert time.monotonic() < end
            self.process = subprocess.Popen(
                [str(POSTGRES), *words],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                user=self._user,
                cwd=self._folder,
            )
            # after a kill, what its children still hold may end it again
            while not self._is_up() and self.process.poll() is None:
                assert time.monotonic() < end
                time.sleep(0.02)

    def _is_up(self) -> bool:
        try:
            state = open_remote(self.address)
        except SchemaError:  # it answers, with settings that are refused
            return True
        state.close()
        return state.fault is None

    def kill(self) -> None:
        """Kill the server by SIGKILL."""
        self.process.kill()
        self.process.wait()


@contextmanager
def running() -> Iterator[Server]:
    """Run a server in a folder that is removed afterwards."""
    folder = Path(mkdtemp(prefix="state-"))
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        time.sleep(0.1)
        shutil.rmtree(folder, ignore_errors=True)


def retry(call: Callable[[], object], seconds: float = _SECONDS) -> object:
    """Call until the server answers."""
    end = time.monotonic() + seconds
    while True:
        try:
            return call()
        except ServerError:
            assert time.monotonic() < end
            time.sleep(0.05)
